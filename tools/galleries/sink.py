"""Takes features while they are extracted and writes them into a store, shard by shard."""

from __future__ import annotations

import time

import numpy as np

from tools.galleries.adding import Columns, columns_of
from tools.galleries.schema import StoreRows, checked_features, first_id
from tools.galleries.sources import Source, add_missing, finish_shard
from tools.galleries.store import Store

FLUSH_SECONDS = 30.0
"""How much work a kill can cost, at most. Each write is a commit, and many small ones make a store slow."""


class StoreSink:
    """Collects rows of a source's shards. done: numbers of shards that are in the store."""

    def __init__(self, store: Store, source: Source, done: list[int]):
        self.store, self.source, self.done = store, source, frozenset(done)
        self.waiting: list[tuple[np.ndarray, np.ndarray, list[Columns]]] = []
        self.kept = self.seen = 0
        self.flushed = time.monotonic()

    def spans(self, rank: int, world: int) -> list[tuple[int, int]]:
        """Returns the first row and the end of each shard that a process of ``world`` has to write."""
        left = (shard for shard in range(rank, self.source.shards, world) if shard not in self.done)
        return [self.source.span(shard) for shard in left]

    def take(self, rows: np.ndarray, kept: np.ndarray, feats: np.ndarray, lines: list[Columns]) -> None:
        """Takes a batch of one shard, in order. rows: of the list. kept: those with features (n, D) and lines (n)."""
        if len(kept):
            self.waiting.append((kept, feats, lines))
        self.kept, self.seen = self.kept + len(kept), self.seen + len(rows)
        shard = int(rows[0]) // self.source.size
        ended = int(rows[-1]) + 1 == self.source.span(shard)[1]
        if ended or time.monotonic() - self.flushed > FLUSH_SECONDS:
            self.flush()
        if ended:
            finish_shard(self.store, self.source, shard, self.kept, self.seen - self.kept)
            self.kept = self.seen = 0

    def flush(self) -> None:
        """Writes the rows that wait."""
        if self.waiting:
            rows = np.concatenate([part[0] for part in self.waiting])
            feats = np.concatenate([part[1] for part in self.waiting])
            lines = [line for part in self.waiting for line in part[2]]
            what = self.source.name
            columns = columns_of(lines, what, what, int(rows[0]), time.time())
            feats = checked_features(feats, int(rows[0]), what)
            add_missing(self.store, self.source, StoreRows(first_id(what) + rows, feats, columns))
            self.waiting.clear()
        self.flushed = time.monotonic()
