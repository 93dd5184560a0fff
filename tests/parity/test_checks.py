"""The checks of the reference cases on cases that the public folder lacks: a folder with other variants must pass."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from model import make_model
from model.backbones.clip import build_clip, clip_config
from solver import make_optimizer
from tests.parity.checks import check_optimizer, counts
from tests.parity.test_svll import check_import, settings
from tests.tiny import CLIP, config, words
from utils.checkpoint import load_pretrained


@pytest.mark.parametrize(
    ("name", "stride", "positions"),
    [("ViT-micro-8", 8, "positional_embedding"), ("RN-micro", 16, "attnpool.positional_embedding")],
)
def test_an_imported_clip_has_its_positions_where_its_tower_keeps_them(name, stride, positions):
    torch.manual_seed(0)
    changes = CLIP | {"MODEL__NAME": name, "MODEL__STRIDE_SIZE": [stride, stride]}
    params = {"config": words(changes), "num_class": 3, "camera_num": 1, "view_num": 1}
    params["token_prefix_ids"] = [49406, 320, 1125, 539, 320]
    state = build_clip(name, clip_config(name), with_text=True).state_dict()
    images = torch.randn(2, 3, 64, 32)
    case = SimpleNamespace(
        name=name, params=params, rtol=1e-5, atol=1e-6, state_dict=lambda: dict(state),
        inputs=lambda: {"images": images.numpy()}, outputs=lambda: dict(expected),
    )  # fmt: skip
    model = make_model(settings(case), *counts(params)).eval()
    load_pretrained(model, state)
    with torch.no_grad():
        feat = model(images).numpy()
    ours = model.state_dict()
    expected = {
        "feat": feat,
        "token_prefix": ours["prompt_learner.token_prefix"][0, :, ::2].numpy(),
        "token_suffix_head": ours["prompt_learner.token_suffix"][0, :5].numpy(),
        "pos_embed": ours[f"image_encoder.{positions}"].numpy(),
    }
    check_import(case)
    expected["pos_embed"] = expected["pos_embed"] + np.float32(1)
    with pytest.raises(AssertionError, match="pos_embed"):
        check_import(case)


def test_an_optimizers_defaults_equal_a_list_of_the_case(tmp_path):
    cfg = config(tmp_path, tmp_path, SOLVER__OPTIMIZER_NAME="Adam", SOLVER__ADAM_BETAS=[0.9, 0.99])
    optimizer = make_optimizer(cfg, nn.Linear(2, 2))
    expected = {"class": "Adam", "defaults": {"betas": [0.9, 0.99], "eps": 1e-8, "amsgrad": False}}
    check_optimizer(optimizer, expected, "adam")
    expected["defaults"]["betas"] = [0.9, 0.999]
    with pytest.raises(AssertionError, match="betas"):
        check_optimizer(optimizer, expected, "adam")
