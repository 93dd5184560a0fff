"""How sure a mean over queries is, and whether two runs differ: the bootstrap (Efron and Tibshirani, 1993).

The queries of a test set are a sample. Drawing as many from it with replacement, over and over, shows how far a mean
over queries would move with another sample. A paired comparison draws the same queries for both sides, so what makes a
query easy or hard for both cancels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils.errors import UserError

LEVEL = 0.95


def counts(total: int, draws: int, rng: np.random.Generator) -> np.ndarray:
    """How often each of ``total`` items is drawn when ``total`` are drawn with replacement. (draws, total) float32."""
    out = np.empty((draws, total), np.float32)
    for row in out:
        row[:] = np.bincount(rng.integers(0, total, total), minlength=total)
    return out


def bootstrap_means(values: np.ndarray, draws: int = 2000, seed: int = 0) -> np.ndarray:
    """Means of resampled rows. values: (Q, M), a row per query. Returns (draws, M) float64."""
    values = np.asarray(values, np.float64)
    if values.ndim != 2 or not len(values):
        raise UserError(f"bootstrap: expected values of shape (queries, figures), got {values.shape}")
    rng, size, out = np.random.default_rng(seed), len(values), np.empty((draws, values.shape[1]))
    step = max(2**22 // size, 1)  # sixteen megabytes of counts at a time
    for top in range(0, draws, step):
        some = counts(size, min(step, draws - top), rng)
        out[top : top + step] = some.astype(np.float64) @ values / size
    return out


def interval(samples: np.ndarray, level: float = LEVEL) -> tuple[np.ndarray, np.ndarray]:
    """The middle ``level`` of resampled figures: lower and upper end, (M,) each. samples: (draws, M)."""
    rest = (1 - level) / 2
    return tuple(np.quantile(samples, (rest, 1 - rest), axis=0))


@dataclass(frozen=True)
class Difference:
    """second - first: the mean difference, the ends of its 95 % interval, and the two-sided p-value of none."""

    value: float
    low: float
    high: float
    p: float

    @property
    def significant(self) -> bool:
        return self.p < 1 - LEVEL


def paired_difference(first: np.ndarray, second: np.ndarray, draws: int = 10_000, seed: int = 0) -> Difference:
    """Whether two settings differ, from the same queries.

    first: (R, Q), second: (S, Q): a row for each run (seed) of a setting, a column for each query. Queries are drawn
    anew together for both; where a setting has several runs, these are drawn anew too, each side's on its own, so that
    the luck of the seed counts. p: the share of draws whose difference lies at least as far from the one found as that
    lies from none, (1 + count) / (1 + draws) (Davison and Hinkley, 1997, section 4.2): equal rows give 1.
    """
    first, second = (np.atleast_2d(np.asarray(side, np.float64)) for side in (first, second))
    if first.shape[1] != second.shape[1] or not first.size or not second.size:
        raise UserError(f"paired bootstrap: {first.shape[1]} and {second.shape[1]} queries, need the same ones")
    rng, size = np.random.default_rng(seed), first.shape[1]
    runs = np.concatenate([first, second]).T  # (Q, R + S)
    found = second.mean() - first.mean()
    samples, step = np.empty(draws), max(2**22 // size, 1)
    for top in range(0, draws, step):
        number = min(step, draws - top)
        means = counts(size, number, rng).astype(np.float64) @ runs / size
        sides = [counts(len(side), number, rng) / len(side) for side in (first, second)]
        part = means[:, len(first) :], means[:, : len(first)]
        samples[top : top + number] = (part[0] * sides[1]).sum(1) - (part[1] * sides[0]).sum(1)
    low, high = interval(samples[:, None])
    as_far = np.abs(samples - found) >= abs(found) * (1 - 1e-12)
    return Difference(float(found), float(low[0]), float(high[0]), float((1 + as_far.sum()) / (1 + draws)))
