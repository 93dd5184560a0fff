"""What is minimised: identity and metric terms over one or several parts, and what CLIP's models add to them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Protocol

from torch import Tensor
from yacs.config import CfgNode

from loss.adding import add_up
from loss.cross_entropy import cross_entropy
from loss.mean_of_terms import mean_of_terms
from loss.simclr import simclr
from loss.simsiam import simsiam
from loss.triplet import triplet
from utils import switch
from utils.distributed import gather_rows
from utils.errors import conflict
from utils.names import is_clip

SAMPLERS_WITHOUT_METRIC = ("softmax", "id")
"""Samplers whose batches need not hold two images of an identity, so that there are no pairs to compare."""

LABEL_SMOOTHING = 0.1
"""Smoothing under MODEL.IF_LABELSMOOTH."""


class Output(Protocol):
    """What the losses read of a network's output: ``model.ReIDOutput``.

    scores: (B, C) logits per part. feats: (B, d) features per part.
    """

    scores: list[Tensor]
    feats: list[Tensor]


class CLIPOutput(Output, Protocol):
    """What CLIP's losses read beside it.

    i2t_logits: (B, C) image-to-text logits, or None. heads, tokens: of two further views for vision self-supervision,
    or empty.
    """

    i2t_logits: Tensor | None
    heads: list[Tensor]
    tokens: list[Tensor]


LossFunction = Callable[[CLIPOutput, Tensor], dict[str, Tensor]]
"""(output, labels (B,)) -> named, weighted terms, whose sum is minimised."""


def part_weights(count: int) -> list[float]:
    """Returns the weight of each part: 1 for a single part, else half for the whole image and half for the others."""
    return [1.0] if count == 1 else [0.5] + [0.5 / (count - 1)] * (count - 1)


def clip_part_weights(count: int, first: int) -> list[float]:
    """Returns the weight of each part of a CLIP model: 1 for the ``first`` ones, and 1 shared by JPM's local parts."""
    return [1.0] * first + [1.0 / max(count - first, 1)] * (count - first)


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
    """Returns weighted terms whose sum is the total (TransReID, eq. 1 and 4).

    labels: (B,). triplet_weight: 0 leaves the metric term out. epsilon: label smoothing. margin: None for the soft
    margin. normalize: unit features in the metric term, only if there is a single part, as published. gather: mine
    the hardest pairs over the batches of all processes. weigh_*: number of parts -> the weight of each.
    """
    weights = weigh_scores(len(out.scores))
    ids = (w * cross_entropy(s, labels, epsilon) for w, s in zip(weights, out.scores, strict=True))
    terms = {"id": id_weight * add_up(ids)}
    if triplet_weight:
        feats, weights = out.feats, weigh_feats(len(out.feats))
        if gather:
            feats, labels = [gather_rows(f) for f in feats], gather_rows(labels)
        unit = normalize and len(feats) == 1
        triplets = (w * triplet(f, labels, margin, unit) for w, f in zip(weights, feats, strict=True))
        terms["triplet"] = triplet_weight * add_up(triplets)
    return terms


def clip_terms(
    out: CLIPOutput,
    labels: Tensor,
    *,
    i2t_weight: float = 1.0,
    ssl_weight: float = 1.0,
    ssl_type: str = "SIMCLR",
    id_weight: float = 1.0,
    triplet_weight: float = 1.0,
    epsilon: float = 0.0,
    margin: float | None = None,
    normalize: bool = False,
    gather: bool = False,
) -> dict[str, Tensor]:
    """Returns identity and metric terms over CLIP's features, plain sums (CLIP-ReID, eq. 8; SVLL-ReID's with heads).

    If the output has ``i2t_logits`` (B, C), the cross-entropy of image to text joins; if it has ``heads`` and
    ``tokens`` of two views, vision self-supervision. Other arguments as for ``id_and_triplet``.
    """
    terms = id_and_triplet(
        out, labels, id_weight=id_weight, triplet_weight=triplet_weight, epsilon=epsilon, margin=margin,
        normalize=normalize, gather=gather, weigh_scores=partial(clip_part_weights, first=2),
        weigh_feats=partial(clip_part_weights, first=3),
    )  # fmt: skip
    if out.i2t_logits is not None:
        terms["i2t"] = i2t_weight * cross_entropy(out.i2t_logits, labels, epsilon)
    if out.heads:
        head1, head2 = out.heads
        pair = simsiam(head1, head2, *out.tokens) if ssl_type == "SIMSIAM" else simclr(head1, head2, gather=True)
        terms["ssl"] = ssl_weight * pair
    return terms


def make_loss(cfg: CfgNode, num_class: int) -> LossFunction:
    """Returns the composition that the YAML asks for, ``f(output, labels) -> {name: weighted term}``.

    num_class: training identities. The center term is the stage's, which owns the centers. Raises ``UserError`` for
    keys that exclude each other.
    """
    epsilon = LABEL_SMOOTHING if switch("MODEL.IF_LABELSMOOTH", cfg.MODEL.IF_LABELSMOOTH) else 0.0
    if is_clip(cfg.MODEL.NAME):
        return make_clip_loss(cfg, epsilon)
    options = {
        "id_weight": cfg.MODEL.ID_LOSS_WEIGHT,
        "triplet_weight": cfg.MODEL.TRIPLET_LOSS_WEIGHT if "triplet" in cfg.MODEL.METRIC_LOSS_TYPE else 0.0,
        "epsilon": epsilon,
        "margin": None if cfg.MODEL.NO_MARGIN else cfg.SOLVER.MARGIN,
        "normalize": cfg.SOLVER.TRP_L2,
        "gather": cfg.SOLVER.GATHER,
    }
    if cfg.MODEL.NAME.startswith("msvit_") and cfg.MODEL.MSVIT.HEAD == "parts":
        return lambda out, labels: mean_of_terms(out.scores, out.feats, labels, **options)
    if cfg.DATALOADER.SAMPLER in SAMPLERS_WITHOUT_METRIC:
        return partial(id_and_triplet, triplet_weight=0.0)  # weights and smoothing are ignored, as published
    return partial(id_and_triplet, **options)


def make_clip_loss(cfg: CfgNode, epsilon: float) -> LossFunction:
    """Returns ``make_loss`` for CLIP's models. epsilon: label smoothing.

    Leaves the metric term out if a batch has no identities to compare. Raises ``UserError`` for another metric loss
    than the triplet.
    """
    if cfg.MODEL.METRIC_LOSS_TYPE != "triplet":
        raise conflict(
            f"MODEL.METRIC_LOSS_TYPE {cfg.MODEL.METRIC_LOSS_TYPE!r}",
            f"MODEL.NAME {cfg.MODEL.NAME!r}",
            "a CLIP model has the triplet loss only",
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
