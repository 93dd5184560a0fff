"""Distances between two lists of features, a block of rows at a time, and the nearest neighbours they give.

Nothing here ever holds a (Q, G) matrix. A row has the same bits whatever block it is asked for in: the product is
always cut into the same tiles, at the same places and of the same shapes, and their sides are padded so that equal
features get equal products (BLAS kernels for odd edges add in another order). Ties are therefore ties in every block.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from utils.errors import UserError

logger = logging.getLogger("lineup")

TILE = 256  # rows of one matrix product; every block is a whole number of these
CHUNK = 4096  # columns of one matrix product: a tile of float32 products (4 MB) stays in cache while it is finished
EDGE = 16  # sides of a product are padded to a multiple of this
BLOCK_BYTES = 128 * 2**20  # distances held at once when no block size is asked for


def as_features(feats: object, name: str) -> Tensor:
    """``feats``, a tensor, an array or nested lists of shape (n, D), as a detached float32 tensor on its device.

    Raises ``UserError`` for an empty list, a wrong number of axes, or rows with NaN or infinity (which would be
    sorted somewhere in silence); ``name`` says whose features they are.
    """
    feats = feats.detach() if isinstance(feats, Tensor) else torch.as_tensor(np.asarray(feats))
    if feats.ndim != 2 or feats.shape[1] == 0:
        raise UserError(f"{name} features: expected shape (images, width), got {tuple(feats.shape)}")
    if len(feats) == 0:
        raise UserError(f"{name} features: no images, the list is empty")
    feats = feats.float()
    suspects = (~torch.isfinite(feats.sum(1))).nonzero().squeeze(1)  # a finite row may overflow, so look again
    bad = suspects[~torch.isfinite(feats[suspects]).all(1)].tolist()
    if bad:
        first = ", ".join(map(str, bad[:5])) + (", ..." if len(bad) > 5 else "")
        raise UserError(f"{name} features: {len(bad)} of {len(feats)} rows hold NaN or infinity (rows {first})")
    return feats


def same_place(a: Tensor, b: Tensor, names: tuple[str, str] = ("query", "gallery")) -> tuple[Tensor, Tensor]:
    """Both features on one device, an accelerator if either is on one; ``UserError`` when their widths differ."""
    if a.shape[1] != b.shape[1]:
        raise UserError(f"{names[0]} features are {a.shape[1]} wide, {names[1]} features {b.shape[1]}")
    device = b.device if a.device.type == "cpu" else a.device
    return a.to(device), b.to(device)


def unit_length(feats: Tensor) -> Tensor:
    """Rows of ``feats`` (n, D) divided by max(length, 1e-12); a zero vector stays zero."""
    length = torch.linalg.vector_norm(feats, dim=1, keepdim=True, dtype=torch.float64)  # 1e20 squared is no float32
    return feats / length.clamp_(min=1e-12).to(feats.dtype)


class Distances:
    """Distances between the rows of ``a`` (Q, D) and of ``b`` (G, D).

    ``metric``: ``euclidean`` is the squared distance, clipped at 0; ``cosine`` is 1 - a.b and ``dot`` is -a.b, both for
    rows of unit length. float32, but float64 where the squared norms are so much larger than the distances between
    neighbours that |a|^2 + |b|^2 - 2 a.b would lose them.
    """

    def __init__(self, a: Tensor, b: Tensor, metric: str = "euclidean"):
        self.metric, self.shape, self.device = metric, (len(a), len(b)), b.device
        if metric == "euclidean":
            if _loses_neighbours(a, b):
                a, b = a.double(), b.double()
            self.norms = _squared_norms(a)[:, None], _squared_norms(b)
            if not (torch.isfinite(self.norms[0]).all() and torch.isfinite(self.norms[1]).all()):
                raise UserError("features are too large for squared distances in float32; normalise them")
        self.a = a
        self.chunks = [(c, min(c + CHUNK, len(b)), _padded(b[c : c + CHUNK])) for c in range(0, len(b), CHUNK)]

    def rows(self, start: int, stop: int) -> Tensor:
        """Distances of rows ``start`` to ``stop`` of ``a``, (stop - start, G); ``start`` is a multiple of TILE."""
        assert start % TILE == 0, "blocks begin where tiles begin"
        out = torch.empty(stop - start, self.shape[1], dtype=self.a.dtype, device=self.device)
        for top in range(start, stop, TILE):
            bottom = min(top + TILE, self.shape[0])
            tile = _padded(self.a[top:bottom])
            for left, right, chunk in self.chunks:
                part = _product(tile, chunk)[: bottom - top, : right - left]
                if self.metric == "euclidean":
                    part.mul_(-2).add_(self.norms[1][left:right]).add_(self.norms[0][top:bottom]).clamp_(min=0)
                else:
                    part.neg_().add_(1.0 if self.metric == "cosine" else 0.0)
                out[top - start : bottom - start, left:right] = part[: stop - top]
        return out


def _padded(rows: Tensor) -> Tensor:
    missing = -len(rows) % EDGE
    return torch.nn.functional.pad(rows, (0, 0, 0, missing)) if missing else rows


def _product(a: Tensor, b: Tensor) -> Tensor:
    """a @ b.T in full precision, whatever autocast or TF32 setting the caller trains with."""
    if a.device.type == "cpu":  # NumPy's BLAS: 1.1 to 1.6 times as fast as torch's on the processors tried
        return torch.from_numpy(a.numpy() @ b.numpy().T)
    matmul = torch.backends.cuda.matmul
    name, exact = ("fp32_precision", "ieee") if hasattr(matmul, "fp32_precision") else ("allow_tf32", False)
    before = getattr(matmul, name)
    setattr(matmul, name, exact)
    try:
        with torch.autocast(a.device.type, enabled=False):
            return a @ b.T
    finally:
        setattr(matmul, name, before)


def _loses_neighbours(a: Tensor, b: Tensor, sample: int = 16) -> bool:
    """Whether squared norms are over 1e5 times the distances to nearest neighbours, told from a few rows of ``a``."""
    some = a[torch.linspace(0, len(a) - 1, min(sample, len(a))).long()]
    norm = _squared_norms(some)[:, None]
    rough = torch.cat([norm + _squared_norms(part) - 2 * _product(some, part) for part in b.split(CHUNK)], dim=1)
    if (rough.amin(1, keepdim=True) > 1e-4 * norm).all():
        return False
    some, norm = some.double(), norm.double()
    nearest = torch.full_like(norm, float("inf"))
    for part in b.split(CHUNK):
        part = part.double()
        dist = _squared_norms(some)[:, None] + _squared_norms(part) - 2 * some @ part.T
        dist[dist <= 1e-12 * norm] = float("inf")  # the image itself and its copies
        nearest = torch.minimum(nearest, dist.amin(1, keepdim=True))
    return bool((norm / nearest).median() > 1e5)


def _squared_norms(feats: Tensor) -> Tensor:
    return torch.cat([part.square().sum(1) for part in feats.split(TILE)])


def each_block(
    total: int, width: int, block_size: int | None, work: Callable[[int, int], object], what: str
) -> list[object]:
    """``[work(start, stop), ...]`` over ``range(total)`` in order, for rows of ``width`` distances.

    A block has ``block_size`` rows, rounded up to whole tiles, or what fits in ``BLOCK_BYTES``; one that does not fit
    in memory is halved, so ``work`` must not change anything before it has all it needs. Work of over 5 seconds shows
    a bar on a terminal and a line a minute in the log elsewhere; ``what`` names it.
    """
    if block_size is not None and block_size < 1:
        raise UserError(f"block_size: {block_size} is not a number of rows, use 1 or more, or None")
    tiles = -(-block_size // TILE) if block_size else min(max(BLOCK_BYTES // (4 * width * TILE), 1), 8)
    results, start, last = [], 0, time.monotonic()
    with tqdm(total=total, desc=what, unit="row", disable=None, delay=5, leave=False) as bar:
        while start < total:
            stop = min(start + tiles * TILE, total)
            try:
                results.append(work(start, stop))
            except (MemoryError, RuntimeError) as error:
                if tiles == 1 or not _out_of_memory(error):
                    raise
                tiles = -(-min(tiles, -(-(stop - start) // TILE)) // 2)
                logger.warning("%s: out of memory, going on with blocks of %d rows", what, tiles * TILE)
                continue
            bar.update(stop - start)
            start = stop
            if time.monotonic() - last > 60 and not sys.stderr.isatty():
                last = time.monotonic()
                logger.info("%s: %d of %d rows", what, start, total)
    return results


def _out_of_memory(error: Exception) -> bool:
    # torch has a class for a full accelerator, but a plain RuntimeError for a full host.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


def nearest_rows(dist: Distances, k: int, block_size: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The ``k`` nearest of ``b`` for each row of ``a``, ordered by (distance, index).

    Returns their indices (Q, k) int32, their distances (Q, k) float32, and the largest distance of each whole row
    (Q,) float32. ``k`` beyond G gives G columns.
    """
    num_rows, width = dist.shape
    k = min(k, width)
    indices = np.empty((num_rows, k), np.int32)
    values = np.empty((num_rows, k), np.float32)
    farthest = np.empty(num_rows, np.float32)

    def work(start: int, stop: int) -> None:
        for top in range(start, stop, TILE):
            block = dist.rows(top, min(top + TILE, stop))
            rows, columns, found = _smallest(block, k)
            order = np.lexsort((found, rows))  # stable, and columns come in order: ties go to the lower index
            take = order[np.searchsorted(rows, np.arange(len(block)))[:, None] + np.arange(k)]
            indices[top : top + len(block)] = columns[take]
            values[top : top + len(block)] = found[take]
            farthest[top : top + len(block)] = block.amax(1).cpu().numpy()

    each_block(num_rows, width, block_size, work, "nearest neighbours")
    return indices, values, farthest


def _smallest(block: Tensor, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Rows, columns and values of a few entries of ``block``, the k smallest of each row and all their ties among them.

    The k-th smallest of the minima of groups is at least the k-th smallest entry, so one pass for the minima and one
    comparison do what a partial sort of every row would.
    """
    group = max(min(64, block.shape[1] // (4 * k)), 1)
    minima = block[:, : block.shape[1] // group * group].unflatten(1, (-1, group)).amin(2)
    bound = minima.topk(k, dim=1, largest=False).values[:, -1:]
    if block.device.type == "cpu":  # NumPy finds the few set ones among many five times as fast
        flat = torch.from_numpy(np.flatnonzero(block.numpy() <= bound.numpy()))
    else:
        flat = (block <= bound).flatten().nonzero().squeeze(1)
    found, flat = block.flatten()[flat].cpu().numpy(), flat.cpu().numpy()
    rows = flat // block.shape[1]
    return rows, flat - rows * block.shape[1], found


def whole_number(name: str, value: object, least: int = 1) -> int:
    """``value`` as an int; ``UserError`` when it is no whole number or below ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise UserError(f"{name}: {value!r} is not a whole number of at least {least}")
    return int(value)
