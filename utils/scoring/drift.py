"""Do the distances of new images still follow those that a calibration was fitted on? No labels are needed.

Random pairs are almost all of strangers, so their distances say whether strangers look as near to each other as
before. Every image is in one pair only: the pairs are then independent, and the p-value of a two-sample test is one
over images.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

MOST_PAIRS = 2000
"""Pairs of a sample: enough to see a shift of a few hundredths of the distribution."""
LEAST_PAIRS = 20
"""Fewer show nothing."""
LEVEL = 0.01
"""p below this is called drift; the question is asked again and again, so one in a hundred rather than in twenty."""


def disjoint_pairs(count: int, seed: int = 0, most: int = MOST_PAIRS) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows of random pairs of ``count`` images, (P,) each; every image is in one pair at most."""
    rows = np.random.default_rng(seed).permutation(count)
    pairs = min(count // 2, most)
    return rows[:pairs], rows[pairs : 2 * pairs]


@dataclass(frozen=True)
class Drift:
    """The comparison of two samples of distances.

    p: of the two-sample Kolmogorov-Smirnov test. before, now: medians. ratio: at the largest distance that a tenth of
    the sample before had, how many times as many pairs are accepted now; rarer rates need more pairs than there are.
    """

    p: float
    before: float
    now: float
    ratio: float

    @property
    def fits(self) -> bool:
        """Whether the new distances may be of the old distribution."""
        return self.p >= LEVEL


def drift(before: np.ndarray, now: np.ndarray) -> Drift:
    """Compares distances of random pairs, (P,) before and (R,) now."""
    from scipy.stats import ks_2samp

    limit = np.quantile(before, 0.1)
    ratio = float((now <= limit).mean() / (before <= limit).mean())
    tested: Any = ks_2samp(before, now)
    return Drift(float(tested.pvalue), float(np.median(before)), float(np.median(now)), ratio)
