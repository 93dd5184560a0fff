"""Which tracklets match, from tracklets whose persons are known: the odds of a pair, and the limit of clusters."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from tools.tracking.tracklet_set import TrackletSet
from utils.errors import UserError
from utils.scoring.linkage import Apart
from utils.scoring.same_odds import LogOdds

MOST_PAIRS = 500_000
"""Pairs of a fit; of more, these are drawn."""
LIMITS = 65
"""Limits that a fit tries, those of distances in equal steps."""
MOST_LABELLED = 3000
"""Tracklets that are numbered once for each limit, in seconds."""


def labelled_pairs(tracklets: TrackletSet, apart: Apart, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns squared distances of pairs of tracklets, and whether each shows one person, (P,) each.

    Pairs that time keeps apart do not count. Raises ``UserError`` where no tracklet has a person.
    """
    known = np.array([i for i, pid in enumerate(tracklets.pids) if pid], int)
    if len(known) < 2:
        raise UserError("--fit: the table names no persons (pid) of its tracklets")
    pids = np.array(tracklets.pids)[known]
    rng, distances, same = np.random.default_rng(seed), [], []
    share = min(1.0, MOST_PAIRS / (len(known) ** 2 / 2))
    for start in range(0, len(known), 256):
        rows = known[start : start + 256]
        later = (rows[:, None] < known[None]) & ~apart(rows, known)
        equal = pids[start : start + 256, None] == pids[None]
        taken = later & (equal | (rng.random(later.shape) < share))
        distances.append((2 - 2 * tracklets.feats[rows] @ tracklets.feats[known].T)[taken])
        same.append(equal[taken])
    return np.maximum(np.concatenate(distances), 0), np.concatenate(same)


def kept_share(numbers: np.ndarray, people: Sequence[str], images: np.ndarray) -> float:
    """Returns the share of images whose identity is their person's, identities and persons paired for the most (IDTP).

    numbers: (T,) identities of tracklets, from 0 or 1. images: (T,) how many each has.
    """
    _, persons = np.unique(people, return_inverse=True)
    table = np.zeros((int(numbers.max()) + 1, int(persons.max()) + 1))
    np.add.at(table, (numbers, persons), images)
    return float(table[linear_sum_assignment(-table)].sum() / images.sum())


def fitted_limit(labelled: TrackletSet, odds: LogOdds, number: Callable[[TrackletSet, float], np.ndarray]) -> float:
    """Returns the mean log-odds above which labelled tracklets are joined best; see ``kept_share``.

    0 would be right if the pairs of two clusters were independent, which they are not. Of several that are as good, the
    one in the middle. number: (tracklets, limit) -> identities (T,), with the constraints under which others will be
    numbered: with fewer of them the best limit is stricter. Of more than ``MOST_LABELLED``, the last are left out.
    """
    known = labelled.only(np.array([bool(pid) for pid in labelled.pids]))
    known = known.only(np.arange(len(known)) < MOST_LABELLED)
    images, limits = np.array([len(rows) for rows in known.rows]), np.unique(odds(np.linspace(0, 4, LIMITS)))
    shares = [kept_share(number(known, float(limit)), known.pids, images) for limit in limits]
    best = np.flatnonzero(np.isclose(shares, max(shares)))
    return float(limits[best[len(best) // 2]])
