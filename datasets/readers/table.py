"""Your own data as one table: ``DATASETS.NAMES: csv`` (``docs/your_data.md``)."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datasets.catalogue.spec import DatasetSpec
from datasets.readers.scan import note_read
from datasets.records import RawRow, RawSplits
from utils.errors import UserError

BOX = ("x1", "y1", "x2", "y2")
COLUMNS = ("path", "pid", "camid", "viewid", "split", "seq", *BOX, "is_query", "is_gallery")
OTHER_NAMES = {"view": "viewid", "label": "pid", "sequence": "seq", "x_1": "x1", "y_1": "y1", "x_2": "x2", "y_2": "y2"}
"""Names of columns that mean one of ours; most are open-metric-learning's."""
SPLIT_WORDS = ("train", "query", "gallery", "test", "val", "ignore", "validation")
TRUE, FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no", "", "none", "nan")


def find_table(root: str | Path, file: str = "") -> Path:
    """Returns the table: DATASETS.FILE, or DATASETS.ROOT_DIR itself, or ``dataset.csv`` / ``.tsv`` / ``.jsonl`` in it.

    Raises ``UserError`` that names every file that was tried.
    """
    root = Path(root)
    tried = [Path(file), root / file] if file else [root, *(root / f"dataset.{e}" for e in ("csv", "tsv", "jsonl"))]
    for path in tried:
        if path.is_file():
            return path
    raise UserError(f"csv: no table found (looked for {', '.join(map(str, tried))}); set DATASETS.FILE to it")


Lines = list[tuple[int, dict[str, str]]]
"""The rows of a table: line number in the file, and column -> text."""


def table_lines(path: Path) -> tuple[list[str], Lines]:
    """Returns the names of the columns, and the rows. Raises ``UserError`` for what is not such a table."""
    note_read(path)
    try:
        header, lines = json_lines(path) if path.suffix == ".jsonl" else csv_lines(path)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table in UTF-8 ({error})") from None
    missing = [name for name in ("path", "pid", "split") if name not in header]
    if missing:
        raise UserError(
            f"{path}: no column {missing[0]!r} (found: {', '.join(header) or 'nothing'}); a header line is needed"
        )
    boxes = [name for name in BOX if name in header]
    if boxes and len(boxes) < len(BOX):
        raise UserError(f"{path}: a crop box needs all of {', '.join(BOX)}; found only {', '.join(boxes)}")
    return header, lines


def column_name(name: str) -> str:
    """Returns the name that a column has here."""
    return OTHER_NAMES.get(name.strip(), name.strip())


def csv_lines(path: Path) -> tuple[list[str], Lines]:
    """Returns the names of the columns and the rows of a .csv or .tsv file, every value as text."""
    with open(path, newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle, delimiter="\t" if path.suffix == ".tsv" else ",")
        header = [column_name(name) for name in reader.fieldnames or ()]
        reader.fieldnames = header
        return header, [(reader.line_num, {k: (v or "").strip() for k, v in row.items() if k}) for row in reader]


def json_lines(path: Path) -> tuple[list[str], Lines]:
    """Returns columns and rows of a file with an object per line. Numbers and true become text, null is empty."""
    header: dict[str, None] = {}
    lines: Lines = []
    with open(path, encoding="utf-8-sig") as handle:
        for number, text in enumerate(handle, 1):
            if not text.strip():
                continue
            try:
                row = {column_name(k): "" if v is None else str(v).strip() for k, v in json.loads(text).items()}
            except (ValueError, AttributeError):
                raise UserError(f'{path}, line {number}: expected an object such as {{"path": ...}}') from None
            header |= dict.fromkeys(row)
            lines.append((number, row))
    return list(header), [(number, {name: row.get(name, "") for name in header}) for number, row in lines]


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
    """Returns left, top, right, bottom of the crop in pixels, None for the whole image."""
    words = [line[name] for name in BOX]
    if not any(words):
        return None
    try:
        left, top, right, bottom = (round(float(word)) for word in words)
    except ValueError:
        raise UserError(f"{where}: the crop box must be four numbers, got {', '.join(words)}") from None
    if not (0 <= left < right and 0 <= top < bottom):
        raise UserError(f"{where}: the crop box {', '.join(words)} is empty or begins outside of the image")
    return left, top, right, bottom


@dataclass(frozen=True)
class Layout:
    """What the header of a table says. folder: that paths are relative to. unused: columns that nothing reads.

    required: columns that must not be empty. marked: see ``splits_of``. boxed: rows have crop boxes.
    """

    path: Path
    folder: Path
    unused: list[str]
    required: list[str]
    marked: bool
    boxed: bool

    @classmethod
    def of(cls, path: Path, header: list[str], folder: Path) -> Layout:
        """Returns the layout of the table at ``path`` with these columns."""
        return cls(
            path=path,
            folder=folder,
            unused=[name for name in header if name not in COLUMNS],
            required=[name for name in ("path", "pid", "camid") if name in header],
            marked="is_query" in header and "is_gallery" in header,
            boxed=BOX[0] in header,
        )

    def rows(self, number: int, line: dict[str, str]) -> dict[str, RawRow]:
        """Returns split -> row for one line of the table; empty for a line that is left out."""
        where = f"{self.path}, line {number}"
        splits = splits_of(line, where, self.marked)
        empty = [name for name in self.required if not line[name] and not (name == "pid" and splits == ("train",))]
        if empty:
            raise UserError(f"{where}: {empty[0]} must not be empty")
        if line["pid"] == "-1":
            return {}
        extra = {name: line[name] for name in self.unused} or None
        box, seq = box_of(line, where) if self.boxed else None, line.get("seq") or None
        if len(splits) == 2 and seq is None:
            seq = f"row {number}"  # never its own match
        return {
            split: RawRow(
                path=str(self.folder / line["path"]),
                pid=line["pid"] or None,
                cam=line.get("camid", int(split == "gallery")),
                view=line.get("viewid") or "0",
                seq=seq,
                box=box,
                extra=extra,
            )
            for split in splits
        }


def read_table(spec: DatasetSpec, path: Path, image_dir: str = "", **options: Any) -> RawSplits:
    """Reads rows of path, pid, split and, if known, camid, viewid, seq and a crop box.

    Ids may be text; pid -1 is junk. Split ``test`` is query and gallery at once. With a ``camid`` column, gallery
    images of a query's identity and camera do not count, the image itself among them. Without one there is no camera
    filter (query 0, gallery 1), and an image is never its own match. A training row without a pid is unlabelled.
    Training rows are sorted by path, the others keep their order.
    """
    header, lines = table_lines(path)
    layout = Layout.of(path, header, Path(image_dir) if image_dir else path.parent)
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
    notes = [f"{path}: nothing reads the columns {', '.join(layout.unused)}"] if layout.unused else []
    return RawSplits(
        train=sorted(splits["train"], key=lambda row: row.path),
        query=splits["query"],
        gallery=splits["gallery"],
        same_list=among_themselves and "camid" not in header,
        notes=notes,
        listed=True,
    )
