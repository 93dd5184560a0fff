"""Features of many images in a folder: several processes write them piece by piece, one array is read.

While it is written the folder holds ``features.part.npy``, a byte per row in ``done.part.npy`` and what is extracted in
``plan.json``; features reach the disk before the bytes that say so, hence work that is killed can continue. A finished
folder holds ``features.npy`` (N, D) float32, ``rows.csv`` (``path`` first), ``skipped.csv`` and ``meta.json``,
which comes last: a folder without it is not finished.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from utils.errors import UserError, reason_of
from utils.files import write_csv, write_json

FEATURES, ROWS, SKIPPED, META = "features.npy", "rows.csv", "skipped.csv", "meta.json"
PART, DONE, PLAN = "features.part.npy", "done.part.npy", "plan.json"
OPEN, KEPT, BAD = 0, 1, 2
"""A row's byte: not done, written, its image cannot be read."""

CHUNK = 1 << 14  # rows that are moved together
LARGEST_JSON = 64 * 2**20
"""Bytes: four times the largest calibration, which ``model.json`` may hold."""
WHAT = {"model_hash": "another model or setting", "list_hash": "another list of images", "batch": "another batch size"}
"""Entries of a plan that must be the same when work continues, and the words for a difference."""
RUNTIME, TORCH = "runtime", "torch"
"""A further such entry: what computes the features. A plan without it is of torch."""


class FeatureWriter:
    """Fills an array in any order. One process calls ``begin`` and ``finish``, every process ``open``.

    plan: the entries of ``WHAT``, and further ones for ``meta.json``. count, width: shape of the array.
    """

    def __init__(self, folder: Path, plan: dict[str, Any], count: int, width: int):
        self.folder, self.plan, self.shape = folder, plan, (count, width)
        self.features: np.memmap | None = None
        self._done: np.memmap | None = None
        self.waiting: list[tuple[np.ndarray, int]] = []

    @property
    def done(self) -> np.memmap:
        """The byte of every row."""
        assert self._done is not None, "open() comes first"
        return self._done

    def begin(self) -> bool:
        """Creates the files, or finds those of earlier work; returns True if that is finished.

        Raises ``UserError`` if they belong to another plan.
        """
        for name in (META, PLAN):
            path = self.folder / name
            if path.exists():
                self.compare(path)
                if name == META:
                    self.tidy()
                return name == META
        if (self.folder / FEATURES).exists():
            raise UserError(f"{self.folder / FEATURES} exists, and no {META} says of what; name another folder")
        allocate(self.folder / PART, np.float32, self.shape)
        allocate(self.folder / DONE, np.uint8, self.shape[:1])
        write_json(self.folder / PLAN, self.plan)
        return False

    def compare(self, path: Path) -> None:
        """Raises ``UserError`` if a file holds another plan."""
        before = read_json(path)
        for entry, words in WHAT.items():
            if before.get(entry) != self.plan[entry]:
                raise UserError(f"{self.folder} holds features of {words} ({path.name}); name another folder")
        one, other = (str(plan.get(RUNTIME, TORCH)) for plan in (before, self.plan))
        if one != other:
            raise UserError(
                f"{self.folder} holds features that {one} computed ({path.name}), not {other}; name another folder, or "
                f"set --runtime {one}"
            )

    def open(self) -> None:
        """Maps the files into memory."""
        if (self.folder / PART).exists() or not (self.folder / FEATURES).exists():
            self.features = mapped(self.folder / PART, self.shape, "r+")
        self._done = mapped(self.folder / DONE, self.shape[:1], "r+")

    def write(self, rows: np.ndarray, feats: np.ndarray, bad: np.ndarray) -> None:
        """Writes features. rows: of the list; feats: (B, D) of these; bad: rows of images that cannot be read."""
        if len(rows):
            assert self.features is not None, "open() comes first"
            self.features[rows] = feats
        self.waiting += [(rows, KEPT), (bad, BAD)]

    def flush(self) -> None:
        """Brings what was written to the disk, then the bytes that say so."""
        if self.waiting:
            assert self.features is not None, "open() comes first"
            self.features.flush()
            for rows, word in self.waiting:
                self.done[rows] = word
            self.done.flush()
            self.waiting.clear()

    def finish(self, rows: Iterator[Sequence], columns: Sequence[str], why: Callable[[int], str], **facts: Any) -> int:
        """Removes the skipped rows and writes the tables; returns how many images have features.

        rows: a row of ``rows.csv`` for each image of the list. why: returns the reason for a skipped one. facts:
        further entries of ``meta.json``. May be called again after it was killed.
        """
        self.flush()
        self.open()
        done, (_, width) = np.array(self.done), self.shape
        kept = np.flatnonzero(done == KEPT)
        if not len(kept):
            self.tidy()
            raise UserError(f"none of the {len(done)} images could be read; the first: {why(0)}")
        if self.features is not None and len(kept) == len(done):
            (self.folder / PART).replace(self.folder / FEATURES)
        elif self.features is not None:
            shorter = self.folder / "features.kept.npy"
            out = allocate(shorter, np.float32, (len(kept), width))
            for start in range(0, len(kept), CHUNK):
                out[start : start + CHUNK] = self.features[kept[start : start + CHUNK]]
            out.flush()
            shorter.replace(self.folder / FEATURES)
            (self.folder / PART).unlink()
        bad = []

        def used() -> Iterator[Sequence]:
            for i, row in enumerate(rows):
                if done[i] == KEPT:
                    yield row
                else:
                    bad.append((row[0], why(i)))

        write_csv(self.folder / ROWS, columns, used())
        write_csv(self.folder / SKIPPED, ("path", "reason"), bad)
        meta = {"count": len(kept), "width": width, "skipped": len(bad), **facts, **self.plan}
        write_json(self.folder / META, meta)
        self.tidy()
        return len(kept)

    def tidy(self) -> None:
        """Removes the files of unfinished work."""
        for name in (PLAN, DONE, PART):
            (self.folder / name).unlink(missing_ok=True)


def allocate(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """Creates a .npy file of zeros and reserves its room on the disk: a full disk is an error, not a signal later."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, array.offset + array.nbytes)
    return array


def read_array(path: Path, mode: Literal["r", "r+"] = "r") -> np.memmap:
    """Returns the memory-mapped array of a .npy file. Raises ``UserError`` if it is missing or of another kind."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        array = np.load(path, mmap_mode=mode, allow_pickle=False)
    except Exception as error:  # noqa: BLE001 - a damaged header fails in many ways
        reason = reason_of(error)
        raise UserError(
            f"{path}: not a readable .npy file of numbers, as numpy.save writes them; truncated? ({reason})"
        ) from None
    if not isinstance(array, np.memmap):
        raise UserError(f"{path}: must be a .npy file, an .npz holds several arrays")
    if array.dtype.kind not in "fiu":
        raise UserError(f"{path}: must hold numbers, not {array.dtype}")
    return array


def mapped(path: Path, shape: tuple[int, ...], mode: Literal["r", "r+"] = "r") -> np.memmap:
    """Returns the array of a .npy file of a known shape. Raises ``UserError`` for another one."""
    array = read_array(path, mode)
    if array.shape != shape:
        raise UserError(f"{path}: expected {shape} numbers, got {array.shape}: it was truncated or replaced")
    return array


def read_json(path: Path) -> dict[str, Any]:
    """Reads the object in a JSON file. Raises ``UserError`` if it is damaged, too large or holds something else."""
    try:
        if path.stat().st_size > LARGEST_JSON:
            raise UserError(f"{path}: damaged, it is larger than {LARGEST_JSON >> 20} MB")
        content = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError):
        raise UserError(f"{path}: damaged, not JSON") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged, expected an object, not {type(content).__name__}")
    return content


def begun_in(folder: Path) -> str | None:
    """Returns the runtime of an extraction that was begun or finished in a folder, None if there is none."""
    for path in (folder / META, folder / PLAN):
        if path.is_file():
            return str(read_json(path).get(RUNTIME, TORCH))
    return None


class Features:
    """Features to search with or in: a finished extraction's folder, or a .npy file of which nothing else is known.

    array: (N, D), memory-mapped. meta: the content of ``meta.json``, empty for a file. Raises ``UserError`` for what is
    damaged, truncated or not finished.
    """

    path: Path
    array: np.ndarray
    meta: dict[str, Any]

    def __init__(self, path: Path):
        self.path, self.meta = path, {}
        if not path.is_dir():
            self.array = read_array(path)
            return
        if not (path / META).is_file():
            unfinished = "; the same command continues it" if (path / PLAN).exists() else ""
            raise UserError(f"{path}: no finished extraction (no {META}){unfinished}")
        self.meta = read_json(path / META)
        if not {"count", "width", *WHAT} <= self.meta.keys() or not isinstance(self.meta["model_hash"], str):
            raise UserError(f"{path / META}: not the file that an extraction of features writes")
        self.array = mapped(path / FEATURES, (self.meta["count"], self.meta["width"]))

    def __len__(self) -> int:
        return len(self.array)

    def rows(self, numbers: Iterable[int]) -> dict[int, dict[str, str]]:
        """Returns lines of ``rows.csv`` by their numbers; empty ones for a file without a table."""
        numbers = set(numbers)
        if not self.meta:
            return {row: {} for row in numbers}
        return {row: line for row, line in enumerate(self.lines()) if row in numbers}

    def lines(self) -> Iterator[dict[str, str]]:
        """Yields the lines of ``rows.csv`` in order; empty ones for a file without a table."""
        if not self.meta:
            yield from ({} for _ in range(len(self)))
            return
        path, count = self.path / ROWS, 0
        try:
            with open(path, newline="", encoding="utf-8", errors="surrogateescape") as handle:
                reader = csv.reader(handle)
                header = next(reader, ["path"])
                for line in reader:
                    count += 1
                    yield dict(zip(header, line, strict=True))
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"{path}: damaged ({error})") from None
        if count != len(self):
            raise UserError(f"{path}: has {count} rows for {len(self)} features: it was truncated or replaced")
