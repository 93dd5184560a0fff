"""Your own data as one table: ``DATASETS.NAMES: csv`` (``docs/your_data.md``)."""

from __future__ import annotations

import csv
from pathlib import Path

from datasets.records import RawSplits, Row
from utils.errors import UserError

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


def read_table(spec, path: Path, image_dir: str = "", **options) -> RawSplits:
    """Rows of path, pid, split and, if known, camid and viewid; ids may be text; pid -1 is junk.

    Without a ``camid`` column the camera filter is off (query 0, gallery 1). Split ``test`` is query and gallery at
    once, an image never its own match. Training rows are sorted by path, the others keep their order.
    """
    folder = Path(image_dir) if image_dir else path.parent
    with open(path, newline="", encoding="utf-8-sig") as handle:
        reader = csv.DictReader(handle, delimiter="\t" if path.suffix == ".tsv" else ",")
        header = [name.strip() for name in reader.fieldnames or ()]
        reader.fieldnames = ["viewid" if name == "view" else name for name in header]
        missing = [name for name in ("path", "pid", "split") if name not in header]
        if missing:
            raise UserError(
                f"{path}: no column {missing[0]!r} (found: {', '.join(header) or 'nothing'}); a header line is needed"
            )
        table = list(reader)
    found, cameras = RawSplits(), "camid" in header
    tested = []
    for number, line in enumerate(table, 2):
        line = {k: (v or "").strip() for k, v in line.items() if k}
        word = line["split"].lower()
        if word not in SPLIT_WORDS:
            raise UserError(f"{path}, line {number}: split {line['split']!r} is none of {', '.join(SPLIT_WORDS)}")
        if not line["path"] or not line["pid"]:
            raise UserError(f"{path}, line {number}: path and pid must not be empty")
        if word in ("val", "ignore") or line["pid"] == "-1":
            continue
        camera = line["camid"] if cameras else int(word == "gallery")
        row = Row(str(folder / line["path"]), line["pid"], camera, line.get("viewid") or 0)
        (tested if word == "test" else getattr(found, word)).append(row)
    if tested and (found.query or found.gallery):
        raise UserError(f"{path}: split 'test' stands for query and gallery at once; do not mix it with them")
    if tested:
        found.query, found.gallery, found.same_list = tested, list(tested), True
    found.train.sort(key=lambda row: row.path)
    if not (found.train or found.query):
        raise UserError(f"{path}: no row with split train, query or test")
    return found
