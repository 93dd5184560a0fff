"""Lists of images: the rows of a split, as a reader returns them and as they are numbered."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple, overload

import numpy as np

from datasets.paths import Paths, chain

Ids = Sequence[Any] | np.ndarray
RawId = int | str
"""An identity, a camera or a view as files and lists spell it."""


class Row(NamedTuple):
    """One image of a numbered list."""

    path: str
    pid: int
    camid: int
    viewid: int


@dataclass(frozen=True, eq=False)
class Records(Sequence[Row]):
    """A split: a sequence of rows, held as columns rather than as an object per image. N rows.

    paths: absolute or relative to the working directory. pids, camids, viewids: (N,) int64, the dataset's identities,
    cameras and views; pid -1 is unlabelled. domain: which of several joined datasets a row comes from, (N,) int64.
    cam_labels, view_labels: (N,) int64, the rows of the network's side embeddings. They differ from camids and viewids
    where a dataset is tested by a network that was trained on others.
    seqs: (N,) tracklets, or None. frames: (N,) int64, the order in a tracklet, -1 where unknown, or None. times: (N,)
    float64, seconds, nan where unknown, or None. boxes: (N, 4) left, top, right, bottom of the crop in pixels (all 0:
    the whole image), or None. extra: further columns of a table.
    identities, cameras, views: the original id of each number, as files and lists spell it ("door west"); None where
    the numbers are the original ids.
    """

    paths: Paths
    pids: np.ndarray
    camids: np.ndarray
    viewids: np.ndarray
    domain: np.ndarray
    cam_labels: np.ndarray
    view_labels: np.ndarray
    seqs: np.ndarray | None = None
    frames: np.ndarray | None = None
    times: np.ndarray | None = None
    boxes: np.ndarray | None = None
    extra: dict[str, np.ndarray] = field(default_factory=dict)
    identities: np.ndarray | None = None
    cameras: np.ndarray | None = None
    views: np.ndarray | None = None

    @classmethod
    def of(
        cls,
        paths: Sequence[str],
        pids: Ids | None = None,
        camids: Ids | None = None,
        viewids: Ids | None = None,
        domain: Ids | None = None,
        **columns: Any,
    ) -> Records:
        """Returns a list from its columns; a column of ids that is None is 0 for every image.

        columns: further fields by name. The network's labels are the cameras and views.
        """
        ids = [
            np.zeros(len(paths), np.int64) if column is None else np.asarray(column, np.int64).reshape(len(paths))
            for column in (pids, camids, viewids, domain)
        ]
        return cls(Paths.of(paths), *ids, cam_labels=ids[1], view_labels=ids[2], **columns)

    def __len__(self) -> int:
        return len(self.paths)

    @overload
    def __getitem__(self, i: int) -> Row: ...
    @overload
    def __getitem__(self, i: slice) -> Records: ...
    def __getitem__(self, i: int | slice) -> Row | Records:
        if isinstance(i, slice):
            return self.take(i)
        return Row(self.paths[i], int(self.pids[i]), int(self.camids[i]), int(self.viewids[i]))

    def take(self, rows: Any) -> Records:
        """Returns the rows that an index array, a slice or a mask picks."""
        rows = np.arange(len(self))[rows]
        return replace(
            self,
            paths=self.paths.take(rows),
            pids=self.pids[rows],
            camids=self.camids[rows],
            viewids=self.viewids[rows],
            domain=self.domain[rows],
            cam_labels=self.cam_labels[rows],
            view_labels=self.view_labels[rows],
            seqs=None if self.seqs is None else self.seqs[rows],
            frames=None if self.frames is None else self.frames[rows],
            times=None if self.times is None else self.times[rows],
            boxes=None if self.boxes is None else self.boxes[rows],
            extra={name: column[rows] for name, column in self.extra.items()},
        )

    def counts(self) -> tuple[int, int, int]:
        """Returns the numbers of identities, images and cameras."""
        return len(np.unique(self.pids[self.pids >= 0])), len(self), len(np.unique(self.camids))

    def relabelled(self) -> Records:
        """Returns the list with its identities numbered densely from 0, in the same order."""
        kept, labels = np.unique(self.pids, return_inverse=True)
        return replace(self, pids=labels, identities=kept if self.identities is None else self.identities[kept])

    def original_pids(self) -> np.ndarray:
        """Returns each row's identity as the dataset spells it, (N,) of integers or of text."""
        return self._original(self.pids, self.identities)

    def original_camids(self) -> np.ndarray:
        """Returns each row's camera as the dataset spells it, (N,) of integers or of text."""
        return self._original(self.camids, self.cameras)

    def original_viewids(self) -> np.ndarray:
        """Returns each row's view as the dataset spells it, (N,) of integers or of text."""
        return self._original(self.viewids, self.views)

    def _original(self, numbers: np.ndarray, names: np.ndarray | None) -> np.ndarray:
        if names is None or not len(names):
            return numbers
        known = (numbers >= 0) & (numbers < len(names))
        if known.all():
            return names[numbers]
        return np.where(known, names[np.where(known, numbers, 0)], numbers.astype(names.dtype))


SPLITS = ("train", "query", "gallery")
LONG = 1_000_000
"""From here on no object is held per name. A list of this length comes from a folder, which has each name once."""


def join(lists: Iterable[Records]) -> Records:
    """Returns one list after another, ids as they are; sequences of one list differ from those of the others.

    Original ids stay where all lists spell their numbers the same way.
    """
    lists = list(lists)
    boxes, seqs = None, None
    if any(records.boxes is not None for records in lists):
        boxes = np.concatenate([np.zeros((len(r), 4), np.int32) if r.boxes is None else r.boxes for r in lists])
    columns = [records.seqs for records in lists if records.seqs is not None]
    if len(columns) == len(lists):
        shifts = np.cumsum([0, *(column.max(initial=-1) + 1 for column in columns[:-1])])
        seqs = np.concatenate([column + shift for column, shift in zip(columns, shifts, strict=True)])
    orders = {
        name: np.concatenate([getattr(records, name) for records in lists])
        for name in ("frames", "times") if all(getattr(records, name) is not None for records in lists)
    }  # fmt: skip
    shared = [name for name in lists[0].extra if all(name in records.extra for records in lists)]
    return Records(
        paths=chain(records.paths for records in lists),
        pids=np.concatenate([records.pids for records in lists]),
        camids=np.concatenate([records.camids for records in lists]),
        viewids=np.concatenate([records.viewids for records in lists]),
        domain=np.concatenate([records.domain for records in lists]),
        cam_labels=np.concatenate([records.cam_labels for records in lists]),
        view_labels=np.concatenate([records.view_labels for records in lists]),
        seqs=seqs,
        boxes=boxes,
        **orders,
        extra={name: np.concatenate([records.extra[name] for records in lists]) for name in shared},
        identities=shared_names([records.identities for records in lists]),
        cameras=shared_names([records.cameras for records in lists]),
        views=shared_names([records.views for records in lists]),
    )


def shared_names(names: Sequence[np.ndarray | None]) -> np.ndarray | None:
    """Returns the first array where all are equal, else None."""
    first = names[0]
    if first is None or not all(other is first or np.array_equal(first, other) for other in names if other is not None):
        return None
    return first if all(other is not None for other in names) else None


@dataclass(slots=True)
class RawRow:
    """One image as a reader finds it: raw ids, integers or text. pid None: unlabelled (training only).

    seq: tracklet, None for none. frame, time: its order in it, and seconds. box: left, top, right, bottom of the crop.
    extra: further columns of a table.
    """

    path: str
    pid: RawId | None
    cam: RawId = 0
    view: RawId = 0
    seq: str | None = None
    frame: int | None = None
    time: float | None = None
    box: tuple[int, int, int, int] | None = None
    extra: dict[str, str] | None = None


@dataclass
class RawSplits:
    """What a reader returns. same_list: query and gallery are one list, each image searched among the others.

    train: rows, or finished records where a list is too long for an object per image (no tests then).
    protocol: the evaluation, where the layout decides it. notes: lines for the log. listed: the names come from a list,
    which may name images that are not there, rather than from the folders themselves.
    """

    train: list[RawRow] | Records = field(default_factory=list)
    query: list[RawRow] = field(default_factory=list)
    gallery: list[RawRow] = field(default_factory=list)
    same_list: bool = False
    protocol: str = ""
    notes: list[str] = field(default_factory=list)
    listed: bool = False


def settle(rows: Sequence[RawRow], column: str) -> None:
    """Makes a column's raw ids integers when all of them are whole numbers (``007`` is 7), else text."""
    values = {getattr(row, column) for row in rows} - {None}
    whole = all(isinstance(v, int) or re.fullmatch(r"-?[0-9]{1,18}", v) for v in values)
    kind = int if whole else str
    if not all(isinstance(v, kind) for v in values):
        for row in rows:
            if getattr(row, column) is not None:
                setattr(row, column, kind(getattr(row, column)))


def number(values: Iterable[Any], first: dict[Any, int] | None = None) -> dict[Any, int]:
    """Returns raw id -> 0-based number; ids that ``first`` knows keep their number, others follow in ascending order.

    Sorted, so that the numbers are the same on every rank.
    """
    numbers = dict(first or {})
    for value in sorted(set(values)):
        numbers.setdefault(value, len(numbers))
    return numbers


def names_of_numbers(numbers: dict[Any, int]) -> np.ndarray | None:
    """Returns the raw ids by their numbers, or None where every id is its own number. ids: all integers or all text."""
    if all(raw == i for raw, i in numbers.items()):
        return None
    names = sorted(numbers, key=lambda raw: numbers[raw])
    return np.array(names)


def relative_order(rows: list[RawRow], folder: str | Path) -> list[RawRow]:
    """Returns the rows sorted by path relative to the dataset's folder, with /. All of them lie below the folder."""
    start = len(str(folder)) + 1
    return sorted(rows, key=lambda row: row.path[start:].replace("\\", "/"))
