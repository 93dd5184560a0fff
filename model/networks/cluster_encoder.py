"""The encoder of cluster contrast: a backbone and a neck, no classifier (Dai et al., ACCV 2022, arXiv:2103.11568)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.backbones.clip import CLIPTower
from model.base import Backbone, RetrievalModel, TokenLayout, Trunk, with_base
from model.layers.heads import make_neck
from model.networks.clip_reid import clip_state
from utils.output import ReIDOutput


class ClusterEncoder(RetrievalModel):
    """Features of unit length behind the neck, in training (with the batch's statistics) and in evaluation."""

    optional_keys = classifier_keys = ()

    base: Backbone

    def __init__(self, base: Backbone):
        super().__init__()
        self.base, self.width = base, base.width
        self.bottleneck = make_neck(base.width)

    def forward(
        self,
        images: Tensor,
        label: Tensor | None = None,
        cam_label: Tensor | None = None,
        view_label: Tensor | None = None,
    ) -> ReIDOutput | Tensor:
        """Returns a ``ReIDOutput`` without scores in training (the memory classifies), else the feature (B, width)."""
        feat = F.normalize(self.bottleneck(self.base(images, cam_label, view_label)))
        return ReIDOutput(scores=[], feats=[feat]) if self.training else feat

    def backbone_module(self) -> Backbone:
        return self.base

    def published_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns a published file's state, whose backbone names are bare, under ours with ``base.``."""
        return with_base(state, ("bottleneck.",))


class PooledTrunk(Backbone):
    """A network that gives a map, as a backbone. pool: (B, width, h, w) -> (B, width)."""

    net: Trunk

    def __init__(self, net: Trunk, pool: nn.Module):
        super().__init__()
        self.net, self.pool, self.width = net, pool, net.width

    def forward(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        return self.pool(self.net(images))

    def pretrained_part(self) -> nn.Module:
        return self.net


class ImageTower(Backbone):
    """CLIP's image side as a backbone: its last feature before the projection.

    quick_gelu: whether the tower has the activation that OpenAI's weights need.
    """

    image_encoder: CLIPTower

    def __init__(self, image_encoder: CLIPTower, quick_gelu: bool = True):
        super().__init__()
        self.image_encoder, self.width, self.quick_gelu = image_encoder, image_encoder.width, quick_gelu

    def forward(self, images: Tensor, cam_label: Tensor | None = None, view_label: Tensor | None = None) -> Tensor:
        return self.image_encoder(images, 0.0).late

    def token_layout(self) -> TokenLayout | None:
        return self.image_encoder.token_layout()

    def pretrained_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the state of a CLIP's image side, or of a ReID model that has one."""
        return clip_state(state, self.quick_gelu)
