"""Where a network looks: the weights are those it uses, the maps those it makes."""

from __future__ import annotations

import pytest
import torch
from timm.layers import Attention
from torch import nn

from model import make_model
from model.backbones.vit import ScaleQuery
from model.base import TokenLayout
from tests.model.families import MODELS
from tests.tiny import config
from tools.pages.attention_maps import (
    attentions,
    channel_energy,
    last_attention,
    last_map,
    roll_out,
)
from tools.pages.attention_maps import timm_weights as of_timm
from tools.pages.attention_maps import torch_weights as of_torch

TRANSFORMERS = {"vit": 3, "jpm": 3, "clip vit": 3, "clip vit jpm": 3, "timm vit": 12}
"""Name -> blocks."""

LAST = {
    "resnet": lambda m, x: m.base.maps(x),
    "torchreid resnet": lambda m, x: m.base(x),
    "osnet": lambda m, x: m.base(x),
    "mobilenet": lambda m, x: m.base(x),
    "msvit": lambda m, x: m.branches(x)[1],
    "timm convnext": lambda m, x: m.base.net.forward_features(x),
    "timm swin": lambda m, x: m.base.net.forward_features(x).permute(0, 3, 1, 2),
    "clip rn": lambda m, x: m.image_encoder.layer4(
        m.image_encoder.layer3(m.image_encoder.layer2(m.image_encoder.layer1(m.image_encoder.stem(x))))
    ),
}
"""Name -> the last map, made by the network's own parts."""


def built(name: str, tmp_path):
    torch.manual_seed(0)
    cfg = config(tmp_path, tmp_path, **MODELS[name])
    model = make_model(cfg, 4, 2, 1).eval()
    return model, torch.randn(2, 3, *cfg.INPUT.SIZE_TRAIN)


@pytest.mark.parametrize("scaled", [False, True])
def test_timm_s_weights_times_its_values_are_its_output(scaled):
    module, x = Attention(12, num_heads=3, qkv_bias=True), torch.randn(2, 5, 12)
    if scaled:
        module.q_norm = ScaleQuery(0.3)
    weights = of_timm(module, x)
    values = module.qkv(x).reshape(2, 5, 3, 3, 4).permute(2, 0, 3, 1, 4)[2]
    torch.testing.assert_close(module.proj((weights @ values).transpose(1, 2).flatten(2)), module(x))


def test_torch_s_weights_are_those_it_returns():
    module, x = nn.MultiheadAttention(12, 3, batch_first=True).eval(), torch.randn(2, 5, 12)
    expected = module(x, x, x, average_attn_weights=False)[1]
    torch.testing.assert_close(of_torch(module, x), expected)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_every_block_of_a_transformer_is_seen_once(name, tmp_path):
    model, images = built(name, tmp_path)
    before = model(images)
    found, layout = attentions(model, images, cam_label=torch.tensor([0, 1])), model.token_layout()
    total = layout.prefix + layout.grid[0] * layout.grid[1]
    assert len(found) == TRANSFORMERS[name] and {w.shape[2:] for w in found} == {(total, total)}
    assert all(torch.allclose(w.sum(-1), torch.ones(())) and len(w) == 2 for w in found)
    for heat in (last_attention(found, layout), roll_out(found, layout)):
        assert heat.shape == (2, *layout.grid) and heat.min() >= 0 and heat.flatten(1).sum(1).max() <= 1 + 1e-5
    assert last_map(model, images) is None
    assert torch.equal(model(images), before) and not any(m._forward_pre_hooks for m in model.modules())


@pytest.mark.parametrize("name", sorted(set(MODELS) - set(TRANSFORMERS)))
def test_the_last_map_of_a_convolutional_network(name, tmp_path):
    model, images = built(name, tmp_path)
    assert attentions(model, images) == []
    found = last_map(model, images)
    if name in LAST:
        with torch.no_grad():
            torch.testing.assert_close(found, LAST[name](model, images))
    heat = channel_energy(found)
    assert heat.shape == (2, *found.shape[2:]) and heat.std() > 0
    torch.testing.assert_close(heat[1, 0, 0], found[1, :, 0, 0].square().mean())


def test_roll_out_follows_a_path_through_the_blocks():
    """The class token asks token 2 in the second block, which asked token 3 in the first."""
    first, second = torch.eye(4).view(1, 1, 4, 4).clone(), torch.eye(4).view(1, 1, 4, 4).clone()
    first[0, 0, 2] = torch.tensor([0.0, 0, 0, 1])
    second[0, 0, 0] = torch.tensor([0.0, 0, 1, 0])
    heat = roll_out([first, second], TokenLayout((1, 3), 1, True))
    torch.testing.assert_close(heat, torch.tensor([[[0.0, 0.25, 0.25]]]))


def test_a_mean_over_patches_asks_for_all_of_them():
    weights = torch.rand(1, 2, 5, 5).softmax(-1)
    heat = last_attention([weights], TokenLayout((2, 2), 1, False))
    torch.testing.assert_close(heat.flatten(), weights.mean(1)[0, 1:].mean(0)[1:])
