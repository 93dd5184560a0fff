"""Statistics that follow from a network's parameters."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def bn_margins(scale: Tensor, shift: Tensor) -> Tensor:
    """Returns the mean of the negative part of N(shift, scale**2) per channel. (C,), (C,) -> (C,).

    It is the mean of what a ReLU cuts off behind a batch norm with this scale and shift; -3 |scale| for a channel of
    which less than 0.1 % is negative.
    """
    mean, deviation = shift.double(), scale.double().abs()  # the tails of a normal distribution cancel in float32
    ratio = mean / deviation.clamp(min=1e-30)
    below = torch.special.ndtr(-ratio)
    density = torch.exp(-ratio.square() / 2) / math.sqrt(2 * math.pi)
    negative = mean - deviation * density / below.clamp(min=1e-3)
    return torch.where(below > 1e-3, negative, -3 * deviation).to(scale.dtype)
