"""Lists of images: what a split holds, and how raw ids become training labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from datasets.paths import Paths, chain


@dataclass(frozen=True, eq=False)
class Records(Sequence):
    """A split: a sequence of ``(path, pid, camid, viewid)``, held as columns rather than an object per image.

    paths: absolute or relative to the working directory. pids, camids, viewids: (N,) int64; pid -1 is unlabelled.
    domain: which of several joined datasets a row comes from, (N,) int64. seqs: (N,) tracklets, or None. boxes: (N, 4)
    left, top, right, bottom of the crop in pixels (all 0: the whole image), or None. extra: further columns of a table.
    """

    paths: Paths
    pids: np.ndarray
    camids: np.ndarray
    viewids: np.ndarray
    domain: np.ndarray
    seqs: np.ndarray | None = None
    boxes: np.ndarray | None = None
    extra: dict[str, np.ndarray] = field(default_factory=dict)

    @classmethod
    def of(cls, paths: Sequence[str], pids, camids=None, viewids=None, domain=None, **more) -> Records:
        columns = [
            np.zeros(len(paths), np.int64) if c is None else np.asarray(c, np.int64).reshape(len(paths))
            for c in (pids, camids, viewids, domain)
        ]
        return cls(Paths.of(paths), *columns, **more)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[str, int, int, int]:
        return self.paths[i], int(self.pids[i]), int(self.camids[i]), int(self.viewids[i])

    def take(self, rows) -> Records:
        """The rows that an index array or a mask picks."""
        rows = np.arange(len(self))[rows]
        columns = {c: getattr(self, c) for c in COLUMNS}
        picked = {name: None if column is None else column[rows] for name, column in columns.items()}
        return Records(self.paths.take(rows), **picked, extra={k: v[rows] for k, v in self.extra.items()})

    def counts(self) -> tuple[int, int, int]:
        """Identities, images, cameras."""
        return len(np.unique(self.pids[self.pids >= 0])), len(self), len(np.unique(self.camids))


SPLITS = ("train", "query", "gallery")
LONG = 1_000_000
"""From here on no object is held per name. A list of this length comes from a folder, which has each name once."""
COLUMNS = ("pids", "camids", "viewids", "domain", "seqs", "boxes")


def join(parts: Iterable[Records]) -> Records:
    """One list after another, ids as they are; sequences differ from part to part."""
    parts = list(parts)
    columns = {c: np.concatenate([getattr(part, c) for part in parts]) for c in COLUMNS[:4]}
    if any(part.boxes is not None for part in parts):
        whole = [np.zeros((len(p), 4), np.int32) if p.boxes is None else p.boxes for p in parts]
        columns["boxes"] = np.concatenate(whole)
    if all(part.seqs is not None for part in parts):
        shifts = np.cumsum([0, *(part.seqs.max(initial=-1) + 1 for part in parts[:-1])])
        columns["seqs"] = np.concatenate([part.seqs + shift for part, shift in zip(parts, shifts, strict=True)])
    shared = [name for name in parts[0].extra if all(name in part.extra for part in parts)]
    extra = {name: np.concatenate([part.extra[name] for part in parts]) for name in shared}
    return Records(chain(part.paths for part in parts), **columns, extra=extra)


@dataclass(slots=True)
class Row:
    """One image as a reader finds it: raw ids, integers or text. pid None: unlabelled (training only).

    seq: tracklet, None for none. box: left, top, right, bottom of the crop. extra: further columns of a table.
    """

    path: str
    pid: int | str | None
    cam: int | str = 0
    view: int | str = 0
    seq: str | None = None
    box: tuple[int, int, int, int] | None = None
    extra: dict[str, str] | None = None


@dataclass
class RawSplits:
    """What a reader returns. same_list: query and gallery are one list, each image searched among the others.

    train: rows, or finished records where a list is too long for an object per image (no tests then).
    protocol: where the layout decides it. notes: lines for the log. listed: the names come from a list, which may name
    images that are not there, rather than from a look into the folders.
    """

    train: list[Row] | Records = field(default_factory=list)
    query: list[Row] = field(default_factory=list)
    gallery: list[Row] = field(default_factory=list)
    same_list: bool = False
    protocol: str = ""
    notes: list[str] = field(default_factory=list)
    listed: bool = False


def settle(rows: Sequence[Row], column: str) -> None:
    """Makes a column's raw ids integers when all of them are whole numbers (``007`` is 7), else text."""
    values = {getattr(row, column) for row in rows} - {None}
    whole = all(isinstance(v, int) or re.fullmatch(r"-?[0-9]{1,18}", v) for v in values)
    kind = int if whole else str
    if not all(isinstance(v, kind) for v in values):
        for row in rows:
            if getattr(row, column) is not None:
                setattr(row, column, kind(getattr(row, column)))


def number(values: Iterable, first: dict | None = None) -> dict:
    """Raw id -> 0-based number; ids that ``first`` knows keep their number, others follow in ascending order.

    Sorted, so that every process numbers alike.
    """
    numbers = dict(first or {})
    for value in sorted(set(values)):
        numbers.setdefault(value, len(numbers))
    return numbers


def relative_order(rows: list[Row], folder: str | Path) -> list[Row]:
    """Rows sorted by path relative to the dataset's folder, with / as separator. All rows lie below the folder."""
    cut = len(str(folder)) + 1
    return sorted(rows, key=lambda row: row.path[cut:].replace("\\", "/"))
