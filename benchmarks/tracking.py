"""Identity switches of a tracker by appearance, with a threshold by hand and with a calibrated one.

    python -m benchmarks.tracking --config_file FILE TEST.WEIGHT PATH TEST.CALIBRATION FILE [--far 0.01] ...

Draws built-in pedestrians under one camera as a clip: they come and go, one box in ten is missed, and every box shows
its person in another pose and crop, so it is harder than video whose frames are a moment apart. The tracker is that of
``docs/after.md``: boxes go to known people by the Hungarian method, and only if the cosine is high enough. A switch is
a person whose number is not the one of the last frame that showed them.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import numpy as np
from scipy.optimize import linear_sum_assignment

from configs import load_config
from datasets.synthetic.sets import draw_image
from processor.extractor import make_extractor

BY_HAND = 0.6
FIRST = 1001
"""Number of the first person: neither trained nor calibrated on."""


class Tracks:
    """Numbers people by the features of their boxes; least: cosine of a known person."""

    def __init__(self, width: int, least: float, keep: float = 0.9):
        self.known, self.least, self.keep = np.empty((0, width), np.float32), least, keep

    def update(self, feats: np.ndarray) -> list[int]:
        """Returns a number for each box of a frame, features (N, D) of unit length."""
        cosines, numbers = feats @ self.known.T, np.full(len(feats), -1)
        for box, number in zip(*linear_sum_assignment(-cosines), strict=True):
            if cosines[box, number] >= self.least:
                numbers[box] = number
                mean = self.keep * self.known[number] + (1 - self.keep) * feats[box]
                self.known[number] = mean / np.linalg.norm(mean)
        new = numbers < 0
        numbers[new] = len(self.known) + np.arange(new.sum())
        self.known = np.vstack([self.known, feats[new]])
        return numbers.tolist()


def visits(people: int, frames: int, seed: int) -> Iterator[list[int]]:
    """Yields the people whose boxes are detected in each frame: each comes twice, and is missed one time in ten."""
    rng = np.random.default_rng(seed)
    seen = np.zeros((frames, people), bool)
    for person in range(people):
        for start in (rng.integers(0, frames // 2), rng.integers(frames // 2, frames)):
            seen[start : start + frames // 5, person] = True
    seen &= rng.random(seen.shape) >= 0.1
    for row in seen:
        yield np.flatnonzero(row).tolist()


def clip(people: int, frames: int, seed: int) -> Iterator[tuple[np.ndarray, list[int]]]:
    """Yields each frame's picture, (128, 64 n, 3) with its n people side by side, and who they are."""
    for frame, present in enumerate(visits(people, frames, seed)):
        boxes = [draw_image("synthetic", FIRST + person, 1, frame, seed) for person in present]
        if boxes:
            yield np.concatenate(boxes, 1), present


def switches(features: list[np.ndarray], truth: list[list[int]], least: float) -> tuple[int, int, int]:
    """Returns the identity switches of a clip, the numbers that were given, and the boxes with another's number.

    features: of each frame's boxes. truth: their people. Another's number is one that another person had first.
    """
    tracks, last, owner = Tracks(features[0].shape[1], least), {}, {}
    switched = shared = 0
    for feats, people in zip(features, truth, strict=True):
        for person, number in zip(people, tracks.update(feats), strict=True):
            switched += last.get(person, number) != number
            shared += owner.setdefault(number, person) != person
            last[person] = number
    return switched, len(tracks.known), shared


def measured(extract: Callable, least: dict[str, float], people: int, frames: int, clips: int) -> list[str]:
    """Returns a line for each threshold, over several clips."""
    totals = {name: np.zeros(3, int) for name in least}
    boxes = 0
    for seed in range(clips):
        features, truth = [], []
        for picture, present in clip(people, frames, seed):
            features.append(extract([picture[:, 64 * i : 64 * (i + 1)] for i in range(len(present))]))
            truth.append(present)
        boxes += sum(map(len, truth))
        for name, value in least.items():
            totals[name] += switches(features, truth, value)
    return [
        f"{name}: cosine {least[name]:.3f}, {switched} switches, {given} numbers for {clips * people} people, "
        f"{shared} of {boxes} boxes with another's number"
        for name, (switched, given, shared) in totals.items()
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--config_file", default="")
    parser.add_argument("--far", type=float, nargs="+", default=[0.01])
    parser.add_argument("--people", type=int, default=12)
    parser.add_argument("--frames", type=int, default=60)
    parser.add_argument("--clips", type=int, default=3)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args()
    extractor = make_extractor(load_config(args.config_file, args.opts))
    calibration = extractor.calibration
    assert calibration is not None, "TEST.CALIBRATION names a file of tools.calibrate"
    least = {f"{BY_HAND} by hand": BY_HAND}
    for far in args.far:  # of unit features, the squared distance is 2 - 2 cosine
        least[f"FAR {far:g}"] = 1 - calibration.threshold(far).distance / 2
    print("\n".join(measured(extractor, least, args.people, args.frames, args.clips)))


if __name__ == "__main__":
    main()
