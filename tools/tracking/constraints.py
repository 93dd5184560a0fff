"""Which tracklets cannot show one person: two at once under one camera, or two with too little time for the way."""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from datasets.readers.text_table import text_of
from utils.errors import UserError


@dataclass(frozen=True)
class Travel:
    """Shortest times between cameras, in seconds, either way. seconds: (camera, camera) -> time."""

    seconds: dict[tuple[str, str], float] = field(default_factory=dict)

    @classmethod
    def read(cls, path: Path) -> Travel:
        """Reads a .csv with ``camera_a, camera_b, seconds``. Raises ``UserError`` naming the line that is wrong."""
        reader = csv.DictReader(io.StringIO(text_of(path), newline=""))
        columns = ("camera_a", "camera_b", "seconds")
        if not {*columns} <= {*(reader.fieldnames or ())}:
            raise UserError(f"{path}: expected a header with {', '.join(columns)}")
        seconds: dict[tuple[str, str], float] = {}
        for row in reader:
            first, second, text = (str(row[name] or "").strip() for name in columns)
            try:
                value = float(text)
            except ValueError:
                value = math.nan
            if not (0 <= value < math.inf and first and second):
                raise UserError(
                    f"{path}, line {reader.line_num}: expected two cameras and a number of seconds from 0, got "
                    f"{first!r}, {second!r}, {text!r}"
                )
            seconds[first, second] = seconds[second, first] = value
        return cls(seconds)

    def refuse_others(self, cameras: set[str], path: Path) -> None:
        """Raises ``UserError`` if none of its pairs of cameras is among ``cameras``. path: of the table."""
        if not any(set(pair) <= cameras for pair in self.seconds):
            named = sorted({camera for pair in self.seconds for camera in pair})
            raise UserError(
                f"{path}: names no two of the cameras {', '.join(sorted(cameras))}, but {', '.join(named)}"
            )

    def matrix(self, cameras: list[str]) -> np.ndarray:
        """Returns the shortest times between cameras (C, C); -inf where nothing is known, 0 of a camera to itself."""
        return np.array([[0.0 if a == b else self.seconds.get((a, b), -math.inf) for b in cameras] for a in cameras])


@dataclass(frozen=True)
class Schedule:
    """When and where tracklets were. cameras: (T,) numbers. start, end: (T,) first and last time, both included.

    ways: (C, C) of ``Travel.matrix``; -inf: two cameras may see one person at once. Cameras without a clock have -inf
    to all others. exclusive: two at once under one camera are two people.
    """

    cameras: np.ndarray
    start: np.ndarray
    end: np.ndarray
    ways: np.ndarray
    exclusive: bool = True

    def apart(self, some: np.ndarray, others: np.ndarray) -> np.ndarray:
        """Returns which of the tracklets (a,) and (b,) cannot show one person, (a, b) bool.

        Under one camera that is two that overlap; between cameras, two with less time between them than the way takes.
        """
        gap = np.maximum(
            self.start[others][None] - self.end[some][:, None], self.start[some][:, None] - self.end[others][None]
        )
        same = self.cameras[some][:, None] == self.cameras[others][None]
        way = self.ways[self.cameras[some][:, None], self.cameras[others][None]]
        return np.where(same, (gap <= 0) & self.exclusive, gap < way)

    def without_times(self) -> Schedule:
        """Returns a schedule under which any tracklets may show one person."""
        return replace(self, ways=np.full_like(self.ways, -math.inf), exclusive=False)
