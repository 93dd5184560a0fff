"""Log-odds that two features show one identity, as a function of their distance."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from utils.errors import UserError
from utils.scoring.calibration import Probability

MOST = 12.0
"""Largest log-odds either way: a single pair is never more certain than a probability of 6e-6 less than 1."""
STEPS = 2049
LEAST_PAIRS = 5
"""Pairs of one identity, and of two, that a fit needs at least."""


@dataclass(frozen=True)
class LogOdds:
    """Straight lines between knots that are equally far apart, constant beyond them.

    values: (K,) at squared Euclidean distances of unit features from 0 to 4.
    """

    values: np.ndarray

    def __call__(self, distances: np.ndarray) -> np.ndarray:
        """Returns log-odds of the shape and type of ``distances``; knots at equal steps need no search for them."""
        values, last = self.values.astype(distances.dtype), len(self.values) - 1
        place = np.clip(distances * (last / 4), 0, last)
        index = np.minimum(place.astype(np.int32), last - 1)
        place -= index
        return values[index] + place * np.diff(values)[index]

    @classmethod
    def of(cls, probability: Probability, scale: float = 1.0) -> LogOdds:
        """Returns the log-odds of a calibration's probability. scale: squared distances over the calibration's own."""
        distances = np.linspace(0, 4, STEPS)
        share = np.clip(probability(distances / scale), 1e-12, 1 - 1e-12)
        return cls(np.clip(np.log(share) - np.log1p(-share), -MOST, MOST))

    @classmethod
    def line(cls, offset: float, slope: float) -> LogOdds:
        """Returns ``offset + slope * distance``, within ``MOST``. slope: below 0."""
        return cls(np.clip(offset + slope * np.linspace(0, 4, STEPS), -MOST, MOST))

    @classmethod
    def threshold(cls, distance: float) -> LogOdds:
        """Returns log-odds that are 0 at a distance: clustering by them is clustering by distances."""
        return cls(np.array([distance, distance - 4.0]))

    @classmethod
    def fit(cls, distances: np.ndarray, same: np.ndarray, prior: float) -> LogOdds:
        """Fits a logistic regression to pairs. same: (P,) whether each shows one identity. prior: share that does.

        The pairs may show another share: the offset is corrected for it. Raises ``UserError`` for too few pairs, and
        where distances do not tell them apart.
        """
        from sklearn.linear_model import LogisticRegression

        count = int(same.sum())
        if min(count, len(same) - count) < LEAST_PAIRS:
            raise UserError(
                f"a fit needs {LEAST_PAIRS} pairs of one identity and of two at least, got {count} and "
                f"{len(same) - count}"
            )
        model = LogisticRegression(C=1e6, max_iter=1000).fit(distances[:, None], same)
        slope = float(model.coef_[0, 0])
        if slope >= 0:
            raise UserError("pairs of one identity are not nearer than others; the model does not tell them apart")
        shown = count / len(same)
        correction = np.log(prior / (1 - prior)) - np.log(shown / (1 - shown))
        return cls.line(float(model.intercept_[0]) + float(correction), slope)
