"""Exact nearest neighbours from tiles of a matrix product, with each row's best so far kept beside them.

A tile that two row ranges of one list share is computed once and serves both. An entry is kept only if it is not
farther than the row's k-th best so far, and the best are ordered by (distance, index): the result does not depend on
the order in which the tiles are computed.
"""

from __future__ import annotations

import threading

import numpy as np
from torch import Tensor

from utils.scoring.blocks import Progress, each_block, even_cut, in_threads
from utils.scoring.distances import Distances
from utils.scoring.products import product

SIDE = 512  # rows and columns of a tile
NOTHING = np.uint64(2**64 - 1)
INDEX_BITS = np.uint64(32)


class Nearest:
    """Collects the ``k`` nearest columns of ``num`` rows; tiles may be offered from several threads.

    A distance and its column are one number of 64 bits, whose order is that of (distance, column).
    """

    def __init__(self, num: int, k: int):
        self.keys = np.full((num, k), NOTHING)
        self.bound = np.full(num, np.inf, np.float32)  # the k-th best distance; it only falls
        self.waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self.num_waiting = 0
        self.lock = threading.Lock()

    def offer(self, tile: np.ndarray, first: int | np.ndarray, clip: bool) -> None:
        """Takes what is near in a tile (num, C) float32, the distances to columns from ``first`` on.

        first: or the numbers of all columns, (C,), below 2**32. clip: distances below 0 count as 0.
        """
        flat = np.flatnonzero(tile <= self._bound(tile, clip)[:, None])
        rows, columns = np.divmod(flat, tile.shape[1])
        numbers = first[columns] if isinstance(first, np.ndarray) else columns + first
        self._add(rows, numbers, tile[rows, columns], clip)

    def offer_columns(self, tile: np.ndarray, first: int, clip: bool) -> None:
        """Does the same as ``offer`` with the tile's transpose (C, num)."""
        flat = np.flatnonzero(tile <= self._bound(tile.T, clip))
        columns, rows = np.divmod(flat, tile.shape[1])
        self._add(rows, columns + first, tile[columns, rows], clip)

    def _bound(self, tile: np.ndarray, clip: bool) -> np.ndarray:
        k = self.keys.shape[1]
        if not np.isinf(self.bound[0]) or tile.shape[1] <= k:
            return self.bound
        bound = np.partition(tile, k - 1, axis=1)[:, k - 1]  # of the first tile: its k-th best
        return np.maximum(bound, 0) if clip else bound

    def _add(self, rows: np.ndarray, columns: np.ndarray, values: np.ndarray, clip: bool) -> None:
        if len(rows) == 0:
            return
        keys = (_sortable(np.maximum(values, 0) if clip else values) << INDEX_BITS) | columns.astype(np.uint64)
        with self.lock:
            self.waiting.append((rows, keys))
            self.num_waiting += len(rows)
            if self.num_waiting >= self.keys.size:
                self._merge()

    def _merge(self) -> None:
        num, k = self.keys.shape
        rows = np.concatenate([rows for rows, _ in self.waiting]).astype(np.int32)
        keys = np.concatenate([keys for _, keys in self.waiting])
        self.waiting, self.num_waiting = [], 0
        order = np.argsort(rows.astype(np.int16) if num < 2**15 else rows, kind="stable")  # a radix sort
        rows, keys = rows[order], keys[order]
        first = np.searchsorted(rows, np.arange(num + 1))
        wide = np.full((num, k + int(np.diff(first).max())), NOTHING)
        wide[:, :k] = self.keys
        wide[rows, k + np.arange(len(rows)) - first[rows]] = keys
        wide.partition(k - 1, axis=1)
        self.keys = np.sort(wide[:, :k], axis=1)
        last = self.keys[:, -1]
        self.bound = np.where(last == NOTHING, np.float32(np.inf), _distance(last))

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns columns (num, k) int64 and distances (num, k) float32, nearest first.

        Every row must have been offered at least k entries.
        """
        with self.lock:
            if self.waiting:
                self._merge()
        return (self.keys & np.uint64(2**32 - 1)).astype(np.int64), _distance(self.keys)


def _sortable(values: np.ndarray) -> np.ndarray:
    """Returns float32 as uint64 below 2**32 in the same order; -0.0 as 0.0."""
    bits = (values.astype(np.float32) + np.float32(0)).view(np.uint32)
    return np.where(bits >> 31, ~bits, bits | np.uint32(2**31)).astype(np.uint64)


def _distance(keys: np.ndarray) -> np.ndarray:
    bits = (keys >> INDEX_BITS).astype(np.uint32)
    return np.where(bits >> 31, bits & np.uint32(2**31 - 1), ~bits).view(np.float32)


class Tiler:
    """Computes the distances of ``Distances`` on the CPU, in tiles of up to (height, width) = ``shape``."""

    def __init__(self, metric: str, shape: tuple[int, int]):
        self.metric, self.clip, self.shape = metric, metric == "euclidean", shape
        self.buffers = threading.local()

    def tile(self, a: np.ndarray, b: np.ndarray, of_a: np.ndarray, of_b: np.ndarray) -> np.ndarray:
        """Returns distances (n, m) of a (n, D) and b (m, D), overwritten by the next call in the same thread.

        of_a, of_b: the squared lengths, used for the Euclidean distance. It is not clipped at 0 here.
        """
        products, sums = self._buffers()
        product(padded_array(a, self.shape[0]), padded_array(b, self.shape[1]), out=products)
        products, sums = products[: len(a), : len(b)], sums[: len(a), : len(b)]
        if self.metric == "euclidean":
            np.add(of_a[:, None], of_b, out=sums)  # this sum is the same with a and b exchanged
            products *= -2
            products += sums
        else:
            np.subtract(np.float32(self.metric == "cosine"), products, out=products)
        return products

    def _buffers(self) -> list[np.ndarray]:
        if not hasattr(self.buffers, "kept"):
            self.buffers.kept = [np.empty(self.shape, np.float32) for _ in range(2)]
        return self.buffers.kept


def padded_array(rows: np.ndarray, height: int) -> np.ndarray:
    """Returns ``rows`` (n, D) with rows of zeros up to ``height``: BLAS adds in another order for other shapes."""
    if len(rows) == height:
        return rows
    out = np.zeros((height, rows.shape[1]), rows.dtype)
    out[: len(rows)] = rows
    return out


def nearest_rows(dist: Distances, k: int, block_size: int | None = None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Finds the ``k`` nearest of ``b`` for each row of ``a``, ordered by (distance, index).

    Returns their indices (Q, k) int32, their distances (Q, k) float32, and the largest distance of each whole row
    (Q,) float32. ``k`` beyond G gives G columns.
    """
    k = min(k, dist.shape[1])
    if dist.on_cpu and dist.a.dtype == dist.b.dtype and dist.a.element_size() == 4:
        return _by_tiles(dist, k)
    return _by_rows(dist, k, block_size)


def _by_tiles(dist: Distances, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    (num, width), a, b = dist.shape, dist.a.numpy(), dist.b.numpy()
    of_a, of_b = (norms.numpy() for norms in dist.norms)
    sides = even_cut(num, SIDE), even_cut(width, SIDE)
    tiler = Tiler(dist.metric, sides)
    above, left = (
        [slice(s, min(s + side, n)) for s in range(0, n, side)] for n, side in zip(dist.shape, sides, strict=True)
    )
    lists = [Nearest(rows.stop - rows.start, k) for rows in above]
    farthest = np.full(num, -np.inf, np.float32)

    def work(i: int, j: int) -> None:
        rows, columns = above[i], left[j]
        tile = tiler.tile(a[rows], b[columns], of_a[rows], of_b[columns])
        lists[i].offer(tile, columns.start, tiler.clip)
        sides = [(lists[i].lock, rows, tile.max(1))]
        if dist.one_list and i != j:
            lists[j].offer_columns(tile, rows.start, tiler.clip)
            sides.append((lists[j].lock, columns, tile.max(0)))
        for lock, span, largest in sides:
            with lock:
                np.maximum(farthest[span], largest, out=farthest[span])

    if dist.one_list:  # each pair of ranges once, neighbouring ranges first
        size = len(above)
        jobs = [(i, (i + step) % size) for step in range(size // 2 + 1) for i in range(size)]
        jobs = jobs[: size * (size + 1) // 2]
    else:
        jobs = [(i, j) for j in range(len(left)) for i in range(len(above))]
    with Progress(len(jobs), "nearest neighbours", "tile") as progress:
        in_threads(jobs, work, "nearest neighbours", lambda job: progress.add(1))
    indices, values = np.empty((num, k), np.int32), np.empty((num, k), np.float32)
    for rows, nearest in zip(above, lists, strict=True):
        indices[rows], values[rows] = nearest.result()
    return indices, values, np.maximum(farthest, 0) if tiler.clip else farthest


def _by_rows(dist: Distances, k: int, block_size: int | None) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Does the same as ``nearest_rows`` from whole rows: on an accelerator, or in float64."""
    num_rows, width = dist.shape
    indices, values = np.empty((num_rows, k), np.int32), np.empty((num_rows, k), np.float32)
    farthest = np.empty(num_rows, np.float32)

    def work(start: int, stop: int) -> None:
        block = dist.rows(start, stop)
        rows, columns, near = smallest(block, k)
        order = np.lexsort((near, rows))  # stable, and columns are in order: ties go to the lower index
        take = order[np.searchsorted(rows, np.arange(len(block)))[:, None] + np.arange(k)]
        indices[start:stop], values[start:stop] = columns[take], near[take]
        farthest[start:stop] = block.amax(1).cpu().numpy()

    each_block(num_rows, width, block_size, work, "nearest neighbours", strip=dist.strip, max_memory=dist.max_memory)
    return indices, values, farthest


def smallest(block: Tensor, k: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns rows, columns and values of a few entries of ``block``: the k smallest of each row, their ties, and more.

    The k-th smallest of the minima of groups is at least the k-th smallest entry, so one pass for the minima and one
    comparison replace a partial sort of every row.
    """
    group = max(min(64, block.shape[1] // (4 * k)), 1)
    minima = block[:, : block.shape[1] // group * group].unflatten(1, (-1, group)).amin(2)
    bound = minima.topk(k, dim=1, largest=False).values[:, -1:]
    flat = (block <= bound).flatten().nonzero().squeeze(1)
    values, entries = block.flatten()[flat].cpu().numpy(), flat.cpu().numpy()
    rows = entries // block.shape[1]
    return rows, entries - rows * block.shape[1], values
