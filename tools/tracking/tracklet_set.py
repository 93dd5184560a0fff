"""Tracklets from a folder of tools.extract whose table names them: one feature each, and when and where they were."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from scipy.sparse import coo_array

from tools.tracking.constraints import Schedule, Travel
from utils.errors import UserError
from utils.feature_files import Features

log = logging.getLogger("lineup")

CHUNK = 8192
CUT, BOX = ("left", "top", "right", "bottom"), ("x1", "y1", "x2", "y2")

Columns = dict[str, list[str]]


@dataclass(frozen=True)
class TrackletSet:
    """T tracklets of N images, in the order of their start.

    names, cameras: as the table spells them. feats: (T, D) float32 of unit length, of the mean of the images' unit
    features. start, end: (T,) seconds, or frames for a camera without a clock. pids: '' where the table does not know.
    rows: the images of each, in order. table: the columns of all images. clocks: cameras that have times.
    """

    names: list[str]
    cameras: list[str]
    feats: np.ndarray
    start: np.ndarray
    end: np.ndarray
    pids: list[str]
    rows: list[np.ndarray]
    table: Columns
    clocks: set[str]

    def __len__(self) -> int:
        return len(self.names)

    def only(self, kept: np.ndarray) -> TrackletSet:
        """Returns some of the tracklets. kept: (T,) bool."""
        places = np.flatnonzero(kept).tolist()
        return replace(
            self,
            names=[self.names[i] for i in places],
            cameras=[self.cameras[i] for i in places],
            feats=self.feats[places],
            start=self.start[places],
            end=self.end[places],
            pids=[self.pids[i] for i in places],
            rows=[self.rows[i] for i in places],
        )

    def schedule(self, travel: Travel) -> Schedule:
        """Returns when and where the tracklets were. travel: of the cameras with clocks."""
        cameras = sorted(set(self.cameras))
        known = Travel({pair: way for pair, way in travel.seconds.items() if set(pair) <= self.clocks})
        numbers = {camera: i for i, camera in enumerate(cameras)}
        of_tracklet = np.array([numbers[camera] for camera in self.cameras], np.int64)
        return Schedule(of_tracklet, self.start, self.end, known.matrix(cameras))

    def clock(self, camera: str) -> tuple[float, float]:
        """Returns the seconds per frame of a camera, and the time of frame 0; (1, 0) where it has no clock."""
        if camera not in self.clocks or not self.table.get("frame"):
            return 1.0, 0.0
        of_camera = [rows for rows, name in zip(self.rows, self.cameras, strict=True) if name == camera]
        own = np.concatenate(of_camera).tolist()
        pairs = [(self.table["frame"][row], self.table["time"][row]) for row in own if self.table["frame"][row]]
        frames, times = np.array(pairs, float).reshape(-1, 2).T
        if len(np.unique(frames)) < 2:
            return 1.0, 0.0
        pace, begin = np.polyfit(frames, times, 1)
        return float(pace), float(begin)

    def path(self, number: int) -> str:
        """Returns the path of the image in the middle of a tracklet, which shows it on a page."""
        rows = self.rows[number]
        return self.table["path"][int(rows[len(rows) // 2])]

    def box(self, number: int) -> np.ndarray | None:
        """Returns the crop box of that image, None if the image is the crop."""
        rows = self.rows[number]
        row = int(rows[len(rows) // 2])
        if not self.table.get("x1") or not self.table["x1"][row]:
            return None
        return np.array([int(float(self.table[name][row])) for name in BOX])

    def frame_boxes(self, number: int) -> list[tuple[int, tuple[float, ...]]]:
        """Returns (frame, (left, top, right, bottom)) of a tracklet's images; empty where the table has no boxes."""
        names = CUT if self.table.get("left") else BOX
        if not self.table.get(names[0]) or not self.table.get("frame"):
            return []
        found = []
        for row in self.rows[number].tolist():
            words = [self.table[name][row] for name in names]
            if all(words) and self.table["frame"][row]:
                found.append((int(float(self.table["frame"][row])), tuple(map(float, words))))
        return found


def column(table: Columns, name: str, path: Path) -> np.ndarray:
    """Returns a column of numbers, (N,) float64, nan where it is empty. Raises ``UserError`` for other text."""
    words = table.get(name)
    if words is None:
        return np.full(len(table["path"]), np.nan)
    try:
        return np.array([float(word) if word else np.nan for word in words])
    except ValueError:
        wrong = next(word for word in words if not is_number(word))
        raise UserError(f"{path}: {name} must be a number, got {wrong!r}") from None


def is_number(word: str) -> bool:
    """Returns whether a word is empty or a number."""
    try:
        return not word or float(word) is not None
    except ValueError:
        return False


def read_tracklets(folder: Path, weighted: bool = False) -> tuple[TrackletSet, dict]:
    """Returns the tracklets of a finished extraction, and its ``meta.json``.

    weighted: by the table's column ``quality``. Raises ``UserError`` for a folder whose table has no tracklets, for one
    that spans cameras or identities, has two images of a frame, or whose time runs backwards.
    """
    features = Features(folder)
    where = folder / "rows.csv"
    lines = features.rows(range(len(features)))
    first = lines.get(0, {})
    for name in ("seq", "camid"):
        if name not in first:
            raise UserError(
                f"{where}: has no column {name!r}; extract the features of a table with seq, camid, frame and time, as "
                "tools.crops writes it"
            )
    table = {name: [lines[i][name] for i in range(len(features))] for name in first}
    del lines
    named = [i for i, seq in enumerate(table["seq"]) if seq]
    if not named:
        raise UserError(f"{where}: no image has a tracklet (seq)")
    if len(named) < len(table["seq"]):
        log.warning("%s: %d images without a tracklet (seq) are left out", where, len(table["seq"]) - len(named))
    times, frames = column(table, "time", where), column(table, "frame", where)
    clocks = cameras_with_clock(table["camid"], times, named)
    for camera in sorted({table["camid"][i] for i in named} - clocks):
        log.warning("%s: camera %s has no clock (time), so only its own frames tell its tracklets apart", where, camera)
    has_clock = np.array([camera in clocks for camera in table["camid"]])
    moments = np.where(has_clock, times, frames)
    if np.isnan(moments[named]).any():
        row = next(i for i in named if np.isnan(moments[i]))
        raise UserError(f"{where}, image {table['path'][row]}: needs a time, or a frame where its camera has no clock")
    if weighted and "quality" not in table:
        raise UserError(f"{where}: has no column 'quality'; cut the crops with tools.crops --quality")
    groups: dict[str, list[int]] = {}
    for i in named:
        groups.setdefault(table["seq"][i], []).append(i)
    ranks = np.nan_to_num(frames, nan=-1)
    rows = [np.array(sorted(group, key=lambda i: (ranks[i], moments[i]))) for group in groups.values()]
    for name, own in zip(groups, rows, strict=True):
        refuse_no_tracklet(name, own, table, frames, moments, where)
    order = sorted(range(len(rows)), key=lambda i: (moments[rows[i][0]], rows[i][0]))
    rows, names = [rows[i] for i in order], [list(groups)[i] for i in order]
    weights = column(table, "quality", where) if weighted else np.ones(len(features))
    tracklets = TrackletSet(
        names=names,
        cameras=[table["camid"][int(own[0])] for own in rows],
        feats=mean_features(features.array, rows, weights),
        start=np.array([moments[own].min() for own in rows]),
        end=np.array([moments[own].max() for own in rows]),
        pids=[table["pid"][int(own[0])] if "pid" in table else "" for own in rows],
        rows=rows,
        table=table,
        clocks=clocks,
    )
    return tracklets, features.meta


def cameras_with_clock(cameras: list[str], times: np.ndarray, named: list[int]) -> set[str]:
    """Returns the cameras all of whose images have a time."""
    without = {cameras[i] for i in named if np.isnan(times[i])}
    return {cameras[i] for i in named} - without


def refuse_no_tracklet(
    name: str, rows: np.ndarray, table: Columns, frames: np.ndarray, moments: np.ndarray, where: Path
) -> None:
    """Raises ``UserError`` unless the rows are one person without a break under one camera."""
    for other, what in (("camid", "cameras"), ("pid", "identities")):
        values = sorted({table[other][int(row)] for row in rows}) if other in table else []
        if len(values) > 1:
            raise UserError(
                f"{where}: tracklet {name} spans {what} {values[0]} and {values[1]}; a tracklet is one person without "
                "a break under one camera, so number them apart"
            )
    own = frames[rows]
    twice = own[1:][own[1:] == own[:-1]]
    if len(twice):
        raise UserError(
            f"{where}: tracklet {name} has two images of frame {int(twice[0])}: two tracklets have one number"
        )
    back = np.flatnonzero(np.diff(moments[rows]) < 0)
    if len(back):
        a, b = (float(moments[rows[int(back[0]) + i]]) for i in (0, 1))
        raise UserError(f"{where}: time runs backwards in tracklet {name}, from {a:g} to {b:g}")


def mean_features(array: np.ndarray, rows: list[np.ndarray], weights: np.ndarray) -> np.ndarray:
    """Returns the weighted mean of each tracklet's unit features, scaled to unit length, (T, D) float32.

    array: (N, D), read in blocks, since it may be larger than the memory.
    """
    owner = np.full(len(array), -1, np.int64)
    for number, own in enumerate(rows):
        owner[own] = number
    sums = np.zeros((len(rows), array.shape[1]))
    for start in range(0, len(array), CHUNK):
        block = np.asarray(array[start : start + CHUNK], np.float64)
        owners, kept = owner[start : start + CHUNK], owner[start : start + CHUNK] >= 0
        shares = weights[start : start + CHUNK] / np.maximum(np.linalg.norm(block, axis=1), 1e-12)
        sums += coo_array((shares[kept], (owners[kept], np.flatnonzero(kept))), (len(rows), len(block))) @ block
    return (sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)).astype(np.float32)
