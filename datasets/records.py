"""Lists of images: what a split holds, and how raw ids become training labels."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np


@dataclass(frozen=True)
class Records(Sequence):
    """A split: a sequence of ``(path, pid, camid, viewid)``, held as columns rather than an object per image.

    paths: absolute or relative to the working directory. pids, camids, viewids: (N,) int64.
    domain: which of several joined datasets a row comes from, (N,) int64.
    """

    paths: list[str]
    pids: np.ndarray
    camids: np.ndarray
    viewids: np.ndarray
    domain: np.ndarray

    @classmethod
    def of(cls, paths: Sequence[str], pids, camids=None, viewids=None, domain=None) -> Records:
        columns = [
            np.zeros(len(paths), np.int64) if c is None else np.asarray(c, np.int64).reshape(len(paths))
            for c in (pids, camids, viewids, domain)
        ]
        return cls(list(paths), *columns)

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int) -> tuple[str, int, int, int]:
        return self.paths[i], int(self.pids[i]), int(self.camids[i]), int(self.viewids[i])

    def take(self, rows) -> Records:
        """The rows that an index array or a mask picks."""
        rows = np.arange(len(self))[rows]
        return Records(
            [self.paths[i] for i in rows], self.pids[rows], self.camids[rows], self.viewids[rows], self.domain[rows]
        )

    def counts(self) -> tuple[int, int, int]:
        """Identities, images, cameras."""
        return len(np.unique(self.pids)), len(self), len(np.unique(self.camids))


def join(parts: Iterable[Records]) -> Records:
    """One list after another, ids as they are."""
    parts = list(parts)
    return Records(
        [p for part in parts for p in part.paths],
        *(np.concatenate([getattr(part, c) for part in parts]) for c in ("pids", "camids", "viewids", "domain")),
    )


@dataclass
class Row:
    """One image as a reader finds it: raw ids, integers or text."""

    path: str
    pid: int | str
    cam: int | str = 0
    view: int | str = 0


@dataclass
class RawSplits:
    """What a reader returns. same_list: query and gallery are one list, each image searched among the others."""

    train: list[Row] = field(default_factory=list)
    query: list[Row] = field(default_factory=list)
    gallery: list[Row] = field(default_factory=list)
    same_list: bool = False


def settle(rows: Sequence[Row], column: str) -> None:
    """Makes a column's raw ids integers when all of them are whole numbers (``007`` is 7), else text."""
    values = {getattr(row, column) for row in rows}
    whole = all(isinstance(v, int) or re.fullmatch(r"-?[0-9]{1,18}", v) for v in values)
    kind = int if whole else str
    if not all(isinstance(v, kind) for v in values):
        for row in rows:
            setattr(row, column, kind(getattr(row, column)))


def number(values: Iterable, first: dict | None = None) -> dict:
    """Raw id -> 0-based number; ids that ``first`` knows keep their number, others follow in ascending order.

    Sorted, so that every process numbers alike.
    """
    numbers = dict(first or {})
    for value in sorted(set(values)):
        numbers.setdefault(value, len(numbers))
    return numbers


def relative_order(rows: list[Row], folder: Path) -> list[Row]:
    """Rows sorted by path relative to the dataset's folder, with / as separator."""
    return sorted(rows, key=lambda row: Path(row.path).relative_to(folder).as_posix())
