"""From distances to decisions: thresholds for a wanted false accept rate, and the probability of one identity.

All functions take ``PairCounts`` (``utils.scoring.pair_counts``) and plain numbers. A pair is accepted at a threshold
if its distance is at most the threshold.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils.bootstrap import counts as draw_counts
from utils.bootstrap import interval
from utils.errors import UserError
from utils.scoring.pair_counts import PairCounts

DRAWS = 1000
RULE_OF_THREE = 3
"""With no event among n trials, a rate of 3 / n cannot be excluded at 95 % (Hanley and Lippman-Hand, 1983)."""


@dataclass(frozen=True)
class Threshold:
    """A distance for a wanted false accept rate (FAR), shares of 1.

    distance: the largest at which at most ``far`` of the impostor pairs are accepted; low, high: ends of its 95 %
    interval. got_low, got_high: ends of the 95 % interval of the FAR that it gives on as many other identities. tar:
    share of the genuine pairs accepted.
    """

    far: float
    distance: float
    low: float
    high: float
    got_low: float
    got_high: float
    tar: float


def smallest_far(pairs: PairCounts) -> float:
    """Returns the smallest false accept rate that so many impostor pairs can show (rule of three).

    A pair that was counted in both orders is one trial.
    """
    return RULE_OF_THREE / pairs.distinct[1]


def threshold_at(pairs: PairCounts, far: float) -> float:
    """Returns the largest distance at which at most a share ``far`` of the impostor pairs is accepted.

    Raises ``UserError`` for a share outside of 0 to 1, one that the data is too small for, and one beyond the share
    that ``count_pairs`` kept.
    """
    if not 0 < far < 1:
        raise UserError(f"--far: expected a share between 0 and 1, got {far:g}")
    if far < smallest_far(pairs):
        raise UserError(
            f"--far {far:g}: {pairs.distinct[1]:,} impostor pairs of {len(pairs.identities):,} identities show no rate "
            f"below {smallest_far(pairs):.2g} (three in so many pairs); ask for more, or add identities"
        )
    accepted = int(np.floor(far * pairs.impostors * (1 + 1e-12)))
    if accepted >= len(pairs.nearest):
        raise UserError(f"--far {far:g}: more than the pairs were counted for")
    return float(np.nextafter(pairs.nearest[accepted], -np.inf))


def thresholds(pairs: PairCounts, fars: list[float], draws: int = DRAWS, seed: int = 0) -> list[Threshold]:
    """Returns a threshold with its intervals for each wanted false accept rate.

    The bootstrap draws identities, each with all its pairs, and never comes back to the pairs: a pair of identities i
    and j weighs w_i + w_j - 1, the part of w_i w_j that is linear in the draws (Hajek's projection).
    """
    distances = [threshold_at(pairs, far) for far in fars]
    rates, edges = resampled_rates(pairs, draws, seed), pairs.tail_edges[1:]
    others = rates[np.random.default_rng(seed + 1).permutation(len(rates))]  # another draw of as many identities
    out = []
    for far, distance in zip(fars, distances, strict=True):
        of_draws = np.array([_crossing(edges, row, far) for row in rates])
        (low,), (high,) = interval(of_draws[:, None])
        got = np.array([np.interp(at, edges, row) for at, row in zip(of_draws, others, strict=True)])
        (got_low,), (got_high,) = interval(got[:, None])
        tar = float(np.searchsorted(pairs.genuine, distance, "right") / len(pairs.genuine))
        out.append(Threshold(far, distance, float(low), float(high), float(got_low), float(got_high), tar))
    return out


def unknown_distance(nearest: np.ndarray, fpir: float, ratio: float = 1.0) -> float:
    """Returns the distance beyond which a query's nearest image shows nobody of the gallery.

    At most a share ``fpir`` of the queries that are absent is answered with a name (false positive identification
    rate). nearest: (Q,) distance of the nearest stranger of each query, ascending. ratio: size of the gallery that they
    are of over that of the gallery that will be searched. The nearest of n strangers is beyond a distance with
    probability (1 - F)^n, so another size is another power. Raises ``UserError`` for a rate that so few queries do not
    show.
    """
    if not 0 < fpir < 1:
        raise UserError(f"--fpir: expected a share between 0 and 1, got {fpir:g}")
    share = -np.expm1(ratio * np.log1p(-fpir))
    if share < RULE_OF_THREE / len(nearest):
        least = -np.expm1(np.log1p(-min(RULE_OF_THREE / len(nearest), 0.999)) / ratio)
        raise UserError(
            f"--fpir {fpir:g}: {len(nearest):,} queries show no rate below {least:.2g} in a gallery of that size "
            "(three in so many queries); ask for more, or calibrate on more"
        )
    at = min(int(np.floor(share * len(nearest) * (1 + 1e-12))), len(nearest) - 1)
    return float(np.nextafter(nearest[at], -np.inf))


def unknown_threshold(pairs: PairCounts, fpir: float, draws: int = DRAWS, seed: int = 0) -> Threshold:
    """Returns ``unknown_distance`` in the gallery of the pairs, with its intervals by a bootstrap over identities.

    The rates are those of queries, so ``far`` is the FPIR. Identities are drawn on both sides, as strangers of one side
    and of the other: how a draw changes the rate of pairs within a distance is how it changes the expected number of a
    query's strangers there.
    """
    nearest, edges = np.sort(pairs.nearest_of), pairs.tail_edges[1:]
    distance = unknown_distance(nearest, fpir)
    within = rates_of(pairs)
    answered = np.searchsorted(nearest, edges[:-1], "right") / len(nearest)  # at the last edge ``nearest_of`` ends
    with np.errstate(divide="ignore", invalid="ignore"):
        change = resampled_rates(pairs, draws, seed)[:, :-1] / within[:-1]
        rates = -np.expm1(np.where(answered > 0, change * np.log1p(-answered), 0.0))
    rates = np.maximum.accumulate(np.nan_to_num(rates), 1)
    others = rates[np.random.default_rng(seed + 1).permutation(draws)]
    at = np.array([_crossing(edges[:-1], row, fpir) for row in rates])
    got = np.array([np.interp(limit, edges[:-1], row) for limit, row in zip(at, others, strict=True)])
    (low, got_low), (high, got_high) = interval(np.stack([at, got], 1))
    tar = float(np.searchsorted(pairs.genuine, distance, "right") / len(pairs.genuine))
    return Threshold(fpir, distance, float(low), float(high), float(got_low), float(got_high), tar)


def rates_of(pairs: PairCounts) -> np.ndarray:
    """Returns the false accept rate at every edge of the tail, (T,)."""
    return np.cumsum(pairs.tail_counts.sum(0)) / 2 / pairs.impostors


def resampled_rates(pairs: PairCounts, draws: int = DRAWS, seed: int = 0) -> np.ndarray:
    """Returns the false accept rate at every edge of the tail, a row per draw of the identities: (draws, T).

    A draw that changes the rate by a share x multiplies it by exp(x): rates of few identities spread evenly around
    their mean on a scale of logarithms, not on a plain one, where they would even fall below 0.
    """
    extra = draw_counts(len(pairs.identities), draws, np.random.default_rng(seed)) - 1
    tail = pairs.tail_counts.sum(0) / 2 + extra @ pairs.tail_counts.astype(np.float32)
    total = pairs.impostors + extra @ pairs.pairs_of.astype(np.float32)
    drawn, rates = np.cumsum(tail, 1) / total.clip(min=1)[:, None], rates_of(pairs)
    change = np.divide(drawn, rates, out=np.ones_like(drawn), where=rates > 0) - 1
    return np.maximum.accumulate(rates * np.exp(change), 1)


def _crossing(edges: np.ndarray, rates: np.ndarray, far: float) -> float:
    """Returns where a rising rate reaches ``far``, between edges by a straight line; the last edge if it does not."""
    at = int(np.searchsorted(rates, far, "right"))
    if at == 0:
        return float(edges[0])
    if at == len(rates):
        return float(edges[-1])
    before, after = rates[at - 1], rates[at]
    return float(edges[at - 1] + (edges[at] - edges[at - 1]) * (far - before) / (after - before))


@dataclass(frozen=True)
class Probability:
    """P(same | distance) at a prior: straight lines between knots, constant beyond. ``Probability.fit`` makes one.

    distances, odds: (K,) knots, ascending in distance: the ratio of the densities of genuine and impostor pairs, which
    no prior changes. prior: share of genuine pairs among those that are decided.
    """

    distances: np.ndarray
    odds: np.ndarray
    prior: float

    @classmethod
    def fit(cls, pairs: PairCounts, prior: float) -> Probability:
        """Fits a falling step function (isotonic regression, Zadrozny and Elkan, 2002) and joins its steps.

        prior: between 0 and 1. Raises ``UserError`` for another one, and where all distances are equal.
        """
        from sklearn.isotonic import IsotonicRegression

        if not 0 < prior < 1:
            raise UserError(f"--prior: expected a share between 0 and 1, got {prior:g}")
        centres = bin_centres(pairs.edges)
        if np.ptp(centres) <= 1e-6 * max(np.abs(centres).max(), 1):  # what float32 leaves of equal features
            raise UserError("all distances are equal; the model does not tell the images apart")
        shares = np.stack([pairs.genuine_counts / pairs.genuine_counts.sum(), pairs.impostor_counts / pairs.impostors])
        used = shares.sum(0) > 0
        x, (same, other) = centres[used], shares[:, used]
        fitted = IsotonicRegression(increasing=False, y_min=0, y_max=1).fit_transform(
            x, same / (same + other), sample_weight=same + other
        )
        with np.errstate(divide="ignore"):
            return cls(x, fitted / (1 - fitted), prior)

    def at(self, prior: float) -> Probability:
        """Returns the same for another prior."""
        return Probability(self.distances, self.odds, prior)

    def __call__(self, distances: np.ndarray) -> np.ndarray:
        """Returns probabilities of one identity, of the shape of ``distances``."""
        weighted = self.odds * (self.prior / (1 - self.prior))
        knots = np.where(np.isinf(weighted), 1.0, weighted / (1 + np.where(np.isinf(weighted), 0, weighted)))
        return np.interp(distances, self.distances, knots)


def bin_centres(edges: np.ndarray) -> np.ndarray:
    """Returns the middle of each bin; of the two open ones, their finite edge."""
    inner = (edges[1:-2] + edges[2:-1]) / 2
    return np.concatenate([edges[1:2], inner, edges[-2:-1]])


@dataclass(frozen=True)
class Reliability:
    """How probabilities hold. predicted, observed, share: (R,) mean probability, share of genuine pairs and share of
    all pairs in each bin of probability (empty bins left out). ece: mean of |predicted - observed| over pairs. brier:
    mean square of (probability - truth). Both at the prior asked for."""

    predicted: np.ndarray
    observed: np.ndarray
    share: np.ndarray
    ece: float
    brier: float


def reliability(probability: Probability, pairs: PairCounts, bins: int = 15) -> Reliability:
    """Compares probabilities with what pairs they were not fitted on show.

    Pairs are weighed so that ``probability.prior`` of them are genuine. bins: of equal width in probability (Guo et
    al., ICML 2017).
    """
    p, prior = probability(bin_centres(pairs.edges)), probability.prior
    same = prior * pairs.genuine_counts / pairs.genuine_counts.sum()
    other = (1 - prior) * pairs.impostor_counts / pairs.impostors
    which = np.minimum((p * bins).astype(int), bins - 1)
    share, truth, mean = (np.bincount(which, values, bins) for values in (same + other, same, p * (same + other)))
    used = share > 0
    predicted, observed = mean[used] / share[used], truth[used] / share[used]
    return Reliability(
        predicted=predicted,
        observed=observed,
        share=share[used],
        ece=float((share[used] * np.abs(predicted - observed)).sum()),
        brier=float((same * (1 - p) ** 2 + other * p**2).sum()),
    )
