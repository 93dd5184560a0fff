"""Computes the retrieval metrics of metric learning: Recall@K and the mutual information of a clustering."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from utils.errors import UserError
from utils.scoring.blocks import each_block, whole_number
from utils.scoring.distances import Distances, as_features, on_one_device, unit_length
from utils.scoring.matching import Matching
from utils.scoring.ranking import positive_ranks
from utils.scoring.watching import Watcher

logger = logging.getLogger("lineup")


@dataclass(frozen=True)
class RetrievalResult:
    """The scores of one evaluation.

    recall: {k: share of images with an image of their label among the k nearest}. nmi: None if not computed.
    num_unmatched: images whose label no other image has; they are misses at every k. first_match_rank: (Q,) 1-based, -1
    for those.
    """

    recall: dict[int, float]
    nmi: float | None
    num_unmatched: int
    first_match_rank: np.ndarray


def evaluate_retrieval(
    feats: object,
    labels: object,
    gallery: object = None,
    gallery_labels: object = None,
    ks: Sequence[int] = (1, 2, 4, 8),
    nmi: bool = True,
    block_size: int | None = None,
    max_memory: int | None = None,
    watch: Watcher | None = None,
) -> RetrievalResult:
    """Returns Recall@K by cosine (Song et al., CVPR 2016) and normalised mutual information of a clustering.

    feats: (N, D) of any length, labels: (N,) integers; every image is searched for among all others, itself left out
    by its index, so that a copy of it is found. With ``gallery`` (G, D) and ``gallery_labels`` (G,) it is searched for
    there, and nothing is left out. Equal distances are ordered by index; a k beyond the list takes all of it.

    nmi: k-means++ on the unit vectors (of both lists), as many clusters as labels, 10 starts from a fixed seed. Codes
    that use another k-means differ by several points, so this figure compares with itself only.

    Raises ``ValueError`` for NaN features, lengths that do not fit and ids that are not integers.
    """
    ks = [whole_number("ks", k) for k in ks]
    if (gallery is None) != (gallery_labels is None):
        raise UserError("gallery and gallery_labels go together: give both or neither")
    one_list = gallery is None
    feats = unit_length(as_features(feats, "query"))
    if one_list:
        gallery, gallery_labels = feats, labels
    else:
        feats, gallery = on_one_device(feats, unit_length(as_features(gallery, "gallery")))
    matching = Matching(labels, gallery_labels, same_list=one_list, shape=(len(feats), len(gallery)), need_valid=False)
    dist = Distances(feats, gallery, "cosine", max_memory)
    first_rank = np.full(len(feats), np.iinfo(np.int64).max)

    def work(start: int, stop: int) -> None:
        block, pairs = dist.rows(start, stop), matching.pairs(start, stop)
        query, rank, _ = positive_ranks(block, pairs, first_only=True)
        first_rank[start + query] = rank
        if watch:
            watch(start, block, pairs)

    each_block(*dist.shape, block_size, work, "retrieval", strip=dist.strip, threads=dist.on_cpu, max_memory=max_memory)
    unmatched = int((matching.num_positives == 0).sum())
    if unmatched:
        logger.info("%d of %d images have no other image of their label: misses at every k", unmatched, len(feats))
    score = None
    if nmi:
        both = feats if one_list else torch.cat([feats, gallery])
        score = _clustering_nmi(both, matching.q_pids if one_list else np.append(matching.q_pids, matching.g_pids))
    recall = {k: float((first_rank <= k).mean()) for k in ks}
    return RetrievalResult(recall, score, unmatched, np.where(matching.num_positives > 0, first_rank, -1))


def _clustering_nmi(feats: torch.Tensor, labels: np.ndarray) -> float:
    from sklearn.cluster import KMeans

    kmeans = KMeans(len(np.unique(labels)), n_init=10, random_state=0)  # pyright: ignore[reportArgumentType] - stub
    return nmi(labels, kmeans.fit_predict(feats.cpu().numpy()))


def nmi(labels: object, clusters: object) -> float:
    """Returns the mutual information of two labellings over the arithmetic mean of their entropies, in [0, 1].

    labels, clusters: (N,) each. Raises ``ValueError`` if their lengths differ or they are empty.
    """
    from sklearn.metrics import normalized_mutual_info_score

    first, second = (
        ids.detach().cpu().numpy() if isinstance(ids, torch.Tensor) else np.asarray(ids) for ids in (labels, clusters)
    )
    if len(first) != len(second) or len(first) == 0:
        raise UserError(
            f"nmi: expected as many labels as clusters and at least one, got {len(first)} and {len(second)}"
        )
    return float(normalized_mutual_info_score(first, second))
