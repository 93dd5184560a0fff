"""The CUHK03 protocol: one drawn image per gallery identity (Li et al., CVPR 2014).

Of every identity in the gallery one image is drawn; the curve is of the rank of the drawn match among the drawn images:
the mean over a number of draws with NumPy's frozen legacy generator, or the exact mean over all draws.
"""

from __future__ import annotations

import numpy as np
from torch import Tensor

from utils.scoring.matching import PairBlock


def single_shot_cmc(
    block: Tensor, pairs: PairBlock, g_pids: np.ndarray, max_rank: int, rng: np.random.RandomState, repeats: int | None
) -> np.ndarray:
    """Returns the curves of a block of queries, (B, max_rank); zeros for a query without a match.

    block: (B, G) distances. Draws, for each valid query in order: ``repeats`` times, for every identity in the order
    in which it first comes up in the query's ranking, ``rng.choice`` over the places of its images.
    """
    curves = np.zeros((len(block), max_rank))
    starts = np.searchsorted(pairs.query, np.arange(len(block) + 1))
    for row in range(len(block)):
        of_row = slice(starts[row], starts[row + 1])
        positive = pairs.positive[of_row]
        if not positive.any():
            continue
        order = np.argsort(block[row].cpu().numpy(), kind="stable")
        order = order[~np.isin(order, pairs.gallery[of_row][~positive])]
        _, first, identity = np.unique(g_pids[order], return_index=True, return_inverse=True)
        identity = np.argsort(np.argsort(first))[identity]  # numbered in order of appearance
        match = int(identity[np.flatnonzero(order == pairs.gallery[of_row][positive][0])[0]])
        if repeats is None:
            curves[row] = _exact(identity, match, max_rank)
        else:
            curves[row] = _drawn(identity, match, max_rank, rng, repeats)
    return curves


def _drawn(identity: np.ndarray, match: int, max_rank: int, rng: np.random.RandomState, repeats: int) -> np.ndarray:
    """Returns the mean curve of ``repeats`` draws. identity: (K,) numbers along the ranking; match: the query's."""
    places = np.argsort(identity, kind="stable")
    count = np.bincount(identity)
    # One call with all upper ends uses the stream as one call for each does; an end of 1 uses nothing of it.
    drawn = places[np.cumsum(count) - count + rng.randint(0, np.tile(count, (repeats, 1)), dtype=np.int64)]
    rank = (drawn < drawn[:, [match]]).sum(1)
    curve = np.cumsum(np.bincount(np.minimum(rank, max_rank), minlength=max_rank + 1)[:max_rank])
    return curve / repeats


def _exact(identity: np.ndarray, match: int, max_rank: int) -> np.ndarray:
    """Returns the mean curve over all draws: the number of identities ahead is a sum of independent 0/1 variables."""
    count = np.bincount(identity)
    ahead = np.zeros((len(count), count[match]))  # share of an identity's images before each positive
    for j, position in enumerate(np.flatnonzero(identity == match)):
        ahead[:, j] = np.bincount(identity[:position], minlength=len(count)) / count
    ahead[match] = 0
    chance = np.zeros((max_rank, count[match]))  # of k identities ahead, for each positive
    chance[0] = 1
    for p in ahead[ahead.any(1)]:
        moved = chance[:-1] * p
        chance *= 1 - p
        chance[1:] += moved
    return np.cumsum(chance.mean(1))
