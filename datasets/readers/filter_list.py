"""Lists that say which images of a large set are kept, best first (TransReID-SSL's CFS list, arXiv:2111.12084)."""

from __future__ import annotations

import os
import pickle
from itertools import islice
from pathlib import Path

import numpy as np

from datasets.readers.scan import is_image, note_read
from datasets.records import Records
from datasets.storage.files import own_name
from utils.errors import UserError
from utils.safe_pickle import UnsafePickle, load_restricted

BLOCK = 1 << 16
LONGEST = 4096
"""Bytes of a path: what systems open."""


def listed_names(path: str | Path, keep_num: int | None = None) -> np.ndarray:
    """Returns the first ``keep_num`` names of a list (None: all), (N,) of bytes; no object is held per name.

    The list is pickled, which its ending or its first byte shows, or has a name per line. Raises ``UserError`` for a
    file that is missing, empty or not a list.
    """
    path = note_read(path)
    if keep_num is not None and keep_num < 1:
        raise UserError(f"DATASETS.KEEP_NUM: must be at least 1, got {keep_num}")
    if not path.is_file():
        raise UserError(f"DATASETS.FILTER_PATH: {path}: no such file")
    blocks = []
    with open(path, "rb") as handle:
        pickled = path.suffix == ".pkl" or handle.read(1) == pickle.PROTO
        handle.seek(0)
        if pickled:
            names = unpickled(path)[:keep_num]
            for i in range(0, len(names), BLOCK):
                blocks.append(packed([encoded(name, path) for name in names[i : i + BLOCK]], path))
        else:
            lines = islice((line.strip() for line in handle if line.strip()), keep_num)
            while block := list(islice(lines, BLOCK)):
                blocks.append(packed(block, path))
    if not blocks:
        raise UserError(f"the list {path} is empty")
    return np.concatenate(blocks)


def encoded(name: str, path: Path) -> bytes:
    """Returns a name as the file system has it. Raises ``UserError`` for one that no file can have."""
    try:
        return os.fsencode(name)
    except UnicodeEncodeError:
        raise UserError(f"{path}: a name in it holds half of a surrogate pair, which no file can have") from None


def packed(names: list[bytes], path: Path) -> np.ndarray:
    """Returns names as an array, in which each takes as much room as the longest."""
    longest = max(map(len, names))
    if longest > LONGEST or any(b"\0" in name for name in names):
        raise UserError(f"{path} is not a list of names: one has {longest:,} bytes, or holds a NUL byte")
    return np.array(names)


def unpickled(path: Path) -> list[str]:
    """Returns the names of a pickled list; raises ``UserError`` for anything else."""
    try:
        names = load_restricted(path.read_bytes(), {})
    except UnsafePickle as error:
        raise UserError(f"{path} is not a pickled list of names ({error})") from None
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{path} is not a pickled list of names (it is not a list of texts)")
    return names


def relative_names(records: Records, root: str | Path) -> list[str]:
    """Returns the images' names as a list has them: relative to ``root``, with /."""
    start = f"{Path(root).as_posix()}/"
    return [own_name(path).removeprefix(start) for path in records.paths]


def keep_listed(records: Records, names: np.ndarray, root: str | Path) -> Records:
    """Returns the images that a list names, in the order of ``records``. names: (N,) of bytes, relative to ``root``.

    Raises ``UserError`` if the list names an image that is not among them.
    """
    rows = {name: row for row, name in enumerate(relative_names(records, root))}
    listed = [os.fsdecode(name) for name in names.tolist()]
    absent = [name for name in listed if name not in rows]
    if absent:
        example = f", such as {absent[0]!r}" if is_image(absent[0]) else ""  # not a line of somebody's secrets
        raise UserError(
            f"DATASETS.FILTER_PATH: {len(absent)} of {len(listed)} listed images are not among the training images"
            f"{example}; names are relative to {root}"
        )
    return records.take(np.unique([rows[name] for name in listed]))
