"""OSNet: omni-scale feature learning (Zhou et al., ICCV 2019, arXiv:1905.00953; AIN: arXiv:1910.06827).

Parameter names are torchreid's, so that its published weights load.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import Tensor, nn

from model.base import Trunk

STREAMS = 4
"""Streams of a block; stream t has t light convolutions, so its receptive field grows with t."""


@dataclass(frozen=True)
class OSNetSpec:
    """channels: after the stem and in the three stages. kind: ``plain``; ``ibn`` and ``ain`` with instance norms."""

    channels: tuple[int, int, int, int]
    kind: str = "plain"


CHANNELS = {
    "x1_0": (64, 256, 384, 512), "x0_75": (48, 192, 288, 384), "x0_5": (32, 128, 192, 256), "x0_25": (16, 64, 96, 128),
}  # fmt: skip

OSNET_TYPES = (
    {f"osnet_{name}": OSNetSpec(width) for name, width in CHANNELS.items()}
    | {f"osnet_ain_{name}": OSNetSpec(width, "ain") for name, width in CHANNELS.items()}
    | {"osnet_ibn_x1_0": OSNetSpec(CHANNELS["x1_0"], "ibn")}
)

AIN_NORMED = ((True, True), (False, True), (True, False))
"""Which blocks of the three stages normalise instances before the residual sum in ``ain`` (found by search there)."""


class ConvNorm(nn.Module):
    """Convolution, batch norm (or instance norm, under the same name) and ReLU. (B, I, H, W) -> (B, O, h, w)."""

    def __init__(self, width: int, out: int, kernel: int = 1, stride: int = 1, instance: bool = False):
        super().__init__()
        self.conv = nn.Conv2d(width, out, kernel, stride, padding=kernel // 2, bias=False)
        self.bn = nn.InstanceNorm2d(out, affine=True) if instance else nn.BatchNorm2d(out)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv(x)))


class LightConv(nn.Module):
    """A 3 x 3 convolution made of a linear 1 x 1 and a depthwise 3 x 3. Keeps width and size."""

    def __init__(self, width: int):
        super().__init__()
        self.conv1 = nn.Conv2d(width, width, 1, bias=False)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, groups=width, bias=False)
        self.bn = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.bn(self.conv2(self.conv1(x))))


class LightStream(nn.Module):
    """Several light convolutions under the name ``layers``, as in ``ain``."""

    def __init__(self, width: int, depth: int):
        super().__init__()
        self.layers = nn.Sequential(*(LightConv(width) for _ in range(depth)))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ChannelGate(nn.Module):
    """Weighs channels by their mean over the map; one gate for all streams of a block. Keeps the shape."""

    def __init__(self, width: int, reduction: int = 16):
        super().__init__()
        self.fc1 = nn.Conv2d(width, width // reduction, 1)
        self.fc2 = nn.Conv2d(width // reduction, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        gate = self.fc2(self.fc1(x.mean((2, 3), keepdim=True)).relu())
        return x * gate.sigmoid()


class OSBlock(nn.Module):
    """Omni-scale residual block. (B, I, H, W) -> (B, O, H, W).

    normed: instance norm ``IN``; after the residual sum in ``ibn``, before it (in place of a batch norm) in ``ain``.
    """

    def __init__(self, width: int, out: int, kind: str = "plain", normed: bool = False):
        super().__init__()
        mid = out // 4
        self.conv1 = ConvNorm(width, mid)
        self.kind = kind
        if kind == "ain":
            self.conv2 = nn.ModuleList(LightStream(mid, depth) for depth in range(1, STREAMS + 1))
        else:
            self.conv2a = LightConv(mid)
            self.conv2b, self.conv2c, self.conv2d = (
                nn.Sequential(*(LightConv(mid) for _ in range(depth))) for depth in range(2, STREAMS + 1)
            )
        self.gate = ChannelGate(mid)
        self.inside = kind == "ain" and normed
        self.conv3 = LinearConv(mid, out, norm=not self.inside)
        self.IN = nn.InstanceNorm2d(out, affine=True) if normed else None
        self.downsample = LinearConv(width, out) if width != out else None

    def streams(self) -> Iterable[nn.Module]:
        """Returns the streams, from one light convolution to ``STREAMS``."""
        return self.conv2 if self.kind == "ain" else (self.conv2a, self.conv2b, self.conv2c, self.conv2d)

    def forward(self, x: Tensor) -> Tensor:
        narrow = self.conv1(x)
        y = self.conv3(sum(self.gate(stream(narrow)) for stream in self.streams()))
        if self.IN is not None and self.inside:
            y = self.IN(y)
        y = y + (x if self.downsample is None else self.downsample(x))
        if self.IN is not None and not self.inside:
            y = self.IN(y)
        return y.relu()


class LinearConv(nn.Module):
    """A 1 x 1 convolution, with batch norm unless ``norm`` is off, without activation."""

    def __init__(self, width: int, out: int, norm: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(width, out, 1, bias=False)
        self.bn = nn.BatchNorm2d(out) if norm else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x if self.bn is None else self.bn(x)


class OSNet(Trunk):
    """OSNet without its head. (B, 3, H, W) -> map (B, width, H / 16, W / 16)."""

    def __init__(self, spec: OSNetSpec):
        super().__init__()
        c0, c1, c2, c3 = spec.channels
        self.width, kind = c3, spec.kind
        normed = {"plain": ((False,) * 2,) * 3, "ibn": ((True,) * 2, (False,) * 2, (False,) * 2), "ain": AIN_NORMED}
        self.conv1 = ConvNorm(3, c0, 7, 2, instance=kind != "plain")
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        for name, width, out, which in zip(
            ("conv2", "conv3", "conv4"), (c0, c1, c2), (c1, c2, c3), normed[kind], strict=True
        ):
            blocks = [OSBlock(width, out, kind, which[0]), OSBlock(out, out, kind, which[1])]
            down = [] if name == "conv4" else [ConvNorm(out, out), nn.AvgPool2d(2)]
            if kind == "ain":
                self.add_module(name, nn.Sequential(*blocks))
                if down:
                    self.add_module(f"pool{name[-1]}", nn.Sequential(*down))
            else:
                self.add_module(name, nn.Sequential(*blocks, *([nn.Sequential(*down)] if down else [])))
        self.conv5 = ConvNorm(c3, c3)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for layer in self.children():  # in the order in which they were added
            x = layer(x)
        return x
