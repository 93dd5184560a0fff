"""A network that is traced in a second: most of what tests of exported files take is the tracing."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from model import register_backbone
from model.backbones.vit import SideInformation

PATCHES = "patches"


class Patches(nn.Module):
    """A backbone of one layer, with side information. Most of its file is weights."""

    width = 128

    def __init__(self, cameras: int, views: int):
        super().__init__()
        self.conv, self.side = nn.Conv2d(3, self.width, 8, stride=4), SideInformation(cameras, views)
        self.sie_embed = nn.Parameter(0.05 * torch.randn(self.side.rows, self.width)) if self.side.rows else None

    def forward(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        feats = self.conv(images).relu().mean((2, 3))
        return feats if self.sie_embed is None else feats + self.side(self.sie_embed, cam_label, view_label)


register_backbone(PATCHES)(lambda cfg, cameras, views: Patches(cameras if cfg.MODEL.SIE_CAMERA else 0, 0))
