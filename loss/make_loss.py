"""The supervised loss: identity and metric terms over one or several parts, and the further terms of CLIP's models."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor
from yacs.config import CfgNode

from loss.cross_entropy import cross_entropy
from loss.mean_of_terms import mean_of_terms
from loss.simclr import simclr
from loss.simsiam import simsiam
from loss.triplet import triplet
from loss.weighted_sum import weighted_sum
from utils import switch
from utils.distributed import gather_rows
from utils.errors import UserError, conflict
from utils.names import is_clip, is_msvit
from utils.output import ReIDOutput

METRIC_LOSSES = ("triplet", "center", "triplet_center")
SAMPLERS_WITHOUT_METRIC = ("softmax", "id")


Loss = Callable[[ReIDOutput, Tensor], dict[str, Tensor]]
"""(output, labels (B,)) -> {name: weighted term}; the sum is the total."""


def part_weights(count: int) -> list[float]:
    """Returns the weight of each part: 1 for a single one, else half for the whole image and half for all others."""
    return [1.0] if count == 1 else [0.5] + [0.5 / (count - 1)] * (count - 1)


def clip_part_weights(count: int, whole: int) -> list[float]:
    """Returns the weight of each part of a CLIP model: 1 for each of the first ``whole``, and 1 for all others."""
    return [1.0] * whole + [1.0 / max(count - whole, 1)] * (count - whole)


def id_and_triplet(
    out: ReIDOutput,
    labels: Tensor,
    *,
    id_weight: float = 1.0,
    triplet_weight: float = 1.0,
    epsilon: float = 0.0,
    margin: float | None = None,
    normalize: bool = False,
    gather: bool = False,
    weigh_scores: Callable[[int], list[float]] = part_weights,
    weigh_feats: Callable[[int], list[float]] = part_weights,
) -> dict[str, Tensor]:
    """Returns weighted terms whose sum is the total (TransReID, eq. 1 and 4).

    labels: (B,). triplet_weight: 0 omits the metric term. epsilon: label smoothing. margin: None for the soft margin.
    normalize: unit-length features in the metric term, if there is one part only, as published. gather: mine the
    hardest pairs over the batches of all processes. weigh_*: number of parts -> the weight of each.
    """
    entropies = [cross_entropy(scores, labels, epsilon) for scores in out.scores]
    terms = {"id": id_weight * weighted_sum(entropies, weigh_scores(len(entropies)))}
    if triplet_weight:
        feats = out.feats
        if gather:
            feats, labels = [gather_rows(f) for f in feats], gather_rows(labels)
        unit = normalize and len(feats) == 1
        triplets = [triplet(f, labels, margin, unit) for f in feats]
        terms["triplet"] = triplet_weight * weighted_sum(triplets, weigh_feats(len(triplets)))
    return terms


def clip_terms(
    out: ReIDOutput,
    labels: Tensor,
    *,
    i2t_weight: float = 1.0,
    ssl_weight: float = 1.0,
    ssl_type: str = "SIMCLR",
    epsilon: float = 0.0,
    **supervised: Any,
) -> dict[str, Tensor]:
    """Returns identity and metric terms over CLIP's features, plain sums (CLIP-ReID, eq. 8; SVLL-ReID's with heads).

    If the output has ``i2t_logits`` (B, C), the cross-entropy of image to text is added; if it has ``heads`` and
    ``tokens`` of two views, vision self-supervision. Others as for ``id_and_triplet``.
    """
    terms = id_and_triplet(
        out,
        labels,
        epsilon=epsilon,
        weigh_scores=partial(clip_part_weights, whole=2),
        weigh_feats=partial(clip_part_weights, whole=3),
        **supervised,
    )
    if out.i2t_logits is not None:
        terms["i2t"] = i2t_weight * cross_entropy(out.i2t_logits, labels, epsilon)
    if out.heads:
        view1, view2 = out.heads
        if ssl_type == "SIMSIAM":
            pair = simsiam(view1, view2, *out.tokens)
        else:
            pair = simclr(view1, view2, gather=True)
        terms["ssl"] = ssl_weight * pair
    return terms


def make_loss(cfg: CfgNode, num_class: int) -> Loss:
    """Returns the loss that the configuration asks for: ``f(output, labels) -> {name: weighted term}``.

    num_class: training identities. The stage adds the center term, since it owns the centers. Raises ``UserError`` for
    unknown names.
    """
    kind = cfg.MODEL.METRIC_LOSS_TYPE
    if kind not in METRIC_LOSSES:
        raise UserError(f"MODEL.METRIC_LOSS_TYPE: unknown {kind!r}. Known: {', '.join(METRIC_LOSSES)}")
    smooth = switch("MODEL.IF_LABELSMOOTH", cfg.MODEL.IF_LABELSMOOTH)
    if is_clip(cfg.MODEL.NAME):
        return make_clip_loss(cfg, 0.1 if smooth else 0.0)
    options = {
        "id_weight": cfg.MODEL.ID_LOSS_WEIGHT,
        "triplet_weight": cfg.MODEL.TRIPLET_LOSS_WEIGHT if "triplet" in kind else 0.0,
        "epsilon": 0.1 if smooth else 0.0,
        "margin": None if cfg.MODEL.NO_MARGIN else cfg.SOLVER.MARGIN,
        "normalize": cfg.SOLVER.TRP_L2,
        "gather": cfg.SOLVER.GATHER,
    }
    if is_msvit(cfg.MODEL.NAME) and cfg.MODEL.MSVIT.HEAD == "parts":
        return lambda out, labels: mean_of_terms(out.scores, out.feats, labels, **options)
    if cfg.DATALOADER.SAMPLER in SAMPLERS_WITHOUT_METRIC:
        return partial(id_and_triplet, triplet_weight=0.0)  # plain: weights and smoothing are ignored, as published
    return partial(id_and_triplet, **options)


def make_clip_loss(cfg: CfgNode, epsilon: float) -> Loss:
    """Returns the loss of CLIP's models; without identities to compare in a batch, it has no metric term."""
    kind = cfg.MODEL.METRIC_LOSS_TYPE
    if kind != "triplet":
        why = "a CLIP model has the triplet loss only"
        raise conflict(f"MODEL.METRIC_LOSS_TYPE {kind!r}", f"MODEL.NAME {cfg.MODEL.NAME!r}", why)
    without_metric = cfg.DATALOADER.SAMPLER in SAMPLERS_WITHOUT_METRIC
    return partial(
        clip_terms,
        id_weight=cfg.MODEL.ID_LOSS_WEIGHT,
        triplet_weight=0.0 if without_metric else cfg.MODEL.TRIPLET_LOSS_WEIGHT,
        i2t_weight=cfg.MODEL.I2T_LOSS_WEIGHT,
        ssl_weight=cfg.SOLVER.STAGE2.SSL_LOSS_WEIGHT,
        ssl_type=cfg.MODEL.SSL_TYPE,
        epsilon=epsilon,
        margin=None if cfg.MODEL.NO_MARGIN else cfg.SOLVER.MARGIN,
        normalize=cfg.SOLVER.TRP_L2,
        gather=cfg.SOLVER.GATHER,
    )
