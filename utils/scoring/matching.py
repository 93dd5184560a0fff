"""Finds the same-identity pairs of queries and gallery images, and which of them the camera filter removes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from utils.errors import UserError


@dataclass(frozen=True)
class PairBlock:
    """The same-identity pairs of a block of queries, in order of query, then gallery index."""

    query: np.ndarray  # (P,) row within the block
    gallery: np.ndarray  # (P,) gallery index
    positive: np.ndarray  # (P,) bool; the others are junk, which is removed from the query's ranking


class Matching:
    """Matches identities of query and gallery, with the filter between them.

    A query keeps every gallery image except those of its own identity that share its camera (with cameras) or its
    sequence (with sequences). same_list: query i is gallery image i; then the query itself is removed and nothing else,
    whatever cameras and sequences are given. shape: numbers of queries and gallery images that the ids must fit. Raises
    ``UserError`` for lengths that do not fit, ids that are not integers, and (``need_valid``) if no query has a match.
    """

    def __init__(
        self,
        q_pids: object,
        g_pids: object,
        q_camids: object = None,
        g_camids: object = None,
        q_seqs: object = None,
        g_seqs: object = None,
        same_list: bool = False,
        shape: tuple[int, int] | None = None,
        need_valid: bool = True,
    ):
        self.q_pids, self.g_pids = _ids("q_pids", q_pids), _ids("g_pids", g_pids)
        if shape is not None and shape != (len(self.q_pids), len(self.g_pids)):
            raise UserError(
                f"{shape[0]} queries x {shape[1]} gallery images, "
                f"but {len(self.q_pids)} q_pids and {len(self.g_pids)} g_pids"
            )
        if len(self.g_pids) == 0 or len(self.q_pids) == 0:
            raise UserError(f"nothing to rank: {len(self.q_pids)} queries and {len(self.g_pids)} gallery images")
        self.same_list = same_list
        if same_list and not np.array_equal(self.q_pids, self.g_pids):
            raise UserError("same_list: query and gallery are one list, but q_pids and g_pids differ")
        self.labels = [
            pair for pair in (self._two("camids", q_camids, g_camids), self._two("seqs", q_seqs, g_seqs)) if pair
        ]
        if same_list:
            self.labels = []
        self.order = np.argsort(self.g_pids, kind="stable")
        ordered = self.g_pids[self.order]
        self.first = np.searchsorted(ordered, self.q_pids, "left")
        self.count = np.searchsorted(ordered, self.q_pids, "right") - self.first
        self.num_positives = self._count_positives()
        if need_valid and not self.num_positives.any():
            if same_list:
                raise UserError(f"no query has a valid match: each of the {len(self.q_pids)} identities has one image")
            absent = int((self.count == 0).sum())
            raise UserError(
                f"no query has a valid match: of {len(self.q_pids)} queries, {absent} have an identity that is absent "
                f"from the gallery and {len(self.q_pids) - absent} have matches of their own camera only; query and "
                "gallery need different camera ids"
            )

    def _two(self, what: str, of_query: object, of_gallery: object) -> tuple[np.ndarray, np.ndarray] | None:
        if of_query is None and of_gallery is None:
            return None
        if of_query is None or of_gallery is None:
            raise UserError(f"q_{what} and g_{what} go together: give both or neither")
        pair = _ids(f"q_{what}", of_query), _ids(f"g_{what}", of_gallery)
        for name, ids, pids in zip("qg", pair, (self.q_pids, self.g_pids), strict=True):
            if len(ids) != len(pids):
                raise UserError(f"{len(ids)} {name}_{what} for {len(pids)} {name}_pids")
        return pair

    def pairs(self, start: int, stop: int) -> PairBlock:
        """Returns the pairs of the queries ``start`` to ``stop``."""
        count = self.count[start:stop]
        query = np.repeat(np.arange(stop - start), count)
        skip = self.first[start:stop] - (np.cumsum(count) - count)
        gallery = self.order[np.arange(len(query)) + np.repeat(skip, count)]
        junk = (query + start == gallery) if self.same_list else np.zeros(len(query), bool)
        for of_query, of_gallery in self.labels:
            junk |= of_query[start:stop][query] == of_gallery[gallery]
        return PairBlock(query, gallery, ~junk)

    def _count_positives(self) -> np.ndarray:
        """Counts the positives of each query, (Q,), a few million pairs per pass."""
        total = np.zeros(len(self.q_pids), np.int64)
        edges = np.searchsorted(np.cumsum(self.count), np.arange(0, self.count.sum(), 2**22), "right")
        edges = np.unique(np.append(edges, [0, len(total)]))
        for start, stop in zip(edges[:-1], edges[1:], strict=True):
            pairs = self.pairs(start, stop)
            total[start:stop] = np.bincount(pairs.query[pairs.positive], minlength=stop - start)
        return total


def _ids(name: str, ids: object) -> np.ndarray:
    """Returns ``ids`` as a vector of int64. Raises ``UserError`` unless they are a list of integers."""
    vector = ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids)
    if vector.ndim != 1:
        raise UserError(f"{name}: expected one id per image, got shape {vector.shape}")
    if vector.dtype.kind not in "iu" and len(vector):
        raise UserError(f"{name}: ids must be integers, got {vector.dtype}")
    return vector.astype(np.int64)
