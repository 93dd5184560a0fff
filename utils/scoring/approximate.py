"""Approximate search with FAISS: an inverted file over the gallery, of which a query scans the nearest few lists."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from utils.errors import UserError
from utils.scoring.distances import unit_rows
from utils.scoring.search import feature_list, search

CHUNK = 1 << 16  # rows that are added together
PER_LIST = 39  # images per list, at least: FAISS warns of fewer
SCANNED = 1 / 16  # share of the lists that a query scans, eight at least
SAMPLE = 200  # queries that recall is measured on, at most

Index = Any  # faiss.IndexIVFFlat: the library is optional


def import_faiss() -> Any:
    """Returns the library. Raises ``UserError`` if it is not installed."""
    try:
        import faiss
    except ImportError:
        raise UserError("--index faiss needs faiss-cpu: pip install -r requirements-extra.txt") from None
    faiss.omp_set_num_threads(torch.get_num_threads())
    return faiss


def make_index(gallery: np.ndarray, unit: bool, kept: Path | None = None) -> Index:
    """Returns a FAISS index of a gallery's rows (G, D), in memory; reads it from ``kept``, or writes it there.

    unit: scale rows to unit length first. The k-means of its lists sees up to 64 images a list, evenly spaced.
    """
    faiss = import_faiss()
    count, width = feature_list(gallery, "gallery").shape
    if kept and kept.is_file():
        with suppress(RuntimeError):  # a damaged file is written again
            index = faiss.read_index(str(kept))
            if (index.ntotal, index.d) == (count, width):
                return index

    def rows(some: slice) -> np.ndarray:
        feats = np.ascontiguousarray(gallery[some], np.float32)
        return unit_rows(feats) if unit else feats

    lists = int(max(1, min(4 * count**0.5, count // PER_LIST)))
    index: Index = faiss.IndexIVFFlat(faiss.IndexFlatL2(width), width, lists)
    index.train(rows(slice(None, None, max(count // (64 * lists), 1))))
    for start in range(0, count, CHUNK):
        index.add(rows(slice(start, start + CHUNK)))
    if kept:
        with suppress(RuntimeError, OSError):  # a folder that cannot be written to: the index is made again next time
            faiss.write_index(index, f"{kept}.part")
            Path(f"{kept}.part").replace(kept)
    return index


def approximate_search(
    query: np.ndarray, index: Index, k: int = 100, metric: str = "euclidean", unit: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Searches an index as ``search.search`` does; row -1, at an infinite distance, if its lists hold fewer than k."""
    feats = np.ascontiguousarray(feature_list(query, "query"), np.float32)
    if feats.shape[1] != index.d:
        raise UserError(f"query features are {feats.shape[1]} wide, gallery features {index.d}")
    index.nprobe = min(index.nlist, max(8, int(index.nlist * SCANNED)))
    distances, indices = index.search(unit_rows(feats) if unit else feats, min(k, index.ntotal))
    distances[indices < 0] = np.inf
    return indices, distances / 2 if metric == "cosine" else distances


def recall(query: np.ndarray, gallery: np.ndarray, indices: np.ndarray, metric: str, unit: bool, memory: int) -> float:
    """Returns the share of the exact lists that ``indices`` (Q, k) hold, on up to ``SAMPLE`` queries."""
    some = slice(None, None, -(-len(query) // SAMPLE))
    exact, _ = search(query[some], gallery, indices.shape[1], metric, unit, memory)
    pairs = zip(exact, indices[some], strict=True)
    return float(np.mean([np.isin(nearest, listed).mean() for nearest, listed in pairs]))
