"""Matrix products whose cells do not depend on where their rows stand.

Equal features must get equal distances at every place, or the order of copies is chance. BLAS libraries add the terms
of a cell in an order of their own, and some (OpenBLAS on CPUs without AVX-512) in another one at the edges of a matrix.
So the library is tried once, before the first product.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch

Product = Callable[[np.ndarray, np.ndarray, np.ndarray], object]
"""Writes a @ b.T into the third array."""

SHAPES = ((16, 32), (256, 640))
"""Heights and widths of the products that are tried: the least and the largest tile."""


def product(a: np.ndarray, b: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
    """Returns a @ b.T for rows of features, (n, D) and (m, D) -> (n, m).

    n and m are multiples of 16 (pad with zeros); then equal rows give equal bits at every place, for every n and m.
    out: array to write to.
    """
    if out is None:
        out = np.empty((len(a), len(b)), a.dtype)
    even_product(a.dtype)(a, b, out)
    return out


@functools.cache
def even_product(dtype: np.dtype) -> Product:
    """Returns the first library whose cells do not depend on their place: NumPy's, torch's, or none at all.

    NumPy's comes first: it is 1.1 to 1.6 times as fast as torch's where both can be used.
    """
    return next((way for way in (by_numpy, by_torch) if is_even(way, dtype)), by_einsum)


def is_even(way: Product, dtype: np.dtype, depth: int = 96) -> bool:
    """Returns whether a product of a few rows, repeated, has one value for each pair of them, in all ``SHAPES``.

    With the two lists exchanged too.
    """
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((8, depth)).astype(dtype)
    expected = np.empty((16, 16), dtype)
    way(rows[np.arange(16) % 8], rows[np.arange(16) % 8], expected)
    for height, width in (*SHAPES, *(shape[::-1] for shape in SHAPES)):
        i, j = np.arange(height) % 8, np.arange(width) % 8
        out = np.empty((height, width), dtype)
        way(rows[i], rows[j], out)
        if not (out == expected[i][:, j]).all():
            return False
    return bool((expected == expected.T).all())


def by_numpy(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    if np.may_share_memory(a, b):
        b = b.copy()  # NumPy multiplies a matrix with itself in another way, which adds in another order
    np.matmul(a, b.T, out=out)


def by_torch(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    left, right = (torch.from_numpy(rows if rows.flags.writeable else rows.copy()) for rows in (a, b))
    with torch.autocast("cpu", enabled=False):
        torch.mm(left, right.T, out=torch.from_numpy(out))


def by_einsum(a: np.ndarray, b: np.ndarray, out: np.ndarray) -> None:
    np.einsum("id,jd->ij", a, b, out=out)
