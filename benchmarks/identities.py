"""Who is who on drawn video: ``python -m benchmarks.identities --config_file FILE [--seeds 1 2 3] TEST.WEIGHT PATH``.

Draws ``synthetic_tracks`` with each seed, cuts out what its tracker followed (tools.crops), extracts features, and
prints two tables over the people of the second half: mean +- half of the 95 % interval over the seeds (Student's t).

The first compares single images with the mean of a tracklet and with that weighted by quality, as mAP and Rank-1. The
second is IDF1 and HOTA of tools.identities, fitted on the tracklets of the first half of the people, beside the nearest
earlier tracklet with a threshold by hand and with the best one in hindsight, the best average linkage in hindsight, the
online mode, and without constraints of time or travel.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from scipy import stats
from yacs.config import CfgNode

from configs import load_config
from datasets import make_dataset
from datasets.readers.frame_boxes import read_frame_boxes
from tools import crops
from tools.extract import extract_to_folder
from tools.identities import number_tracklets
from tools.tracking.constraints import Travel
from tools.tracking.fitting import fitted_limit, labelled_pairs
from tools.tracking.identity_files import boxes_by_frame
from tools.tracking.tracking_scores import OVERLAP, CameraBoxes, overlaps, tracking_scores
from tools.tracking.tracklet_set import TrackletSet, read_tracklets
from utils.feature_files import Features
from utils.metrics import evaluate_features
from utils.scoring.calibration import Probability
from utils.scoring.pair_counts import count_pairs
from utils.scoring.same_odds import LogOdds

BY_HAND = 0.8
"""Squared distance of unit features, cosine 0.6: what trackers ship."""
GRID = np.arange(0.04, 1.6, 0.04)
"""Squared distances, of which hindsight takes the best."""
FPS = 5.0

Truth = dict[str, dict[int, list[tuple[str, tuple[float, ...]]]]]
"""camera -> frame -> (person, box) of each."""


def drawn(cfg: CfgNode, root: Path, seed: int, sizes: dict[str, int]) -> tuple[Path, Truth]:
    """Draws video and extracts features of its tracker's boxes; returns their folder and the ground truth."""
    made = make_dataset("synthetic_tracks", str(root), **sizes, seed=seed)
    folder = Path(made.gallery[0][0]).parents[2]
    homes = sorted(folder.glob("c*/"))
    words = ["--video", *(str(home / "img1") for home in homes), "--camera", *(home.name[1:] for home in homes)]
    words += ["--boxes", *(str(home / "trk" / "trk.txt") for home in homes), "--fps", str(FPS), "--quality"]
    if not (root / "crops.csv").exists():
        crops.main([*words, "--out", str(root / "crops.csv")])
    extract_to_folder(cfg, root / "crops.csv", root / "features")
    truth: Truth = {}
    for home in homes:
        frames = truth.setdefault(home.name[1:], {})
        for box in read_frame_boxes(home / "gt" / "gt.txt"):
            frames.setdefault(box.frame, []).append((box.number, (box.left, box.top, box.right, box.bottom)))
    return folder, truth


def persons_of(tracklets: TrackletSet, truth: Truth) -> list[str]:
    """Returns the person whom most boxes of each tracklet show, '' for one of which most show nobody."""
    persons = []
    for number, camera in enumerate(tracklets.cameras):
        seen: Counter[str] = Counter()
        for frame, box in tracklets.frame_boxes(number):
            people = truth[camera].get(frame, [])
            shares = overlaps([other for _, other in people], [box])
            best = int(shares.argmax()) if len(people) else -1
            seen[people[best][0] if best >= 0 and shares[best, 0] >= OVERLAP else ""] += 1
        persons.append(seen.most_common(1)[0][0])
    return persons


def nearest_earlier(feats: np.ndarray, apart: Callable[..., np.ndarray], threshold: float) -> np.ndarray:
    """Returns identities (T,): each tracklet takes that of the nearest before it, if it is near enough; else its own.

    feats: (T, D) of unit length, by start. threshold: squared distance.
    """
    numbers, count = np.zeros(len(feats), int), 0
    for i in range(len(feats)):
        before = np.arange(i)
        distances = np.where(apart(np.array([i]), before)[0], np.inf, 2 - 2 * feats[:i] @ feats[i])
        if i and distances.min() < threshold:
            numbers[i] = numbers[int(distances.argmin())]
        else:
            numbers[i], count = count, count + 1
    return numbers + 1


def retrieval(kinds: dict[str, np.ndarray], persons: Sequence[str], cameras: Sequence[str]) -> dict[str, list[float]]:
    """Returns mAP and Rank-1 in percent of each kind of feature (T, D); the first of a person under a camera asks."""
    pairs = list(zip(persons, cameras, strict=True))
    first = np.array([pairs.index(pair) == i for i, pair in enumerate(pairs)])
    pids, camids = (np.unique(words, return_inverse=True)[1] for words in (persons, cameras))
    out = {}
    for name, feats in kinds.items():
        given = torch.from_numpy(feats)
        result = evaluate_features(given[first], given, pids[first], pids, camids[first], camids)
        out[name] = [100 * result.mAP, 100 * float(result.cmc[0])]
    return out


def kinds_of(plain: TrackletSet, weighted: TrackletSet, features: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Returns the four features of each tracklet that are compared, (T, D) each. features: (N, D) of all images."""
    rng = np.random.default_rng(seed)
    qualities = np.array([float(word) for word in plain.table["quality"]])
    chance = [int(rng.choice(rows)) for rows in plain.rows]
    best = [int(rows[qualities[rows].argmax()]) for rows in plain.rows]
    return {
        "an image by chance": np.asarray(features[chance], np.float32),
        "the image of best quality": np.asarray(features[best], np.float32),
        "the mean": plain.feats, "weighted by quality": weighted.feats,
    }  # fmt: skip


def measure(
    cfg: CfgNode, root: Path, seed: int, sizes: dict[str, int]
) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Returns the figures of the two tables with one seed, by row."""
    with contextlib.redirect_stdout(io.StringIO()):
        folder, truth = drawn(cfg, root, seed, sizes)
    every, weighted = (read_tracklets(root / "features", quality)[0] for quality in (False, True))
    persons, travel = persons_of(every, truth), Travel.read(folder / "travel.csv")
    known = {str(pid) for pid in range(1, sizes["ids"] // 2 + 1)}
    every.pids[:] = weighted.pids[:] = persons
    ours = np.array([person not in known for person in persons])
    labelled, test = every.only(~ours), every.only(ours)
    people = np.array([bool(pid) for pid in test.pids])
    kinds = kinds_of(test, weighted.only(ours), Features(root / "features").array, seed)
    kinds = {name: feats[people] for name, feats in kinds.items()}
    features = retrieval(kinds, [pid for pid in test.pids if pid], list(np.array(test.cameras)[people]))

    def figures(numbers: np.ndarray) -> list[float]:
        found, cameras = boxes_by_frame(test, numbers), []
        for camera, frames in truth.items():
            others = {f: [box for box in boxes if box[0] not in known] for f, boxes in frames.items()}
            cameras.append(CameraBoxes(camera, others, found.get(camera, {}), test.clock(camera)))
        scores = tracking_scores(cameras)
        return [100 * scores[name] for name in ("IDF1", "HOTA", "IDF1 within")]

    def fitted(travel: Travel, timed: bool = True, online: bool = False, least: float | None = None) -> list[float]:
        schedule = labelled.schedule(travel)
        distances, same = labelled_pairs(labelled, (schedule if timed else schedule.without_times()).apart)
        odds = LogOdds.fit(distances, same, float(same.mean()))

        def number(some: TrackletSet, limit: float) -> np.ndarray:
            return number_tracklets(some, odds, some.schedule(travel), limit, timed, online).numbers

        return figures(number(test, fitted_limit(labelled, odds, number) if least is None else least))

    schedule = test.schedule(travel)
    own = np.arange(1, len(test) + 1)
    true = [f"person {pid}" if pid else str(i) for i, pid in enumerate(test.pids)]
    nearest = [nearest_earlier(test.feats, schedule.apart, distance) for distance in GRID]
    linked = [number_tracklets(test, LogOdds.threshold(distance), schedule).numbers for distance in GRID]
    identities = {
        "a number for each tracklet": figures(own),
        "nearest neighbour, cosine 0.6 by hand": figures(nearest_earlier(test.feats, schedule.apart, BY_HAND)),
        "nearest neighbour, best threshold in hindsight": max(map(figures, nearest)),
        "`--fit`": fitted(travel),
        "`--fit` with `--least 0.5`": fitted(travel, least=0.0),
        "`--calibration` on the same tracklets": figures(
            number_tracklets(test, calibrated(labelled), schedule).numbers
        ),
        "`--fit` with `--no-times`": fitted(travel, timed=False),
        "`--fit` without `--travel`": fitted(Travel()),
        "`--fit` with `--online`": fitted(travel, online=True),
        "average linkage, best threshold in hindsight": max(map(figures, linked)),
        "the true identity of each tracklet": figures(np.unique(true, return_inverse=True)[1] + 1),
    }
    return features, identities


def calibrated(labelled: TrackletSet) -> LogOdds:
    """Returns the log-odds of a calibration on tracklets whose persons are known, at their share of true matches."""
    known = labelled.only(np.array([bool(pid) for pid in labelled.pids]))
    feats, pids = torch.from_numpy(known.feats), np.unique(known.pids, return_inverse=True)[1]
    pairs = count_pairs(feats, feats, pids, pids, which="all", same_list=True)
    genuine, impostor = pairs.distinct
    return LogOdds.of(Probability.fit(pairs, genuine / (genuine + impostor)))


def interval(values: Sequence[float]) -> str:
    """Returns the mean, and half of its 95 % interval where there are several values."""
    mean = f"{np.mean(values):.1f}"
    if len(values) < 2:
        return mean
    return f"{mean} +- {stats.t.ppf(0.975, len(values) - 1) * stats.sem(values):.1f}"


def print_table(title: str, columns: Sequence[str], runs: Sequence[dict[str, list[float]]]) -> None:
    """Prints a Markdown table. runs: of each seed, the figures of each row."""
    print(f"\n| {title} | {' | '.join(columns)} |\n| --- |{' --- |' * len(columns)}")
    for name in runs[0]:
        cells = [interval([run[name][i] for run in runs]) for i in range(len(columns))]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config_file", default="")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--ids", type=int, default=32)
    parser.add_argument("--cameras", type=int, default=4)
    parser.add_argument("--frames", type=int, default=160, help="of each camera, 5 a second")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where video and features stay, and are used again")
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    cfg = load_config(args.config_file, [*args.opts, "MODEL.DEVICE", "cpu"])
    sizes, features, identities = {"ids": args.ids, "cameras": args.cameras, "frames": args.frames}, [], []
    for seed in args.seeds:
        with tempfile.TemporaryDirectory() as name:
            first, second = measure(cfg, (args.keep or Path(name)) / str(seed), seed, sizes)
        features.append(first)
        identities.append(second)
    less = [{name: [row[0] - run["the mean"][0]] for name, row in run.items()} for run in features]
    joined = [{name: row + other[name] for name, row in run.items()} for run, other in zip(features, less, strict=True)]
    print_table("one feature a tracklet", ["mAP", "Rank-1", "mAP less that of the mean"], joined)
    print_table("identities", ["IDF1", "HOTA", "IDF1 within cameras"], identities)


if __name__ == "__main__":
    main()
