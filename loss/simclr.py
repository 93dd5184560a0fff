"""SimCLR's loss, NT-Xent (Chen et al., ICML 2020)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from utils.distributed import gather_rows


def simclr(view1: Tensor, view2: Tensor, temperature: float = 0.1, gather: bool = False) -> Tensor:
    """Returns the mean loss of finding each row's other view among all other rows of both views, by cosine.

    view1, view2: (B, D), row i of both being of the same image. gather: candidates are the rows of all processes, with
    gradient. Returns a scalar, the mean over 2 B rows, in float32 or wider; 0 for B = 1.
    """
    if gather:
        view1, view2 = gather_rows(view1), gather_rows(view2)
    with torch.autocast(view1.device.type, enabled=False):
        rows = torch.cat([view1, view2])
        rows = F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)
        count = len(rows)
        itself = torch.eye(count, dtype=torch.bool, device=rows.device)
        logits = (rows @ rows.t() / temperature).masked_fill(itself, float("-inf"))
        other_view = torch.arange(count, device=rows.device).roll(count // 2)
        return F.cross_entropy(logits, other_view)
