"""Reads images to extract features of: any folder, a list of paths, or a table of paths with ids and crop boxes."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import numpy as np

from datasets.paths import Paths
from datasets.readers.scan import counted_endings, walk_images
from datasets.readers.table import LONGEST_PATH, box_of, id_in, refuse_part_of_a_box
from datasets.readers.text_table import BOX, IDS, ORDER, Lines, read_lines_of, require_columns, text_of
from datasets.records import Records
from utils.errors import UserError

log = logging.getLogger("lineup")

CUT = ("left", "top", "right", "bottom")
"""Where an image was cut out of a frame, in pixels."""
CARRIED = ("pid", "camid", "viewid", "seq", *ORDER, *BOX, *CUT, "quality")
"""Columns of a table that stay with its images."""

Carried = dict[str, list[str]]


def read_image_list(path: str | Path) -> tuple[Records, Carried]:
    """Reads the images of a folder at any depth (sorted), of a text file (a path per line) or of a .csv or .tsv table.

    Paths are relative to the file that names them, and are returned absolute. A table needs a column ``path``; its
    columns in ``CARRIED`` are returned as text beside the records, whose camids and viewids are -1 where unknown.
    Raises ``UserError`` if there is no image, or a table's line is wrong.
    """
    path = Path(os.path.abspath(path))
    if path.is_dir():
        with counted_endings() as left_out:
            names = walk_images(path)
        for line in left_out:
            log.warning("%s: %s", path, line)
        if not len(names):
            raise UserError(f"{path}: no images in it")
        return without_ids(Paths.of_names(names, str(path))), {}
    if not path.is_file():
        raise UserError(f"{path}: no such folder, list or table of images")
    if path.suffix in (".csv", ".tsv"):
        return read_table_of_images(path)
    lines = [line.strip() for line in text_of(path).split("\n") if line.strip()]
    if any(len(line) > LONGEST_PATH for line in lines):
        raise UserError(f"{path}: not a list of paths, it has lines of more than {LONGEST_PATH:,} letters")
    paths = [str(path.parent / line) for line in lines]
    if not paths:
        raise UserError(f"{path}: the list is empty")
    return without_ids(Paths.of(paths)), {}


def without_ids(paths: Paths) -> Records:
    """Returns a list whose identities, cameras and views are unknown (-1)."""
    unknown = np.full(len(paths), -1)
    return Records.of(paths, unknown, unknown, unknown)


def read_table_of_images(path: Path) -> tuple[Records, Carried]:
    """Reads a table with a column ``path`` (see ``read_image_list``)."""
    header, lines, notes = read_lines_of(path)
    for note in notes:
        log.warning(note)
    require_columns(path, header, ("path",))
    refuse_part_of_a_box(path, header)
    if not lines:
        raise UserError(f"{path}: no row of an image")
    for number, line in lines:
        where = f"{path}, line {number}"
        if not line["path"] or len(line["path"]) > LONGEST_PATH:
            raise UserError(f"{where}: path must not be empty, nor longer than {LONGEST_PATH:,} letters")
        line |= {name: id_in(line, name, where) for name in IDS if name in line}
    paths = [str(path.parent / line["path"]) for _, line in lines]
    boxes = None
    if BOX[0] in header:
        crops = (box_of(line, f"{path}, line {number}") for number, line in lines)
        boxes = np.array([crop or (0, 0, 0, 0) for crop in crops], np.int32)
    pids = np.full(len(lines), -1)
    records = Records.of(paths, pids, numbers(lines, "camid"), numbers(lines, "viewid"), boxes=boxes)
    return records, {name: [line[name] for _, line in lines] for name in CARRIED if name in header}


def numbers(lines: Lines, column: str) -> np.ndarray:
    """Returns a column as (N,) int64, -1 for what is empty or not a number."""
    words = (line.get(column, "") for _, line in lines)
    return np.array([int(word) if word.isdecimal() else -1 for word in words], np.int64)
