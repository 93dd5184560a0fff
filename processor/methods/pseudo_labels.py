"""Pseudo-labels: features of a training list, their Jaccard distance, and DBSCAN on it (as in Cluster Contrast)."""

from __future__ import annotations

import logging

import numpy as np
import torch.nn.functional as F
from torch import Tensor, nn

from processor.evaluate import extract_features
from utils.distributed import broadcast_object, is_main, share_buffers
from utils.errors import UserError
from utils.metrics import nmi
from utils.reranking import jaccard_distance

log = logging.getLogger("lineup")

EPS_STEP, EPS_RANGE = 0.05, (0.05, 0.95)
"""By how much eps moves, and how far, when a clustering cannot be trained on."""


def cluster(feats: Tensor, k1: int, k2: int, eps: float, min_samples: int, max_memory: int | None = None) -> np.ndarray:
    """DBSCAN on the Jaccard distance of unit-length features. (N, D) -> (N,) int64, -1 for an outlier.

    eps: largest distance of neighbours; min_samples: neighbours, itself counted, that make a core of a cluster. Only
    distances up to eps are ever held: DBSCAN asks for no other.
    """
    from sklearn.cluster import DBSCAN

    distances = jaccard_distance(feats, k1, k2, max_distance=eps, max_memory=max_memory)
    found = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed", n_jobs=-1).fit_predict(distances)
    return found.astype(np.int64)


def fills_a_batch(labels: np.ndarray, batch_size: int, num_instances: int) -> bool:
    """Whether a batch of P x K can be drawn: P clusters of two images or more; without K, as many images."""
    members = np.bincount(labels[labels >= 0])
    if num_instances == 0:
        return members.sum() >= batch_size
    return (members >= 2).sum() >= batch_size // num_instances


class Clustering:
    """Labels of a training list from the model's own features.

    loader: over the list, in its order, not augmented. batch_size, num_instances: of the batches that a process draws
    from the clusters (``fills_a_batch``). truth: (N,) identities, for what is logged alone; None or -1: not known.

    A clustering that cannot fill a batch is not trained on. Where most images are in no cluster, eps grows in steps of
    ``EPS_STEP``, else it falls (all have run into one), until a batch can be filled; where that never happens, the last
    epoch's labels stay.
    """

    def __init__(
        self,
        loader,
        k1: int = 30,
        k2: int = 6,
        eps: float = 0.6,
        min_samples: int = 4,
        batch_size: int = 2,
        num_instances: int = 1,
        truth: np.ndarray | None = None,
    ):
        self.loader, self.k1, self.k2, self.eps, self.min_samples = loader, k1, k2, eps, min_samples
        self.batch_size, self.num_instances = batch_size, num_instances
        self.truth = None if truth is None or (truth < 0).any() else truth
        self.last: np.ndarray | None = None

    @classmethod
    def from_cfg(cls, cfg, loader, batch_size: int) -> Clustering:
        """batch_size: of one process."""
        keys = cfg.CLUSTER
        k = 0 if cfg.DATALOADER.SAMPLER == "softmax" else cfg.DATALOADER.NUM_INSTANCE
        truth = loader.records.pids
        return cls(loader, keys.K1, keys.K2, keys.EPS, keys.MIN_SAMPLES, batch_size, k, truth)

    def features(self, model: nn.Module) -> Tensor:
        """(N, D) of unit length, on the CPU."""
        share_buffers(model)  # every process computes a share of them
        return F.normalize(extract_features(model, self.loader, next(model.parameters()).device))

    def labels_of(self, feats: Tensor) -> np.ndarray:
        """(N,) int64, -1 for an outlier; the first process's on all. Raises ``UserError`` in a first epoch without."""
        found = broadcast_object(self._search(feats) if is_main() else None)
        if found is None and self.last is None:
            raise UserError(
                f"CLUSTER.EPS {self.eps}: neither this nor another eps gives clusters for a batch of {self.batch_size} "
                f"images, {self.num_instances} of each; lower SOLVER.IMS_PER_BATCH or CLUSTER.MIN_SAMPLES, or start "
                "from better weights (MODEL.PRETRAIN_PATH)"
            )
        if found is None:
            log.warning("no eps gives clusters that fill a batch: the labels of the epoch before stay")
            found = self.last
        self.last = found
        self._tell(found)
        return found

    def _search(self, feats: Tensor) -> np.ndarray | None:
        """The first clustering that fills a batch, eps moving by the rule; None when there is none."""
        step = 0.0
        eps = self.eps
        while EPS_RANGE[0] - 1e-9 <= eps <= EPS_RANGE[1] + 1e-9 or eps == self.eps:
            found = cluster(feats, self.k1, self.k2, eps, self.min_samples)
            if fills_a_batch(found, self.batch_size, self.num_instances):
                return found
            step = step or (EPS_STEP if (found < 0).mean() > 0.5 else -EPS_STEP)
            log.warning(
                "eps %.2f: %d clusters, %d of %d images in none: too few for a batch; trying eps %.2f",
                eps, found.max() + 1, (found < 0).sum(), len(found), eps + step,
            )  # fmt: skip
            eps += step
        return None

    def labels(self, model: nn.Module) -> np.ndarray:
        return self.labels_of(self.features(model))

    def _tell(self, found: np.ndarray) -> None:
        line = f"{found.max() + 1} clusters, {(found < 0).sum()} of {len(found)} images in none"
        if self.truth is not None:
            precision, recall = pair_scores(self.truth, found)
            kept = found >= 0
            shared = nmi(self.truth[kept], found[kept])
            line += f"; against the labels: NMI {shared:.3f}, pairs right {precision:.3f}, pairs found {recall:.3f}"
        log.info(line)

    def state_dict(self) -> dict[str, list[int]]:
        return {} if self.last is None else {"labels": self.last.tolist()}

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        self.last = np.array(state["labels"], np.int64) if "labels" in state else None


def pair_scores(truth: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Precision and recall of the pairs of images that share a cluster, against pairs of one identity. (N,), (N,).

    An outlier (-1) shares a cluster with nobody. 1 where there is no pair to judge.
    """

    def pairs(*columns: np.ndarray) -> int:
        counts = np.unique(np.stack(columns), axis=1, return_counts=True)[1].astype(np.int64)
        return int((counts * (counts - 1) // 2).sum())

    kept = clusters >= 0
    both = pairs(truth[kept], clusters[kept]) if kept.any() else 0
    together, alike = pairs(clusters[kept]) if kept.any() else 0, pairs(truth)
    return both / together if together else 1.0, both / alike if alike else 1.0
