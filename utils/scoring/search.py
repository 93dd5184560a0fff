"""Exact search for the k nearest gallery images of each query, in a gallery of any size, in bounded memory.

The gallery may be a memory-mapped file (``numpy.load(path, mmap_mode="r")``): it is read in pieces of a few thousand
rows, once for every few thousand queries, and no (Q, G) matrix exists.
"""

from __future__ import annotations

import mmap
from collections.abc import Callable, Iterable

import numpy as np
import torch

from utils.errors import UserError
from utils.scoring.blocks import Progress, even_cut, in_threads, whole_number
from utils.scoring.distances import squared_norms, unit_rows
from utils.scoring.neighbours import NOTHING, SIDE, Nearest, Tiler

SEARCH_BYTES = 2**30  # memory beside the given features, unless ``max_memory`` says otherwise
ROWS = 4096  # gallery rows that a thread reads together, at most
METRICS = ("euclidean", "cosine")


def search(
    query: object,
    gallery: object,
    k: int = 100,
    metric: str = "euclidean",
    normalize: bool = True,
    max_memory: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Finds the ``k`` nearest gallery images of each query, ordered by (distance, gallery index).

    query: (Q, D), gallery: (G, D): arrays, memory maps or tensors of floating point numbers; the distances are float32.
    metric: ``euclidean`` (squared) or ``cosine``. normalize: divide each feature by max(length, 1e-12) first; cosine
    always does. max_memory: bytes for working memory, None for 1 GB; with less, the gallery is read more often.

    Returns the gallery indices (Q, k) int64 and the distances (Q, k) float32; k beyond G gives G columns. Exact, and
    the same for any memory and number of threads. Raises ``UserError`` for wrong shapes and types, empty lists and rows
    with NaN or infinity, which it names.
    """
    k = whole_number("k", k)
    if metric not in METRICS:
        raise UserError(f"metric: unknown {metric!r}. Known: {', '.join(METRICS)}")
    queries, images = feature_list(query, "query"), feature_list(gallery, "gallery")
    if queries.shape[1] != images.shape[1]:
        raise UserError(f"query features are {queries.shape[1]} wide, gallery features {images.shape[1]}")
    (num_q, width), k = queries.shape, min(k, len(images))
    indices, distances = np.empty((num_q, k), np.int64), np.empty((num_q, k), np.float32)
    unit, tiler = normalize or metric == "cosine", Tiler(metric, (even_cut(num_q, SIDE), SIDE))
    rows, block = _sizes(num_q, width, k, SEARCH_BYTES if max_memory is None else max_memory)
    with Progress(-(-num_q // block) * len(images), "search") as progress:
        for start in range(0, num_q, block):
            some = slice(start, min(start + block, num_q))
            feats = finite_rows(queries[some], start, "query", unit)
            indices[some], distances[some] = _search_block(feats, images, k, tiler, unit, rows, progress)
    return indices, distances


def search_blocks(
    query: object,
    blocks: Callable[[], Iterable[tuple[np.ndarray, np.ndarray]]],
    count: int,
    k: int = 100,
    metric: str = "euclidean",
    normalize: bool = True,
    max_memory: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Does the same as ``search``, to the bit, in a gallery that comes in blocks of any order.

    blocks: starts a pass over the gallery and yields (numbers, features): (n,) the images' numbers, each once, from 0
    to below 2**32, and (n, D). count: how many images there are; k beyond it gives as many columns. A number of -1, at
    an infinite distance, stands where a pass had fewer images.
    """
    k = min(whole_number("k", k), count)
    queries = feature_list(query, "query")
    (num_q, width), unit = queries.shape, normalize or metric == "cosine"
    indices, distances = np.full((num_q, k), -1, np.int64), np.full((num_q, k), np.inf, np.float32)
    rows, together = _sizes(num_q, width, k, SEARCH_BYTES if max_memory is None else max_memory)
    tiler = Tiler(metric, (even_cut(num_q, SIDE), SIDE))
    for start in range(0, num_q, together):
        some = slice(start, min(start + together, num_q))
        feats = finite_rows(queries[some], start, "query", unit)
        lists = _Lists(feats, k, tiler, unit)
        for numbers, images in blocks():
            if images.shape[1] != width:
                raise UserError(f"query features are {width} wide, gallery features {images.shape[1]}")
            lists.offer(images, numbers, rows)
        indices[some], distances[some] = lists.result()
    return indices, distances


class _Lists:
    """The nearest images of some queries (n, D), collected from pieces of a gallery."""

    def __init__(self, query: np.ndarray, k: int, tiler: Tiler, unit: bool):
        self.query, self.tiler, self.unit, self.of_query = query, tiler, unit, squared_norms(query)
        side = tiler.shape[0]
        self.sides = [slice(top, min(top + side, len(query))) for top in range(0, len(query), side)]
        self.lists = [Nearest(side.stop - side.start, k) for side in self.sides]

    def offer_rows(self, images: np.ndarray, first: int | np.ndarray, row: int) -> None:
        """Takes what is near among images (n, D). first: its number, or all (n,). row: for messages."""
        feats = finite_rows(images, row, "gallery", self.unit)
        norms = squared_norms(feats)
        for left in range(0, len(feats), SIDE):
            columns = slice(left, left + SIDE)
            numbers = first[columns] if isinstance(first, np.ndarray) else first + left
            for side, nearest in zip(self.sides, self.lists, strict=True):
                tile = self.tiler.tile(self.query[side], feats[columns], self.of_query[side], norms[columns])
                nearest.offer(tile, numbers, self.tiler.clip)

    def offer(self, images: np.ndarray, numbers: np.ndarray, rows: int) -> None:
        """Takes what is near among images (n, D) with numbers (n,), in threads of ``rows`` images each."""
        spans = [(top, min(top + rows, len(images))) for top in range(0, len(images), rows)]
        in_threads(
            spans, lambda top, end: self.offer_rows(images[top:end], numbers[top:end], int(numbers[top])), "search"
        )

    def result(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns numbers (n, k) int64 and distances (n, k) float32, nearest first; -1 and infinity for none."""
        results = [nearest.result() for nearest in self.lists]
        numbers, distances = (np.concatenate([result[i] for result in results]) for i in (0, 1))
        missing = np.concatenate([nearest.keys == NOTHING for nearest in self.lists])
        numbers[missing], distances[missing] = -1, np.inf
        return numbers, distances


def _search_block(
    query: np.ndarray, gallery: np.ndarray, k: int, tiler: Tiler, unit: bool, rows: int, progress: Progress
) -> tuple[np.ndarray, np.ndarray]:
    lists = _Lists(query, k, tiler, unit)

    def work(start: int, stop: int) -> None:
        lists.offer_rows(gallery[start:stop], start, start)
        _release(gallery, start, stop)

    spans = [(start, min(start + rows, len(gallery))) for start in range(0, len(gallery), rows)]
    in_threads(spans, work, "search", lambda span: progress.add(span[1] - span[0]))
    return lists.result()


def _release(array: np.ndarray, start: int, stop: int) -> None:
    """Removes rows of a memory-mapped file from this process's memory; the system may keep them cached."""
    if not isinstance(array, np.memmap) or array.mode != "r" or not isinstance(array.base, mmap.mmap):
        return
    if hasattr(array.base, "madvise") and array.flags.c_contiguous:
        skip, page = array.offset % mmap.ALLOCATIONGRANULARITY, mmap.PAGESIZE
        first = -(-(skip + start * array.strides[0]) // page) * page
        length = (skip + stop * array.strides[0] - first) // page * page
        if length > 0:
            array.base.madvise(mmap.MADV_DONTNEED, first, length)


def _sizes(num_q: int, width: int, k: int, memory: int) -> tuple[int, int]:
    """Returns how many gallery rows each thread reads together, and how many queries are searched together."""
    threads = torch.get_num_threads()
    tiles = 2 * 4 * SIDE * SIDE * threads
    rows = max(min(ROWS, (memory - tiles) // (4 * 4 * width * threads) // SIDE * SIDE), SIDE)
    left = memory - tiles - rows * threads * 4 * 4 * width
    block = max(left // (2 * 4 * width + 8 * 8 * k) // SIDE * SIDE, SIDE)
    return rows, min(block, num_q)


def feature_list(feats: object, name: str) -> np.ndarray:
    """Returns ``feats`` (n, D) as an array. Raises ``UserError`` for another shape or type and for an empty list."""
    array = feats.detach().cpu().numpy() if isinstance(feats, torch.Tensor) else feats
    array = array if isinstance(array, np.ndarray) else np.asarray(array)
    if array.ndim != 2 or array.shape[1] == 0:
        raise UserError(f"{name} features: expected shape (images, width), got {array.shape}")
    if len(array) == 0:
        raise UserError(f"{name} features: no images, the list is empty")
    if array.dtype.kind != "f":
        raise UserError(f"{name} features: expected floating point numbers, got {array.dtype}")
    return array


def finite_rows(feats: np.ndarray, start: int, name: str, unit: bool) -> np.ndarray:
    """Returns rows from ``start`` on of a list in float32, scaled to unit length if ``unit``; they must be finite."""
    feats = np.ascontiguousarray(feats, np.float32)
    out = unit_rows(feats) if unit else feats
    suspects = np.flatnonzero(~np.isfinite(squared_norms(out)))
    bad = suspects[~np.isfinite(feats[suspects]).all(1)]
    if len(bad):
        raise UserError(f"{name} features: row {start + bad[0]} holds NaN or infinity")
    if len(suspects):
        raise UserError(f"{name} features are too large for squared distances in float32; normalise them")
    return out
