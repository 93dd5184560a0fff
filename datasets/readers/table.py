"""Your own data as one table: ``DATASETS.NAMES: csv`` (``docs/your_data.md``)."""

from __future__ import annotations

import csv
import json
import logging
from pathlib import Path

from datasets.readers.scan import look
from datasets.records import RawRow, RawSplits
from utils.errors import UserError

log = logging.getLogger("lineup")

BOX = ("x1", "y1", "x2", "y2")
COLUMNS = ("path", "pid", "camid", "viewid", "split", "seq", *BOX, "is_query", "is_gallery")
OTHER_NAMES = {"view": "viewid", "label": "pid", "sequence": "seq", "x_1": "x1", "y_1": "y1", "x_2": "x2", "y_2": "y2"}
"""Names of columns that mean one of ours; most are open-metric-learning's."""
SPLIT_WORDS = ("train", "query", "gallery", "test", "val", "ignore", "validation")
TRUE, FALSE = ("true", "1", "1.0", "yes"), ("false", "0", "0.0", "no", "", "none", "nan")


def find_table(root: str | Path, file: str = "") -> Path:
    """The table: DATASETS.FILE, or DATASETS.ROOT_DIR itself, or ``dataset.csv`` / ``.tsv`` / ``.jsonl`` in it."""
    root = Path(root)
    tried = [Path(file), root / file] if file else [root, *(root / f"dataset.{e}" for e in ("csv", "tsv", "jsonl"))]
    for path in tried:
        if path.is_file():
            return path
    raise UserError(f"csv: no table found (looked for {', '.join(map(str, tried))}); set DATASETS.FILE to it")


Lines = list[tuple[int, dict[str, str]]]


def table_lines(path: Path) -> tuple[list[str], Lines]:
    """The names of the columns, and each row with its line number in the file."""
    look(path)
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
    return OTHER_NAMES.get(name.strip(), name.strip())


def csv_lines(path: Path) -> tuple[list[str], Lines]:
    with open(path, newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle, delimiter="\t" if path.suffix == ".tsv" else ",")
        reader.fieldnames = header = [column_name(name) for name in reader.fieldnames or ()]
        return header, [(reader.line_num, {k: (v or "").strip() for k, v in row.items() if k}) for row in reader]


def json_lines(path: Path) -> tuple[list[str], Lines]:
    """An object a line. Numbers and true become text, null is empty."""
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
    word = line.get(column, "").lower()
    if word not in TRUE + FALSE:
        raise UserError(f"{where}: {column} {line[column]!r} is neither true nor false")
    return word in TRUE


def splits_of(line: dict[str, str], where: str, marked: bool) -> tuple[str, ...]:
    """Where a row belongs. marked: ``is_query`` and ``is_gallery`` say it for split ``validation``."""
    word = line["split"].lower()
    if word not in SPLIT_WORDS:
        raise UserError(f"{where}: split {line['split']!r} is none of {', '.join(SPLIT_WORDS[:6])}")
    if word in ("validation", "val") and marked:
        return tuple(split for split in ("query", "gallery") if flag(line, f"is_{split}", where))
    if word == "test":
        return "query", "gallery"
    return () if word in ("val", "validation", "ignore") else (word,)


def box_of(line: dict[str, str], where: str) -> tuple[int, int, int, int] | None:
    words = [line[name] for name in BOX]
    if not any(words):
        return None
    try:
        left, top, right, bottom = (round(float(word)) for word in words)
    except ValueError:
        raise UserError(f"{where}: the crop box {', '.join(words)} is no four numbers") from None
    if not (0 <= left < right and 0 <= top < bottom):
        raise UserError(f"{where}: the crop box {', '.join(words)} is empty or begins outside of the image")
    return left, top, right, bottom


def read_table(spec, path: Path, image_dir: str = "", **options) -> RawSplits:
    """Rows of path, pid, split and, if known, camid, viewid, seq and a crop box; ids may be text; pid -1 is junk.

    Without a ``camid`` column the camera filter is off (query 0, gallery 1). Split ``test`` is query and gallery at
    once, an image never its own match. A training row without a pid is unlabelled. Training rows are sorted by path,
    the others keep their order.
    """
    folder = Path(image_dir) if image_dir else path.parent
    header, lines = table_lines(path)
    needed = [name for name in ("path", "pid", "camid") if name in header]
    unused = [name for name in header if name not in COLUMNS]
    marked, boxed = "is_query" in header and "is_gallery" in header, BOX[0] in header
    found, words, twice, rows_tested = RawSplits(listed=True), set(), set(), 0
    if unused:
        found.notes.append(f"{path}: nothing reads the columns {', '.join(unused)}")
    for number, line in lines:
        where = f"{path}, line {number}"
        splits = splits_of(line, where, marked)
        empty = [name for name in needed if not line[name] and not (name == "pid" and splits == ("train",))]
        if empty:
            raise UserError(f"{where}: {empty[0]} must not be empty")
        if not splits or line["pid"] == "-1":
            continue
        words |= {line["split"].lower()} & {"test", "query", "gallery"}
        rows_tested += splits != ("train",)
        twice |= {number} if len(splits) == 2 else set()
        extra = {name: line[name] for name in unused} or None
        box, seq = box_of(line, where) if boxed else None, line.get("seq") or None
        for split in splits:
            camera = line.get("camid", int(split == "gallery"))
            seq = f"row {number}" if seq is None and number in twice else seq  # never its own match
            place = str(folder / line["path"])
            row = RawRow(place, line["pid"] or None, camera, line.get("viewid") or "0", seq, box, extra)
            getattr(found, split).append(row)
    if "test" in words and words & {"query", "gallery"}:
        raise UserError(f"{path}: split 'test' stands for query and gallery at once; do not mix it with them")
    found.same_list = bool(rows_tested) and len(twice) == rows_tested
    if found.same_list and "seq" not in header:
        for row in (*found.query, *found.gallery):
            row.seq = None
    found.train.sort(key=lambda row: row.path)
    if not (found.train or found.query):
        raise UserError(f"{path}: no row with split train, query or test")
    return found
