"""Pseudo-labels: features of a training list, their Jaccard distance, and DBSCAN on it (as in Cluster Contrast)."""

from __future__ import annotations

import logging

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from processor.evaluate import extract_features
from utils.distributed import broadcast_object, is_main
from utils.reranking import jaccard_distance

log = logging.getLogger("lineup")


def cluster(feats: Tensor, k1: int, k2: int, eps: float, min_samples: int, max_memory: int | None = None) -> np.ndarray:
    """DBSCAN on the Jaccard distance of unit-length features. (N, D) -> (N,) int64, -1 for an outlier.

    eps: largest distance of neighbours; min_samples: neighbours, itself counted, that make a core of a cluster. Only
    distances up to eps are ever held: DBSCAN asks for no other.
    """
    from sklearn.cluster import DBSCAN

    distances = jaccard_distance(feats, k1, k2, max_distance=eps, max_memory=max_memory)
    found = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed", n_jobs=-1).fit_predict(distances)
    return found.astype(np.int64)


class Clustering:
    """Labels of a training list from the model's own features. loader: over the list, in its order, not augmented."""

    def __init__(self, loader, k1: int = 30, k2: int = 6, eps: float = 0.6, min_samples: int = 4):
        self.loader, self.k1, self.k2, self.eps, self.min_samples = loader, k1, k2, eps, min_samples

    @classmethod
    def from_cfg(cls, cfg, loader) -> Clustering:
        return cls(loader, cfg.CLUSTER.K1, cfg.CLUSTER.K2, cfg.CLUSTER.EPS, cfg.CLUSTER.MIN_SAMPLES)

    def features(self, model: nn.Module) -> Tensor:
        """(N, D) of unit length, on the CPU."""
        return F.normalize(extract_features(model, self.loader, next(model.parameters()).device))

    def labels_of(self, feats: Tensor) -> np.ndarray:
        """(N,) int64, -1 for an outlier; the first process's on all."""
        found = cluster(feats, self.k1, self.k2, self.eps, self.min_samples) if is_main() else None
        return broadcast_object(found)

    def labels(self, model: nn.Module) -> np.ndarray:
        found = self.labels_of(self.features(model))
        log.info("%d clusters, %d of %d images in none", found.max() + 1, (found < 0).sum(), len(found))
        return found
