"""A size that the network cannot take is refused before any work, with its key."""

from __future__ import annotations

from pathlib import Path

import pytest

from model import make_model
from model.summary import require_size
from tests.tiny import CLIP, MSVIT, config
from utils.errors import UserError

FAMILIES = {
    "ViT": {}, "stem": {"MODEL__STEM_CONV": True}, "ResNet": {"MODEL__NAME": "resnet10"},
    "OSNet": {"MODEL__NAME": "torchreid_osnet_x0_25"}, "timm": {"MODEL__NAME": "timm:test_vit"}, "CLIP": CLIP,
    "Swin": {"MODEL__TRANSFORMER_TYPE": "swin_micro_patch4"}, "MSViT": MSVIT,
}  # fmt: skip


@pytest.mark.parametrize("changes", FAMILIES.values(), ids=list(FAMILIES))
@pytest.mark.parametrize("size", [(1, 1), (2, 1), (4, 4), (7, 7), (33, 17)])
def test_a_size_is_taken_or_refused_with_its_key(changes, size):
    model = make_model(config(Path("none"), Path("none"), **changes), 3)
    try:
        require_size(model, "INPUT.SIZE_TEST", size)
    except UserError as error:
        assert "INPUT.SIZE_TEST" in str(error) or "INPUT.SIZE_TRAIN" in str(error)
    else:
        assert min(size) > 1 or "MODEL__NAME" not in changes


def test_a_map_that_pooling_leaves_nothing_of_is_refused():
    model = make_model(config(Path("none"), Path("none"), MODEL__NAME="resnet10"), 3)
    require_size(model, "INPUT.SIZE_TRAIN", (32, 16))
    with pytest.raises(UserError, match="^INPUT.SIZE_TRAIN: the network cannot take images of 1 x 1, .*too small"):
        require_size(model, "INPUT.SIZE_TRAIN", (1, 1))
