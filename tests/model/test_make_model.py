"""From settings to models: names, combinations that go and do not go together, and one step of training."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from torch import nn

from loss import make_loss
from model import make_model, register_backbone
from model.backbones.resnet import RESNET_TYPES
from model.backbones.vit import VIT_SMALL, VIT_TYPES
from model.layers.heads import CLASSIFIERS
from model.summary import count
from solver import make_optimizer
from tests.model.families import MODELS
from tests.tiny import MSVIT, config
from utils.checkpoint import load_pretrained
from utils.errors import UserError
from utils.names import BACKBONES


def settings(**changes):
    return config(Path("none"), Path("none"), **changes)


def build(num_class: int = 5, camera_num: int = 3, view_num: int = 2, **changes) -> nn.Module:
    torch.manual_seed(0)
    return make_model(settings(**changes), num_class, camera_num, view_num)


IMAGES, LABELS = torch.randn(6, 3, 32, 16, generator=torch.Generator().manual_seed(0)), torch.arange(6) // 2


def step(model: nn.Module, cfg) -> float:
    """One step of training; returns the loss before it."""
    optimizer = make_optimizer(cfg, model)
    out = model.train()(IMAGES, label=LABELS, cam_label=LABELS, view_label=LABELS % 2)
    loss = sum(make_loss(cfg, 5)(out, LABELS).values())
    loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    optimizer.step()
    return loss.item()


@pytest.mark.parametrize("name", [*VIT_TYPES, VIT_SMALL])
def test_every_transformer_type_builds_with_all_parts(name):
    sizes = {"INPUT__SIZE_TRAIN": [64, 32], "INPUT__SIZE_TEST": [64, 32], "MODEL__STRIDE_SIZE": [16, 16]}
    with torch.device("meta"):
        model = build(MODEL__TRANSFORMER_TYPE=name, MODEL__JPM=True, MODEL__SIE_CAMERA=True, **sizes)
        out = model.train()(torch.empty(4, 3, 64, 32), label=torch.zeros(4, dtype=torch.long))
    assert [tuple(s.shape) for s in out.scores] == [(4, 5)] * 5
    assert model.base.sie_embed.shape == (3, 1, model.width)


@pytest.mark.parametrize("name", sorted(RESNET_TYPES))
def test_every_resnet_builds_as_a_model(name):
    with torch.device("meta"):
        model = build(MODEL__NAME=name)
        assert model.eval()(torch.empty(2, 3, 64, 32)).shape == (2, model.width)
    assert isinstance(model.bottleneck, nn.BatchNorm1d)


def test_vit_small_is_two_networks():
    with torch.device("meta"):
        widths = {
            kind: build(MODEL__TRANSFORMER_TYPE=VIT_SMALL, MODEL__VIT_SMALL=kind, INPUT__SIZE_TRAIN=[64, 32]).width
            for kind in ("transreid", "deit")
        }
    assert widths == {"transreid": 768, "deit": 384}


@pytest.mark.parametrize("sides", [(True, True), (True, False), (False, True), (False, False)])
def test_side_information_is_made_for_what_is_switched_on(sides):
    model = build(MODEL__SIE_CAMERA=sides[0], MODEL__SIE_VIEW=sides[1])
    rows = (3 if sides[0] else 1) * (2 if sides[1] else 1)
    assert getattr(model.base, "sie_embed", torch.empty(1)).shape[0] == rows


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"MODEL__STEM_CONV": True, "MODEL__STRIDE_SIZE": [12, 12]}, "MODEL.STEM_CONV.*MODEL.STRIDE_SIZE"),
        ({"MODEL__NAME": "resnet10", "MODEL__JPM": True}, "MODEL.JPM and MODEL.NAME 'resnet10'"),
        ({"MODEL__NAME": "resnet53"}, "MODEL.NAME: unknown 'resnet53', did you mean 'resnet"),
        ({"MODEL__NAME": "transfomer"}, "did you mean 'transformer'"),
        ({"MODEL__NAME": "timm:test_vitt"}, "timm has no model 'test_vitt', did you mean 'test_vit"),
        (
            {"MODEL__TRANSFORMER_TYPE": "vit_bse_patch16_224_TransReID"},
            "MODEL.TRANSFORMER_TYPE: unknown .*did you mean 'vit_base_patch16_224_TransReID'",
        ),
        ({"MODEL__ID_LOSS_TYPE": "cosfase"}, "MODEL.ID_LOSS_TYPE: unknown 'cosfase', did you mean 'cosface'"),
        ({"MODEL__JPM": True, "MODEL__SHUFFLE_GROUP": 0}, "MODEL.SHUFFLE_GROUP must be at least 1"),
        ({"MODEL__JPM": True, "MODEL__DEVIDE_LENGTH": 0}, "MODEL.DEVIDE_LENGTH between 1 and the 8 patches"),
        ({"MODEL__JPM": True, "MODEL__DEVIDE_LENGTH": 9}, "MODEL.DEVIDE_LENGTH between 1 and the 8 patches"),
        (
            {"MODEL__NAME": "timm:dla34", "MODEL__GRAD_CHECKPOINT": True},
            "MODEL.GRAD_CHECKPOINT and MODEL.NAME 'timm:dla34'",
        ),
        ({"TEST__NECK_FEAT": "behind"}, "TEST.NECK_FEAT: unknown 'behind'"),
        ({"MODEL__NAME": "resnet10", "MODEL__NECK": "bneck"}, "MODEL.NECK: unknown 'bneck'"),
        ({"INPUT__SIZE_TRAIN": [4, 16]}, "INPUT.SIZE_TRAIN"),
    ],
)
def test_what_cannot_be_built_is_told_in_one_line(changes, words):
    with pytest.raises(UserError, match=words) as caught:
        build(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"MODEL__JPM": True, "MODEL__SIE_CAMERA": True, "MODEL__SIE_VIEW": True},
        {"MODEL__JPM": True, "MODEL__ID_LOSS_TYPE": "arcface"},
        {"MODEL__JPM": True, "MODEL__SHUFFLE_GROUP": 3, "MODEL__SHIFT_NUM": 0, "MODEL__DEVIDE_LENGTH": 3},
        {"MODEL__REDUCE_FEAT_DIM": True, "MODEL__FEAT_DIM": 12, "MODEL__ID_LOSS_TYPE": "circle"},
        {"MODEL__GEM_POOLING": True, "MODEL__DROPOUT_RATE": 0.5, "MODEL__DROP_OUT": 0.1, "MODEL__ATT_DROP_RATE": 0.1},
        {"MODEL__STEM_CONV": True, "MODEL__SYNC_BN": True},
        {"MODEL__NAME": "resnet10"},
        {"MODEL__NAME": "resnet10", "MODEL__NECK": "no", "MODEL__ID_LOSS_TYPE": "amsoftmax"},
        {"MODEL__NAME": "timm:test_vit"},
        {"MODEL__NAME": "timm:test_resnet"},
        {"MODEL__NAME": "timm:test_mambaout", "TEST__NECK_FEAT": "before"},
        {"MODEL__NAME": "timm:test_vit", "MODEL__GRAD_CHECKPOINT": True},
    ],
    ids=lambda changes: "-".join(f"{k.split('__')[1]}={v}" for k, v in changes.items()) or "plain",
)
def test_one_step_trains_and_evaluation_gives_features_alike_each_time(changes):
    cfg = settings(SOLVER__BASE_LR=0.002, **changes)
    model = build(**changes)
    before = {name: p.clone() for name, p in model.named_parameters()}
    assert step(model, cfg) > 0
    moved = {name for name, p in model.named_parameters() if not torch.equal(p, before[name])}
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    assert moved and not moved & frozen
    assert {"classifier", "base"} <= {name.split(".")[0] for name in moved} | ({"base"} if model.jigsaw else set())
    assert all(name in frozen for name, _ in model.named_parameters() if "bottleneck" in name and "bias" in name)
    model.eval()
    with torch.no_grad():
        feat = model(IMAGES)
        assert torch.equal(feat, model(IMAGES)) and feat.isfinite().all()
        torch.testing.assert_close(model(IMAGES[2:3]), feat[2:3], atol=1e-5, rtol=1e-4)
    assert feat.shape == (6, model.width * len(model.suffixes))


def test_a_model_of_timm_that_knows_no_stochastic_depth_is_built_and_says_so(caplog):
    with caplog.at_level(logging.INFO, "lineup"):
        model = build(MODEL__NAME="timm:dla34").eval()
    assert model(torch.zeros(2, 3, 64, 32)).shape == (2, 512) and "MODEL.DROP_PATH does nothing" in caplog.text


def test_neck_and_dropout_touch_what_they_should():
    images = IMAGES.repeat(3, 1, 1, 1)
    no_neck = build(MODEL__NAME="resnet10", MODEL__NECK="no").eval()
    assert torch.equal(no_neck(images), no_neck.base(images))
    kept = build(MODEL__DROPOUT_RATE=0.9, MODEL__DROP_PATH=0.0).train()
    plain = build(MODEL__DROP_PATH=0.0).train()
    labels = LABELS.repeat(3)
    plain.load_state_dict(kept.state_dict())  # their first weights differ: the key is one of TransReID-SSL's
    one, two = kept(images, label=labels), plain(images, label=labels)
    torch.testing.assert_close(one.feats[0], two.feats[0])
    assert not torch.allclose(one.scores[0], two.scores[0])


def test_reduced_features_are_as_wide_everywhere():
    model = build(MODEL__REDUCE_FEAT_DIM=True, MODEL__FEAT_DIM=12, TEST__NECK_FEAT="before")
    assert model.fcneck.weight.shape == (12, 32) and model.fcneck.bias is None
    out = model.train()(IMAGES, label=LABELS)
    assert out.feats[0].shape == (6, 12) and out.scores[0].shape == (6, 5)
    torch.testing.assert_close(model.eval()(IMAGES), model.fcneck(model.base(IMAGES)))


def test_gradient_checkpointing_of_the_whole_model_gives_the_same_gradients():
    grads = []
    for checkpointed in (False, True):
        changes = {"MODEL__GRAD_CHECKPOINT": checkpointed, "MODEL__JPM": True, "MODEL__DROP_PATH": 0.3}
        model = build(**changes)
        torch.manual_seed(7)
        step(model, settings(**changes))
        grads.append([p.grad for p in model.parameters()])
    for one, two in zip(*grads, strict=True):
        assert (one is None) == (two is None)
        if one is not None:
            torch.testing.assert_close(one, two)


def test_jpm_copies_the_last_block_after_pre_trained_weights_are_in():
    model = build(MODEL__JPM=True)
    source = build(MODEL__JPM=False, MODEL__SIE_CAMERA=False).base
    for parameter in source.parameters():
        nn.init.normal_(parameter)
    report = load_pretrained(model, source.state_dict())
    assert not report.missing and not report.unexpected
    last = source.last_stage().state_dict()
    for branch in (model.b1, model.b2, model.base.last_stage()):
        assert all(torch.equal(value, last[key]) for key, value in branch.state_dict().items())
    assert model.b1[0].mlp.fc1.weight is not model.b2[0].mlp.fc1.weight


@pytest.mark.parametrize("kind", sorted(CLASSIFIERS))
@pytest.mark.parametrize("family", MODELS)
@pytest.mark.filterwarnings("error:Initializing zero-element")
def test_a_model_without_training_classes_builds_without_a_warning(family, kind):
    model = build(0, **MODELS[family] | {"MODEL__ID_LOSS_TYPE": kind})
    assert any(parameter.numel() == 0 for parameter in model.parameters())  # the classifier, or the prompts


@pytest.mark.filterwarnings("error:Initializing zero-element")
def test_the_classifier_of_msvit_builds_without_classes():
    assert build(0, **MSVIT | {"MODEL__MSVIT__HEAD": "classifier"}).classifier.out_features == 0


def test_images_of_another_size_than_the_model_are_refused_in_one_line():
    with pytest.raises(UserError, match="INPUT.SIZE_TRAIN") as caught:
        build().eval()(torch.randn(1, 3, 64, 32))
    assert "\n" not in str(caught.value)


def test_a_backbone_from_outside_is_built_by_its_name():
    class Mean(nn.Module):
        width = 3

        def forward(self, images, cam_label=None, view_label=None):
            return images.mean((2, 3))

    register_backbone("mean")(lambda cfg, camera_num, view_num: Mean())
    try:
        model = build(MODEL__NAME="mean", TEST__NECK_FEAT="before")
        torch.testing.assert_close(model.eval()(IMAGES), IMAGES.mean((2, 3)))
    finally:
        del BACKBONES["mean"]


def test_the_description_counts_parameters_and_multiply_adds():
    model = build()
    total, trained, multiply_adds = count(model, (32, 16))
    assert total == sum(p.numel() for p in model.parameters())
    assert total - trained == model.bottleneck.bias.numel()
    tokens, width = 9, 32
    block = tokens * width * width * (3 + 1 + 2 + 2) + 2 * tokens * tokens * width
    assert multiply_adds == 8 * (3 * 8 * 8) * width + 3 * block
    assert model.training


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"MODEL__POOLING": "avg_max", "MODEL__NAME": "resnet10"}, "MODEL.POOLING 'avg_max' and MODEL.NAME 'resnet10'"),
        ({"MODEL__POOLING": "None", "MODEL__NAME": "resnet10"}, "MODEL.POOLING 'None' and MODEL.NAME 'resnet10'"),
        ({"MODEL__POOLING": "max", "MODEL__NAME": "timm:resnet10t"}, "MODEL.POOLING 'max' and MODEL.NAME 'timm:"),
        ({"MODEL__POOLING": "avg", "MODEL__GEM_POOLING": True}, "MODEL.GEM_POOLING and MODEL.POOLING 'avg'"),
        ({"MODEL__POOLING": "max", "MODEL__JPM": True}, "MODEL.JPM and MODEL.POOLING 'max'"),
        ({"INPUT__SIZE_TRAIN": [36, 16]}, "INPUT.SIZE_TRAIN: 36 x 16 cannot be tiled by patches of 8 .*4 pixels over"),
        ({"MODEL__NAME": "timm:vit_small_patch14_dinov2", "INPUT__SIZE_TRAIN": [256, 128]},
         r"INPUT.SIZE_TRAIN: 256 x 128 cannot be tiled .* of 14 x 14; the nearest size that can is 252 x 126"),
    ],
)  # fmt: skip
def test_a_pooling_or_size_that_the_network_does_not_have_is_refused(tmp_path, changes, line):
    with pytest.raises(UserError, match=line):
        make_model(config(tmp_path, tmp_path, **changes), 3)


def test_auto_is_the_pooling_of_each_network(tmp_path):
    for changes in ({"MODEL__NAME": "resnet10"}, {}):
        words = {"MODEL__POOLING": "avg" if changes else "None"}
        models = [make_model(config(tmp_path, tmp_path, **changes, **more), 3) for more in ({}, words)]
        assert str(models[0]) == str(models[1])
