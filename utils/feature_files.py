"""Features of many images in a folder: written piece by piece by several processes, read as one array.

While it is written the folder holds ``features.part.npy``, a byte per row in ``done.part.npy`` and what was asked for
in ``plan.json``; features reach the disk before the bytes that say so, hence work that is killed goes on where it was.
Finished, it holds ``features.npy`` (N, D) float32, ``rows.csv`` (``path`` first), ``skipped.csv`` and ``meta.json``,
which comes last: a folder without it is not finished.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import write_atomically

FEATURES, ROWS, SKIPPED, META = "features.npy", "rows.csv", "skipped.csv", "meta.json"
PART, DONE, PLAN = "features.part.npy", "done.part.npy", "plan.json"
OPEN, KEPT, BAD = 0, 1, 2
"""A row's byte: still to do, written, its image cannot be read."""

CHUNK = 1 << 14  # rows that are moved at a time
WHAT = {"model_hash": "another model or setting", "list_hash": "another list of images", "batch": "another batch size"}
"""Entries of a plan that work must share with what it goes on from, and what it says where they differ."""


class FeatureWriter:
    """An array that is filled in any order. One process calls ``begin`` and ``finish``, every one ``open``."""

    def __init__(self, folder: Path, plan: dict[str, Any], count: int, width: int):
        """plan: the entries of ``WHAT``, and any more that belong into ``meta.json``."""
        self.folder, self.plan, self.shape = folder, plan, (count, width)
        self.features = self.done = None
        self.waiting: list[tuple[np.ndarray, int]] = []

    def begin(self) -> bool:
        """Makes the files or finds those of earlier work; True when that is finished. ``UserError`` if another's."""
        for name in (META, PLAN):
            path = self.folder / name
            if path.exists():
                self.compare(path)
                if name == META:
                    self.tidy()
                return name == META
        if (self.folder / FEATURES).exists():
            raise UserError(f"{self.folder / FEATURES} is there, and no {META} says of what; name another folder")
        allocate(self.folder / PART, np.float32, self.shape)
        allocate(self.folder / DONE, np.uint8, self.shape[:1])
        write_json(self.folder / PLAN, self.plan)
        return False

    def compare(self, path: Path) -> None:
        before = read_json(path)
        for entry, words in WHAT.items():
            if before.get(entry) != self.plan[entry]:
                raise UserError(f"{self.folder} holds features of {words} ({path.name}); name another folder")

    def open(self) -> None:
        if (self.folder / PART).exists() or not (self.folder / FEATURES).exists():
            self.features = mapped(self.folder / PART, self.shape, "r+")
        self.done = mapped(self.folder / DONE, self.shape[:1], "r+")

    def write(self, rows: np.ndarray, feats: np.ndarray, bad: np.ndarray) -> None:
        """rows: of the list, their features (B, D); bad: rows of images that cannot be read."""
        if len(rows):
            self.features[rows] = feats
        self.waiting += [(rows, KEPT), (bad, BAD)]

    def flush(self) -> None:
        """Puts what was written on the disk, then says so."""
        if self.waiting:
            self.features.flush()
            for rows, word in self.waiting:
                self.done[rows] = word
            self.done.flush()
            self.waiting.clear()

    def finish(self, rows: Iterator[Sequence], columns: Sequence[str], why: Callable[[int], str], **facts: Any) -> int:
        """Leaves the skipped rows out and writes the tables; returns how many images have features.

        rows: a row of ``rows.csv`` for each image of the list. why: reason for a skipped one. facts: further entries of
        ``meta.json``. May be called again after it was killed.
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

        write_table(self.folder / ROWS, columns, used())
        write_table(self.folder / SKIPPED, ("path", "reason"), bad)
        meta = {"count": len(kept), "width": width, "skipped": len(bad), **facts, **self.plan}
        write_json(self.folder / META, meta)
        self.tidy()
        return len(kept)

    def tidy(self) -> None:
        for name in (PLAN, DONE, PART):
            (self.folder / name).unlink(missing_ok=True)


def allocate(path: Path, dtype: type, shape: tuple[int, ...]) -> np.memmap:
    """A .npy file of zeros whose room on the disk is taken: a full disk is an error here and not a signal later."""
    array = np.lib.format.open_memmap(path, "w+", dtype, shape)
    if hasattr(os, "posix_fallocate"):
        with open(path, "r+b") as handle:
            os.posix_fallocate(handle.fileno(), 0, array.offset + array.nbytes)
    return array


def read_array(path: Path, mode: str = "r") -> np.ndarray:
    """The memory-mapped array of a .npy file; ``UserError`` when it is none."""
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    try:
        found = np.load(path, mmap_mode=mode, allow_pickle=False)
    except (ValueError, OSError, EOFError) as error:
        reason = " ".join(str(error).split())[:120]
        raise UserError(
            f"{path}: not a readable .npy file of numbers, as numpy.save writes them; truncated? ({reason})"
        ) from None
    if not isinstance(found, np.ndarray):
        raise UserError(f"{path}: must be a .npy file, an .npz holds several arrays")
    return found


def mapped(path: Path, shape: tuple[int, ...], mode: str = "r") -> np.ndarray:
    found = read_array(path, mode)
    if found.shape != shape:
        raise UserError(f"{path}: holds {found.shape} numbers and not {shape}: it was truncated or replaced")
    return found


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except ValueError:
        raise UserError(f"{path}: damaged, not JSON") from None


def write_json(path: Path, value: dict[str, Any]) -> None:
    write_atomically(path, lambda handle: handle.write((json.dumps(value, indent=2) + "\n").encode()))


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    def write(handle) -> None:
        text = io.TextIOWrapper(handle, "utf-8", "surrogateescape", newline="", write_through=True)
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(rows)
        text.detach()

    write_atomically(path, write)


class Features:
    """Features to search with or in: a finished extraction's folder, or a .npy file of which nothing else is known.

    array: (N, D), memory-mapped. meta: what ``meta.json`` says, empty for a file. Raises ``UserError`` for what is
    damaged, truncated or not finished.
    """

    def __init__(self, path: Path):
        self.path, self.meta = path, {}
        if not path.is_dir():
            self.array = read_array(path)
            return
        if not (path / META).is_file():
            unfinished = "; the command that began it goes on with it" if (path / PLAN).exists() else ""
            raise UserError(f"{path}: no finished extraction (no {META}){unfinished}")
        self.meta = read_json(path / META)
        if not isinstance(self.meta, dict) or not {"count", "width", *WHAT} <= self.meta.keys():
            raise UserError(f"{path / META}: not what an extraction of features writes")
        self.array = mapped(path / FEATURES, (self.meta["count"], self.meta["width"]))

    def __len__(self) -> int:
        return len(self.array)

    def rows(self, wanted: Iterable[int]) -> dict[int, dict[str, str]]:
        """The lines of ``rows.csv`` for some rows, by number; empty ones for a file without a table."""
        wanted = set(wanted)
        if not self.meta:
            return {row: {} for row in wanted}
        path, found, count = self.path / ROWS, {}, 0
        try:
            with open(path, newline="", encoding="utf-8", errors="surrogateescape") as handle:
                reader = csv.reader(handle)
                header = next(reader, ["path"])
                for count, line in enumerate(reader, 1):
                    if count - 1 in wanted:
                        found[count - 1] = dict(zip(header, line, strict=True))
        except (OSError, ValueError, csv.Error) as error:
            raise UserError(f"{path}: damaged ({error})") from None
        if count != len(self):
            raise UserError(f"{path}: has {count} rows for {len(self)} features: it was truncated or replaced")
        return found
