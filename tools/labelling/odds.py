"""The probability that a pair of images shows one identity, learned from the answers.

It depends on how near the images are to each other, and on how near those that they stand for are as a whole: their
clusters, or for a link inside a cluster its two sides.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

STEEPNESS = 12.0
"""Before any answer, the log odds fall by as much from a distance of 0 to 1, and are even at eps."""
PRECISIONS = np.array([0.02, 0.02, 0.05, 0.05, 1.0])
"""How firmly that is believed: 1 / variance of each coefficient, the last of the log odds at eps."""
KNEE = 3.0
"""Log odds from which on they count less: an image that shows little is like nothing of its identity."""
FIRST_FITS, GROWTH = 5, 1.1
"""Coefficients are fitted again after so many more answers at first, and after a tenth more later."""

Answer = tuple[int, int, bool]


def fit_logistic(x: np.ndarray, y: np.ndarray, mean: np.ndarray, precision: np.ndarray) -> np.ndarray:
    """Returns the coefficients of a logistic regression with a normal prior, the constant last.

    x: (n, k). y: (n,) 0 or 1. mean, precision: (k + 1,) of the prior.
    """
    design = np.concatenate([x, np.ones((len(x), 1))], 1)
    beta = mean.astype(np.float64)
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        hessian = design.T @ (design * (p * (1 - p))[:, None]) + np.diag(precision)
        step = np.linalg.solve(hessian, design.T @ (y - p) - precision * (beta - mean))
        beta = beta + np.clip(step, -5, 5)
        if np.abs(step).max() < 1e-5:
            break
    return beta


class Odds:
    """P(same) of pairs, given by four columns: the distance of two means of features, the mean distance of the images
    that these are of, and distance and rank of the pair itself as in ``Graph``.

    eps: the distance at which the odds are even before any answer. centre: (2,) usual values of the first two columns.
    answers: pair of images -> its columns when it was answered, and the answer.
    """

    def __init__(self, eps: float, centre: np.ndarray):
        self.origin = np.array([*centre, eps, 0.0], np.float32)
        self.prior = np.array([0.0, 0.0, -STEEPNESS, 0.0, 0.0])
        self.beta = self.prior.astype(np.float32)
        self.answers: dict[tuple[int, int], tuple[tuple[float, ...], bool]] = {}
        self._next_fit = FIRST_FITS

    def __call__(self, columns: np.ndarray) -> np.ndarray:
        """Returns probabilities (...,) for columns (..., 4)."""
        return self.of_logits((columns - self.origin) @ self.beta[:4] + self.beta[4])

    @staticmethod
    def of_logits(logits: np.ndarray) -> np.ndarray:
        """Returns probabilities of log odds, those beyond ``KNEE`` by their logarithm: so much few answers say."""
        size = np.abs(logits)
        size = np.minimum(size, KNEE) + np.log(np.maximum(size - KNEE, 0) + 1)  # log1p is ten times as slow
        return 1 / (1 + np.exp(np.copysign(size, -logits)))

    def learn(self, pair: tuple[int, int], columns: np.ndarray, same: bool) -> None:
        """Notes an answer; a second one to the same question keeps the columns of the first."""
        before = self.answers.get(pair)
        self.answers[pair] = before[0] if before else tuple(columns.tolist()), same

    def keep(self, answers: Iterable[Answer]) -> set[tuple[int, int]]:
        """Forgets all answers but these, fits again, and returns the pairs of those that were not known."""
        said = {(a, b): same for a, b, same in answers}
        self.answers = {two: (self.answers[two][0], same) for two, same in said.items() if two in self.answers}
        self._next_fit = 0
        return said.keys() - self.answers.keys()

    def fit(self) -> bool:
        """Fits the coefficients to the answers if there are enough new ones; returns whether it did."""
        if len(self.answers) < self._next_fit:
            return False
        self._next_fit = max(len(self.answers) + FIRST_FITS, int(len(self.answers) * GROWTH))
        x = np.array([columns for columns, _ in self.answers.values()], np.float64).reshape(-1, 4) - self.origin
        y = np.array([same for _, same in self.answers.values()], np.float64)
        beta = fit_logistic(x, y, self.prior, PRECISIONS)
        self.beta = np.minimum(beta, [0, 0, 0, 0, np.inf]).astype(np.float32)  # nearer is never less likely the same
        return True
