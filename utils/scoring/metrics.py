"""Computes metrics from features.

Distances are computed and scored in blocks, so that no (Q, G) matrix exists and MSMT17 fits in well under 2 GB. Results
do not depend on the block size.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from utils.errors import UserError
from utils.scoring.camera_norm import CameraPairs, PairScale
from utils.scoring.distances import Distances, as_features, on_one_device, unit_length
from utils.scoring.matching import Matching
from utils.scoring.ranking import RankResult, check_names, choose, distance_rows, rank_blocks
from utils.scoring.reranking import ReRanking
from utils.scoring.verification import roc_blocks
from utils.scoring.watching import Watcher

METRICS = ("euclidean", "cosine")


def evaluate_features(
    qf: object,
    gf: object,
    q_pids: object,
    g_pids: object,
    q_camids: object = None,
    g_camids: object = None,
    metric: str = "euclidean",
    normalize: bool = True,
    rerank: tuple[int, int, float] | None = None,
    protocol: str = "market1501",
    ap: str = "rectangle",
    max_rank: int = 50,
    block_size: int | None = None,
    seed: int = 0,
    repeats: int | None = 10,
    q_seqs: object = None,
    g_seqs: object = None,
    same_list: bool = False,
    max_memory: int | None = None,
    watch: Watcher | None = None,
    one_list: bool = False,
    camera_pairs: CameraPairs | None = None,
) -> RankResult:
    """Returns CMC, mAP and mINP of features, as ``evaluate_rank`` does, whose arguments the other ones are.

    qf: (Q, D), gf: (G, D), tensors or arrays; computed on the device of the tensors, in float32.
    metric: ``euclidean`` (squared; same ranks as the root) or ``cosine``. normalize: divide each feature by
    max(length, 1e-12) first. rerank: None, or (k1, k2, lambda) of k-reciprocal re-ranking (``utils.reranking``), which
    has its own, squared Euclidean distance. block_size: queries per block; max_memory: bytes that the distances in
    work may take, None for at most 512 MB. Neither changes a result. watch: called with every block of
    distances (``utils.scoring.watching``). one_list: query i is gallery image i, whatever is filtered: re-ranking then
    counts each image as a neighbour once. camera_pairs: distances are normalised by those of their two cameras, which
    must be given; not with rerank.

    Raises ``ValueError`` as ``evaluate_rank`` does, and for NaN or infinite features and k1 or k2 below 1.
    """
    choose("metric", metric, METRICS)
    check_names(protocol, ap, max_rank, repeats)
    qf, gf = _two_lists(qf, gf, normalize or metric == "cosine")
    matching = Matching(q_pids, g_pids, q_camids, g_camids, q_seqs, g_seqs, same_list, (len(qf), len(gf)))
    scale = _scale_of(camera_pairs, q_camids, g_camids)
    if scale and rerank:
        raise UserError("camera_pairs: re-ranking has a distance of its own")
    if rerank is None:
        dist = Distances(qf, gf, metric, max_memory, scale=scale)
    else:
        dist = ReRanking(qf, gf, *rerank, block_size=block_size, max_memory=max_memory, one_list=one_list)
    return rank_blocks(
        dist.rows, matching, max_rank, protocol, ap, seed, repeats, block_size=block_size, strip=dist.strip,
        threads=dist.on_cpu, max_memory=max_memory, watch=watch,
    )  # fmt: skip


def evaluate_roc(
    qf: object,
    gf: object,
    q_pids: object,
    g_pids: object,
    q_camids: object = None,
    g_camids: object = None,
    fars: Sequence[float] = (1e-4, 1e-3, 1e-2),
    block_size: int | None = None,
    same_list: bool = False,
    max_memory: int | None = None,
    camera_pairs: CameraPairs | None = None,
) -> dict[float, float]:
    """Returns ``roc`` of features (Q, D) and (G, D), by cosine, in blocks.

    block_size, max_memory, camera_pairs (of cosines) and ``ValueError`` as ``evaluate_features``; same_list as
    ``evaluate_rank``.
    """
    qf, gf = _two_lists(qf, gf, normalize=True)
    matching = Matching(q_pids, g_pids, q_camids, g_camids, same_list=same_list, shape=(len(qf), len(gf)))
    dist = Distances(qf, gf, "cosine", max_memory, scale=_scale_of(camera_pairs, q_camids, g_camids))
    return roc_blocks(
        dist.rows, matching, fars, block_size=block_size, strip=dist.strip, threads=dist.on_cpu, max_memory=max_memory
    )


def roc(
    distmat: object,
    q_pids: object,
    g_pids: object,
    q_camids: object = None,
    g_camids: object = None,
    fars: Sequence[float] = (1e-4, 1e-3, 1e-2),
) -> dict[float, float]:
    """Returns the true accept rate at each false accept rate: ``{far: tar}``, both shares of 1.

    distmat: (Q, G). A pair is a query and a gallery image that the camera filter keeps for it, genuine when they share
    the identity; queries without a match still give impostor pairs. tar is the largest share of genuine pairs accepted
    at a threshold that accepts at most a share far of the impostor pairs; nothing is interpolated. Raises
    ``ValueError`` as ``evaluate_rank`` does, and when there is no impostor pair or a far is not between 0 and 1.
    """
    rows, shape = distance_rows(distmat)
    matching = Matching(q_pids, g_pids, q_camids, g_camids, shape=shape)
    return roc_blocks(rows, matching, fars)


def _scale_of(camera_pairs: CameraPairs | None, q_camids: object, g_camids: object) -> PairScale | None:
    if camera_pairs is None:
        return None
    if q_camids is None or g_camids is None:
        raise UserError("camera_pairs: the cameras of query and gallery must be given")
    return camera_pairs.between(q_camids, g_camids)


def _two_lists(qf: object, gf: object, normalize: bool) -> tuple[Tensor, Tensor]:
    qf, gf = on_one_device(as_features(qf, "query"), as_features(gf, "gallery"))
    return (unit_length(qf), unit_length(gf)) if normalize else (qf, gf)
