"""Which distance means one identity: ``python -m tools.calibrate --config_file FILE TEST.WEIGHT PATH [--far 1e-3]``.

Tests a model on identities that it was not trained on (the test set, or those of ``DATASETS.VAL_SHARE``) and writes
``calibration.json``: for each wanted false accept rate (FAR) a threshold with its 95 % interval, and the probability
that two images at a distance show one identity, at the share of true matches that ``--prior`` expects. ``--page`` draws
the scores, the thresholds, how the probabilities hold and what each rate costs. The probabilities' error is measured on
identities that were left out of a fit. ``--check FILE --features FOLDER`` says without labels whether new images still
look like those of the calibration.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from yacs.config import CfgNode

from configs import load_config
from configs.defaults import KEYS
from datasets.checks import same_images
from datasets.loaders import Data, TestSet, make_dataloader
from datasets.options import names_of
from processor.evaluate import Settings, camera_reference, features_of_test
from processor.extractor import Extractor, make_extractor
from processor.trained import output_folder, weight_file
from tools.pages.charts import Series, line_chart
from tools.pages.page import write_page
from utils.calibration import Calibration
from utils.commands import make_parser, run_command
from utils.errors import UserError
from utils.feature_files import Features
from utils.provenance import commit
from utils.scoring.calibration import Probability, Reliability, bin_centres, reliability, smallest_far, thresholds
from utils.scoring.camera_norm import CameraPairs, CameraReference
from utils.scoring.pair_counts import PAIRS, PairCounts, count_pairs

FARS, PRIOR = (1e-2, 1e-3, 1e-4), 0.01
"""Rates that are tried when none is asked for, and the share of true matches among the pairs that will be decided."""


@dataclass(frozen=True)
class Labelled:
    """Features of one test set, queries first, with what decides which pairs count; (N,) each."""

    name: str
    feats: Tensor
    pids: np.ndarray
    camids: np.ndarray
    queries: int
    same_list: bool
    camera_pairs: CameraPairs | None = None

    @classmethod
    def of(
        cls, test: TestSet, feats: Tensor, settings: Settings, reference: CameraReference | None = None
    ) -> Labelled:
        one_list = test.same_list or same_images(test.query, test.gallery)  # an image and itself are not a pair
        lists = [test.query] if one_list else [test.query, test.gallery]
        pids, camids = (np.concatenate([getattr(rows, name) for rows in lists]) for name in ("pids", "camids"))
        feats, pairs = feats[: len(pids)], None
        if reference is not None:
            feats = reference.centred(feats, camids, settings.normalize)
            pairs = reference.pairs(settings.metric, settings.normalize)
        return cls(test.name, feats, pids, camids, len(test.query), one_list, pairs)

    @classmethod
    def extracted(cls, extractor: Extractor, test: TestSet, settings: Settings) -> Labelled:
        """Extracts the features of a test set, and what TEST.CAMERA_NORM is fitted on."""
        settings = replace(settings, flip=extractor.flip)
        test, feats = features_of_test(extractor.model, test, extractor.device, settings)
        return cls.of(test, feats, settings, camera_reference(extractor.model, test, extractor.device, settings))

    def counted(self, settings: Settings, which: str, far: float, identities: np.ndarray | None = None) -> PairCounts:
        """Counts the pairs of query and gallery. identities: of these alone; None for all."""
        kept = np.ones(len(self.pids), bool) if identities is None else np.isin(self.pids, identities)
        if self.same_list:
            query = gallery = np.flatnonzero(kept)
        else:
            query, gallery = np.flatnonzero(kept[: self.queries]), self.queries + np.flatnonzero(kept[self.queries :])
        if not len(query) or not len(gallery):
            raise UserError(f"{self.name}: too few identities to calibrate on")
        q, g = torch.from_numpy(query), torch.from_numpy(gallery)
        return count_pairs(
            self.feats[q], self.feats[g], self.pids[query], self.pids[gallery], self.camids[query],
            self.camids[gallery], which=which, far=far, metric=settings.metric, normalize=settings.normalize,
            same_list=self.same_list, max_memory=settings.max_memory, camera_pairs=self.camera_pairs,
        )  # fmt: skip


def calibrated_set(cfg: CfgNode, data: Data) -> TestSet:
    """Returns the identities to calibrate on. Raises ``UserError`` if they are those of training, or not one set."""
    if data.validation is not None:
        return data.validation
    if len(data.tests) != 1:
        names = ", ".join(test.name for test in data.tests)
        raise UserError(f"calibration is on one test set, and there are several ({names}); name it in DATASETS.TARGETS")
    (test,) = data.tests
    for dataset in data.datasets:
        if dataset.spec.name == test.name and test.name in names_of(cfg.DATASETS.NAMES) and len(dataset.train):
            trained = set(map(str, dataset.train.original_pids()))
            shared = trained & {str(pid) for rows in (test.query, test.gallery) for pid in rows.original_pids()}
            if shared:
                raise UserError(
                    f"{test.name}: {len(shared)} of the identities to calibrate on are in its training list; their "
                    "distances are smaller than those of strangers, so no threshold would hold. Hold some out of "
                    "training (DATASETS.VAL_SHARE), or name another set in DATASETS.TARGETS"
                )
    return test


def held_out_reliability(
    labelled: Labelled, settings: Settings, which: str, prior: float, seed: int = 0
) -> Reliability | None:
    """Fits probabilities on a random half of the identities and compares them with the other half's pairs.

    None if a half has no genuine pair.
    """
    identities = np.random.default_rng(seed).permutation(np.unique(labelled.pids))
    halves = np.array_split(identities, 2)
    try:
        fitted, others = (labelled.counted(settings, which, 1e-3, half) for half in halves)
    except UserError:
        return None
    return reliability(Probability.fit(fitted, prior), others)


def calibrate(
    cfg: CfgNode, fars: Sequence[float] | None, prior: float, which: str
) -> tuple[Calibration, PairCounts, Reliability | None]:
    """Returns the calibration of TEST.WEIGHT, the pairs it is fitted on, and how it holds for identities left out.

    fars: wanted false accept rates; None for those of ``FARS`` that the data can show.
    """
    weight_file(cfg)  # before any work
    settings, data = Settings.from_cfg(cfg), make_dataloader(cfg, training=bool(cfg.DATASETS.VAL_SHARE))
    test = calibrated_set(cfg, data)
    extractor = make_extractor(cfg)
    labelled = Labelled.extracted(extractor, test, settings)
    pairs = labelled.counted(settings, which, max(fars or FARS))
    probability = Probability.fit(pairs, prior)
    held_out = held_out_reliability(labelled, settings, which, prior)
    calibration = Calibration(
        model_hash=extractor.model_hash,
        metric=settings.metric,
        normalize=settings.normalize,
        camera_norm=settings.camera_norm,
        dataset=test.name,
        pairs=which,
        identities=len(pairs.identities),
        genuine_pairs=pairs.distinct[0],
        impostor_pairs=pairs.distinct[1],
        thresholds=thresholds(pairs, list(fars) if fars else shown_fars(pairs)),
        probability=probability,
        absent=np.sort(pairs.nearest_of),
        images=pairs.impostors / len(pairs.nearest_of),
        figures={} if held_out is None else {"ece": held_out.ece, "brier": held_out.brier},
        commit=commit(),
    )
    if settings.camera_norm == "off":  # new images of --check come without cameras
        calibration = replace(calibration, random_pairs=calibration.random_distances(labelled.feats.numpy()))
    return calibration, pairs, held_out


def check(path: Path, folder: Path | None) -> None:
    """Prints whether the features of a folder still look like those that the calibration was fitted on."""
    if folder is None:
        raise UserError("--check: name the new features too, --features FOLDER (of tools.extract)")
    calibration, features = Calibration.read(path), Features(folder)
    calibration.refuse_other(features.meta.get("model_hash", ""), calibration.metric, calibration.normalize, path)
    result = calibration.drift(features.array)
    median = f"the median distance of random pairs is {result.now:.3f}, and was {result.before:.3f} (p {result.p:.2g})"
    if result.fits:
        print(f"{folder}: fits {path}; {median}")
    else:
        print(
            f"{folder}: does not fit {path}; {median}; at the distance that a tenth of the pairs were within, "
            f"{result.ratio:.2g} times as many are: calibrate again on such images"
        )


def shown_fars(pairs: PairCounts) -> list[float]:
    """Returns those of ``FARS`` that so many pairs can show; the smallest that they can if they show none."""
    shown = [far for far in FARS if far >= smallest_far(pairs)]
    return shown or [smallest_far(pairs)]


def lines_of(calibration: Calibration) -> list[str]:
    """Returns what is printed."""
    which = {"across": "of two cameras", "within": "of one camera", "all": "of any cameras"}[calibration.pairs]
    out = [
        f"{calibration.dataset}: {calibration.identities:,} identities, {calibration.genuine_pairs:,} genuine and "
        f"{calibration.impostor_pairs:,} impostor pairs {which}; TEST.METRIC {calibration.metric}"
        + ("" if calibration.camera_norm == "off" else f", TEST.CAMERA_NORM {calibration.camera_norm}"),
        f"{'FAR':>8s} {'threshold':>10s} {'95 % interval':>18s} {'TAR':>7s} {'FAR of others, 95 %':>20s}",
    ]
    for row in calibration.thresholds:
        between, got = f"{row.low:.4f} to {row.high:.4f}", f"{row.got_low:.2g} to {row.got_high:.2g}"
        out.append(f"{row.far:8g} {row.distance:10.4f} {between:>18s} {100 * row.tar:6.2f}% {got:>20s}")
    if calibration.figures:
        out.append(
            f"probabilities at prior {calibration.probability.prior:g}, on identities left out of the fit: calibration "
            f"error {calibration.figures['ece']:.4f}, Brier score {calibration.figures['brier']:.4f}"
        )
    return out


def charts_of(calibration: Calibration, pairs: PairCounts, held_out: Reliability | None) -> dict[str, str]:
    """Returns the page's drawings by their captions."""
    centres, marks = bin_centres(pairs.edges), calibration.thresholds[:4]
    bins = np.linspace(centres[0], centres[-1], 80)
    shares: Series = {}
    for name, counts in (("genuine pairs", pairs.genuine_counts), ("impostor pairs", pairs.impostor_counts)):
        share, _ = np.histogram(centres, bins, weights=counts / counts.sum())
        shares[name] = ((bins[:-1] + bins[1:]) / 2, share)
    top = max(float(np.max(share)) for _, share in shares.values())
    lines: Series = {f"FAR {row.far:g}": ([row.distance] * 2, [0.0, top]) for row in marks}
    far, tar = (np.cumsum(counts) / counts.sum() for counts in (pairs.impostor_counts, pairs.genuine_counts))
    seen = far >= smallest_far(pairs)
    curve = {"accepted genuine pairs": (np.log10(far[seen]), tar[seen])}
    charts = {
        "Distances, and the thresholds in them": line_chart(shares | lines, "Distances", "distance", "share of pairs"),
        "What a false accept rate costs": line_chart(curve, "Trade-off", "log10 of FAR", "TAR", (0, 1)),
    }
    if held_out is not None:
        diagonal = {"exact": ([0.0, 1.0], [0.0, 1.0]), "observed": (held_out.predicted, held_out.observed)}
        charts["How the probabilities hold, on identities left out of the fit"] = line_chart(
            diagonal, "Reliability", "probability", "share of genuine pairs", (0, 1)
        )
    return charts


def split_settings(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Returns (options, settings): a key of the configuration and the word after it may stand anywhere."""
    options, settings, words = [], [], iter(argv)
    for word in words:
        if word in KEYS:
            settings += [word, *([value] if (value := next(words, None)) is not None else [])]
        else:
            options.append(word)
    return options, settings


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    model = "--config_file configs/quickstart.yml TEST.WEIGHT runs/quickstart/resnet10_12.pth"
    parser = make_parser(
        "python -m tools.calibrate", __doc__, model, f"--far 1e-2 1e-3 --prior 0.1 --page calibration.html {model}",
        settings=True,
    )  # fmt: skip
    parser.add_argument("--far", nargs="+", type=float, metavar="RATE", help="wanted false accept rates (1e-2 to 1e-4)")
    parser.add_argument("--prior", type=float, default=PRIOR, help="share of true matches where it will decide (0.01)")
    parser.add_argument("--pairs", choices=PAIRS, default="across", help="cameras of the pairs that count (across)")
    parser.add_argument("--out", type=Path, metavar="FILE", help="OUTPUT_DIR/calibration.json")
    parser.add_argument("--page", type=Path, metavar="PAGE", help="write a page with the charts, .html")
    parser.add_argument("--check", type=Path, metavar="FILE", help="do new features still fit this calibration?")
    parser.add_argument("--features", type=Path, metavar="FOLDER", help="of tools.extract, for --check")
    options, settings = split_settings(sys.argv[1:] if argv is None else argv)
    args = parser.parse_args(options)
    if args.check:
        check(args.check, args.features)
        return
    cfg = load_config(args.config_file, [*args.opts, *settings])
    if args.page and args.page.suffix != ".html":
        raise UserError(f"--page: expected a name that ends in .html, got {args.page}")
    calibration, pairs, held_out = calibrate(cfg, args.far, args.prior, args.pairs)
    out = args.out or output_folder(cfg, args.config_file) / "calibration.json"
    calibration.write(out)
    print("\n".join(lines_of(calibration)))
    print(out)
    if args.page:
        charts = charts_of(calibration, pairs, held_out)
        write_page(args.page, "calibrate.html", title="Calibration", calibration=calibration, charts=charts)
        print(args.page)


if __name__ == "__main__":
    run_command(main)
