"""The encoder of cluster contrast: a backbone and a neck, no classifier (Dai et al., ACCV 2022, arXiv:2103.11568)."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn

from model.layers.heads import make_neck
from model.networks.clip_reid import clip_state
from model.output import ReIDOutput


class ClusterEncoder(nn.Module):
    """Features of unit length behind the neck, in training (with the batch's statistics) and in evaluation alike.

    base: backbone with ``width`` and ``forward(images, cam_label, view_label) -> (B, width)``.
    """

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base, self.width = base, base.width
        self.bottleneck = make_neck(base.width)

    def forward(self, images: Tensor, label=None, cam_label=None, view_label=None) -> ReIDOutput | Tensor:
        """Training: ``ReIDOutput`` without scores, the memory takes the classifier's place. Evaluation: (B, width)."""
        feat = F.normalize(self.bottleneck(self.base(images, cam_label, view_label)))
        return ReIDOutput(scores=[], feats=[feat]) if self.training else feat

    def published_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Published files have the backbone's names bare, beside ``bottleneck.``; ours have ``base.`` before them."""
        return with_base(state, ("bottleneck.",))


def with_base(state: dict[str, Tensor], own: tuple[str, ...]) -> dict[str, Tensor]:
    """Bare backbone names with ``base.`` before them, where none has it. own: prefixes that are not the backbone's."""
    if any(key.startswith("base.") for key in state):
        return state
    return {key if key.startswith(own) else f"base.{key}": value for key, value in state.items()}


class PooledTrunk(nn.Module):
    """A network that gives a map, as a backbone. net: trunk with ``width``, images -> (B, width, h, w)."""

    def __init__(self, net: nn.Module, pool: nn.Module):
        super().__init__()
        self.net, self.pool, self.width = net, pool, net.width

    def forward(self, images: Tensor, cam_label=None, view_label=None) -> Tensor:
        return self.pool(self.net(images))


class ImageTower(nn.Module):
    """CLIP's image side as a backbone: its last feature before the projection.

    image_encoder: one of our towers. quick_gelu: whether it has the activation that OpenAI's weights need.
    """

    def __init__(self, image_encoder: nn.Module, quick_gelu: bool = True):
        super().__init__()
        self.image_encoder, self.width, self.quick_gelu = image_encoder, image_encoder.width, quick_gelu

    def forward(self, images: Tensor, cam_label=None, view_label=None) -> Tensor:
        return self.image_encoder(images, 0.0).late

    def pretrained_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """The image side of a CLIP, or of a ReID model that has one."""
        return clip_state(state, self.quick_gelu)
