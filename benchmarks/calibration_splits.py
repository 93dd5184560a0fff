"""Do thresholds and probabilities hold for identities that they were not fitted on?

    python -m benchmarks.calibration_splits --config_file FILE TEST.WEIGHT PATH [--splits 20] [--pairs across] ...

Draws the test identities into two halves, many times: one to calibrate on, one to hold out. Prints wanted against got
false accept rates, how many 95 % intervals hold the rate that is got, and the expected calibration error at a prior.
"""

from __future__ import annotations

import argparse

import numpy as np

from configs import load_config
from datasets.loaders import make_dataloader
from processor.evaluate import Settings
from processor.extractor import make_extractor
from tools.calibrate import Labelled, calibrated_set
from utils.scoring.calibration import Probability, reliability, smallest_far, thresholds, unknown_threshold


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config_file", default="")
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--pairs", default="across")
    parser.add_argument("--prior", type=float, default=0.01)
    parser.add_argument("--fpir", type=float, default=0.01)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    cfg = load_config(args.config_file, args.opts)
    settings, data, extractor = Settings.from_cfg(cfg), make_dataloader(cfg, training=False), make_extractor(cfg)
    test = calibrated_set(cfg, data)
    labelled = Labelled.extracted(extractor, test, settings)
    rows: dict[float, list[tuple[float, bool]]] = {}
    errors, unknown = [], []
    for seed in range(args.splits):
        identities = np.random.default_rng(seed).permutation(np.unique(labelled.pids))
        fitted, held_out = (
            labelled.counted(settings, args.pairs, 0.05, half) for half in np.array_split(identities, 2)
        )
        fars = [far for far in (1e-2, 1e-3) if far >= smallest_far(fitted)]
        for row in thresholds(fitted, fars):
            got = float(np.searchsorted(held_out.nearest, row.distance, "right") / held_out.impostors)
            rows.setdefault(row.far, []).append((got, row.got_low <= got <= row.got_high))
        if 3 / len(fitted.nearest_of) <= args.fpir:
            row = unknown_threshold(fitted, args.fpir)
            got = float((held_out.nearest_of <= row.distance).mean())
            unknown.append((got, row.got_low <= got <= row.got_high))
        errors.append(reliability(Probability.fit(fitted, args.prior), held_out).ece)
    print(f"{test.name}: {len(np.unique(labelled.pids))} identities, {args.splits} splits, pairs {args.pairs}")
    for far, values in rows.items():
        got, covered = zip(*values, strict=True)
        print(
            f"FAR wanted {far:g}, got {np.mean(got):.2g} ({np.min(got):.2g} to {np.max(got):.2g}); "
            f"{100 * np.mean(covered):.0f} % of the intervals hold it"
        )
    if unknown:
        got, covered = zip(*unknown, strict=True)
        print(
            f"FPIR wanted {args.fpir:g}: of absent queries, {100 - 100 * np.mean(got):.2f} % come back as unknown "
            f"({100 - 100 * np.max(got):.2f} to {100 - 100 * np.min(got):.2f}); {100 * np.mean(covered):.0f} % of the "
            "intervals hold it"
        )
    print(f"expected calibration error at prior {args.prior:g}: {np.mean(errors):.4f}, at most {np.max(errors):.4f}")


if __name__ == "__main__":
    main()
