"""Sums of tensors with the type of a tensor; ``sum`` starts from the number 0."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from functools import reduce

from torch import Tensor


def add_up(terms: Iterable[Tensor]) -> Tensor:
    """Returns the sum of one or more terms, from the first to the last."""
    return reduce(operator.add, terms)
