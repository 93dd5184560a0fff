"""Confidence intervals of means over queries, and tests of whether two runs differ, by the bootstrap.

The queries of a test set are a sample (Efron and Tibshirani, 1993). Drawing as many from it with replacement, many
times, shows how much a mean over queries would change with another sample. A paired comparison draws the same queries
for both sides, so that what makes a query easy or hard for both cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils.errors import UserError

LEVEL = 0.95

TOGETHER = 2**15
"""Items drawn at once: a call for each of many small draws would take longer than the drawing."""


def counts(total: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """Returns how often each of ``total`` items is among ``total`` draws with replacement, (draws, total) float32."""
    out = np.empty((draws, total), np.float32)
    step = max(TOGETHER // max(total, 1), 1)
    for top in range(0, draws, step):
        rows = out[top : top + step]
        places = rng.integers(0, total, rows.shape) + total * np.arange(len(rows))[:, None]
        rows[:] = np.bincount(places.ravel(), minlength=rows.size).reshape(rows.shape)
    return out


def bootstrap_means(values: np.ndarray, draws: int = 2000, seed: int = 0) -> np.ndarray:
    """Returns means of resampled rows, (draws, M) float64. values: (Q, M), a row per query."""
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not len(values):
        raise UserError(f"bootstrap: expected values of shape (queries, figures), got {values.shape}")
    rng, size, out = np.random.default_rng(seed), len(values), np.empty((draws, values.shape[1]))
    step = max(2**22 // size, 1)  # sixteen megabytes of counts per pass
    for top in range(0, draws, step):
        some = counts(size, min(step, draws - top), rng)
        out[top : top + step] = some.astype(np.float64) @ values / size
    return out


def interval(samples: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """Returns lower and upper end of the middle ``level`` of resampled figures, (M,) each. samples: (draws, M)."""
    rest = (1 - level) / 2
    low, high = np.quantile(samples, (rest, 1 - rest), axis=0)
    return low, high


@dataclass(frozen=True)
class Difference:
    """The mean of second - first, the ends of its 95 % interval, and the two-sided p-value of no difference."""

    value: float
    low: float
    high: float
    p: float

    @property
    def significant(self) -> bool:
        """Whether p is below 5 %."""
        return self.p < 1 - LEVEL


def paired_difference(first: np.ndarray, second: np.ndarray, draws: int = 10_000, seed: int = 0) -> Difference:
    """Tests whether two settings differ on the same queries.

    first: (R, Q), second: (S, Q): a row for each run (seed) of a setting, a column for each query. Both sides draw the
    same queries; if a setting has several runs, each side draws among its runs too, so that the choice of the seed
    counts. p: the share of draws whose difference is at least as far from the observed one as that is from 0,
    (1 + count) / (1 + draws) (Davison and Hinkley, 1997, section 4.2): equal rows give 1.
    """
    first, second = (np.atleast_2d(np.asarray(side, np.float64)) for side in (first, second))
    if first.shape[1] != second.shape[1] or not first.size or not second.size:
        raise UserError(f"paired bootstrap: expected the same queries, got {first.shape[1]} and {second.shape[1]}")
    rng, size = np.random.default_rng(seed), first.shape[1]
    runs = np.concatenate([first, second]).T  # (Q, R + S)
    observed = second.mean() - first.mean()
    samples, step = np.empty(draws), max(2**22 // size, 1)
    for top in range(0, draws, step):
        number = min(step, draws - top)
        means = counts(size, number, rng).astype(np.float64) @ runs / size
        sides = [counts(len(side), number, rng) / len(side) for side in (first, second)]
        of_first, of_second = means[:, : len(first)], means[:, len(first) :]
        samples[top : top + number] = (of_second * sides[1]).sum(1) - (of_first * sides[0]).sum(1)
    low, high = interval(samples[:, None])
    as_far = np.abs(samples - observed) >= abs(observed) * (1 - 1e-12)
    return Difference(float(observed), float(low[0]), float(high[0]), float((1 + as_far.sum()) / (1 + draws)))
