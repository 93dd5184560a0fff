"""Time and memory of re-ranking with scoring and of NFC, beside the dense textbook way and the bare products.

    python -m benchmarks.reranking [--size small|market|msmt17] [--threads 1] [--repeats 1]

Rows, repeats and memory as in ``benchmarks.evaluation``. The dense way holds several N x N matrices: 9 GB at Market
size, 200 GB at MSMT17 size, where it is left out.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from benchmarks.evaluation import dense_scores, main, product

SETTINGS = ((20, 6, 0.3), (50, 15, 0.3))


def dense(k1: int, k2: int, lambda_value: float) -> Callable:
    """Zhong et al., CVPR 2017, straight from the definition, with N x N matrices in float32."""

    def run(qf, gf, *ids) -> float:
        feats = np.concatenate([qf, gf])
        num = len(feats)
        original = (feats**2).sum(1)[:, None] + (feats**2).sum(1) - 2 * (feats @ feats.T)
        original /= original.max(1, keepdims=True)
        rank = np.argsort(original, axis=1).astype(np.int32)

        def reciprocal(i: int, k: int) -> np.ndarray:
            near = rank[i, : k + 1]
            return near[(rank[near, : k + 1] == i).any(1)]

        codes = np.zeros_like(original)
        for i in range(num):
            expanded = full = reciprocal(i, k1)
            for c in full:
                short = reciprocal(c, round(k1 / 2))
                if len(np.intersect1d(short, full)) > 2 / 3 * len(short):
                    expanded = np.append(expanded, short)
            expanded = np.unique(expanded)
            weights = np.exp(-original[i, expanded])
            codes[i, expanded] = weights / weights.sum()
        original = original[: len(qf)]
        if k2 != 1:
            mean = np.empty_like(codes)
            for i in range(num):
                mean[i] = codes[rank[i, :k2]].mean(0)
            codes = mean
        owners = [np.flatnonzero(column) for column in codes.T]
        final = np.empty((len(qf), len(gf)), np.float32)
        for i in range(len(qf)):
            shared = np.zeros(num, np.float32)
            for column in np.flatnonzero(codes[i]):
                rows = owners[column]
                shared[rows] += np.minimum(codes[i, column], codes[rows, column])
            jaccard = 1 - shared / (2 - shared)
            final[i] = ((1 - lambda_value) * jaccard + lambda_value * original[i])[len(qf) :]
        return dense_scores(final, *ids)

    return run


def ours(*rerank) -> Callable:
    def run(*data) -> float:
        from utils.metrics import evaluate_features

        return evaluate_features(*data, rerank=rerank)

    return lambda *data: run(*data).mAP


def square(qf, gf, *ids) -> None:
    feats = np.concatenate([qf, gf])
    product(feats, feats)


def both(qf, gf, *ids) -> None:
    square(qf, gf)
    product(qf, gf)


def each_square(qf, gf, *ids) -> None:
    product(qf, qf)
    product(gf, gf)


def centralise(qf, gf, *ids) -> None:
    from utils.reranking import neighbour_centralisation

    for feats in (qf, gf):
        neighbour_centralisation(feats, normalize=True)


if __name__ == "__main__":
    base = "products N x N, Q x G"
    runs, rows = {base: both}, {base: ""}
    for setting in SETTINGS:
        label = "/".join(map(str, setting))
        runs |= {f"dense {label}": dense(*setting), f"ours {label}": ours(*setting)}
        rows |= {f"dense {label}": "", f"ours {label}": f"{base}; dense {label}"}
    lists = "products Q x Q, G x G"
    runs |= {lists: each_square, "NFC 2/2": centralise}
    rows |= {lists: "", "NFC 2/2": lists}
    main("benchmarks.reranking", runs, rows, repeats=1)
