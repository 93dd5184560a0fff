"""Pseudo-labels: DBSCAN on the Jaccard distance of a training list's features (as in Cluster Contrast)."""

from __future__ import annotations

import logging

import numpy as np
import torch.nn.functional as F
from torch import Tensor
from yacs.config import CfgNode

from datasets.loaders import TestLoader
from model import RetrievalModel
from processor.evaluate import extract_features
from utils.device import python_random_kept
from utils.distributed import broadcast_object, is_main, share_buffers
from utils.errors import UserError
from utils.metrics import nmi
from utils.reranking import jaccard_distance

log = logging.getLogger("lineup")

EPS_STEP, EPS_RANGE = 0.05, (0.05, 0.95)
"""Step and range of eps when a clustering cannot be trained on."""


def cluster(feats: Tensor, k1: int, k2: int, eps: float, min_samples: int, max_memory: int | None = None) -> np.ndarray:
    """Runs DBSCAN on the Jaccard distance of unit-length features. (N, D) -> (N,) int64, -1 for an outlier.

    eps: largest distance of neighbours. min_samples: neighbours, itself counted, that make a core of a cluster. Only
    distances up to eps are stored, which is all that DBSCAN reads.
    """
    from sklearn.cluster import DBSCAN

    distances = jaccard_distance(feats, k1, k2, max_distance=eps, max_memory=max_memory)
    labels = DBSCAN(eps=eps, min_samples=min_samples, metric="precomputed", n_jobs=-1).fit_predict(distances)
    return labels.astype(np.int64)


def fills_a_batch(labels: np.ndarray, batch_size: int, num_instances: int) -> bool:
    """Returns whether a batch of P x K can be drawn: P clusters of two or more images; without K, enough images."""
    members = np.bincount(labels[labels >= 0])
    if num_instances == 0:
        return members.sum() >= batch_size
    return (members >= 2).sum() >= batch_size // num_instances


class Clustering:
    """Labels the images of a training list by clustering the model's features.

    loader: over the list in its order, not augmented. batch_size, num_instances: of the batches that a process draws
    from the clusters (``fills_a_batch``). truth: (N,) identities, used only for the log; None or -1 if unknown.

    A clustering that cannot fill a batch is not trained on. If most images are in no cluster, eps grows in steps of
    ``EPS_STEP``, else it falls (all have merged into one), until a batch can be filled. If that never happens, the last
    epoch's labels are used again.
    """

    def __init__(
        self,
        loader: TestLoader,
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
    def from_cfg(cls, cfg: CfgNode, loader: TestLoader, batch_size: int) -> Clustering:
        """Makes the clustering that ``CLUSTER`` describes. batch_size: of one process."""
        return cls(
            loader,
            k1=cfg.CLUSTER.K1,
            k2=cfg.CLUSTER.K2,
            eps=cfg.CLUSTER.EPS,
            min_samples=cfg.CLUSTER.MIN_SAMPLES,
            batch_size=batch_size,
            num_instances=0 if cfg.DATALOADER.SAMPLER == "softmax" else cfg.DATALOADER.NUM_INSTANCE,
            truth=loader.records.pids,
        )

    def features(self, model: RetrievalModel) -> Tensor:
        """Returns the list's features, (N, D) of unit length, on the CPU."""
        share_buffers(model)  # every process extracts a share of the images
        return F.normalize(extract_features(model, self.loader, next(model.parameters()).device))

    @python_random_kept()
    def labels_of(self, feats: Tensor) -> np.ndarray:
        """Returns labels (N,) int64, -1 for an outlier, the same on every rank.

        Raises ``UserError`` if no eps gives clusters that fill a batch and there was no epoch before.
        """
        labels: np.ndarray | None = broadcast_object(self._search(feats) if is_main() else None)
        if labels is None:
            labels = self._last_labels()
        self.last = labels
        self._log_quality(labels)
        return labels

    def _last_labels(self) -> np.ndarray:
        if self.last is None:
            raise UserError(
                f"CLUSTER.EPS {self.eps}: neither this nor another eps gives clusters for a batch of {self.batch_size} "
                f"images, {self.num_instances} of each; lower SOLVER.IMS_PER_BATCH or CLUSTER.MIN_SAMPLES, or start "
                "from better weights (MODEL.PRETRAIN_PATH)"
            )
        log.warning("no eps gives clusters that fill a batch: training continues with the last epoch's labels")
        return self.last

    def _search(self, feats: Tensor) -> np.ndarray | None:
        """Returns the first clustering that fills a batch, moving eps by the rule; None if no eps gives one."""
        step = 0.0
        eps = self.eps
        while EPS_RANGE[0] - 1e-9 <= eps <= EPS_RANGE[1] + 1e-9 or eps == self.eps:
            labels = cluster(feats, self.k1, self.k2, eps, self.min_samples)
            if fills_a_batch(labels, self.batch_size, self.num_instances):
                return labels
            step = step or (EPS_STEP if (labels < 0).mean() > 0.5 else -EPS_STEP)
            log.warning(
                "eps %.2f: %d clusters, %d of %d images in none: too few for a batch; trying eps %.2f",
                eps, labels.max() + 1, (labels < 0).sum(), len(labels), eps + step,
            )  # fmt: skip
            eps += step
        return None

    def labels(self, model: RetrievalModel) -> np.ndarray:
        """Returns the labels that the model's features give; see ``labels_of``."""
        return self.labels_of(self.features(model))

    def _log_quality(self, labels: np.ndarray) -> None:
        line = f"{labels.max() + 1} clusters, {(labels < 0).sum()} of {len(labels)} images in none"
        if self.truth is not None:
            precision, recall = pair_scores(self.truth, labels)
            kept = labels >= 0
            shared = nmi(self.truth[kept], labels[kept])
            line += f"; against the labels: NMI {shared:.3f}, pair precision {precision:.3f}, pair recall {recall:.3f}"
        log.info(line)

    def state_dict(self) -> dict[str, list[int]]:
        return {} if self.last is None else {"labels": self.last.tolist()}

    def load_state_dict(self, state: dict[str, list[int]]) -> None:
        self.last = np.array(state["labels"], np.int64) if "labels" in state else None


def pair_scores(truth: np.ndarray, clusters: np.ndarray) -> tuple[float, float]:
    """Returns precision and recall of the pairs of images in one cluster, against pairs of one identity. (N,), (N,).

    An outlier (-1) shares a cluster with no image. A share of no pairs is 1.
    """

    def pairs(*columns: np.ndarray) -> int:
        counts = np.unique(np.stack(columns), axis=1, return_counts=True)[1].astype(np.int64)
        return int((counts * (counts - 1) // 2).sum())

    kept = clusters >= 0
    both = pairs(truth[kept], clusters[kept]) if kept.any() else 0
    of_clusters, of_identities = pairs(clusters[kept]) if kept.any() else 0, pairs(truth)
    return both / of_clusters if of_clusters else 1.0, both / of_identities if of_identities else 1.0
