"""Projects the features of a few identities to two dimensions, for pictures."""

from __future__ import annotations

import numpy as np
from threadpoolctl import threadpool_limits

IDENTITIES, IMAGES = 12, 20
"""Identities of a map, and images of each, at most: more cannot be distinguished by eye."""


def rows_to_show(pids: np.ndarray, candidates: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns the rows of a list for a map: up to 20 images of each of up to 12 identities, drawn from ``candidates``.

    pids: (N,). Only identities of at least three images are drawn.
    """
    rng = np.random.default_rng(seed)
    known, count = np.unique(pids, return_counts=True)
    ids = known[np.isin(known, candidates) & (known >= 0) & (count >= 3)]
    ids = np.sort(rng.permutation(ids)[:IDENTITIES])
    rows = [rng.permutation(np.flatnonzero(pids == pid))[:IMAGES] for pid in ids]
    return np.sort(np.concatenate(rows)) if rows else np.zeros(0, np.int64)


def in_plane(feats: np.ndarray, seed: int = 0) -> np.ndarray:
    """Returns t-SNE (van der Maaten and Hinton, JMLR 2008) of features (N, D), N at least 4, as (N, 2) in [0, 1].

    Features are scaled to unit length. Both axes have one scale. Principal components come first and initialise t-SNE,
    so that one seed gives one map.
    """
    from sklearn.decomposition import PCA  # here, since importing it takes over a second and few commands need it
    from sklearn.manifold import TSNE

    feats = feats / np.maximum(np.linalg.norm(feats, axis=1, keepdims=True), 1e-12)
    if np.allclose(feats, feats[0]):  # a dead model: one point
        return np.full((len(feats), 2), 0.5)
    with threadpool_limits(1):  # for hundreds of points, threads cost more than they gain
        few = PCA(min(30, *feats.shape), random_state=seed).fit_transform(feats.astype(np.float64))
        start = "pca" if few.shape[1] > 1 else "random"
        perplexity = min(15, (len(feats) - 1) / 3)
        plane = TSNE(perplexity=perplexity, init=start, random_state=seed).fit_transform(few)
    span = max(np.ptp(plane, axis=0).max(), 1e-12)
    return (plane - plane.min(0)) / span + (1 - np.ptp(plane, axis=0) / span) / 2
