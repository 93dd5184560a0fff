"""SOLIDER's Swin: windows against a slow loop, semantic layers, sizes, files of other Swins."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from configs import load_config
from model import make_model
from model.backbones.solider import Merging, PaddedWindows, SoliderSwin, shift_mask
from model.backbones.swin import SWIN_TYPES
from utils.checkpoint import load_pretrained, load_weights
from utils.errors import UserError

MICRO = SWIN_TYPES["swin_micro_patch4"]
WORDS = ["MODEL.NAME", "transformer", "MODEL.TRANSFORMER_TYPE", "swin_micro_patch4", "INPUT.SIZE_TRAIN", [64, 32]]


def network(*words, swin: str = "solider"):
    torch.manual_seed(0)
    return make_model(load_config(opts=[*WORDS, "MODEL.SWIN", swin, *words]), 5).eval()


def drawn(module: nn.Module) -> nn.Module:
    """Draws every parameter at random, so that biases, norms and semantic layers show."""
    torch.manual_seed(1)
    for parameter in module.parameters():
        nn.init.normal_(parameter, std=0.3)
    return module.eval()


def slow_windows(module: PaddedWindows, x: torch.Tensor) -> torch.Tensor:
    """One place at a time: it attends to the places of its window that lie in the same part of the map."""
    attention, heads = module.w_msa, module.w_msa.num_heads
    height, width, channels = x.shape
    padded = F.pad(x, (0, 0, 0, -width % 7, 0, -height % 7))
    rows, columns = padded.shape[:2]
    shift = 3 if module.shifted else 0
    q, k, v = attention.qkv(padded).chunk(3, -1)
    out = torch.zeros_like(padded)

    def part(place: int, side: int) -> int:  # of a place of the rolled map: the rest, the last window, what came round
        return (place >= side - 7) + (place >= side - 3) if shift else 0

    for i in range(rows):
        for j in range(columns):
            places = [(a, b) for a in range(i // 7 * 7, i // 7 * 7 + 7) for b in range(j // 7 * 7, j // 7 * 7 + 7)
                      if (part(a, rows), part(b, columns)) == (part(i, rows), part(j, columns))]
            here = ((i + shift) % rows, (j + shift) % columns)
            there = [((a + shift) % rows, (b + shift) % columns) for a, b in places]
            for h in range(heads):
                of = slice(h * channels // heads, (h + 1) * channels // heads)
                scores = torch.stack([q[here][of] @ k[place][of] for place in there]) * (channels // heads) ** -0.5
                bias = [attention.relative_position_bias_table[(i - a + 6) * 13 + j - b + 6, h] for a, b in places]
                weights = (scores + torch.stack(bias)).softmax(0)
                out[here][of] = sum(w * v[place][of] for w, place in zip(weights, there, strict=True))
    return attention.proj(out)[:height, :width]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(7, 7), (5, 3), (9, 14)])
def test_windows_match_the_slow_version_padding_included(size, shifted):
    module = drawn(PaddedWindows(4, 2, shifted, 0.0, 0.0)).double()
    x = torch.randn(1, *size, 4, dtype=torch.double)
    with torch.no_grad():
        torch.testing.assert_close(module(x)[0], slow_windows(module, x[0]))


def test_the_mask_divides_a_map_of_one_window_too():
    assert shift_mask(7, 7).shape == (1, 49, 49) and (shift_mask(7, 7) == -100).any()


def test_merging_counts_channels_first_and_pads_odd_sides():
    merging = Merging(2)
    seen = []
    merging.norm.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    x = torch.arange(2 * 3 * 3, dtype=torch.float).reshape(1, 3, 3, 2)
    assert merging(x).shape == (1, 2, 2, 4)
    cells = [x[0, 0, 0], x[0, 0, 1], x[0, 1, 0], x[0, 1, 1]]
    assert seen[0][0, 0, 0].tolist() == [float(cell[c]) for c in range(2) for cell in cells]
    assert seen[0][0, 1, 1].tolist() == [float(x[0, 2, 2, 0]), 0, 0, 0, float(x[0, 2, 2, 1]), 0, 0, 0]


def test_the_semantic_weight_moves_the_maps_behind_merging_alone():
    images = torch.randn(2, 3, 64, 32)
    one, other, plain = (drawn(SoliderSwin(MICRO, weight)) for weight in (0.2, 0.9, -1.0))
    assert not any(name.startswith("semantic") for name in plain.state_dict())
    for name in ("semantic_embed_w.1.weight", "semantic_embed_b.1.bias"):  # the last pair acts on nothing
        feature = one(images)
        nn.init.constant_(one.get_parameter(name), 5.0)
        assert torch.equal(one(images), feature)
    other.load_state_dict(one.state_dict())
    assert not torch.allclose(one(images), other(images), atol=1e-3)
    x, weight = torch.randn(1, 2, 2, 32), torch.tensor([0.2, 0.8])
    scale, move = one.semantic_embed_w[0](weight), one.semantic_embed_b[0](weight)
    torch.testing.assert_close(one.modulate(x, 0), x * (1 + scale.exp()).log() + move)


def test_without_a_file_the_semantic_layers_change_nothing():
    torch.manual_seed(0)
    ours = SoliderSwin(MICRO, 0.3).eval()
    plain = SoliderSwin(MICRO, -1.0).eval()
    plain.load_state_dict({k: v for k, v in ours.state_dict().items() if k in plain.state_dict()})
    images = torch.randn(2, 3, 48, 24)
    torch.testing.assert_close(ours(images), plain(images))


def test_what_is_frozen_is_what_has_no_gradient():
    model = network("MODEL.SEMANTIC_WEIGHT", 0.2, "MODEL.DROP_PATH", 0.0).train()
    out = model(torch.randn(4, 3, 64, 32), label=torch.arange(4))
    (out.scores[0].sum() + out.feats[0].sum()).backward()
    without = {name for name, parameter in model.named_parameters() if parameter.grad is None}
    assert without == {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    names = {name.split(".")[1] if name.startswith("base.") else name for name in without}
    assert names == {"semantic_embed_w", "semantic_embed_b", "norm0", "bottleneck.bias"}


@pytest.mark.parametrize("size", [(64, 32), (50, 30), (33, 65), (4, 4)])
def test_images_of_any_size_have_a_feature(size):
    model = network()
    with torch.no_grad():
        assert model(torch.randn(2, 3, *size)).shape == (2, 32)


def test_a_pre_training_file_and_a_reid_file_load_in_the_published_layouts(tmp_path):
    model, other = drawn(network("MODEL.SEMANTIC_WEIGHT", 0.2)), network("MODEL.SEMANTIC_WEIGHT", 0.2)
    backbone = {f"backbone.{k}": v for k, v in model.base.state_dict().items()}
    head = {"head.mlp.0.weight": torch.ones(2, 2), "head.last_layer.weight_g": torch.ones(2, 1)}
    torch.save({"student": {}, "teacher": backbone | head, "epoch": 10}, tmp_path / "whole.pth")
    torch.save(backbone | head, tmp_path / "converted.pth")
    images = torch.randn(2, 3, 64, 32)
    for file in ("whole.pth", "converted.pth"):
        other = network("MODEL.SEMANTIC_WEIGHT", 0.2)
        report = load_pretrained(other, tmp_path / file)
        assert not report.missing
        torch.testing.assert_close(other.base(images), model.base(images))
    index = {"base.stages.0.blocks.0.attn.w_msa.relative_position_index": torch.zeros(49, 49, dtype=torch.long)}
    torch.save({f"module.{k}": v for k, v in (dict(model.state_dict()) | index).items()}, tmp_path / "reid.pth")
    report = load_weights(other, tmp_path / "reid.pth")
    assert not report.missing and not report.unexpected
    torch.testing.assert_close(other(images), model(images))


def test_microsofts_and_timms_files_become_solider_s(tmp_path):
    """Merging computes the same from re-ordered channels, whichever of the two wrote the file."""
    from timm.models.swin_transformer import PatchMerging

    theirs = drawn(PatchMerging(16))
    state = {f"layers.0.downsample.{k}": v for k, v in theirs.state_dict().items()}
    late = {k.replace("layers.0", "layers.1"): v for k, v in state.items()}
    for file in (state, late):
        ours = SoliderSwin(MICRO, -1.0)
        renamed = ours.pretrained_state({**file, "layers.0.blocks.0.mlp.fc1.bias": torch.ones(64)})
        assert "stages.0.blocks.0.ffn.layers.0.0.bias" in renamed
        merging = ours.stages[0].downsample
        merging.load_state_dict({k.removeprefix("stages.0.downsample."): v for k, v in renamed.items() if "down" in k})
        x = torch.randn(1, 6, 4, 16)
        with torch.no_grad():
            torch.testing.assert_close(merging(x), theirs(x))


@pytest.mark.parametrize(
    ("ours", "theirs", "words"),
    [
        ("solider", "transreid_ssl", "of a Swin, and this model is SOLIDER's Swin: set .*transreid_ssl"),
        ("transreid_ssl", "solider", "of SOLIDER's Swin, and this model is a Swin: set .*SWIN solider"),
    ],
)
def test_the_other_swins_file_is_named(ours, theirs, words, tmp_path):
    state = network(swin=theirs).state_dict()
    report = load_weights(network(swin=ours), state)
    assert words.split(":")[0] in report.refusal()
    if ours == "transreid_ssl":  # SOLIDER's takes a bare Swin as its ImageNet file
        with pytest.raises(UserError, match=words):
            load_pretrained(network(swin=ours), state)


def test_stochastic_depth_grows_over_all_blocks():
    spec = replace(MICRO, depths=(1, 3))
    rates = [block.drop_path.drop_prob for stage in SoliderSwin(spec, drop_path=0.3).stages for block in stage.blocks]
    torch.testing.assert_close(rates, [0.0, 0.1, 0.2, 0.3])
