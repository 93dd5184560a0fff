"""One number per person over all cameras: ``python -m tools.identities --features DIR --calibration FILE --out OUT``.

DIR is a folder of tools.extract whose table has ``seq`` (the tracklet), ``camid``, ``frame`` and ``time``, as
tools.crops writes it. Tracklets whose probability of showing one person is high enough in the mean are one identity
(average linkage), unless they were under one camera at once, or had less time than the way between their cameras takes
(--travel, a .csv with ``camera_a, camera_b, seconds``). The probability is that of a calibration (tools.calibrate with
TEST.TRACKLETS), or is fitted on labelled tracklets (--fit); --threshold takes a distance in its place. --online numbers
each tracklet when it ends and may merge numbers later. OUT gets ``identities.csv``, ``mot/CAMERA.txt``, with --truth
``metrics.json``, and with --online ``merges.csv``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from datasets.readers.frame_boxes import read_frame_boxes
from datasets.storage.pixels import PixelRules
from tools.tracking.constraints import Schedule, Travel
from tools.tracking.fitting import fitted_limit, labelled_pairs
from tools.tracking.identity_files import (
    boxes_by_frame,
    counted,
    write_identity_page,
    write_merges,
    write_mot,
    write_table,
)
from tools.tracking.online import Merge, run_online
from tools.tracking.tracking_scores import CameraBoxes, kept_numbers, refuse_without_trackeval, tracking_scores
from tools.tracking.tracklet_set import TrackletSet, read_tracklets
from utils.calibration import Calibration
from utils.commands import make_parser, run_command
from utils.errors import UserError
from utils.files import write_json
from utils.scoring.linkage import cluster
from utils.scoring.same_odds import LogOdds

MOST_TRACKLETS = 20_000
"""Tracklets that are clustered at once: their matrix may take four bytes for each pair."""


@dataclass(frozen=True)
class Numbered:
    """The identities of tracklets, from 1. at_once, merges: of an online run."""

    numbers: np.ndarray
    at_once: np.ndarray | None = None
    merges: Sequence[Merge] = ()


def make_odds(args: argparse.Namespace, meta: dict, travel: Travel) -> tuple[LogOdds, TrackletSet | None]:
    """Returns what --calibration, --fit or --threshold says of a pair, and the tracklets that --fit names.

    meta: of the features. Raises ``UserError`` for none of the three, for several, and for another model.
    """
    given = [name for name in ("calibration", "fit", "threshold") if getattr(args, name) is not None]
    if len(given) != 1:
        raise UserError("give one of --calibration FILE, --fit FOLDER and --threshold DISTANCE: which tracklets match?")
    if args.prior is not None and (not 0 < args.prior < 1 or args.threshold is not None):
        raise UserError("--prior: a share between 0 and 1, for --calibration or --fit")
    model = str(meta.get("model_hash", ""))
    if args.calibration is not None:
        calibration = Calibration.read(args.calibration)
        calibration.refuse_other(model, calibration.metric, True, args.calibration)
        probability = calibration.probability if args.prior is None else calibration.probability.at(args.prior)
        return LogOdds.of(probability, scale=2.0 if calibration.metric == "cosine" else 1.0), None
    if args.threshold is not None:
        if not 0 < args.threshold < 4:
            raise UserError(f"--threshold: squared distances of unit features are 0 to 4, got {args.threshold:g}")
        return LogOdds.threshold(args.threshold), None
    labelled, other = read_tracklets(args.fit, args.quality)
    if str(other.get("model_hash", "")) != model:
        raise UserError(f"--fit: {args.fit} holds features of another model or setting than {args.features}")
    schedule = labelled.schedule(travel)
    distances, same = labelled_pairs(labelled, (schedule.without_times() if args.no_times else schedule).apart)
    prior = float(same.mean()) if args.prior is None else args.prior
    return LogOdds.fit(distances, same, prior), labelled


def log_odds(probability: float) -> float:
    """Returns log(p / (1 - p)). probability: between 0 and 1, both excluded."""
    return float(np.log(probability) - np.log1p(-probability))


def number_tracklets(
    tracklets: TrackletSet, odds: LogOdds, schedule: Schedule, limit: float = 0.0, timed: bool = True,
    online: bool = False, most: int = 5000,
) -> Numbered:  # fmt: skip
    """Returns the identities of tracklets.

    limit: mean log-odds above which tracklets are one identity. timed: time keeps tracklets apart. online: in the
    order in which they end, with a gallery of ``most`` identities.
    """
    schedule = schedule if timed else schedule.without_times()
    if online:
        at_once, final, merges = run_online(tracklets.feats, schedule, odds, limit, most)
        return Numbered(final + 1, at_once + 1, merges)
    if len(tracklets) > MOST_TRACKLETS:
        raise UserError(
            f"{len(tracklets):,} tracklets are more than the {MOST_TRACKLETS:,} that are clustered at once; --online "
            "takes any number"
        )
    return Numbered(cluster(tracklets.feats, odds, schedule.apart, limit) + 1)


def truth_files(words: Sequence[str], cameras: set[str]) -> dict[str, Path]:
    """Returns camera -> file of ground truth. Raises ``UserError`` for cameras that are unknown or lack one."""
    files = {}
    for word in words:
        camera, equals, path = word.partition("=")
        if not equals or camera not in cameras:
            raise UserError(f"--truth: expected CAMERA=FILE with one of {', '.join(sorted(cameras))}, got {word!r}")
        files[camera] = Path(path)
    if missing := sorted(cameras - files.keys()):
        raise UserError(f"--truth: camera {missing[0]} has none; name a file for each camera")
    return files


def scores_of(
    tracklets: TrackletSet, numbered: Numbered, truth: dict[str, Path], away: float
) -> dict[str, float]:
    """Returns the figures of the identities against ground truth; see ``tracking_scores``."""
    found = boxes_by_frame(tracklets, numbered.numbers)
    if not found:
        raise UserError("--truth: the table has no boxes (x1 to y2, or left to bottom) with frames to compare")
    cameras = []
    for camera, path in sorted(truth.items()):
        people: dict[int, list] = {}
        for box in read_frame_boxes(path):
            people.setdefault(box.frame, []).append((box.number, (box.left, box.top, box.right, box.bottom)))
        cameras.append(CameraBoxes(camera, people, found.get(camera, {}), tracklets.clock(camera)))
    return tracking_scores(cameras) | kept_numbers(cameras, away)


def lines_of(scores: dict[str, float]) -> dict[str, str]:
    """Returns the figures as text: shares in percent, counts as they are."""
    return {name: str(value) if isinstance(value, int) else f"{100 * value:.1f} %" for name, value in scores.items()}


def run(args: argparse.Namespace) -> None:
    """Runs the command with its parsed arguments."""
    if args.truth:
        refuse_without_trackeval()
    travel = Travel.read(args.travel) if args.travel else Travel()
    tracklets, meta = read_tracklets(args.features, args.quality)
    if args.travel:
        travel.refuse_others(set(tracklets.cameras), args.travel)
    truth = truth_files(args.truth, set(tracklets.cameras)) if args.truth else {}
    odds, labelled = make_odds(args, meta, travel)

    def number(some: TrackletSet, limit: float) -> Numbered:
        schedule = some.schedule(travel)
        return number_tracklets(some, odds, schedule, limit, not args.no_times, args.online, args.gallery)

    limit = log_odds(args.least or 0.5)
    if labelled is not None and args.least is None:
        limit = fitted_limit(labelled, odds, lambda some, tried: number(some, tried).numbers)
    numbered = number(tracklets, limit)
    scores = scores_of(tracklets, numbered, truth, args.away) if truth else {}
    write_table(args.out / "identities.csv", tracklets, numbered.numbers, numbered.at_once)
    write_mot(args.out / "mot", boxes_by_frame(tracklets, numbered.numbers))
    if args.online:
        write_merges(args.out / "merges.csv", numbered.merges)
    if scores:
        write_json(args.out / "metrics.json", {"results": {"identities": scores}, "tracklets": len(tracklets)})
    merged = f", {counted(len(numbered.merges), 'merge')}" if args.online else ""
    people, cameras = len(set(numbered.numbers.tolist())), len(set(tracklets.cameras))
    print(f"{args.out}: {counted(len(tracklets), 'tracklet')} of {cameras} cameras: {people} identities{merged}")
    for name, value in lines_of(scores).items():
        print(f"{name:28s} {value}")
    if args.page:
        rules = PixelRules.of_run(meta.get("settings"))
        how = "Numbered online." if args.online else "Clustered by average linkage."
        write_identity_page(args.page, tracklets, numbered.numbers, lines_of(scores), rules, how)
        print(args.page)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = make_parser(
        "python -m tools.identities", __doc__,
        "--features features --calibration runs/quickstart/calibration.json --travel travel.csv --out identities",
        "--features features --fit labelled --online --out identities --page identities.html",
    )  # fmt: skip
    parser.add_argument("--features", type=Path, required=True, metavar="DIR", help="of tools.extract")
    parser.add_argument("--out", type=Path, required=True, metavar="OUT", help="folder of the results")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="of tools.calibrate")
    parser.add_argument("--fit", type=Path, metavar="DIR", help="features of other tracklets with pid, to fit on")
    parser.add_argument("--threshold", type=float, metavar="D", help="squared distance of unit features that matches")
    parser.add_argument("--prior", type=float, help="share of true matches among pairs (the calibration's or fit's)")
    parser.add_argument("--least", type=float, help="probability above which tracklets are one (0.5; fitted by --fit)")
    parser.add_argument("--travel", type=Path, metavar="TABLE.csv", help="shortest times between cameras")
    parser.add_argument("--no-times", action="store_true", help="time keeps nothing apart")
    parser.add_argument("--quality", action="store_true", help="weight images by the table's column quality")
    parser.add_argument("--online", action="store_true", help="number tracklets in the order in which they end")
    parser.add_argument("--gallery", type=int, default=5000, metavar="N", help="identities that --online keeps (5000)")
    parser.add_argument("--truth", nargs="+", metavar="CAMERA=FILE", help="ground truth, in MOT-challenge's columns")
    parser.add_argument("--away", type=float, default=5.0, help="seconds after which somebody comes back (5)")
    parser.add_argument("--page", type=Path, metavar="PAGE", help="write a page with a row for each identity, .html")
    args = parser.parse_args(argv)
    if args.page and args.page.suffix != ".html":
        raise UserError(f"--page: expected a name that ends in .html, got {args.page}")
    if args.least is not None and not 0 < args.least < 1:
        raise UserError(f"--least: expected a probability between 0 and 1, got {args.least:g}")
    if args.gallery < 1 or not args.away >= 0:
        raise UserError("--gallery must be at least 1 and --away 0 or more")
    if args.out.exists() and not args.out.is_dir():
        raise UserError(f"--out: {args.out} is a file, not a folder")
    run(args)


if __name__ == "__main__":
    run_command(main)
