"""ResNets of the ReID baselines, on torchvision's (Luo et al., CVPRW 2019; IBN-a: Pan et al., ECCV 2018).

Parameter names are torchvision's and those of the published files.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from model.base import Backbone
from model.layers.norms import IBN
from model.layers.pooling import make_pooling
from utils.errors import UserError
from utils.layered import Layers


@dataclass(frozen=True)
class ResNetSpec:
    """block: torchvision's residual block; layers: blocks per stage; ibn: IBN-a in the first three stages."""

    block: type[BasicBlock | Bottleneck]
    layers: tuple[int, int, int, int]
    ibn: bool = False


RESNET_TYPES = {
    "resnet10": ResNetSpec(BasicBlock, (1, 1, 1, 1)),
    "resnet18": ResNetSpec(BasicBlock, (2, 2, 2, 2)),
    "resnet34": ResNetSpec(BasicBlock, (3, 4, 6, 3)),
    "resnet50": ResNetSpec(Bottleneck, (3, 4, 6, 3)),
    "resnet101": ResNetSpec(Bottleneck, (3, 4, 23, 3)),
    "resnet152": ResNetSpec(Bottleneck, (3, 8, 36, 3)),
    "resnet50_ibn_a": ResNetSpec(Bottleneck, (3, 4, 6, 3), ibn=True),
    "resnet101_ibn_a": ResNetSpec(Bottleneck, (3, 4, 23, 3), ibn=True),
}


class ReIDResNet(ResNet, Backbone):
    """torchvision's ResNet without its classifier. (B, 3, H, W) -> feature (B, width).

    last_stride: stride of the last stage; 1 keeps its map as large as the third's. The plain networks pool 2 x 2
    without padding after the stem and the IBN ones 3 x 3 with padding, as published. pooling: ``avg``, ``max`` or
    ``gem``, of the last map.
    """

    def __init__(self, spec: ResNetSpec, last_stride: int = 1, pooling: str = "avg"):
        if last_stride not in (1, 2):
            raise UserError(f"MODEL.LAST_STRIDE: {last_stride} is not 1 or 2")
        super().__init__(spec.block, list(spec.layers))
        self.width = self.fc.in_features
        del self.fc
        self.avgpool = make_pooling(pooling)
        if not spec.ibn:
            self.maxpool = nn.MaxPool2d(kernel_size=2, stride=2)
        if last_stride == 1:
            keep_size(self.layer4)
        if spec.ibn:
            for stage in (self.layer1, self.layer2, self.layer3):
                for block in stage:
                    assert isinstance(block, Bottleneck) and isinstance(block.bn1, nn.BatchNorm2d)
                    block.bn1 = IBN(block.bn1.num_features)

    def maps(self, images: Tensor) -> Tensor:
        """Returns the last feature map, (B, width, h, w)."""
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        return self.layer4(self.layer3(self.layer2(self.layer1(x))))

    def rate_layers(self) -> Layers:
        stages = (self.layer1, self.layer2, self.layer3, self.layer4)
        blocks = [(f"layer{i}.{j}.",) for i, stage in enumerate(stages, 1) for j in range(len(stage))]
        return [("conv1.", "bn1."), *blocks]

    def forward(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        return self.avgpool(self.maps(images))


def keep_size(stage: nn.Sequential) -> None:
    """Sets the stride of a stage's first block to 1, so that its map is as large as the one before it."""
    first = stage[0]
    assert isinstance(first, BasicBlock | Bottleneck) and isinstance(first.downsample, nn.Sequential)
    for conv in (first.conv2 if isinstance(first, Bottleneck) else first.conv1, first.downsample[0]):
        assert isinstance(conv, nn.Conv2d)
        conv.stride = (1, 1)
