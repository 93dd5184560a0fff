"""Pooling of a feature map or of tokens to one vector: mean, maximum, or the generalised mean in between."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from utils.errors import UserError


def gem(tokens: Tensor, p: float | Tensor = 3.0, eps: float = 1e-6) -> Tensor:
    """Returns the generalised mean over the tokens, per channel (Radenovic et al., TPAMI 2019, eq. 3).

    (B, N, D) -> (B, D). p: exponent; 1 is the mean, and a larger p is closer to the maximum. Values below eps count as
    eps.
    """
    return tokens.clamp(min=eps).pow(p).mean(1).pow(1.0 / p)


class GeM(nn.Module):
    """The generalised mean over a map, with a trainable exponent that starts at 3. (B, D, h, w) -> (B, D)."""

    def __init__(self):
        super().__init__()
        self.p = nn.Parameter(torch.tensor([3.0]))

    def forward(self, maps: Tensor) -> Tensor:
        return gem(maps.flatten(2).transpose(1, 2), self.p)


class Average(nn.Module):
    """The mean over a map. (B, D, h, w) -> (B, D)."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.mean((2, 3))


class Largest(nn.Module):
    """The largest value over a map. (B, D, h, w) -> (B, D)."""

    def forward(self, maps: Tensor) -> Tensor:
        return maps.amax((2, 3))


GROUP = 4
"""Consecutive patches of which ``avg_max`` takes the largest values."""

TOKEN_POOLINGS = ("None", "avg", "max", "avg_max", "gem")


def pool_tokens(tokens: Tensor, pooling: str) -> Tensor:
    """Returns the feature (B, D) of normalised tokens (B, 1 + N, D), the class token first.

    pooling: ``None``: the class token. ``avg``, ``max``: over the patches alone. ``avg_max``: the mean over groups of 4
    consecutive patches of each group's maximum. ``gem``: the class token plus the generalised mean of the patches.
    """
    patches = tokens[:, 1:]
    if pooling == "gem":
        return tokens[:, 0] + gem(patches)
    if pooling == "avg":
        return patches.mean(1)
    if pooling == "max":
        return patches.amax(1)
    if pooling == "avg_max":
        return patches.unflatten(1, (-1, GROUP)).amax(2).mean(1)
    return tokens[:, 0]


POOLINGS = {"avg": Average, "max": Largest, "gem": GeM}


def make_pooling(name: str) -> nn.Module:
    """Returns the pooling that MODEL.POOLING names; raises ``UserError`` for any other word."""
    if name not in POOLINGS:
        raise UserError(f"MODEL.POOLING: unknown {name!r}. Known: {', '.join(POOLINGS)}")
    return POOLINGS[name]()
