"""torchreid's ResNets: torchvision's own, with stage maps taken before the closing ReLU for feature distillation."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from model.backbones.resnet import ResNetSpec, keep_size
from model.base import Trunk
from utils.statistics import bn_margins


def before_relu(block: BasicBlock | Bottleneck, x: Tensor) -> Tensor:
    """Returns what a residual block gives before its closing ReLU."""
    out = block.relu(block.bn1(block.conv1(x)))
    out = block.bn2(block.conv2(out))
    if isinstance(block, Bottleneck):
        out = block.bn3(block.conv3(block.relu(out)))
    return out + (x if block.downsample is None else block.downsample(x))


def last_block(stage: nn.Sequential) -> BasicBlock | Bottleneck:
    """Returns the block that closes a stage."""
    block = stage[-1]
    assert isinstance(block, BasicBlock | Bottleneck)
    return block


class TorchreidResNet(ResNet, Trunk):
    """torchreid's ResNet without its head. (B, 3, H, W) -> map (B, width, H / 32, W / 32).

    last_stride: stride of the last stage, 1 keeps its map as large as the third's.

    Buffers ``margin1`` to ``margin4`` (1, C, 1, 1) hold what the batch norms closing the stages leave below 0 on
    average; published files carry those of the ImageNet weights (``set_margins`` makes them from the weights here).
    """

    margin1: Tensor
    margin2: Tensor
    margin3: Tensor
    margin4: Tensor

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
        """Returns the four stages."""
        return self.layer1, self.layer2, self.layer3, self.layer4

    def closing_norms(self) -> list[nn.BatchNorm2d]:
        blocks = [last_block(stage) for stage in self.stages()]
        norms = [block.bn3 if isinstance(block, Bottleneck) else block.bn2 for block in blocks]
        return cast("list[nn.BatchNorm2d]", norms)  # torchvision calls them modules

    def margins(self) -> list[Tensor]:
        return [self.margin1, self.margin2, self.margin3, self.margin4]

    @torch.no_grad()
    def set_margins(self) -> None:
        """Computes the margins from the batch norms as they are now."""
        for margin, norm in zip(self.margins(), self.closing_norms(), strict=True):
            margin.copy_(bn_margins(norm.weight, norm.bias).view_as(margin))

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """Returns the four stages' maps before the ReLU that closes each; a ReLU on the last gives ``forward``'s."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        maps = []
        for stage in self.stages():
            maps.append(before_relu(last_block(stage), stage[:-1](x)))
            x = maps[-1].relu()
        return maps

    def forward(self, images: Tensor) -> Tensor:
        return self.stage_maps(images)[-1].relu()
