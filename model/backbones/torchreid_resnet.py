"""torchreid's ResNets: torchvision's own, with stage maps taken before the closing ReLU for feature distillation."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torchvision.models.resnet import ResNet

from model.backbones.resnet import ResNetSpec, keep_size
from utils.statistics import bn_margins


def before_relu(block: nn.Module, x: Tensor) -> Tensor:
    """What a residual block gives before its closing ReLU."""
    out = block.relu(block.bn1(block.conv1(x)))
    out = block.bn2(block.conv2(out))
    if hasattr(block, "conv3"):
        out = block.bn3(block.conv3(block.relu(out)))
    return out + (x if block.downsample is None else block.downsample(x))


class TorchreidResNet(ResNet):
    """torchreid's ResNet without its head. (B, 3, H, W) -> map (B, width, H / 32, W / 32).

    last_stride: stride of the last stage, 1 keeps its map as large as the third's.

    Buffers ``margin1`` to ``margin4`` (1, C, 1, 1) hold what the batch norms closing the stages leave below 0 on
    average; published files carry those of the ImageNet weights (``set_margins`` makes them from the weights here).
    """

    def __init__(self, spec: ResNetSpec, last_stride: int = 2):
        super().__init__(spec.block, list(spec.layers))
        if last_stride == 1:
            keep_size(self.layer4)
        self.width = self.fc.in_features
        del self.fc
        for i, norm in enumerate(self.closing_norms(), 1):
            self.register_buffer(f"margin{i}", torch.empty(1, norm.num_features, 1, 1))
        self.set_margins()

    def stages(self) -> tuple[nn.Sequential, ...]:
        return self.layer1, self.layer2, self.layer3, self.layer4

    def closing_norms(self) -> list[nn.BatchNorm2d]:
        return [getattr(stage[-1], "bn3", stage[-1].bn2) for stage in self.stages()]

    def margins(self) -> list[Tensor]:
        return [self.margin1, self.margin2, self.margin3, self.margin4]

    @torch.no_grad()
    def set_margins(self) -> None:
        """Makes the margins anew from the batch norms as they are now."""
        for margin, norm in zip(self.margins(), self.closing_norms(), strict=True):
            margin.copy_(bn_margins(norm.weight, norm.bias).view_as(margin))

    def stage_maps(self, x: Tensor) -> list[Tensor]:
        """The four stages' maps before the ReLU that closes each; a ReLU on the last gives ``forward``'s."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        maps = []
        for stage in self.stages():
            maps.append(before_relu(stage[-1], stage[:-1](x)))
            x = maps[-1].relu()
        return maps

    def forward(self, x: Tensor) -> Tensor:
        return self.stage_maps(x)[-1].relu()
