"""Time and memory of the Jaccard distance for clustering and of DBSCAN on it, beside the dense way.

    python -m benchmarks.clustering [--size market-train|msmt17-train] [--threads 1] [--repeats 1]

Rows and memory as in ``benchmarks.evaluation``; k1 30, k2 6, eps 0.6, 4 images to a cluster, as in Cluster Contrast.
The figure beside the time is the number of clusters, or of entries stored in a row.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.evaluation import main, product

K1, K2, EPS = 30, 6, 0.6


def dense(qf, gf, *ids) -> int:
    """The distance as Cluster Contrast computes it, in N x N matrices of float32, and DBSCAN on that matrix."""
    feats = np.concatenate([qf, gf])
    num = len(feats)
    original = 2 - 2 * feats @ feats.T
    rank = np.argpartition(original, range(K1 + 1), axis=1)[:, :K1].astype(np.int32)

    def reciprocal(i: int, k: int) -> np.ndarray:
        near = rank[i, : k + 1]
        return near[(rank[near, : k + 1] == i).any(1)]

    full = [reciprocal(i, K1) for i in range(num)]
    short = [reciprocal(i, round(K1 / 2)) for i in range(num)]
    codes = np.zeros((num, num), np.float32)
    for i in range(num):
        near = [short[c] for c in full[i] if len(np.intersect1d(short[c], full[i])) > 2 / 3 * len(short[c])]
        expanded = np.unique(np.concatenate([full[i], *near]))
        weights = np.exp(-original[i, expanded])
        codes[i, expanded] = weights / weights.sum()
    codes = np.stack([codes[rank[i, :K2]].mean(0) for i in range(num)])
    owners = [np.flatnonzero(column) for column in codes.T]
    for i in range(num):
        shared = np.zeros(num, np.float32)
        for column in np.flatnonzero(codes[i]):
            shared[owners[column]] += np.minimum(codes[i, column], codes[owners[column], column])
        original[i] = 1 - shared / (2 - shared)
    return clusters(np.maximum(original, 0))


def clusters(distances) -> int:
    from sklearn.cluster import DBSCAN

    return int(DBSCAN(eps=EPS, min_samples=4, metric="precomputed", n_jobs=-1).fit_predict(distances).max() + 1)


def ours(then: Callable, **settings) -> Callable:
    def run(qf, gf, *ids) -> float:
        from utils.reranking import jaccard_distance

        return then(jaccard_distance(np.concatenate([qf, gf]), K1, K2, **settings))

    return run


def square(qf, gf, *ids) -> None:
    feats = np.concatenate([qf, gf])
    product(feats, feats)


if __name__ == "__main__":
    bare, kept = "product N x N", f"ours, up to {EPS}"
    main(
        "benchmarks.clustering",
        {
            bare: square,
            "dense, with DBSCAN": dense,
            "ours, all": ours(lambda matrix: matrix.nnz / matrix.shape[0]),
            kept: ours(lambda matrix: matrix.nnz / matrix.shape[0], max_distance=EPS),
            "ours, with DBSCAN": ours(clusters, max_distance=EPS),
        },
        {
            bare: "",
            "dense, with DBSCAN": "",
            "ours, all": bare,
            kept: bare,
            "ours, with DBSCAN": f"{kept}; dense, with DBSCAN",
        },
        repeats=1,
        sizes=("market-train", "msmt17-train"),
        figure="figure",
    )
