"""Builds a store's index, and finds how hard a search of it must look for a wanted recall of the exact lists."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from tools.galleries.filters import RowFilter
from tools.galleries.searching import INDEX, exact_search, indexed_search
from tools.galleries.store import Store
from utils.errors import UserError
from utils.scoring.search import finite_rows


@dataclass(frozen=True)
class Effort:
    """One setting of the search and what it gives. p50, p99: milliseconds of one query at a time."""

    effort: dict[str, int]
    recall: float
    p50: float
    p99: float


@dataclass(frozen=True)
class Verified:
    """What ``verify`` measured. chosen: the fastest setting with the wanted recall. exact_ms: p50 of exact search."""

    chosen: Effort
    tried: list[Effort]
    exact_ms: float
    queries: int
    built: dict[str, Any]


def sample_queries(store: Store, size: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns ids (n,) and features (n, D) of rows drawn at random."""
    ids = store.ids(RowFilter())
    if len(ids) < 2:
        raise UserError(f"{store.address}: recall needs at least 2 rows, it has {len(ids)}")
    drawn = np.random.default_rng(seed).choice(ids, min(size, len(ids)), replace=False)
    kept_ids, kept = [], []
    for number in np.sort(drawn).tolist():
        for some, feats in store.scan(RowFilter(ids=(number, number + 1))):
            kept_ids.append(some)
            kept.append(feats)
    return np.concatenate(kept_ids), np.concatenate(kept)


def without_self(ids: np.ndarray, own: np.ndarray, k: int) -> list[np.ndarray]:
    """Returns the first k of each list (Q, k + 1) after the query's own row is taken out."""
    return [row[row != number][:k] for row, number in zip(ids, own, strict=True)]


def verify(
    store: Store, k: int = 10, wanted: float = 0.99, size: int = 200, queries: np.ndarray | None = None,
    rebuild: bool = False,
) -> Verified:  # fmt: skip
    """Builds the index unless it is there, finds the least effort whose recall is ``wanted``, and writes it down.

    queries: features (Q, D); None: rows of the store, each without itself. rebuild: build the index again. Raises
    ``UserError`` if no effort is enough; the store then keeps what it had.
    """
    if queries is None:
        own, queries = sample_queries(store, size)
    else:
        queries = finite_rows(queries[:size], 0, "query", True)
        own = np.full(len(queries), -1)
    with store.writing():
        before = store.facts(INDEX).get(INDEX)
        built = before["built"] if before and not rebuild else store.build_index()
        began = time.perf_counter()
        exact = without_self(exact_search(store, queries, k + 1, RowFilter())[0], own, k)
        exact_ms = exact_milliseconds(store, queries, k, time.perf_counter() - began)
        tried: list[Effort] = []
        for effort in store.efforts():
            tried.append(measured(store, queries, own, exact, k, effort))
            if tried[-1].recall >= wanted:
                break
        chosen = tried[-1]
        if chosen.recall < wanted:
            best = max(tried, key=lambda one: one.recall)
            raise UserError(
                f"{store.address}: the index reaches a recall of {best.recall:.4f} at most, {wanted:g} was wanted; "
                "lower --recall, or search with --exact"
            )
        fact = asdict(chosen) | {"k": k, "wanted": wanted, "queries": len(queries), "built": built}
        store.set_fact(INDEX, fact | {"rows": store.count(RowFilter()), "when": int(time.time())})
    return Verified(chosen, tried, exact_ms, len(queries), built)


def exact_milliseconds(store: Store, queries: np.ndarray, k: int, together: float, most: int = 5) -> float:
    """Returns the median time of exact search for one query. together: seconds that all queries took in one pass."""
    times = []
    for i in range(min(most if together < 60 else 1, len(queries))):
        began = time.perf_counter()
        exact_search(store, queries[i : i + 1], k, RowFilter())
        times.append(time.perf_counter() - began)
    return 1000 * float(np.median(times))


def measured(
    store: Store, queries: np.ndarray, own: np.ndarray, exact: list[np.ndarray], k: int, effort: dict[str, int]
) -> Effort:
    """Returns recall and time of one setting."""
    shares, times = [], []
    for i, nearest in enumerate(exact):
        began = time.perf_counter()
        ids, _ = indexed_search(store, queries[i : i + 1], k + 1, RowFilter(), effort)
        times.append(time.perf_counter() - began)
        found = without_self(ids, own[i : i + 1], k)[0]
        shares.append(np.isin(nearest, found).mean() if len(nearest) else 1.0)
    p50, p99 = np.percentile(times, [50, 99]) * 1000
    return Effort(effort, float(np.mean(shares)), float(p50), float(p99))
