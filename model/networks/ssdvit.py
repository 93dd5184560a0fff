"""SSDViT's network: two necks behind one backbone, and a branch that reads the class token at a random depth.

After "SSDViT" (ICASSP 2025). Parameter names are those of the published files.
"""

from __future__ import annotations

import random

import torch.nn.functional as F
from torch import Tensor

from model.base import Backbone, RetrievalModel
from model.layers.heads import make_neck
from model.networks.necked import require_neck_feat
from utils.errors import UserError
from utils.output import ReIDOutput


class SSDViT(RetrievalModel):
    """Unit-length features behind one neck (``tri``) and behind two (``bn_x``), and the same at a random depth.

    base: backbone; one with several ``depths`` (the ViTs) gives the random depth, any other is read at its end.
    neck_feat: ``before`` or ``after`` the second neck, for retrieval. random_block: the block to read, from 0, -1 for
    one drawn in every pass in training.

    ``feat_bn`` sees two inputs in one training pass, first entries of unit vectors and then plain ones, and its running
    statistics mix both, as published.
    """

    optional_keys = classifier_keys = ()

    base: Backbone

    def __init__(self, base: Backbone, neck_feat: str = "after", random_block: int = -1):
        super().__init__()
        self.base, self.neck_feat, self.width = base, require_neck_feat(neck_feat), base.width
        self.depths = base.depths
        if random_block >= self.depths:
            raise UserError(
                f"SSD.RANDOM_BLOCK: {random_block}, but the backbone can be read at {self.depths} depths, from 0"
            )
        self.random_block = random_block
        base.add_module("bottleneck", make_neck(self.width))  # where the published files have it
        self.feat_bn = make_neck(self.width)

    def first_neck(self, feat: Tensor) -> Tensor:
        """Returns the feature behind the first neck, unit length. (B, width) -> (B, width)."""
        return F.normalize(self.base.get_submodule("bottleneck")(feat))

    def second_neck(self, feat: Tensor) -> Tensor:
        """Returns the feature behind the second neck, unit length. (B, width) -> (B, width)."""
        return F.normalize(self.feat_bn(feat))

    def class_feature(
        self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None
    ) -> Tensor:
        """Returns what the class memories hold: the feature (B, width) behind both necks, whatever retrieval takes."""
        return self.second_neck(self.first_neck(self.base(images)))

    def forward(
        self,
        images: Tensor,
        label: Tensor | None = None,
        cam_label: Tensor | None = None,
        view_label: Tensor | None = None,
    ) -> ReIDOutput | Tensor:
        """Returns feats ``[tri, rb, bn_x, bn_x_rb]`` in training, else the retrieval feature, unit length."""
        if self.training:
            return self.training_features(images)
        return self.class_feature(images) if self.neck_feat == "after" else self.first_neck(self.base(images))

    def training_features(self, images: Tensor) -> ReIDOutput:
        """Returns the features at the end and at the chosen or drawn depth, without and with the second neck."""
        depth = random.randrange(self.depths) if self.random_block < 0 else self.random_block
        last, rb = self.base.at_depth(images, depth)
        tri = self.first_neck(last)
        bn_x = self.second_neck(tri)
        return ReIDOutput(scores=[], feats=[tri, rb, bn_x, self.second_neck(rb)])

    def backbone_module(self) -> Backbone:
        return self.base

    def pretrained_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the backbone's state; necks start fresh, whatever the file holds."""
        return self.base.pretrained_state({key: value for key, value in state.items() if "bottleneck" not in key})
