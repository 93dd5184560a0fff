"""MobileNetV2 (Sandler et al., CVPR 2018, arXiv:1801.04381), under torchreid's parameter names."""

from __future__ import annotations

from torch import Tensor, nn

from model.base import Trunk

STAGES = (
    ("conv2", 16, 1, 1, 1), ("conv3", 24, 2, 2, 6), ("conv4", 32, 3, 2, 6), ("conv5", 64, 4, 2, 6),
    ("conv6", 96, 3, 1, 6), ("conv7", 160, 3, 2, 6), ("conv8", 320, 1, 1, 6),
)  # fmt: skip
"""Name, channels at multiplier 1, blocks, stride of the first block, expansion."""

STEM, LAST = 32, 1280
"""Channels at multiplier 1 of the first and the last convolution."""

MOBILENET_TYPES = {"mobilenetv2_x1_0": 1.0, "mobilenetv2_x1_4": 1.4}
"""Name -> multiplier of all channels."""


class ConvNorm6(nn.Module):
    """Convolution, batch norm, ReLU6."""

    def __init__(self, width: int, out: int, kernel: int = 1, stride: int = 1, groups: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(width, out, kernel, stride, padding=kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.relu6(self.bn(self.conv(x)))


class InvertedResidual(nn.Module):
    """Expand, filter depthwise, project linearly; with a shortcut where size and width stay."""

    def __init__(self, width: int, out: int, expansion: int, stride: int):
        super().__init__()
        mid = width * expansion
        self.conv1 = ConvNorm6(width, mid)
        self.dwconv2 = ConvNorm6(mid, mid, 3, stride, groups=mid)
        self.conv3 = nn.Sequential(nn.Conv2d(mid, out, 1, bias=False), nn.BatchNorm2d(out))
        self.residual = stride == 1 and width == out

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv3(self.dwconv2(self.conv1(x)))
        return x + y if self.residual else y


class MobileNetV2(Trunk):
    """MobileNetV2 without its head. (B, 3, H, W) -> map (B, width, H / 32, W / 32).

    multiplier: of all channels, which are cut to integers; the last convolution has 1280 or more.
    """

    def __init__(self, multiplier: float = 1.0):
        super().__init__()
        width = int(STEM * multiplier)
        self.width = int(LAST * max(multiplier, 1.0))
        self.conv1 = ConvNorm6(3, width, 3, 2)
        for name, channels, blocks, stride, expansion in STAGES:
            out, layers = int(channels * multiplier), []
            for i in range(blocks):
                layers.append(InvertedResidual(width, out, expansion, stride if i == 0 else 1))
                width = out
            self.add_module(name, nn.Sequential(*layers))
        self.conv9 = ConvNorm6(width, self.width)

    def forward(self, images: Tensor) -> Tensor:
        x = images
        for layer in self.children():  # in the order in which they were added
            x = layer(x)
        return x
