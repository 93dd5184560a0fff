"""The multi-crop network: grouping of crops, interpolation of positions, the head, names of published files."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model import make_model
from model.backbones.vit import interpolate_positions
from model.networks.dino import DINOHead, WeightNormLinear
from tests.tiny import config
from utils.checkpoint import backbone_state, load_weights
from utils.errors import UserError

DINO = {
    "PROCESSOR__NAME": "dino", "DATALOADER__SAMPLER": "softmax", "INPUT__SIZE_TRAIN": [32, 16], "DINO__OUT_DIM": 12,
    "DINO__CROP_HEIGHT": 16, "DINO__CROP_WIDTH": 8, "MODEL__STEM_CONV": True,
}  # fmt: skip


def build(**changes):
    torch.manual_seed(0)
    return make_model(config(Path(), Path("unused"), **DINO | changes), 1)


def test_crops_through_one_pass_are_those_of_one_pass_each():
    model = build().double().eval()
    crops = [torch.randn(2, 3, h, w).double() for h, w in ((32, 16), (32, 16), (16, 8), (32, 16), (16, 8), (16, 8))]
    calls = []
    model.backbone.register_forward_hook(lambda module, given, out: calls.append(len(out)))
    together = model(crops)
    assert calls == [4, 2, 2, 4]  # runs of equal sizes
    alone = torch.cat([model.head(model.backbone(crop)) for crop in crops])
    torch.testing.assert_close(together, alone)
    assert model(crops[0]).shape == (2, model.width) and together.shape == (12, 12)


def test_positions_keep_the_class_token_and_their_values_where_the_size_is_the_same():
    positions = torch.randn(1, 1 + 8, 5, requires_grad=True)
    assert interpolate_positions(positions, (4, 2), (4, 2)) is positions
    assert interpolate_positions(positions, [4, 2], (4, 2)) is positions
    found = interpolate_positions(positions, (4, 2), (6, 3))
    assert found.shape == (1, 19, 5) and torch.equal(found[:, 0], positions[:, 0])
    found[:, 1:].sum().backward()
    assert positions.grad[:, 1:].abs().sum() > 0
    level = torch.ones(1, 9, 5)
    torch.testing.assert_close(interpolate_positions(level, (4, 2), (3, 5)), torch.ones(1, 16, 5))


def test_only_pre_training_takes_images_of_other_sizes():
    model = build(PROCESSOR__NAME="supervised", MODEL__STEM_CONV=False)
    with pytest.raises(UserError, match="the model was built for"):
        model.base(torch.randn(1, 3, 16, 8))
    assert build(MODEL__STEM_CONV=False)(torch.randn(1, 3, 16, 8)).shape == (1, 32)


def test_prototypes_have_the_length_that_the_layer_says():
    layer = WeightNormLinear(6, 4)
    x = torch.randn(3, 6)
    theirs = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(6, 4, bias=False))
    theirs.load_state_dict(
        {"parametrizations.weight.original0": layer.weight_g, "parametrizations.weight.original1": layer.weight_v}
    )
    torch.testing.assert_close(layer(x), theirs(x))
    with torch.no_grad():
        layer.weight_v.mul_(7)
    torch.testing.assert_close(layer(x), theirs(x))
    assert float(layer(x / x.norm(dim=1, keepdim=True)).detach().abs().max()) <= 1


@pytest.mark.parametrize("use_bn", [False, True])
@pytest.mark.parametrize("norm_last_layer", [False, True])
def test_the_head_has_the_published_names(use_bn, norm_last_layer):
    head = DINOHead(8, 5, use_bn, norm_last_layer)
    linear, norms = ((0, 3, 6), (1, 4)) if use_bn else ((0, 2, 4), ())
    wanted = {f"mlp.{i}.{leaf}" for i in (*linear, *norms) for leaf in ("weight", "bias")}
    assert {name for name, _ in head.named_parameters()} == wanted | {"last_layer.weight_g", "last_layer.weight_v"}
    assert head.last_layer.weight_g.requires_grad is not norm_last_layer
    assert head.last_layer.weight_g.eq(1).all() and head.mlp[0].bias.eq(0).all()
    assert head.mlp[0].weight.shape == (2048, 8) and head.last_layer.weight_v.shape == (5, 256)


def test_files_of_every_layout_load_whole():
    model = build()
    state = model.state_dict()
    later = {
        "head.last_layer.weight_g": "head.last_layer.parametrizations.weight.original0",
        "head.last_layer.weight_v": "head.last_layer.parametrizations.weight.original1",
    }
    layouts = {
        "as it is": state,
        "several processes": {"student": {}, "teacher": {f"module.{k}": v for k, v in state.items()}, "epoch": 3},
        "later spelling": {later.get(k, k): v for k, v in state.items()},
    }
    for name, layout in layouts.items():
        other = build()
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        report = load_weights(other, layout)
        assert not report.missing and not report.unexpected, f"{name}: {report}"
        assert all(torch.equal(v, other.state_dict()[k]) for k, v in state.items()), name
    bare = backbone_state({"teacher": {f"module.{k}": v for k, v in state.items()}})
    assert set(bare) == set(model.backbone.state_dict())
    report = load_weights(build(), bare)
    assert not report.unexpected and all(key.startswith("head.") for key in report.missing)


@pytest.mark.parametrize("name", ["resnet10", "timm:test_resnet"])
def test_other_backbones_take_crops_as_well(name):
    model = build(MODEL__NAME=name)
    assert model([torch.randn(2, 3, 32, 16), torch.randn(2, 3, 16, 8)]).shape == (4, 12)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"DINO__CROP_HEIGHT": 20}, "DINO.CROP_HEIGHT, DINO.CROP_WIDTH: 20 x 8 cannot be tiled by patches of 8 at"),
        ({"DINO__CROP_WIDTH": 4}, "16 x 4 cannot be tiled"),
        ({"INPUT__SIZE_TRAIN": [36, 16]}, "INPUT.SIZE_TRAIN: 36 x 16 cannot be tiled"),
        ({"MODEL__JPM": True}, "MODEL.JPM and PROCESSOR.NAME 'dino'"),
        ({"MODEL__NAME": "ViT-B-16"}, "PROCESSOR.NAME 'dino' and MODEL.NAME 'ViT-B-16'"),
    ],
)
def test_what_cannot_be_pre_trained_is_told_in_one_line(changes, words):
    with pytest.raises(UserError, match=words) as caught:
        build(**changes)
    assert "\n" not in str(caught.value)
