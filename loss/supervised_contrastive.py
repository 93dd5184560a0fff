"""Supervised contrastive loss between two sets of features, such as images and texts (CLIP-ReID, eq. 5 and 6)."""

from __future__ import annotations

import torch
from torch import Tensor


def supervised_contrastive(
    anchors: Tensor, contrasts: Tensor, anchor_labels: Tensor, contrast_labels: Tensor, temperature: float = 1.0
) -> Tensor:
    """Returns the loss that pulls each anchor to the contrasts of its label, against all contrasts.

    Logits are plain dot products, not of unit-length features, as published. The mean is over an anchor's positives
    and then over anchors; anchors without a positive do not count, and if none has one the loss is 0.

    anchors: (A, D). contrasts: (N, D). anchor_labels: (A,). contrast_labels: (N,). Returns a scalar, float32 or wider.
    """
    with torch.autocast(anchors.device.type, enabled=False):
        wide = torch.promote_types(anchors.dtype, torch.float32)
        log_shares = (anchors.to(wide) @ contrasts.to(wide).t() / temperature).log_softmax(dim=1)
        positive = (anchor_labels[:, None] == contrast_labels[None, :]).to(wide)
        counts = positive.sum(1)
        of_anchor = -(positive * log_shares).sum(1) / counts.clamp(min=1)
        return of_anchor.sum() / (counts > 0).sum().clamp(min=1)
