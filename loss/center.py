"""Center loss (Wen et al., ECCV 2016)."""

from __future__ import annotations

from torch import Tensor


def center(feats: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """Mean squared distance of each feature to its identity's center, each clamped to [1e-12, 1e12].

    feats: (B, D). labels: (B,) in 0..C-1. centers: (C, D). Returns a scalar.
    """
    return (feats.float() - centers[labels]).square().sum(1).clamp(1e-12, 1e12).mean()
