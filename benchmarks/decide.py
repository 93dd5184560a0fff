"""Time and memory of thresholds with intervals, beside the evaluation of the same features.

    python -m benchmarks.decide [--size small|market|msmt17] [--threads 1] [--repeats 3]

Rows, repeats and memory as in ``benchmarks.evaluation``. ``count`` counts the pairs of two cameras, ``calibrate`` draws
1,000 bootstrap samples of the identities and fits the probabilities as well.
"""

from __future__ import annotations

from benchmarks.evaluation import main, ours, product
from utils.scoring.calibration import Probability, thresholds
from utils.scoring.pair_counts import PairCounts, count_pairs

FARS = [1e-2, 1e-3, 1e-4]


def count(*data) -> float:
    return float(pairs_of(*data).impostors)


def calibrate(*data) -> float:
    pairs = pairs_of(*data)
    Probability.fit(pairs, 0.01)
    return thresholds(pairs, FARS)[0].distance


def pairs_of(qf, gf, q_pids, g_pids, q_camids, g_camids) -> PairCounts:
    return count_pairs(qf, gf, q_pids, g_pids, q_camids, g_camids, which="across", far=max(FARS))


if __name__ == "__main__":
    main(
        "benchmarks.decide",
        {
            "product Q x G": lambda qf, gf, *ids: product(qf, gf), "evaluation": ours, "count": count,
            "calibrate": calibrate,
        },
        {
            "product Q x G": "", "evaluation": "product Q x G", "count": "product Q x G; evaluation",
            "calibrate": "product Q x G; evaluation",
        },
        repeats=3,
        figure="figure",
    )  # fmt: skip
