"""Checkpoints of adapters alone: the same model with the backbone's file, refused with another, exact to resume."""

from __future__ import annotations

import pytest
import torch

from model import make_model
from processor.adapters import BASE
from processor.extractor import make_extractor
from tests.runs import Killed, assert_same_bytes, call, kill_at, weights
from tests.tiny import config, options


@pytest.fixture
def base(tmp_path, market):
    torch.manual_seed(3)
    state = make_model(config(market, tmp_path), 4).base.state_dict()
    torch.save(state, tmp_path / "base.pth")
    return tmp_path / "base.pth"


def words(market, folder, base, **more) -> list:
    shared = {"MODEL__LORA__RANK": 2, "MODEL__PRETRAIN_CHOICE": "imagenet", "MODEL__PRETRAIN_PATH": str(base)}
    return options(market, folder, **(shared | more))


def test_a_round_trip_equals_the_whole_checkpoint(market, tmp_path, base, monkeypatch, capsys):
    slim = {"MODEL__LORA__SAVE": "adapters", "MODEL__SIE_CAMERA": True}
    assert call("train", words(market, tmp_path / "all", base, MODEL__SIE_CAMERA=True)) == 0
    assert call("train", words(market, tmp_path / "slim", base, **slim)) == 0
    whole, held = weights(tmp_path / "all", 2), weights(tmp_path / "slim", 2)
    assert BASE in held and all(torch.equal(value, whole[name]) for name, value in held.items() if name != BASE)
    left_out = whole.keys() - held.keys()
    assert "base.blocks.0.attn.qkv.weight" in left_out and not any("lora" in name for name in left_out)
    assert "base.sie_embed" in held and "classifier.weight" in held  # not in the backbone's file
    path = tmp_path / "slim" / "transformer_2.pth"
    tested = words(market, tmp_path / "test", base, **slim, TEST__WEIGHT=str(path))
    assert call("test", tested) == 0
    cfg = config(market, tmp_path, **dict(zip([w.replace(".", "__") for w in tested[::2]], tested[1::2], strict=True)))
    loaded = make_extractor(cfg).model.state_dict()
    assert all(torch.equal(loaded[name], whole[name]) for name in whole if not name.startswith("classifier"))

    with monkeypatch.context() as patch:  # killed in the second epoch, and resumed
        kill_at(patch, 3)
        with pytest.raises(Killed):
            call("train", words(market, tmp_path / "again", base, **slim))
    assert call("train", words(market, tmp_path / "again", base, **slim)) == 0
    assert_same_bytes(weights(tmp_path / "again", 2), held)

    other = torch.load(base, weights_only=True)
    other["norm.bias"] += 1
    torch.save(other, tmp_path / "other.pth")
    capsys.readouterr()
    tested = words(market, tmp_path / "test2", tmp_path / "other.pth", **slim, TEST__WEIGHT=str(path))
    assert call("test", tested) == 2
    assert "were trained beside another file than MODEL.PRETRAIN_PATH" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"MODEL__LORA__RANK": 0}, "MODEL.LORA.SAVE 'adapters' and MODEL.LORA.RANK 0 cannot go together"),
        ({"MODEL__PRETRAIN_CHOICE": "no"}, "MODEL.PRETRAIN_PATH must name one"),
    ],
)
def test_keys_that_name_no_backbone_file_are_refused(changes, expected, market, tmp_path, base, capsys):
    assert call("train", words(market, tmp_path / "x", base, MODEL__LORA__SAVE="adapters", **changes)) == 2
    assert expected in capsys.readouterr().err
