"""Nearest rows of a store for queries: exactly, or by the engine's index with its candidates scored exactly."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from tools.galleries.filters import RowFilter
from tools.galleries.schema import row_of
from tools.galleries.store import Store
from utils.errors import UserError
from utils.scoring.blocks import even_cut
from utils.scoring.distances import squared_norms
from utils.scoring.neighbours import Tiler
from utils.scoring.search import finite_rows, search_blocks

INDEX = "index"
"""The fact that ``verify`` leaves: what the index is, how it is searched and the recall that this gave."""


class StoreGallery:
    """A store as ``tools.search`` sees a gallery: what its features are, and the columns of rows by id."""

    def __init__(self, store: Store):
        self.store, self.path = store, Path(store.address)
        meta = store.meta
        self.meta: dict[str, Any] = {
            "model_hash": meta.model_hash, "space": meta.space, "distance": meta.distance, "unit_length": True,
            "settings": meta.settings,
        }  # fmt: skip

    def __len__(self) -> int:
        return self.store.count(RowFilter())

    def rows(self, numbers: Iterable[int]) -> dict[int, dict[str, Any]]:
        """Returns the columns of some rows by id, under the names that tables of images have."""
        rows = self.store.rows([number for number in numbers if number >= 0])
        return {number: as_line(number, columns) for number, columns in rows.items()}


def as_line(number: int, columns: dict[str, Any]) -> dict[str, Any]:
    """Returns the columns of a row as a table of images has them; empty ones are left out."""
    line = {
        "row": row_of(number), "source": columns["source"], "path": columns["path"], "pid": columns["identity"],
        "camid": columns["camid"], "seq": columns["seq"],
    }  # fmt: skip
    if columns.get("time") is not None:
        line["time"] = columns["time"]
    if columns["box"]:
        line |= dict(zip(("x1", "y1", "x2", "y2"), columns["box"].split(), strict=False))
    return {name: value for name, value in line.items() if value != ""}


def refuse_unknown_columns(store: Store, where: RowFilter, sources: dict[str, Any]) -> None:
    """Raises ``UserError`` if a filter uses a column that no row of the store knows. sources: facts of them."""
    known = {column for fact in sources.values() for column in fact.get("columns", ())}
    for column in sorted(where.columns() - known):
        raise UserError(f"{store.address}: no row has the column {column} that the filter uses; it would match nothing")


def exact_search(store: Store, queries: np.ndarray, k: int, where: RowFilter) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids (Q, k) and distances (Q, k) of the nearest rows, ordered by (distance, id); fewer columns if fewer
    rows match. The same to the bit as ``utils.scoring.search`` on the same features."""
    ids = store.ids(where)
    if not len(ids):
        return np.empty((len(queries), 0), np.int64), np.empty((len(queries), 0), np.float32)

    def blocks() -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for some, feats in store.scan(where):
            numbers = np.searchsorted(ids, some)
            known = ids[np.minimum(numbers, len(ids) - 1)] == some  # not what was written meanwhile
            yield numbers[known], feats[known]

    numbers, distances = search_blocks(queries, blocks, len(ids), k, store.meta.distance)
    return np.where(numbers < 0, -1, ids[numbers]), distances


def indexed_search(
    store: Store, queries: np.ndarray, k: int, where: RowFilter, effort: dict[str, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Does the same as ``exact_search`` among the rows that the index finds near. effort: how hard it looks."""
    ids = np.full((len(queries), k), -1, np.int64)
    distances = np.full((len(queries), k), np.inf, np.float32)
    for i, (some, feats) in enumerate(store.nearest(queries, k, where, effort)):
        found, values = scored(queries[i : i + 1], some, feats, k, store.meta.distance)
        ids[i, : len(found)], distances[i, : len(found)] = found, values
    filled = int((ids >= 0).any(0).sum())
    return ids[:, :filled], distances[:, :filled]


def scored(query: np.ndarray, ids: np.ndarray, feats: np.ndarray, k: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids and distances of the k nearest of some rows to one query (1, D), as ``search`` computes them."""
    if not len(ids):
        return ids, np.empty(0, np.float32)
    query, feats = finite_rows(query, 0, "query", True), finite_rows(feats, 0, "gallery", True)
    tiler = Tiler(metric, (even_cut(1, 16), even_cut(len(feats), len(feats))))
    values = tiler.tile(query, feats, squared_norms(query), squared_norms(feats))[0]
    values = np.maximum(values, 0) if tiler.clip else values
    nearest = np.lexsort((ids, values))[:k]
    return ids[nearest], values[nearest]


def search_store(
    store: Store, queries: np.ndarray, k: int, where: RowFilter, exact: bool
) -> tuple[np.ndarray, np.ndarray, str]:
    """Returns ids (Q, k), distances (Q, k) and a sentence that says how exact they are.

    exact: even if the store has an index that ``verify`` measured. Raises ``UserError`` for queries of another width.
    """
    if queries.shape[1] != store.meta.width:
        raise UserError(f"query features are {queries.shape[1]} wide, those of {store.address} {store.meta.width}")
    fact = None if exact else store.facts(INDEX).get(INDEX)
    if fact is None:
        return *exact_search(store, queries, k, where), f"Exact. Distances are {store.meta.distance}."
    checked = finite_rows(queries, 0, "query", True)
    ids, distances = indexed_search(store, checked, k, where, fact["effort"])
    how = f"By the index: recall {fact['recall']:.4f} of the exact {fact['k']} nearest when it was verified."
    return ids, distances, f"{how} Distances are {store.meta.distance}."
