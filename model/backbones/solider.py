"""SOLIDER's Swin transformer with semantic layers (Chen et al., CVPR 2023, arXiv:2303.17602).

Another network than TransReID-SSL's Swin (``swin.py``), although the types have the same names: windows are 7 at every
size and padded, and a weight moves the features between appearance and semantics. Names are those of released files.
"""

from __future__ import annotations

import functools
import math
import re

import torch
import torch.nn.functional as F
from timm.layers.drop import DropPath
from timm.layers.weight_init import trunc_normal_
from timm.models.swin_transformer import WindowAttention, window_partition, window_reverse
from torch import Tensor, nn

from model.backbones.swin import SwinSpec, block_layers, resized_table
from model.backbones.vit import run_block
from model.base import Backbone
from utils.layered import Layers

WINDOW, SHIFT = 7, 3
TABLE = ".attn.w_msa.relative_position_bias_table"
UNIT = math.log(math.e - 1)
"""Its softplus is 1."""


@functools.lru_cache(maxsize=16)
def shift_mask(height: int, width: int) -> Tensor:
    """Returns what keeps the parts of a shifted window apart, (windows, 49, 49): 0 within a part, -100 between parts.

    height, width: of the padded map.
    """
    part = torch.zeros(1, height, width, 1)
    spans = (slice(0, -WINDOW), slice(-WINDOW, -SHIFT), slice(-SHIFT, None))
    for i, rows in enumerate(spans):
        for j, columns in enumerate(spans):
            part[:, rows, columns] = 3 * i + j
    windows = window_partition(part, (WINDOW, WINDOW)).flatten(1)
    return (windows[:, None] != windows[:, :, None]).float() * -100.0


class PaddedWindows(nn.Module):
    """Attention inside windows of 7 x 7. (B, H, W, C) -> (B, H, W, C).

    A map is padded with zeros at the bottom and right, and the padding is attended to like the rest, as published. Its
    queries, keys and values are the layer's bias, and what it becomes is cut off, so no linear layer computes it.
    """

    def __init__(self, width: int, heads: int, shifted: bool, attn_drop: float, drop: float):
        super().__init__()
        self.shifted = shifted
        self.w_msa = WindowAttention(width, heads, window_size=WINDOW, attn_drop=attn_drop, proj_drop=drop)

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[1:3]
        x = padded_with(self.w_msa.qkv(x), self.w_msa.qkv.bias, -height % WINDOW, -width % WINDOW)
        padded, mask = (x.shape[1], x.shape[2]), None
        if self.shifted:
            x = torch.roll(x, (-SHIFT, -SHIFT), (1, 2))
            mask = shift_mask(*padded).to(x)
        x = window_reverse(self.attend(window_partition(x, (WINDOW, WINDOW)), mask), (WINDOW, WINDOW), *padded)
        if self.shifted:
            x = torch.roll(x, (SHIFT, SHIFT), (1, 2))
        return self.w_msa.proj_drop(self.w_msa.proj(x[:, :height, :width]))

    def attend(self, windows: Tensor, mask: Tensor | None) -> Tensor:
        """Returns what each place takes from its window. (N, 7, 7, 3C) -> (N, 49, C), N: images times windows."""
        attention, places = self.w_msa, WINDOW * WINDOW
        q, k, v = windows.view(-1, places, 3, attention.num_heads, attention.dim // attention.num_heads).permute(
            2, 0, 3, 1, 4
        )
        index = attention.get_buffer("relative_position_index").view(-1)
        bias = attention.relative_position_bias_table[index].view(places, places, -1).permute(2, 0, 1)
        scores = (q * attention.scale) @ k.transpose(-2, -1) + bias
        if mask is not None:
            scores = (scores.unflatten(0, (-1, len(mask))) + mask[:, None]).flatten(0, 1)
        return (attention.attn_drop(scores.softmax(-1)) @ v).transpose(1, 2).flatten(2)


def padded_with(x: Tensor, value: Tensor, rows: int, columns: int) -> Tensor:
    """Returns the map (B, H, W, C) with rows below and columns at the right that hold ``value`` (C,)."""
    value = value.to(x.dtype)
    if columns:
        x = torch.cat([x, value.expand(x.shape[0], x.shape[1], columns, -1)], dim=2)
    if rows:
        x = torch.cat([x, value.expand(x.shape[0], rows, x.shape[2], -1)], dim=1)
    return x


class FeedForward(nn.Module):
    """Two linear layers, under the names of the released files. (..., C) -> (..., C)."""

    def __init__(self, width: int, drop: float):
        super().__init__()
        first = nn.Sequential(nn.Linear(width, 4 * width), nn.GELU(), nn.Dropout(drop))
        self.layers = nn.Sequential(first, nn.Linear(4 * width, width), nn.Dropout(drop))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class SoliderBlock(nn.Module):
    """A Swin block. (B, H, W, C) -> (B, H, W, C)."""

    def __init__(self, width: int, heads: int, shifted: bool, drop_path: float, drop: float, attn_drop: float):
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attn = PaddedWindows(width, heads, shifted, attn_drop, drop)
        self.norm2 = nn.LayerNorm(width)
        self.ffn = FeedForward(width, drop)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.ffn(self.norm2(x)))


class Merging(nn.Module):
    """Four neighbours become one, channels first. (B, H, W, C) -> (B, ceil(H / 2), ceil(W / 2), 2C)."""

    def __init__(self, width: int):
        super().__init__()
        self.norm = nn.LayerNorm(4 * width)
        self.reduction = nn.Linear(4 * width, 2 * width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = F.pad(x, (0, 0, 0, x.shape[2] % 2, 0, x.shape[1] % 2))
        cells = x.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # (B, h, row, w, column, C)
        return self.reduction(self.norm(cells.permute(0, 1, 3, 5, 2, 4).flatten(3)))


class SoliderStage(nn.Module):
    """Blocks on one map, every other one with shifted windows; ``downsample`` merges behind all stages but the last."""

    def __init__(self, width: int, heads: int, rates: list[float], drop: float, attn_drop: float, merge: bool):
        super().__init__()
        self.blocks = nn.ModuleList(
            SoliderBlock(width, heads, i % 2 == 1, rate, drop, attn_drop) for i, rate in enumerate(rates)
        )
        if merge:
            self.downsample = Merging(width)


class SoliderEmbed(nn.Module):
    """Patches side by side, normalised; a side that leaves pixels over is padded. (B, 3, H, W) -> (B, h, w, D)."""

    def __init__(self, width: int, patch: int):
        super().__init__()
        self.projection = nn.Conv2d(3, width, kernel_size=patch, stride=patch)
        self.norm = nn.LayerNorm(width)
        self.patch = patch

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[2:]
        images = F.pad(images, (0, -width % self.patch, 0, -height % self.patch))
        return self.norm(self.projection(images).permute(0, 2, 3, 1))


class SoliderSwin(Backbone):
    """SOLIDER's Swin at any image size. (B, 3, H, W) -> mean over the last map, (B, width).

    semantic_weight: s from 0 (appearance) to 1 (semantics); behind each merging the map x becomes
    x * softplus(W (s, 1 - s)) + B (s, 1 - s). Below 0: no such layers, a plain Swin. They are trained in pre-training
    alone and frozen here; without a pre-training file they change nothing. drop_path grows linearly over all blocks.
    """

    channels_last = True

    def __init__(
        self,
        spec: SwinSpec,
        semantic_weight: float = 1.0,
        drop_path: float = 0.1,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        grad_checkpoint: bool = False,
    ):
        super().__init__()
        self.semantic_weight, self.grad_checkpoint, self.block_counts = semantic_weight, grad_checkpoint, spec.depths
        count = len(spec.depths)
        widths = [spec.width * 2**i for i in range(count)]
        rates = torch.linspace(0, drop_path, sum(spec.depths)).tolist()
        self.patch_embed = SoliderEmbed(spec.width, spec.patch)
        self.drop_after_pos = nn.Dropout(drop)
        self.stages = nn.ModuleList()
        for i, (depth, heads) in enumerate(zip(spec.depths, spec.heads, strict=True)):
            self.stages.append(SoliderStage(widths[i], heads, rates[:depth], drop, attn_drop, i + 1 < count))
            rates = rates[depth:]
        for i, width in enumerate(widths):
            norm = nn.LayerNorm(width)
            self.add_module(f"norm{i}", norm.requires_grad_(i + 1 == count))  # the others are in the files, unused
        self.width, self.final_norm = widths[-1], f"norm{count - 1}"
        for module in self.modules():
            if isinstance(module, nn.Linear):
                trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        if semantic_weight >= 0:
            modulated = [*widths[1:], widths[-1]]  # the last pair is in the files, unused
            self.semantic_embed_w = semantic_layers(modulated, UNIT)
            self.semantic_embed_b = semantic_layers(modulated, 0.0)

    def modulate(self, x: Tensor, index: int) -> Tensor:
        """Returns the map (B, h, w, C) behind a merging under the semantic weight."""
        if self.semantic_weight < 0:
            return x
        weight = x.new_tensor([self.semantic_weight, 1 - self.semantic_weight])
        return x * F.softplus(self.semantic_embed_w[index](weight)) + self.semantic_embed_b[index](weight)

    def forward(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        x = self.drop_after_pos(self.patch_embed(images))
        checkpointed = self.grad_checkpoint and self.training
        for i, stage in enumerate(self.stages):
            assert isinstance(stage, SoliderStage)
            for block in stage.blocks:
                x = run_block(block, x, checkpointed)
            if i + 1 < len(self.stages):
                x = self.modulate(stage.downsample(x), i)
        return self.get_submodule(self.final_norm)(x).mean((1, 2))

    def rate_layers(self) -> Layers:
        return block_layers("stages", self.block_counts)

    def pretrained_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns a file's state under our names: SOLIDER's as it is, Microsoft's and timm's Swin renamed.

        Merging is re-ordered, and bias tables of other windows are resized. The final norm of ImageNet is left out, as
        published, so that ours starts new.
        """
        if any(key.startswith("layers.") for key in state):
            state = from_microsoft(state, len(self.stages))
        shapes = {key: value.shape for key, value in self.state_dict().items() if key.endswith(TABLE)}
        return {
            key: resized_table(value, shapes[key]) if key in shapes and value.shape != shapes[key] else value
            for key, value in state.items()
        }


def semantic_layers(widths: list[int], bias: float) -> nn.ModuleList:
    """Returns frozen linear layers of the weight's two numbers, one for each width, which give ``bias`` at first."""
    layers = [nn.Linear(2, width) for width in widths]
    for layer in layers:
        nn.init.zeros_(layer.weight)
        nn.init.constant_(layer.bias, bias)
    return nn.ModuleList(layers).requires_grad_(False)


RENAMED = (
    (r"^layers\.", "stages."), (r"\.attn\.", ".attn.w_msa."), (r"\.mlp\.fc1\.", ".ffn.layers.0.0."),
    (r"\.mlp\.fc2\.", ".ffn.layers.1."), (r"^patch_embed\.proj\.", "patch_embed.projection."),
)  # fmt: skip


def from_microsoft(state: dict[str, Tensor], stages: int) -> dict[str, Tensor]:
    """Returns the state of Microsoft's Swin, or of timm's, which merges one stage later, under SOLIDER's names."""
    late = any(key.startswith(f"layers.{stages - 1}.downsample.") for key in state)
    out = {}
    for key, value in state.items():
        if late:
            key = re.sub(r"^layers\.(\d+)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key)
        for pattern, ours in RENAMED:
            key = re.sub(pattern, ours, key)
        if ".downsample." in key:  # from blocks (0, 0), (1, 0), (0, 1), (1, 1) of channels to channels of cells
            blocks = value.unflatten(-1, (4, -1))[..., [0, 2, 1, 3], :]
            value = blocks.transpose(-1, -2).flatten(-2)
        out[key] = value
    return out
