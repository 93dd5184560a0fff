"""Rates that decay from the last layer to the first, and parameters that a run leaves as they are."""

from __future__ import annotations

import pytest

from configs import load_config
from configs.conflicts import refuse_training_conflicts
from model import make_model
from model.freezing import freeze_matching
from solver import make_optimizer
from tests.model.families import MODELS, OF_METHODS
from tests.tiny import config
from utils.errors import UserError
from utils.layered import layers_of
from utils.methods import method_of

KNOWN = ("vit", "jpm", "timm vit", "timm convnext", "timm swin", "resnet", "clip vit", "clip baseline", "swin",
         "solider", "pass", "ssdvit", "cluster encoder", "cluster encoder clip")  # fmt: skip
UNKNOWN = ("osnet", "clip rn", "msvit")
FAMILIES = MODELS | OF_METHODS


def build(tmp_path, name, **more):
    cfg = config(tmp_path, tmp_path, **FAMILIES[name], **more)
    return cfg, make_model(cfg, 5, 3, 2)


@pytest.mark.parametrize("name", KNOWN)
def test_every_layer_has_parameters_and_no_parameter_two_layers(name, tmp_path):
    _, model = build(tmp_path, name)
    layers = layers_of(model)
    names = [name for name, _ in model.named_parameters()]
    for own in layers:
        assert any(name.startswith(own) for name in names), own
    assert all(sum(name.startswith(own) for own in layers) <= 1 for name in names)
    assert any(name.startswith(layers[0]) and "embed" in name or "conv1" in name or "stem" in name for name in names)


def test_rates_fall_from_the_head_to_the_patches(tmp_path):
    cfg, model = build(tmp_path, "vit", SOLVER__LAYER_DECAY=0.5, SOLVER__BASE_LR=0.8, SOLVER__BIAS_LR_FACTOR=2)
    optimizer, names = make_optimizer(cfg, model), {id(p): n for n, p in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert len(model.base.blocks) == 3
    expected = {
        "classifier.weight": 0.8, "bottleneck.weight": 0.8, "base.norm.weight": 0.8, "base.blocks.2.norm1.weight": 0.4,
        "base.blocks.2.norm1.bias": 0.8, "base.blocks.0.attn.qkv.weight": 0.1, "base.cls_token": 0.05,
        "base.pos_embed": 0.05, "base.patch_embed.proj.weight": 0.05, "base.patch_embed.proj.bias": 0.1,
    }  # fmt: skip
    assert {name: rates[name] for name in expected} == pytest.approx(expected)


def test_jigsaw_copies_learn_at_the_rate_of_the_last_block(tmp_path):
    cfg, model = build(tmp_path, "jpm", SOLVER__LAYER_DECAY=0.5, SOLVER__BASE_LR=1.0)
    optimizer, names = make_optimizer(cfg, model), {id(p): n for n, p in model.named_parameters()}
    rates = {names[id(p)]: group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert (rates["b1.0.norm1.weight"], rates["b2.0.mlp.fc1.weight"], rates["b1.1.weight"]) == (0.5, 0.5, 1.0)


@pytest.mark.parametrize("name", UNKNOWN)
def test_a_network_without_known_layers_is_refused(name, tmp_path):
    cfg, model = build(tmp_path, name, SOLVER__LAYER_DECAY=0.5)
    with pytest.raises(UserError, match="SOLVER.LAYER_DECAY 0.5: MODEL.NAME .* set it to 1"):
        make_optimizer(cfg, model)
    cfg, model = build(tmp_path, name)
    make_optimizer(cfg, model)


def test_pre_training_has_rates_of_its_own(tmp_path):
    cfg = config(tmp_path, tmp_path, **OF_METHODS["multi crop"], SOLVER__LAYER_DECAY=0.5)
    with pytest.raises(UserError, match="SOLVER.LAYER_DECAY 0.5 and PROCESSOR.NAME 'dino'"):
        refuse_training_conflicts(cfg, method_of(cfg))


def test_what_matches_a_pattern_is_not_trained(tmp_path):
    cfg, model = build(tmp_path, "vit", SOLVER__FREEZE=["base.patch_embed.*", "base.blocks.[01].*"])
    freeze_matching(model, cfg.SOLVER.FREEZE)
    frozen = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    starts = ("base.patch_embed.", "base.blocks.0.", "base.blocks.1.", "bottleneck.bias")
    assert frozen == {name for name, _ in model.named_parameters() if name.startswith(starts)}
    trained = {id(p) for group in make_optimizer(cfg, model).param_groups for p in group["params"]}
    assert trained == {id(p) for p in model.parameters() if p.requires_grad}


@pytest.mark.parametrize(
    ("patterns", "words"),
    [
        (["base.blocks.0.*", "base.block.*"], "SOLVER.FREEZE: 'base.block.*' matches no parameter; names are such as"),
        (["*"], "SOLVER.FREEZE: '\\*' match all parameters; nothing is left to train"),
    ],
)
def test_a_pattern_that_freezes_nothing_or_everything_is_refused(patterns, words, tmp_path):
    _, model = build(tmp_path, "vit")
    with pytest.raises(UserError, match=words):
        freeze_matching(model, patterns)


def test_one_pattern_may_stand_alone():
    assert load_config(opts=["SOLVER.FREEZE", "base.*"]).SOLVER.FREEZE == ("base.*",)
