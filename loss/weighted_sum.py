"""The sum of several terms of a loss."""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce
from operator import add

from torch import Tensor


def weighted_sum(terms: Iterable[Tensor], weights: Iterable[float]) -> Tensor:
    """Returns the sum of the terms (scalars), each times its weight, added in their order. There is at least one."""
    return reduce(add, (weight * term for weight, term in zip(weights, terms, strict=True)))
