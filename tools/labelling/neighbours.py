"""The graph of near images that clusters and questions come from, computed once for some features and kept."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from pathlib import Path
from typing import IO

import numpy as np
import torch
from scipy.sparse import csr_array

from tools.labelling.clustering import PER_IMAGE, REACH, Graph
from utils.calibration import Calibration
from utils.files import write_atomically
from utils.reranking import jaccard_distance
from utils.scoring.distances import Distances
from utils.scoring.neighbours import nearest_rows

log = logging.getLogger("lineup")

FILE = "neighbours.npz"
EVEN = 0.5
"""What CLUSTER.EPS is with a calibration: images are linked that are more probably the same than not."""
MANY = 100_000
"""Images from which on it is said beforehand what comparing them takes."""
TRIED = 2_048
"""Images that are compared with each other to say so."""
BYTES_PER_IMAGE = 7_000
"""Memory that the comparison takes beside the features, estimated: not measured at this size."""


def unit(feats: np.ndarray) -> np.ndarray:
    """Returns features (N, D) in unit length."""
    feats = np.asarray(feats, np.float32)
    return feats / np.maximum(np.linalg.norm(feats, axis=1, keepdims=True), 1e-12)


def make_graph(
    feats: np.ndarray, k1: int, k2: int, eps: float, rows: np.ndarray, count: int,
    calibration: Calibration | None = None,
) -> Graph:  # fmt: skip
    """Returns the graph of ``count`` images, of which those in ``rows`` (n,) have features (n, D).

    Distances are Jaccard's of k1 and k2, or with a calibration the probability of two identities.
    """
    if len(feats) >= MANY:
        log.warning(in_advance(feats))
    if len(feats) < 2:
        return Graph(count, *(np.empty(0, kind) for kind in (np.int32, np.int32, np.float32, np.float32)))
    if calibration is None:
        graph = jaccard_graph(unit(feats), k1, k2, eps)
    else:
        graph = calibrated_graph(feats, max(k1, PER_IMAGE), calibration)
    rows = rows.astype(np.int32)
    return Graph(count, rows[graph.first], rows[graph.second], graph.distance, graph.rank)


def jaccard_graph(feats: np.ndarray, k1: int, k2: int, eps: float) -> Graph:
    """Returns the graph of Jaccard distances, beyond which a pair's distance is 1 and more. feats: unit length."""
    distances = jaccard_distance(feats, min(k1, len(feats)), min(k2, len(feats)), max_distance=max(eps, REACH))
    whole = torch.from_numpy(feats)
    near, gaps, _ = nearest_rows(Distances(whole, whole), min(PER_IMAGE + 1, len(feats)))
    return Graph.of(distances, eps, near, 1 + gaps / 4)


def calibrated_graph(feats: np.ndarray, width: int, calibration: Calibration) -> Graph:
    """Returns the graph of each image's ``width`` nearest, at a distance of 1 - P(same)."""
    scaled = calibration.normalize or calibration.metric == "cosine"
    whole = torch.from_numpy(unit(feats) if scaled else np.array(feats, np.float32))
    near, distances, _ = nearest_rows(Distances(whole, whole, calibration.metric), min(width + 1, len(feats)))
    apart = 1 - calibration.probability(distances)
    return Graph.of(csr_array((len(feats), len(feats)), dtype=np.float32), EVEN, near, apart.astype(np.float32))


def in_advance(feats: np.ndarray) -> str:
    """Returns a line on what comparing all images takes on this machine."""
    some = unit(feats[:TRIED])
    np.matmul(some, some.T)
    began = time.perf_counter()
    np.matmul(some, some.T)
    share = (len(feats) / TRIED) ** 2 * (time.perf_counter() - began)
    gigabytes = len(feats) * (BYTES_PER_IMAGE + feats.shape[1] * 4) / 1e9
    minutes = max(1, round(3 * share / 60))
    return (
        f"{len(feats):,} images: comparing all of them takes {minutes} minutes or more, once, and about "
        f"{gigabytes:.1f} GB of memory"
    )


def kept_graph(
    folder: Path, key: str, feats: np.ndarray, k1: int, k2: int, eps: float, rows: np.ndarray, count: int,
    calibration: Calibration | None = None,
) -> Graph:  # fmt: skip
    """Returns ``make_graph``'s result from the folder if it was computed before. key: what the features are of."""
    path = folder / FILE
    words = f"{key} {k1} {k2} {eps} {count} {REACH}"
    if calibration is not None:
        words += f" {json.dumps(calibration.content())}"
    stamp = np.frombuffer(hashlib.sha256(words.encode() + rows.tobytes()).digest(), np.uint8)
    graph = read_graph(path, stamp, count)
    if graph is None:
        graph = make_graph(feats, k1, k2, eps, rows, count, calibration)
        write_graph(path, stamp, graph)
    return graph


def write_graph(path: Path, stamp: np.ndarray, graph: Graph) -> None:
    """Writes a graph."""

    def write(handle: IO[bytes]) -> None:
        np.savez(handle, stamp=stamp, first=graph.first, second=graph.second, distance=graph.distance, rank=graph.rank)

    write_atomically(path, write)


def read_graph(path: Path, stamp: np.ndarray, count: int) -> Graph | None:
    """Returns a graph that was written, None if it is of something else or damaged."""
    if not path.is_file():
        return None
    try:
        with np.load(path, allow_pickle=False) as content:
            if not np.array_equal(content["stamp"], stamp):
                return None
            graph = Graph(count, content["first"], content["second"], content["distance"], content["rank"])
    except Exception:  # noqa: BLE001 - a damaged archive fails in many ways, and the graph can be computed again
        return None
    edges = graph.first, graph.second
    sound = all(column.dtype == np.int32 and column.shape == graph.distance.shape for column in edges)
    sound = sound and graph.distance.dtype == graph.rank.dtype == np.float32 and graph.rank.shape == edges[0].shape
    sound = sound and bool((np.diff(graph.distance) >= 0).all())
    if not sound or (len(graph.first) and (graph.first.min() < 0 or max(column.max() for column in edges) >= count)):
        return None
    return graph
