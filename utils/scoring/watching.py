"""Records parts of the rankings while distances are computed: first places of every query, scores by camera.

A watcher is called with ``(start, block, pairs)`` for every block of an evaluation, from several threads, each with
different rows, perhaps twice with the same; it writes rows of its arrays and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from torch import Tensor

from utils.scoring.judgements import JUNK, RIGHT, WRONG
from utils.scoring.matching import PairBlock
from utils.scoring.neighbours import smallest
from utils.scoring.ranking import average_precisions, positive_ranks

Watcher = Callable[[int, Tensor, PairBlock], None]


class TopLists:
    """Records the ``k`` nearest gallery images of every query, junk included, by (distance, gallery index).

    ``indices`` (Q, k) int32, ``distances`` (Q, k) float32 and ``judged`` (Q, k) int8: RIGHT, WRONG or JUNK. k is at
    most the gallery's length.
    """

    def __init__(self, num_q: int, num_g: int, k: int):
        shape = num_q, min(k, num_g)
        self.indices, self.distances = np.zeros(shape, np.int32), np.zeros(shape, np.float32)
        self.judged = np.full(shape, WRONG, np.int8)

    def __call__(self, start: int, block: Tensor, pairs: PairBlock) -> None:
        (height, width), k = block.shape, self.indices.shape[1]
        rows, columns, values = smallest(block, k)
        order = np.lexsort((values, rows))  # stable, and columns come in order: ties go to the lower index
        take = order[np.searchsorted(rows, np.arange(height))[:, None] + np.arange(k)]
        here = slice(start, start + height)
        self.indices[here], self.distances[here] = columns[take], values[take]
        known = pairs.query * width + pairs.gallery  # ascending
        listed = np.arange(height)[:, None] * width + columns[take]
        at = np.searchsorted(known, listed).clip(max=max(len(known) - 1, 0))
        judged = np.full(listed.shape, WRONG, np.int8)
        if len(known):
            judged[known[at] == listed] = np.where(pairs.positive, RIGHT, JUNK)[at][known[at] == listed]
        self.judged[here] = judged


class CameraScores:
    """Records the average precision of every query in each gallery camera's images, (Q, C) in ``ap``; NaN: no match.

    g_camids: (G,) cameras of the gallery; ``cameras`` (C,) are those that occur. kind: of the average precision.
    """

    def __init__(self, num_q: int, g_camids: np.ndarray, kind: str):
        self.cameras, self.of = np.unique(g_camids, return_inverse=True)
        self.columns = [np.flatnonzero(self.of == c) for c in range(len(self.cameras))]
        self.column = np.empty(len(g_camids), np.int64)  # of an image, among those of its camera
        for columns in self.columns:
            self.column[columns] = np.arange(len(columns))
        self.kind, self.ap = kind, np.full((num_q, len(self.cameras)), np.nan, np.float32)

    def __call__(self, start: int, block: Tensor, pairs: PairBlock) -> None:
        cameras = self.of[pairs.gallery]
        for camera, columns in enumerate(self.columns):
            here = cameras == camera
            if not pairs.positive[here].any():
                continue
            of_camera = PairBlock(pairs.query[here], self.column[pairs.gallery[here]], pairs.positive[here])
            query, rank, _ = positive_ranks(block[:, columns], of_camera)
            self.ap[start + np.unique(query), camera] = average_precisions(query, rank, self.kind)

    def table(self, q_camids: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the query cameras (A,), and for each pair of cameras the mean and number of queries, (A, C)."""
        cameras, which = np.unique(q_camids, return_inverse=True)
        ap = [self.ap[which == row].astype(np.float64) for row in range(len(cameras))]
        numbers = np.stack([(~np.isnan(some)).sum(0) for some in ap])
        totals = np.stack([np.nansum(some, 0) for some in ap])
        return cameras, np.where(numbers > 0, totals / np.maximum(numbers, 1), np.nan), numbers
