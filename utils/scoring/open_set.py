"""Open-set identification: is the query in the gallery at all, and who is it?

As NIST defines 1:N identification (Grother et al., NISTIR 8271): a query is answered with its nearest gallery image if
that is at most a threshold away, else with "unknown". Queries without a gallery image give the false positive
identification rate (FPIR), the others the detection and identification rate (DIR): right at rank 1, and answered.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError
from utils.scoring.matching import PairBlock

CURVE = 200
"""Points of the curve, at most, evenly spaced in the logarithm of the FPIR."""
ABSENT, KNOWN, NEITHER = 0, 1, -1
"""Kinds of queries: without an image of their identity in the gallery, with a match, with images that do not count."""


def drawn_out(q_pids: np.ndarray, g_pids: np.ndarray, share: float, seed: int) -> np.ndarray:
    """Returns which gallery images to take out, (G,) bool: all of a drawn share of the queries' identities.

    Raises ``UserError`` if that leaves no identity out, or none in.
    """
    present = np.intersect1d(q_pids, g_pids)
    count = round(share * len(present))
    if not 0 < count < len(present):
        raise UserError(
            f"TEST.OPEN_SHARE {share:g}: of {len(present)} identities, {count} would be taken out of the gallery; some "
            "must go and some stay"
        )
    return np.isin(g_pids, np.random.default_rng(seed).permutation(present)[:count])


class NearestImage:
    """Records the nearest gallery image of every query, junk left out; a watcher (``utils.scoring.watching``).

    out: (G,) bool, images that are not in the gallery. ``distance`` (Q,), inf without an image; ``right`` (Q,) whether
    it shows the query's identity; ``kind`` (Q,): ``ABSENT``, ``KNOWN`` or ``NEITHER``.
    """

    def __init__(self, num_q: int, out: np.ndarray):
        self.out = torch.from_numpy(out)
        self.distance, self.right = np.full(num_q, np.inf), np.zeros(num_q, bool)
        self.kind = np.full(num_q, ABSENT, np.int8)

    def __call__(self, start: int, block: Tensor, pairs: PairBlock) -> None:
        here = slice(start, start + len(block))
        there = ~self.out.numpy()[pairs.gallery]  # pairs whose image is in the gallery
        kept = block.clone()
        kept[:, self.out.to(block.device)] = torch.inf
        junk = [torch.from_numpy(rows[~pairs.positive]).to(block.device) for rows in (pairs.query, pairs.gallery)]
        kept[junk[0], junk[1]] = torch.inf
        values, columns = (values.cpu().numpy() for values in kept.min(1))
        self.distance[here] = values
        known = pairs.query * block.shape[1] + pairs.gallery
        nearest = np.arange(len(block)) * block.shape[1] + columns
        self.right[here] = np.isin(nearest, known[pairs.positive & there]) & np.isfinite(values)
        kind = np.full(len(block), ABSENT, np.int8)
        kind[pairs.query[there]] = NEITHER
        kind[pairs.query[there & pairs.positive]] = KNOWN
        self.kind[here] = kind


@dataclass(frozen=True)
class OpenSet:
    """Open-set figures, shares of 1. rates: FPIR -> DIR. auroc: chance that a known query is nearer than an absent one.

    known, absent: numbers of queries. curve: (2, N) FPIR, ascending, and the DIR at each.
    """

    rates: dict[float, float]
    auroc: float
    known: int
    absent: int
    curve: np.ndarray


def open_set(nearest: NearestImage, fpirs: tuple[float, ...] = (0.01, 0.1)) -> OpenSet | None:
    """Returns the figures of recorded queries; None if all are known, or all absent."""
    from sklearn.metrics import roc_auc_score

    known, absent = nearest.kind == KNOWN, nearest.kind == ABSENT
    if not known.any() or not absent.any():
        return None
    far = float(np.finfo(np.float32).max)
    distances = np.minimum(nearest.distance, far)  # no image at all: farther than any
    strangers = np.sort(distances[absent])
    total, right = len(strangers), np.sort(distances[known & nearest.right])

    def detected(most: np.ndarray) -> np.ndarray:  # at the threshold that answers so many of the absent queries
        return np.searchsorted(right, np.append(strangers, np.inf)[most], "left") / known.sum()

    answered = np.array([int(np.floor(fpir * total * (1 + 1e-12))) for fpir in fpirs])
    points = np.unique(np.append(0, np.rint(np.geomspace(1, total, CURVE)).astype(int)))
    used = known | absent
    return OpenSet(
        rates=dict(zip(fpirs, detected(answered).tolist(), strict=True)),
        auroc=float(roc_auc_score(known[used], -distances[used])),
        known=int(known.sum()),
        absent=int(absent.sum()),
        curve=np.stack([points / total, detected(points)]),
    )
