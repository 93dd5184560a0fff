"""What every way to a retrieval feature shares: the mean with the mirrored image, and unit length."""

from __future__ import annotations

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor


def mean_with_mirrored(call: Callable[..., Tensor], images: Tensor, **labels: Tensor | None) -> Tensor:
    """Returns the mean of the features of the images and of their mirrored copies (TEST.FLIP).

    call: (images, **labels) -> (B, D). images: (B, 3, H, W), mirrored left to right. labels: passed on as they are.
    """
    return (call(images, **labels) + call(images.flip(3), **labels)) / 2


def to_unit_length(feats: Tensor) -> Tensor:
    """Returns the features in float32, scaled to length 1 (TEST.FEAT_NORM). (B, D) -> (B, D)."""
    return F.normalize(feats.float())
