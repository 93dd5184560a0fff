"""Identity classification with label smoothing (Szegedy et al., CVPR 2016)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def cross_entropy(scores: Tensor, labels: Tensor, epsilon: float = 0.0) -> Tensor:
    """Returns the mean cross-entropy with targets ``(1 - epsilon) * onehot + epsilon / C``, spread over all C classes.

    scores: (B, C) logits. labels: (B,) in 0..C-1, or (B, C) shares of the classes (mixed images). epsilon: in [0, 1).
    Returns a scalar, in float32 or wider.
    """
    wide = torch.promote_types(scores.dtype, torch.float32)
    return F.cross_entropy(scores.to(wide), labels, label_smoothing=epsilon)
