"""MSViT's backbone: grouped convolutions and sparse window attention in four stages (``docs/msvit.md``).

Module names are those of the published files, so that these load without a map.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn

from model.base import Backbone
from model.layers.sparse_attention import sparse_window_attention
from utils.errors import UserError

CHANNELS_PER_GROUP = 4
CONV_HEAD_WIDTH = 512


@dataclass(frozen=True)
class MSViTSpec:
    """The shape of one size. widths, blocks: of the four stages; heads: of the three that have attention."""

    widths: tuple[int, int, int, int]
    blocks: tuple[int, int, int, int] = (3, 6, 15, 3)
    heads: tuple[int, int, int] = (2, 4, 8)

    @property
    def stem(self) -> int:
        return self.widths[0] // 2


MSVIT_TYPES = {"msvit_s": MSViTSpec((32, 64, 128, 256)), "msvit_l": MSViTSpec((48, 96, 192, 384))}
ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU}


def make_spec(name: str, widths: tuple[int, ...] = (), blocks: tuple[int, ...] = ()) -> MSViTSpec:
    """Returns the size that MODEL.NAME names, with other widths or numbers of blocks if they are not empty."""
    base = MSVIT_TYPES[name]
    spec = MSViTSpec(
        widths=_four("MODEL.MSVIT.WIDTHS", widths) or base.widths,
        blocks=_four("MODEL.MSVIT.BLOCKS", blocks) or base.blocks,
        heads=base.heads,
    )
    if any(w < 1 or w % (2 * CHANNELS_PER_GROUP) for w in spec.widths):
        raise UserError(f"MODEL.MSVIT.WIDTHS: {list(widths)} must be four multiples of {2 * CHANNELS_PER_GROUP}")
    if any(width % heads for width, heads in zip(spec.widths, spec.heads, strict=False)):
        raise UserError(f"MODEL.MSVIT.WIDTHS: {list(widths)} must be multiples of the stages' heads, {spec.heads}")
    if min(spec.blocks) < 1:
        raise UserError(f"MODEL.MSVIT.BLOCKS: {list(blocks)} must be at least 1 each")
    return spec


def _four(key: str, numbers: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """Returns the numbers of the four stages, None for none. Raises ``UserError`` naming the key for another count."""
    if not numbers:
        return None
    if len(numbers) != 4:
        raise UserError(f"{key}: expected four numbers, one for each stage, got {list(numbers)}")
    return numbers[0], numbers[1], numbers[2], numbers[3]


@dataclass(frozen=True)
class WindowSpec:
    """Windows and sparsity of the attention blocks: see ``sparse_window_attention``."""

    split: tuple[int, int] = (8, 8)
    ratio: float = 1.0


class ConvBN(nn.Sequential):
    """Convolution without bias, batch norm, and an activation if given. (B, in, H, W) -> (B, out, H / s, W / s)."""

    def __init__(
        self, inside: int, outside: int, kernel: int = 1, stride: int = 1, grouped: bool = False,
        act: type[nn.Module] | None = None,
    ):  # fmt: skip
        super().__init__()
        groups = inside // CHANNELS_PER_GROUP if grouped else 1
        self.add_module("conv", nn.Conv2d(inside, outside, kernel, stride, kernel // 2, groups=groups, bias=False))
        self.add_module("norm", nn.BatchNorm2d(outside))
        if act:
            self.add_module("act", act())


class SqueezeExcite(nn.Module):
    """Channel weights from the mean over the map (Hu et al., CVPR 2018). (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, width: int):
        super().__init__()
        inner = max(8, width // 8)
        self.se = nn.Sequential(
            nn.AdaptiveAvgPool2d(1), nn.Conv2d(width, inner, 1), nn.ReLU(), nn.Conv2d(inner, width, 1), nn.Sigmoid()
        )

    def forward(self, x: Tensor) -> Tensor:
        return x * self.se(x)


class CNNBlock(nn.Module):
    """Inverted bottleneck with a residual; nothing follows the sum. A first block halves the map and has a skip path.

    (B, inside, H, W) -> (B, outside, H / stride, W / stride).
    """

    def __init__(self, inside: int, outside: int, drop_path: float, act: type[nn.Module], first: bool, stride: int = 1):
        super().__init__()
        inner = 4 * outside
        self.main = nn.Sequential(
            ConvBN(inside, inner, act=act),
            ConvBN(inner, inner, 3, stride, grouped=True, act=act),
            SqueezeExcite(inner),
            ConvBN(inner, outside),
        )
        if first:
            self.skip = nn.Sequential(ConvBN(inside, inside, 3, stride, grouped=True), ConvBN(inside, outside))
        else:
            self.skip = nn.Identity()
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        return self.drop_path(self.main(x)) + self.skip(x)


class WindowAttention(nn.Module):
    """``sparse_window_attention`` with a learned scale per head."""

    def __init__(self, heads: int, attention: WindowSpec):
        super().__init__()
        self.logit_scale = nn.Parameter(torch.full((heads, 1, 1), math.log(10.0)))
        self.attention = attention

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return sparse_window_attention(q, k, v, self.logit_scale, self.attention.split, self.attention.ratio)


class AttentionBlock(nn.Module):
    """Attention whose values are the projected input; the third convolution is a local path beside it.

    (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, width: int, heads: int, drop_path: float, act: type[nn.Module], attention: WindowSpec):
        super().__init__()
        self.proj_in = ConvBN(width, width)
        self.q, self.k, self.v = (ConvBN(width, width, 3, grouped=True) for _ in range(3))
        self.sattn = nn.ModuleDict({"att": WindowAttention(heads, attention)})
        self.proj = nn.Sequential(act(), ConvBN(width, width))
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        u = self.proj_in(x)
        mixed = self.sattn["att"](self.q(u), self.k(u), u) + self.v(u)
        return x + self.drop_path(self.proj(mixed))


def make_stem(spec: MSViTSpec, act: type[nn.Module]) -> ConvBN:
    """Returns the first convolution. (B, 3, H, W) -> (B, widths[0] / 2, H / 2, W / 2)."""
    return ConvBN(3, spec.stem, 3, 2, act=act)


def make_stages(
    spec: MSViTSpec, drop_path: float, act: type[nn.Module], attention: WindowSpec, last_stride: int = 2
) -> list[nn.Sequential]:
    """Returns the four stages: a convolution block that halves the map, then pairs of convolution and attention blocks.

    The last has no attention. drop_path grows linearly over the convolution blocks from 0 to its value; an attention
    block has that of the convolution block before it. last_stride: of the fourth stage, 1 or 2.
    """
    rates: Iterator[float] = iter(drop_path * i / max(sum(spec.blocks) - 1, 1) for i in range(sum(spec.blocks)))
    stages = []
    for number, (inside, width, count) in enumerate(
        zip((spec.stem, *spec.widths[:3]), spec.widths, spec.blocks, strict=True)
    ):
        blocks: list[nn.Module] = []
        for i in range(count):
            rate = next(rates)
            stride = (last_stride if number == 3 else 2) if i == 0 else 1
            blocks.append(CNNBlock(width if i else inside, width, rate, act, first=i == 0, stride=stride))
            if i and number < 3:
                blocks.append(AttentionBlock(width, spec.heads[number], rate, act, attention))
        stages.append(nn.Sequential(*blocks))
    return stages


def make_conv_head(spec: MSViTSpec, act: type[nn.Module]) -> ConvBN:
    """Returns the convolution after the last stage. (B, widths[3], h, w) -> (B, 512, h, w)."""
    return ConvBN(spec.widths[3], CONV_HEAD_WIDTH, act=act)


def initialise(module: nn.Module) -> nn.Module:
    """Draws convolutions and linear layers by Kaiming's normal rule over fan-in (He et al., ICCV 2015), biases 0.

    In place; returns the module.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.numel():
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
    return module


def check_size(key: str, size: tuple[int, int], split: tuple[int, int]) -> None:
    """Raises ``UserError`` unless the third stage's map, a sixteenth of the image, divides into windows."""
    for side, length, tokens in zip(("height", "width"), size, split, strict=True):
        if length % (16 * tokens):
            raise UserError(
                f"{key}: {side} {length} of {list(size)} must be a multiple of {16 * tokens}: 16 times the {tokens} of "
                f"MODEL.MSVIT.SPLIT_SIZE {list(split)}"
            )


def freeze(module: nn.Module, parts: tuple[str, ...]) -> None:
    """Excludes these parts, ``stem`` or stages, from training. Their batch norms still update running statistics."""
    prefixes = tuple(f"{name}." for name in (*parts, *(["first_conv"] if "stem" in parts else [])))
    for name, parameter in module.named_parameters():
        if name.startswith(prefixes):
            parameter.requires_grad_(False)


class MSViT(Backbone):
    """The plain backbone, as pre-trained on ImageNet. ``forward`` gives the mean of the last map, (B, 512).

    attention: of stages 1 to 3. drop_path: of the last block. last_stride: of the fourth stage.
    """

    width = CONV_HEAD_WIDTH

    def __init__(
        self, spec: MSViTSpec, attention: WindowSpec, drop_path: float = 0.0, act: str = "relu", last_stride: int = 2
    ):
        super().__init__()
        kind = ACTIVATIONS[act]
        self.first_conv = make_stem(spec, kind)
        self.layer1, self.layer2, self.layer3, self.layer4 = make_stages(spec, drop_path, kind, attention, last_stride)
        self.conv_head = make_conv_head(spec, kind)
        initialise(self)

    def maps(self, images: Tensor) -> Tensor:
        """Returns the last map, (B, 512, H / 32, W / 32), or sixteenths with a last stride of 1."""
        x = self.layer3(self.layer2(self.layer1(self.first_conv(images))))
        return self.conv_head(self.layer4(x))

    def forward(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        return self.maps(images).mean((2, 3))
