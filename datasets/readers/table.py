"""Your own data as one table: ``DATASETS.NAMES: csv`` (``docs/your_data.md``)."""

from __future__ import annotations

import math
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.identifiers import JUNK, LONGEST, canonical
from datasets.readers.scan import note_read
from datasets.readers.text_table import BOX, COLUMNS, MOST_GB, ORDER, Lines, read_lines_of, require_columns
from datasets.records import RawRow, RawSplits
from utils.errors import UserError

if TYPE_CHECKING:
    from datasets.catalogue.spec import DatasetSpec

SPLIT_WORDS = ("train", "query", "gallery", "test", "val", "ignore", "validation")
TRUE, FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no", "", "none", "nan")
LONGEST_PATH = 4096
"""Letters of a path: what systems open."""


def find_table(root: str | Path, file: str = "") -> Path:
    """Returns the table: DATASETS.FILE, or DATASETS.ROOT_DIR itself, or ``dataset.csv`` / ``.tsv`` / ``.jsonl`` in it.

    Raises ``UserError`` that names every file that was tried.
    """
    root = Path(root)
    tried = [Path(file), root / file] if file else [root, *(root / f"dataset.{e}" for e in ("csv", "tsv", "jsonl"))]
    for path in tried:
        if path.is_file():
            return path
        if file and path.exists():
            kind = "a folder" if path.is_dir() else "not a regular file"
            raise UserError(f"DATASETS.FILE: {path} is {kind}; expected a .csv, .tsv or .jsonl file")
    raise UserError(f"csv: no table found (looked for {', '.join(map(str, tried))}); set DATASETS.FILE to it")


def table_lines(path: Path, most_gb: float = MOST_GB) -> tuple[list[str], Lines, list[str]]:
    """Returns the names of the columns, the rows and lines for the log. Raises ``UserError`` if it is no such table."""
    header, lines, notes = read_lines_of(note_read(path), most_gb)
    require_columns(path, header, ("path", "pid", "split"))
    refuse_part_of_a_box(path, header)
    return header, lines, notes


def refuse_part_of_a_box(path: Path, header: list[str]) -> None:
    """Raises ``UserError`` if a table has some of the box's columns and not all."""
    boxes = [name for name in BOX if name in header]
    if boxes and len(boxes) < len(BOX):
        raise UserError(f"{path}: a crop box needs all of {', '.join(BOX)}; found only {', '.join(boxes)}")


def id_in(line: dict[str, str], column: str, where: str) -> str:
    """Returns the id in a column, '' for a missing one."""
    try:
        return canonical(line.get(column, ""))
    except UserError as error:
        raise UserError(f"{where}: {column}: {error}") from None


def flag(line: dict[str, str], column: str, where: str) -> bool:
    """Returns the truth of a column; raises ``UserError`` for another word."""
    word = line.get(column, "").lower()
    if word not in TRUE + FALSE:
        raise UserError(f"{where}: {column} must be true or false, got {line[column]!r}")
    return word in TRUE


def splits_of(line: dict[str, str], where: str, marked: bool) -> tuple[str, ...]:
    """Returns the splits of a row. marked: ``is_query`` and ``is_gallery`` decide for split ``validation``."""
    word = line["split"].lower()
    if word not in SPLIT_WORDS:
        raise UserError(f"{where}: split must be one of {', '.join(SPLIT_WORDS[:6])}, got {line['split']!r}")
    if word in ("validation", "val") and marked:
        return tuple(split for split in ("query", "gallery") if flag(line, f"is_{split}", where))
    if word == "test":
        return "query", "gallery"
    return () if word in ("val", "validation", "ignore") else (word,)


def box_of(line: dict[str, str], where: str) -> tuple[int, int, int, int] | None:
    """Returns left, top, right, bottom of the crop in pixels, None for the whole image: empty or missing values."""
    words = [line[name] for name in BOX]
    if not any(map(canonical, words)):
        return None
    try:
        values = [float(word) for word in words]
    except ValueError:
        raise UserError(f"{where}: the crop box must be four numbers, got {', '.join(words)}") from None
    if not all(math.isfinite(value) and abs(value) < 2**31 for value in values):
        raise UserError(f"{where}: the crop box must be four numbers of pixels, got {', '.join(words)}")
    if any(values) and all(0 <= value <= 1 for value in values):
        raise UserError(
            f"{where}: {', '.join(BOX)} are within 0 to 1 ({', '.join(words)}), so they are shares of the image; crop "
            "boxes are in pixels: multiply x1 and x2 by the image's width, y1 and y2 by its height"
        )
    left, top, right, bottom = map(round, values)
    if not (0 <= left < right and 0 <= top < bottom):
        raise UserError(f"{where}: the crop box {', '.join(words)} is empty or begins outside of the image")
    return left, top, right, bottom


def order_of(line: dict[str, str], where: str) -> tuple[int | None, float | None]:
    """Returns the frame and the seconds of a row, None for what its table has no column for or leaves empty."""
    frame, time = line.get("frame", ""), line.get("time", "")
    if frame and not re.fullmatch(r"[0-9]{1,15}(\.0+)?", frame):
        raise UserError(f"{where}: frame must be a whole number of at least 0, got {frame!r}")
    try:
        seconds = float(time) if time else None
    except ValueError:
        raise UserError(f"{where}: time must be a number of seconds, got {time!r}") from None
    if seconds is not None and not math.isfinite(seconds):
        raise UserError(f"{where}: time must be a number of seconds, got {time!r}")
    return int(float(frame)) if frame else None, seconds


@dataclass(frozen=True)
class Layout:
    """What the header of a table says. folder: that paths are relative to. unused: columns that nothing reads.

    required: columns that must not be empty. marked: see ``splits_of``. boxed: rows have crop boxes. sequenced: and
    tracklets, whose order ``frame`` and ``time`` are.
    """

    path: Path
    folder: Path
    unused: list[str]
    required: list[str]
    marked: bool
    boxed: bool
    sequenced: bool

    @classmethod
    def of(cls, path: Path, header: list[str], folder: Path) -> Layout:
        """Returns the layout of the table at ``path`` with these columns."""
        return cls(
            path=path,
            folder=folder,
            unused=[n for n in header if n not in COLUMNS or (n in ORDER and "seq" not in header)],
            required=[name for name in ("path", "pid", "camid") if name in header],
            marked="is_query" in header and "is_gallery" in header,
            boxed=BOX[0] in header,
            sequenced="seq" in header,
        )

    def rows(self, number: int, line: dict[str, str]) -> dict[str, RawRow]:
        """Returns split -> row for one line of the table; empty for a line that is left out."""
        where = f"{self.path}, line {number}"
        splits = splits_of(line, where, self.marked)
        ids = {name: id_in(line, name, where) for name in ("pid", "camid", "viewid", "seq")}
        values = {"path": line["path"], "pid": ids["pid"], "camid": ids["camid"]}
        for name in self.required:
            if not values[name] and not (name == "pid" and splits == ("train",)):
                found = f" ({line[name]!r} is a missing value)" if line[name] else ""
                raise UserError(f"{where}: {name} must not be empty{found}")
        if len(line["path"]) > LONGEST_PATH:
            raise UserError(f"{where}: a path of {len(line['path']):,} letters is longer than {LONGEST_PATH:,}")
        if ids["pid"] == JUNK:
            return {}
        extra = {name: line[name] for name in self.unused} or None
        box, seq = box_of(line, where) if self.boxed else None, ids["seq"] or None
        frame, time = order_of(line, where) if self.sequenced else (None, None)
        if len(splits) == 2 and seq is None:
            seq = f"row {number}"  # never its own match
        return {
            split: RawRow(
                path=str(self.folder / line["path"]),
                pid=ids["pid"] or None,
                cam=ids["camid"] if "camid" in line else int(split == "gallery"),
                view=ids["viewid"] or "0",
                seq=seq,
                frame=frame,
                time=time,
                box=box,
                extra=extra,
            )
            for split in splits
        }


def spelling_notes(path: Path, lines: Lines) -> list[str]:
    """Returns a line each on ids written as decimals, missing identities and rows of nobody, if there are any."""
    decimals = Counter(
        word for _, line in lines for column in ("pid", "camid", "viewid")
        if "." in (word := line.get(column, "")) and "." not in canonical(word)
    )  # fmt: skip
    pids = [(line["pid"], canonical(line["pid"])) for _, line in lines]
    missing = sum(1 for text, pid in pids if text and not pid)
    nobody = sum(pid == JUNK for _, pid in pids)
    notes = []
    if decimals.total():
        word = decimals.most_common(1)[0][0]
        example = f"such as {word!r}, read as {canonical(word)!r}"
        notes.append(f"{path}: {decimals.total():,} ids are decimals, {example}")
    if missing:
        notes.append(f"{path}: {missing:,} rows have a missing value such as 'nan' for a pid: they are unlabelled")
    if nobody:
        notes.append(f"{path}: {nobody:,} rows are of nobody (pid -1) and left out")
    return notes


def read_table(
    spec: DatasetSpec, path: Path, image_dir: str = "", max_table_gb: float = MOST_GB, **options: Any
) -> RawSplits:
    """Reads rows of path, pid, split and, if known, camid, viewid, seq with frame and time, and a crop box.

    Ids may be text (see ``identifiers.canonical``); pid -1 is junk. Split ``test`` is query and gallery at once. With a
    ``camid`` column, gallery images of a query's identity and camera do not count, the image itself among them. Without
    one there is no camera filter (query 0, gallery 1), and an image is never its own match. A training row whose pid is
    empty, or a missing value such as ``nan``, is unlabelled. Training rows are sorted by path, the others keep their
    order. max_table_gb: size of the file at most.
    """
    header, lines, notes = table_lines(path, max_table_gb)
    long = {k for _, line in lines for k, v in line.items() if len(v) > LONGEST and k not in COLUMNS}
    layout = Layout.of(path, [name for name in header if name not in long], Path(image_dir or path.parent))
    splits: dict[str, list[RawRow]] = {"train": [], "query": [], "gallery": []}
    words, only_both = set(), True
    for number, line in lines:
        rows = layout.rows(number, line)
        for split, row in rows.items():
            splits[split].append(row)
        if rows:
            words |= {line["split"].lower()} & {"test", "query", "gallery"}
            only_both &= len(rows) == 2 or "train" in rows
    if "test" in words and words & {"query", "gallery"}:
        raise UserError(f"{path}: split 'test' is query and gallery at once; do not mix it with them")
    if not (splits["train"] or splits["query"]):
        raise UserError(f"{path}: no row with split train, query or test")
    among_themselves = only_both and bool(splits["query"])
    if among_themselves and "seq" not in header:
        for row in (*splits["query"], *splits["gallery"]):
            row.seq = None
    notes += spelling_notes(path, lines)
    if layout.unused:
        notes.append(f"{path}: nothing reads the columns {', '.join(layout.unused)}")
    if long:
        notes.append(f"{path}: the columns {', '.join(sorted(long))} are left out, with texts above {LONGEST} letters")
    return RawSplits(
        train=sorted(splits["train"], key=lambda row: row.path),
        query=splits["query"],
        gallery=splits["gallery"],
        same_list=among_themselves and "camid" not in header,
        notes=notes,
        listed=True,
    )
