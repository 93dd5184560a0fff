"""Batch-hard triplet loss (Hermans et al., arXiv:1703.07737)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def pairwise_distances(a: Tensor, b: Tensor) -> Tensor:
    """Returns Euclidean distances, at least 1e-6, in float32 or wider. (M, D), (N, D) -> (M, N).

    The floor keeps the root's gradient finite where two features coincide.
    """
    with torch.autocast(a.device.type, enabled=False):
        wide = torch.promote_types(a.dtype, torch.float32)
        a, b = a.to(wide), b.to(wide)
        squared = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.t()
        return squared.clamp(min=1e-12).sqrt()


def hardest_pairs(feats: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each image's distance to its farthest positive and its nearest negative. (B, D), (B,) -> (B,), (B,).

    By masks, so that identities may have unequal numbers of images. An image counts as its own positive, as in the
    published ReID code; without any negative the second distance is infinite.
    """
    dist = pairwise_distances(feats, feats)
    same = labels[:, None] == labels[None, :]
    return dist.masked_fill(~same, 0).amax(1), dist.masked_fill(same, float("inf")).amin(1)


def triplet(feats: Tensor, labels: Tensor, margin: float | None = 0.3, normalize: bool = False) -> Tensor:
    """Returns the loss that pulls each image to its farthest positive and pushes it from its nearest negative.

    feats: (B, D). labels: (B,). margin: hinge width, None for the soft margin ``log(1 + exp(gap))``.
    normalize: divide the features by their length first. Returns a scalar, the mean over B.
    """
    if normalize:
        feats = feats / (feats.norm(dim=1, keepdim=True) + 1e-12)
    positive, negative = hardest_pairs(feats, labels)
    gap = positive - negative
    return F.softplus(gap).mean() if margin is None else F.relu(gap + margin).mean()
