"""SSDViT's network: its features, the random block, the neck that sees two inputs, other backbones, files."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from configs import load_config
from model import make_model
from utils.checkpoint import load_pretrained, load_weights, require_complete
from utils.errors import UserError

SMALL = [
    "PROCESSOR.NAME", "self_distill", "MODEL.NAME", "ssdvit", "MODEL.TRANSFORMER_TYPE", "vit_micro_patch8_TransReID",
    "MODEL.STEM_CONV", True, "MODEL.STRIDE_SIZE", [8, 8], "MODEL.DROP_PATH", 0.0, "INPUT.SIZE_TRAIN", [64, 32],
    "INPUT.SIZE_TEST", [64, 32],
]  # fmt: skip
IMAGES = torch.randn(6, 3, 64, 32, generator=torch.Generator().manual_seed(0))


def build(*changes):
    torch.manual_seed(0)
    return make_model(load_config(opts=[*SMALL, *changes]), 0)


def test_training_gives_four_features_and_no_scores():
    out = build().train()(IMAGES)
    tri, rb, bn_x, bn_x_rb = out.feats
    assert out.scores == [] and {f.shape for f in out.feats} == {(6, 32)}
    for unit in (tri, bn_x, bn_x_rb):
        torch.testing.assert_close(unit.norm(dim=1), torch.ones(6))
    assert float(rb.detach().norm(dim=1).min()) > 2, "the random block's feature has no neck"


def test_a_fixed_block_is_read_and_a_free_one_is_drawn_in_every_pass_of_training():
    blocks = [build("SSD.RANDOM_BLOCK", i).train()(IMAGES).feats[1] for i in range(3)]
    assert not torch.equal(blocks[0], blocks[1]) and not torch.equal(blocks[1], blocks[2])
    model = build().train()
    random.seed(0)
    drawn = [model(IMAGES).feats[1] for _ in range(12)]
    found = {next(i for i, b in enumerate(blocks) if torch.allclose(b, d, atol=1e-5)) for d in drawn}
    assert found == {0, 1, 2}, "the last block is among those drawn"


def test_evaluation_draws_nothing_and_gives_the_feature_of_either_neck():
    after, before = build().eval(), build("TEST.NECK_FEAT", "before").eval()
    state = random.getstate()
    with torch.no_grad():
        feats = after(IMAGES), before(IMAGES)
        wanted = after.class_feature(IMAGES), before.first_neck(before.base(IMAGES))
    assert random.getstate() == state
    assert torch.equal(feats[0], wanted[0]) and torch.equal(feats[1], wanted[1])
    for feat in feats:
        torch.testing.assert_close(feat.norm(dim=1), torch.ones(6))


def test_the_second_neck_counts_the_weak_feature_first_and_the_blocks_after_it():
    model = build("SSD.RANDOM_BLOCK", 1).train()
    tri, rb = model(IMAGES).feats[:2]
    mean = 0.9 * (0.1 * tri.mean(0)) + 0.1 * rb.mean(0)
    torch.testing.assert_close(model.feat_bn.running_mean, mean.detach())
    assert int(model.feat_bn.num_batches_tracked) == 2


def test_shifts_of_the_necks_are_frozen_and_everything_else_gets_a_gradient():
    model = build().train()
    sum(f.square()[:, ::2].sum() for f in model(IMAGES).feats).backward()
    without = {name for name, p in model.named_parameters() if p.grad is None}
    assert without == {"base.bottleneck.bias", "feat_bn.bias"}


@pytest.mark.parametrize(
    "changes",
    [
        ["MODEL.NAME", "transformer"],
        ["MODEL.NAME", "transformer", "MODEL.GEM_POOLING", True, "MODEL.GRAD_CHECKPOINT", True],
        ["MODEL.NAME", "resnet10", "MODEL.STEM_CONV", False],
        ["MODEL.NAME", "torchreid_osnet_x0_25"],
        ["MODEL.NAME", "timm:vit_tiny_patch16_224"],
        ["MODEL.NAME", "ViT-micro-8", "MODEL.STEM_CONV", False, "MODEL.STRIDE_SIZE", [8, 8]],
    ],
    ids=lambda c: c[1],
)
def test_any_backbone_serves(changes):
    model = build(*changes)
    out = model.train()(IMAGES)
    assert {f.shape for f in out.feats} == {(6, model.width)}
    if model.depths == 1:  # read at its end: the same feature with and without the first neck
        torch.testing.assert_close(out.feats[0], F.normalize(F.batch_norm(out.feats[1], None, None, training=True)))
    with torch.no_grad():
        assert model.eval()(IMAGES).shape == (6, model.width)


def test_the_epsilon_of_its_layer_norms_is_its_own():
    assert {m.eps for m in build().modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-5}
    other = build("MODEL.NAME", "transformer")
    assert {m.eps for m in other.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}


def test_the_published_layout_is_read_with_its_numpy_scalar(tmp_path):
    one, other = build(), build("SSD.RANDOM_BLOCK", 0)
    with torch.no_grad():
        one.train()(IMAGES)
    state = {f"module.{k}": v for k, v in one.state_dict().items()}
    path = tmp_path / "model_best.pth.tar"
    torch.save({"state_dict": state, "epoch": 3, "best_mAP": np.float64(0.5)}, path)
    report = load_weights(other, path)
    require_complete(other, report)
    assert not report.missing and not report.unexpected
    with torch.no_grad():
        assert torch.equal(one.eval()(IMAGES), other.eval()(IMAGES))


def test_a_pre_trained_file_brings_the_trunk_and_its_heads_are_left(tmp_path):
    source, model = build(), build()
    with torch.no_grad():
        source.base.cls_token += 1
        source.base.bottleneck.weight += 1
    state = {f"backbone.{k}": v for k, v in source.base.state_dict().items()} | {"backbone.head.weight": torch.ones(3)}
    torch.save({"teacher": state, "student": {}}, tmp_path / "lup.pth")
    report = load_pretrained(model, tmp_path / "lup.pth", 2)
    assert torch.equal(model.base.cls_token, source.base.cls_token)
    assert torch.equal(model.base.bottleneck.weight, torch.ones(32)), "necks start fresh"
    assert report.unexpected == ["head.weight"] and all("bottleneck" in key for key in report.missing)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (["SSD.RANDOM_BLOCK", 3], "SSD.RANDOM_BLOCK: 3, but the backbone can be read at 3 depths"),
        (["MODEL.NAME", "resnet10", "SSD.RANDOM_BLOCK", 1], "can be read at 1 depths"),
        (["MODEL.JPM", True], "MODEL.JPM and PROCESSOR.NAME 'self_distill' cannot go together"),
        (["MODEL.SIE_CAMERA", True], "MODEL.SIE_CAMERA and PROCESSOR.NAME"),
        (["TEST.NECK_FEAT", "behind"], "TEST.NECK_FEAT: unknown 'behind'"),
        (["MODEL.NAME", "ssdvitt"], "did you mean 'ssdvit'"),
    ],
)
def test_mistakes_are_one_line(changes, line):
    with pytest.raises(UserError, match=line):
        build(*changes)
