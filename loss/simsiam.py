"""SimSiam's loss (Chen and He, CVPR 2021)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def simsiam(pred1: Tensor, pred2: Tensor, proj1: Tensor, proj2: Tensor) -> Tensor:
    """Returns minus the mean cosine of each view's prediction with the other view's feature.

    All (B, D); the features get no gradient here. Returns a scalar in [-1, 1], in float32 or wider.
    """
    with torch.autocast(pred1.device.type, enabled=False):
        wide = torch.promote_types(pred1.dtype, torch.float32)
        p1, p2, z1, z2 = (x.to(wide) for x in (pred1, pred2, proj1.detach(), proj2.detach()))
        return -(F.cosine_similarity(p1, z2).mean() + F.cosine_similarity(p2, z1).mean()) / 2
