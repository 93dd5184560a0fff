"""Center loss (Wen et al., ECCV 2016)."""

from __future__ import annotations

import torch
from torch import Tensor


def center(feats: Tensor, labels: Tensor, centers: Tensor) -> Tensor:
    """Returns the mean squared distance of the features to their identities' centers, each in [1e-12, 1e12].

    feats: (B, D). labels: (B,) in 0..C-1. centers: (C, D). Returns a scalar.
    """
    wide = torch.promote_types(feats.dtype, torch.float32)
    return (feats.to(wide) - centers[labels]).square().sum(1).clamp(1e-12, 1e12).mean()
