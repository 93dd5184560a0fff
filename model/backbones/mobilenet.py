"""MobileNetV2 of width 1.4 (Sandler et al., CVPR 2018, arXiv:1801.04381), under torchreid's parameter names."""

from __future__ import annotations

from torch import Tensor, nn

STAGES = (
    ("conv2", 22, 1, 1, 1), ("conv3", 33, 2, 2, 6), ("conv4", 44, 3, 2, 6), ("conv5", 89, 4, 2, 6),
    ("conv6", 134, 3, 1, 6), ("conv7", 224, 3, 2, 6), ("conv8", 448, 1, 1, 6),
)  # fmt: skip
"""Name, channels, blocks, stride of the first block, expansion."""

STEM, WIDTH = 44, 1792


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


class MobileNetV2(nn.Module):
    """The trunk. (B, 3, H, W) -> map (B, 1792, H / 32, W / 32)."""

    width = WIDTH

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = ConvNorm6(3, STEM, 3, 2)
        width = STEM
        for name, out, blocks, stride, expansion in STAGES:
            layers = []
            for i in range(blocks):
                layers.append(InvertedResidual(width, out, expansion, stride if i == 0 else 1))
                width = out
            self.add_module(name, nn.Sequential(*layers))
        self.conv9 = ConvNorm6(width, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv1(x)
        for name, *_ in STAGES:
            x = getattr(self, name)(x)
        return self.conv9(x)
