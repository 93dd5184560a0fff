"""What a detector and a tracker make of drawn frames: missed people, false boxes, unsteady edges, broken tracks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from datasets.synthetic.raster import Rng, between, chance, generator
from datasets.synthetic.street import HEIGHT, WIDTH, Shown
from datasets.synthetic.walks import KEY

LEAST_VISIBLE = 0.25
"""Share of a pedestrian below which the detector never fires."""
PATIENCE = 2
"""Frames without a box after which the tracker gives a new number."""


@dataclass(frozen=True)
class Detection:
    """A box of the detector. score: percent. source: the pedestrian, None for a false box."""

    box: tuple[int, int, int, int]
    score: int
    source: Shown | None


def detect(shown: Sequence[Shown], camid: int, frame: int, seed: int) -> list[Detection]:
    """Returns the detections in a frame, false ones among them."""
    rng, found = generator(KEY, "detector", camid, frame, seed), []
    for one in shown:
        missed = 6 + int(30 * (1 - one.visible))
        if one.visible < LEAST_VISIBLE or chance(rng, missed):
            continue
        box = within(unsteady(rng, one.box))
        if box is not None:
            found.append(Detection(box, between(rng, 55, 70) + int(28 * one.visible), one))
    if chance(rng, 6):
        wide, x, y = between(rng, 24, 56), between(rng, 0, WIDTH - 60), between(rng, 0, HEIGHT // 2)
        found.append(Detection((x, y, x + wide, min(HEIGHT, y + wide * 5 // 2)), between(rng, 40, 70), None))
    return found


def unsteady(rng: Rng, box: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Returns the box with each edge moved by up to a sixteenth of its side."""
    left, top, right, bottom = box
    across, down = max(1, (right - left) // 16), max(1, (bottom - top) // 16)
    return (
        left + between(rng, -across, across), top + between(rng, -down, down),
        right + between(rng, -across, across), bottom + between(rng, -down, down),
    )  # fmt: skip


def within(box: tuple[int, int, int, int]) -> tuple[int, int, int, int] | None:
    """Returns the part of a box that is inside the frame, None if it is narrower or lower than 4 pixels."""
    left, top, right, bottom = max(0, box[0]), max(0, box[1]), min(WIDTH, box[2]), min(HEIGHT, box[3])
    return (left, top, right, bottom) if right - left >= 4 and bottom - top >= 4 else None


class Tracker:
    """Numbers the detections of one camera as a tracker does that loses people: a number for each unbroken stretch.

    A stretch ends after ``PATIENCE`` frames without a box, and about once in 40 frames for no reason.
    """

    def __init__(self, camid: int, seed: int):
        self.rng = generator(KEY, "tracker", camid, seed)
        self.last: dict[tuple[int, int], tuple[int, int]] = {}  # visit -> its number and last frame
        self.count = 0

    def number(self, found: Sequence[Detection], frame: int) -> list[tuple[int, Detection]]:
        """Returns (number, detection) of the pedestrians in a frame; false boxes are not tracked."""
        numbered = []
        for detection in found:
            if detection.source is None:
                continue
            visit = detection.source.visit
            number, seen = self.last.get((visit.pid, visit.number), (0, -PATIENCE - 2))
            if frame - seen > PATIENCE + 1 or int(self.rng.integers(40)) == 0:
                self.count += 1
                number = self.count
            self.last[visit.pid, visit.number] = number, frame
            numbered.append((number, detection))
        return numbered
