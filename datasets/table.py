"""Your own data as one table: ``DATASETS.NAMES: csv`` (``docs/your_data.md``)."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

from datasets.records import RawSplits, Row
from utils.errors import UserError

log = logging.getLogger("lineup")

COLUMNS = ("path", "pid", "camid", "viewid", "split")
SPLIT_WORDS = ("train", "query", "gallery", "test", "val", "ignore")


def find_table(root: str | Path, file: str = "") -> Path:
    """The table: DATASETS.FILE, or DATASETS.ROOT_DIR itself, or ``dataset.csv`` / ``.tsv`` in it."""
    root = Path(root)
    tried = [Path(file), root / file] if file else [root, root / "dataset.csv", root / "dataset.tsv"]
    for path in tried:
        if path.is_file():
            return path
    raise UserError(f"csv: no table found (looked for {', '.join(map(str, tried))}); set DATASETS.FILE to it")


def table_lines(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """The names of the columns, and each row with its line number in the file."""
    try:
        with open(path, newline="", encoding="utf-8-sig") as handle:
            reader = csv.DictReader(handle, delimiter="\t" if path.suffix == ".tsv" else ",")
            header = ["viewid" if name.strip() == "view" else name.strip() for name in reader.fieldnames or ()]
            reader.fieldnames = header
            lines = [(reader.line_num, {k: (v or "").strip() for k, v in line.items() if k}) for line in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a table in UTF-8 ({error})") from None
    missing = [name for name in ("path", "pid", "split") if name not in header]
    if missing:
        raise UserError(
            f"{path}: no column {missing[0]!r} (found: {', '.join(header) or 'nothing'}); a header line is needed"
        )
    unused = [name for name in header if name not in COLUMNS]
    if unused:
        log.warning("%s: nothing reads the columns %s", path, ", ".join(unused))
    return header, lines


def read_table(spec, path: Path, image_dir: str = "", **options) -> RawSplits:
    """Rows of path, pid, split and, if known, camid and viewid; ids may be text; pid -1 is junk.

    Without a ``camid`` column the camera filter is off (query 0, gallery 1). Split ``test`` is query and gallery at
    once, an image never its own match. Training rows are sorted by path, the others keep their order.
    """
    folder = Path(image_dir) if image_dir else path.parent
    header, lines = table_lines(path)
    needed = [name for name in ("path", "pid", "camid") if name in header]
    found, tested = RawSplits(), False
    for number, line in lines:
        word = line["split"].lower()
        if word not in SPLIT_WORDS:
            raise UserError(f"{path}, line {number}: split {line['split']!r} is none of {', '.join(SPLIT_WORDS)}")
        empty = [name for name in needed if not line[name]]
        if empty:
            raise UserError(f"{path}, line {number}: {empty[0]} must not be empty")
        if word in ("val", "ignore") or line["pid"] == "-1":
            continue
        tested |= word == "test"
        for split in ("query", "gallery") if word == "test" else (word,):
            camera = line.get("camid", int(split == "gallery"))
            row = Row(str(folder / line["path"]), line["pid"], camera, line.get("viewid") or "0")
            getattr(found, split).append(row)
    if tested and any(line["split"].lower() in ("query", "gallery") for _, line in lines):
        raise UserError(f"{path}: split 'test' stands for query and gallery at once; do not mix it with them")
    found.same_list = tested
    found.train.sort(key=lambda row: row.path)
    if not (found.train or found.query):
        raise UserError(f"{path}: no row with split train, query or test")
    return found
