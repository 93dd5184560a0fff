"""SSDViT's network: two necks behind one backbone, and a branch that reads the class token at a random depth.

After "SSDViT" (ICASSP 2025). Parameter names are those of the published files.
"""

from __future__ import annotations

import random

import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.heads import make_neck
from model.output import ReIDOutput
from utils.errors import UserError


class SSDViT(nn.Module):
    """Unit-length features behind one neck (``tri``) and behind two (``bn_x``), and the same at a random depth.

    base: backbone with ``width`` and ``forward(images) -> (B, width)``; one that also has ``depths`` and ``at_depth``
    (the ViTs) gives the random depth, any other is read at its end. neck_feat: ``before`` or ``after`` the second neck,
    for retrieval. random_block: the block to read, from 0, -1 for one drawn in every pass in training.

    ``feat_bn`` sees two inputs in one training pass, first entries of unit vectors and then plain ones, and its running
    statistics mix both, as published.
    """

    def __init__(self, base: nn.Module, neck_feat: str = "after", random_block: int = -1):
        super().__init__()
        if neck_feat not in ("before", "after"):
            raise UserError(f"TEST.NECK_FEAT: {neck_feat!r} is neither 'before' nor 'after'")
        self.base, self.neck_feat, self.width = base, neck_feat, base.width
        self.depths = getattr(base, "depths", 1)
        if random_block >= self.depths:
            raise UserError(
                f"SSD.RANDOM_BLOCK: {random_block}, but the backbone can be read at {self.depths} depths, from 0"
            )
        self.random_block = random_block
        self.base.bottleneck = make_neck(self.width)  # where the published files have it
        self.feat_bn = make_neck(self.width)

    def first_neck(self, feat: Tensor) -> Tensor:
        return F.normalize(self.base.bottleneck(feat))

    def second_neck(self, feat: Tensor) -> Tensor:
        return F.normalize(self.feat_bn(feat))

    def class_feature(self, images: Tensor, **_) -> Tensor:
        """What the class memories hold: the feature behind both necks, whatever retrieval takes. (B, width)."""
        return self.second_neck(self.first_neck(self.base(images)))

    def read(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The backbone's feature and that of the chosen or drawn depth, (B, width) each."""
        depth = random.randrange(self.depths) if self.random_block < 0 else self.random_block
        if self.depths > 1:
            return self.base.at_depth(images, depth)
        last = self.base(images)
        return last, last

    def forward(self, images: Tensor, label=None, cam_label=None, view_label=None) -> ReIDOutput | Tensor:
        """Training: feats ``[tri, rb, bn_x, bn_x_rb]``, no scores. Evaluation: the retrieval feature, unit length."""
        if self.training:
            return self.training_features(images)
        return self.class_feature(images) if self.neck_feat == "after" else self.first_neck(self.base(images))

    def training_features(self, images: Tensor) -> ReIDOutput:
        last, rb = self.read(images)
        tri = self.first_neck(last)
        bn_x = self.second_neck(tri)
        return ReIDOutput(scores=[], feats=[tri, rb, bn_x, self.second_neck(rb)])

    def pretrained_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Necks start fresh, whatever the file holds."""
        return {key: value for key, value in state.items() if "bottleneck" not in key}
