"""What is minimised: identity and metric terms over one or several parts, and what CLIP's models add to them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from torch import Tensor

from loss.cross_entropy import cross_entropy
from loss.mean_of_terms import mean_of_terms
from loss.simclr import simclr
from loss.simsiam import simsiam
from loss.triplet import triplet
from utils import switch
from utils.distributed import gather_rows
from utils.errors import UserError
from utils.names import is_clip

METRIC_LOSSES = ("triplet", "center", "triplet_center")
SAMPLERS_WITHOUT_METRIC = ("softmax", "id")


class Output(Protocol):
    """scores: (B, C) logits per part; feats: (B, d) features per part."""

    scores: list[Tensor]
    feats: list[Tensor]


def part_weights(count: int) -> list[float]:
    """The weight of each part: all to a single one, else half to the whole image and half shared by the rest."""
    return [1.0] if count == 1 else [0.5] + [0.5 / (count - 1)] * (count - 1)


def clip_part_weights(count: int, own: int) -> list[float]:
    """The weight of each part of a CLIP model: 1 for its ``own`` first ones, and 1 shared by JPM's local ones."""
    return [1.0] * own + [1.0 / max(count - own, 1)] * (count - own)


def id_and_triplet(
    out: Output,
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
    """Weighted terms whose sum is the total (TransReID, eq. 1 and 4).

    labels: (B,). triplet_weight: 0 leaves the metric term out. epsilon: label smoothing. margin: None for the soft
    margin. normalize: unit features in the metric term, where there is one part only, as published. gather: mine
    the hardest pairs over the batches of all processes. weigh_*: number of parts -> the weight of each.
    """
    weights = weigh_scores(len(out.scores))
    terms = {
        "id": id_weight * sum(w * cross_entropy(s, labels, epsilon) for w, s in zip(weights, out.scores, strict=True))
    }
    if triplet_weight:
        feats, weights = out.feats, weigh_feats(len(out.feats))
        if gather:
            feats, labels = [gather_rows(f) for f in feats], gather_rows(labels)
        unit = normalize and len(feats) == 1
        terms["triplet"] = triplet_weight * sum(
            w * triplet(f, labels, margin, unit) for w, f in zip(weights, feats, strict=True)
        )
    return terms


def clip_terms(
    out: Output,
    labels: Tensor,
    *,
    i2t_weight: float = 1.0,
    ssl_weight: float = 1.0,
    ssl_type: str = "SIMCLR",
    epsilon: float = 0.0,
    **supervised,
) -> dict[str, Tensor]:
    """Identity and metric terms over CLIP's features, plain sums (CLIP-ReID, eq. 8; SVLL-ReID's with heads).

    Where the output has ``i2t_logits`` (B, C), the cross-entropy of image to text joins; where it has ``heads`` and
    ``tokens`` of two views, vision self-supervision. Others as ``id_and_triplet``.
    """
    terms = id_and_triplet(
        out, labels, epsilon=epsilon, weigh_scores=partial(clip_part_weights, own=2),
        weigh_feats=partial(clip_part_weights, own=3), **supervised,
    )  # fmt: skip
    if getattr(out, "i2t_logits", None) is not None:
        terms["i2t"] = i2t_weight * cross_entropy(out.i2t_logits, labels, epsilon)
    if getattr(out, "heads", None):
        pair = simsiam(*out.heads, *out.tokens) if ssl_type == "SIMSIAM" else simclr(*out.heads, gather=True)
        terms["ssl"] = ssl_weight * pair
    return terms


def make_loss(cfg, num_class: int) -> Callable[[Output, Tensor], dict[str, Tensor]]:
    """What the YAML asks for: ``f(output, labels) -> {name: weighted term}``; the sum is the total.

    num_class: training identities. The center term is the stage's, which owns the centers. Raises ``UserError`` for
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
    if cfg.MODEL.NAME.startswith("msvit_") and cfg.MODEL.MSVIT.HEAD == "parts":
        return lambda out, labels: mean_of_terms(out.scores, out.feats, labels, **options)
    if cfg.DATALOADER.SAMPLER in SAMPLERS_WITHOUT_METRIC:
        return partial(id_and_triplet, triplet_weight=0.0)  # plain: weights and smoothing are ignored, as published
    return partial(id_and_triplet, **options)


def make_clip_loss(cfg, epsilon: float) -> Callable[[Output, Tensor], dict[str, Tensor]]:
    """``make_loss`` for CLIP's models. Without identities to compare in a batch, the metric term is left out."""
    if cfg.MODEL.METRIC_LOSS_TYPE != "triplet":
        raise UserError(
            f"MODEL.METRIC_LOSS_TYPE {cfg.MODEL.METRIC_LOSS_TYPE!r} and MODEL.NAME {cfg.MODEL.NAME!r} cannot go "
            "together: a CLIP model has the triplet loss only"
        )
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
