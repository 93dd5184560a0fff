"""Low-rank adapters: what they compute, what learns, files, merging, and targets that match nothing."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from model import make_model
from model.layers.lora import FrozenLayerNorm, LoRALinear, merge_adapters
from solver import make_optimizer
from tests.model.families import MODELS, OF_METHODS
from tests.tiny import config
from utils.checkpoint import load_pretrained, load_weights
from utils.errors import UserError

FAMILIES = MODELS | OF_METHODS
LORA = {"MODEL__LORA__RANK": 2, "MODEL__LORA__ALPHA": 6.0}
IMAGES = torch.randn(4, 3, 32, 16, generator=torch.Generator().manual_seed(0))


def build(tmp_path, name="vit", **more):
    torch.manual_seed(0)
    cfg = config(tmp_path, tmp_path, **FAMILIES[name] | more)
    return cfg, make_model(cfg, 5)


def drawn(model: nn.Module) -> nn.Module:
    for name, parameter in model.named_parameters():
        if "lora" in name:
            nn.init.normal_(parameter)
    return model.eval()


def test_it_is_the_plain_layer_plus_the_scaled_product_of_two_thin_ones():
    plain = nn.Linear(5, 3)
    layer = LoRALinear(plain, 2, 6.0)
    x = torch.randn(4, 5)
    torch.testing.assert_close(layer(x), plain(x))  # nothing at first
    nn.init.normal_(layer.lora_up)
    expected = plain(x) + 3 * (x @ layer.lora_down.T) @ layer.lora_up.T
    torch.testing.assert_close(layer(x), expected)
    torch.testing.assert_close(layer.merged()(x), expected)


@pytest.mark.parametrize("name", ["vit", "pass", "solider", "swin", "timm vit", "cluster encoder"])
def test_adapters_necks_and_classifiers_alone_learn(name, tmp_path):
    cfg, model = build(tmp_path, name, **LORA)
    _, plain = build(tmp_path, name)
    outside = {n for n, p in plain.named_parameters() if p.requires_grad and not n.startswith("base.")}
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    adapters = {n for n in trained if n.rpartition(".")[2] in ("lora_down", "lora_up")}
    assert trained - adapters == outside and len(adapters) >= 4
    assert all(".qkv." in name or ".proj." in name for name in adapters)
    in_optimizer = {id(p) for group in make_optimizer(cfg, model).param_groups for p in group["params"]}
    assert in_optimizer == {id(p) for p in model.parameters() if p.requires_grad}


def test_merging_changes_no_feature_and_leaves_plain_names(tmp_path):
    _, model = build(tmp_path, **LORA)
    _, plain = build(tmp_path)
    feature = drawn(model)(IMAGES)
    assert not torch.allclose(feature, plain.eval()(IMAGES), atol=1e-3)
    torch.testing.assert_close(merge_adapters(model)(IMAGES), feature, rtol=1e-4, atol=1e-5)
    assert model.state_dict().keys() == plain.state_dict().keys()
    load_weights(plain, model.state_dict())
    torch.testing.assert_close(plain(IMAGES), feature, rtol=1e-4, atol=1e-5)


def test_a_file_brings_its_adapters_and_their_scale(tmp_path):
    _, model = build(tmp_path, **LORA)
    _, other = build(tmp_path, **LORA | {"MODEL__LORA__ALPHA": 1.0})
    torch.save(drawn(model).state_dict(), tmp_path / "adapted.pth")
    load_weights(other, tmp_path / "adapted.pth")
    torch.testing.assert_close(other.eval()(IMAGES), model(IMAGES))
    _, plain = build(tmp_path)
    with pytest.raises(UserError, match="adapted.pth: it holds low-rank adapters: set MODEL.LORA.RANK"):
        load_weights(plain, tmp_path / "adapted.pth")
    torch.save(plain.state_dict(), tmp_path / "plain.pth")
    with pytest.raises(UserError, match="plain.pth: it has no low-rank adapters: set MODEL.LORA.RANK 0"):
        load_weights(other, tmp_path / "plain.pth")
    load_pretrained(other, tmp_path / "plain.pth")  # adapters begin beside any pre-trained backbone


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("vit", {"MODEL__LORA__TARGETS": ["qkv", "q_proj"]}, "MODEL.LORA.TARGETS: 'q_proj' matches no linear layer"),
        ("resnet", {}, "MODEL.LORA.TARGETS: 'qkv' matches no linear layer of the backbone; it has none"),
        ("jpm", {}, "MODEL.JPM and MODEL.LORA.RANK"),
        ("osnet", {}, "MODEL.LORA.RANK 2 and MODEL.NAME 'torchreid_osnet_x0_25'"),
    ],
)
def test_what_adapters_do_not_fit_is_refused(name, changes, words, tmp_path):
    with pytest.raises(UserError, match=words):
        build(tmp_path, name, **LORA | changes)


def test_an_adapter_behind_a_frozen_norm_keeps_no_input_and_has_the_same_gradients():
    def gradients(norm: nn.Module, layer: LoRALinear) -> tuple[list[torch.Tensor], int]:
        kept: dict[int, int] = {}

        def pack(tensor: torch.Tensor) -> torch.Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        x = torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = (layer(norm(x * 1.5)) ** 2).sum()
        grads = torch.autograd.grad(out, [x, layer.lora_down, layer.lora_up])
        return list(grads), sum(kept.values())

    plain, layer = nn.LayerNorm(32).requires_grad_(False), LoRALinear(nn.Linear(32, 8).requires_grad_(False), 2, 6.0)
    nn.init.normal_(layer.lora_up), nn.init.normal_(plain.weight), nn.init.normal_(plain.bias)
    expected, before = gradients(plain, layer)
    ours, after = gradients(FrozenLayerNorm.of(plain), layer)
    torch.testing.assert_close(ours, expected)
    assert before - after == 4 * 6 * 32 * 4  # the norm's output


def test_a_norm_s_output_that_is_changed_in_place_is_kept():
    def gradients(norm: nn.Module) -> list[torch.Tensor]:
        x = torch.randn(4, 6, 32, generator=torch.Generator().manual_seed(1), requires_grad=True)
        return list(torch.autograd.grad((layer(norm(x).mul_(3)) ** 2).sum(), [x, layer.lora_down]))

    plain, layer = nn.LayerNorm(32).requires_grad_(False), LoRALinear(nn.Linear(32, 8).requires_grad_(False), 2, 6.0)
    nn.init.normal_(layer.lora_up)
    torch.testing.assert_close(gradients(FrozenLayerNorm.of(plain)), gradients(plain))


def test_the_norms_of_an_adapted_network_are_frozen_ones_under_their_names(tmp_path):
    _, model = build(tmp_path, **LORA)
    _, plain = build(tmp_path)
    norms = [name for name, module in model.named_modules() if type(module) is FrozenLayerNorm]
    assert norms == [name for name, module in plain.named_modules() if type(module) is nn.LayerNorm]
    assert {name for name in model.state_dict() if "lora" not in name} == plain.state_dict().keys()
