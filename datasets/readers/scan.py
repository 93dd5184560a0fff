"""Reads folders and list files: sorted names without a stat per file, and a record of what was read."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from utils.errors import UserError

if TYPE_CHECKING:
    from datasets.catalogue.spec import DatasetSpec

IMAGE_ENDINGS = (
    ".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".webp", ".jpe", ".jfif", ".gif", ".dib", ".pbm",
    ".pnm", ".jp2", ".tga", ".mpo",
    *((".avif",) if find_spec("PIL._avif") else ()),
    *((".heic", ".heif") if find_spec("pillow_heif") else ()),
)  # fmt: skip
"""Endings of the formats that are read (``storage/pixels.py``), as far as this Pillow reads them."""
_left_out: ContextVar[dict[str, Counter[str]] | None] = ContextVar("left_out", default=None)
_reads: ContextVar[set[str] | None] = ContextVar("reads", default=None)


@contextmanager
def recorded_reads() -> Iterator[set[str]]:
    """Inside, the set collects every folder and file that is read, whose state ``storage/cache.py`` keeps."""
    paths: set[str] = set()
    token = _reads.set(paths)
    try:
        yield paths
    finally:
        _reads.reset(token)


@contextmanager
def counted_endings() -> Iterator[list[str]]:
    """Afterwards the list holds a line on the files that were left out inside for their endings, if there were any."""
    lines: list[str] = []
    folders: dict[str, Counter[str]] = {}
    token = _left_out.set(folders)
    try:
        yield lines
    finally:
        _left_out.reset(token)
    counts = sum(folders.values(), Counter())
    if counts:
        shown = ", ".join(f"{ending} {count:,}" for ending, count in counts.most_common(6))
        plugin = "; pip install pillow-heif reads .heic" if counts.keys() & {".heic", ".heif"} else ""
        more = ", ..." if len(counts) > 6 else ""
        lines.append(f"{counts.total():,} files are left out, as their endings are no image's: {shown}{more}{plugin}")


def leave_out(folder: str | Path, names: Iterable[str]) -> None:
    """Counts files of a folder that are left out, by ending; hidden ones do not count."""
    folders = _left_out.get()
    if folders is not None:
        endings = (os.path.splitext(name)[1].lower() or "no ending" for name in names if not name.startswith("."))
        folders[str(folder)] = Counter(endings)


def note_read(path: str | Path) -> Path:
    """Records that what is read depends on this folder or file, whether or not it exists; returns the path."""
    paths = _reads.get()
    if paths is not None:
        paths.add(str(path))
    return Path(path)


def is_image(name: str) -> bool:
    """Returns whether a file name has an image's ending and is not hidden."""
    return name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")


def image_files(folder: Path) -> list[str]:
    """Returns the names of the image files in a folder, sorted; hidden files and other types are left out."""
    images, others = [], []
    with os.scandir(note_read(folder)) as entries:
        for entry in entries:
            if is_image(entry.name):
                images.append(entry.name)
            elif not entry.is_dir():
                others.append(entry.name)
    leave_out(folder, others)
    return sorted(images)


def sub_folders(folder: Path) -> list[str]:
    """Returns the names of the folders in a folder, sorted; hidden ones are left out."""
    with os.scandir(note_read(folder)) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())


def walk_images(folder: Path) -> np.ndarray:
    """Returns the paths of all images at any depth, relative to the folder with /, sorted: (N,) of bytes.

    No object is held per name.
    """
    blocks, waiting = [], [""]
    while waiting:
        below = waiting.pop()
        names: list[bytes] = []
        others: list[str] = []
        with os.scandir(note_read(folder / below)) as entries:
            for entry in entries:
                if is_image(entry.name):
                    names.append(os.fsencode(below + entry.name))
                elif not entry.name.startswith("."):
                    if entry.is_dir():
                        waiting.append(f"{below}{entry.name}/")
                    else:
                        others.append(entry.name)
                if len(names) == 1 << 16:
                    blocks.append(np.array(names))
                    names = []
        leave_out(folder / below, others)
        if names:
            blocks.append(np.array(names))
    paths = np.concatenate(blocks) if blocks else np.empty(0, "S1")
    paths.sort()
    return paths


def existing(folder: str | Path) -> str:
    """Returns what is in a folder, for a message: the first names, or that there is nothing."""
    if not os.path.isdir(folder):
        return "no such folder"
    return ", ".join(sorted(os.listdir(folder))[:6]) or "nothing"


def require(path: Path, what: str, spec: DatasetSpec) -> Path:
    """Returns ``path``; raises ``UserError`` that says what is there instead if it does not exist."""
    if not note_read(path).exists():
        parent = next((p for p in path.parents if p.is_dir()), path.parent)
        name = path.relative_to(parent).as_posix()
        raise UserError(f"{spec.name}: no {what} {name!r} in {parent} (found: {existing(parent)})")
    return path


def first_of(paths: Sequence[Path]) -> Path | None:
    """Returns the first of the paths that exists."""
    return next((path for path in paths if note_read(path).exists()), None)


def read_lines(path: Path, spec: DatasetSpec, separator: str | None = None) -> list[list[str]]:
    """Returns the words of each non-empty line of a list file. separator: between words, None for white space."""
    try:
        lines = require(path, "list file", spec).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{spec.name}: {path} is not a text file") from None
    words = [[word.strip() for word in line.split(separator)] for line in lines if line.strip()]
    if not words:
        raise UserError(f"{spec.name}: the list {path} is empty")
    return words


def table_of(
    path: Path, spec: DatasetSpec, columns: str, separator: str | None = None, skip: int = 0
) -> list[list[str]]:
    """Returns the lines of a list file as rows of named columns.

    columns: such as ``path label``; skip: lines of a header. Raises ``UserError`` naming the first line that has fewer
    words.
    """
    rows = read_lines(path, spec, separator)[skip:]
    for i, row in enumerate(rows, skip + 1):
        if len(row) < len(columns.split()):
            raise UserError(f"{spec.name}: {path}, line {i}: expected {columns!r}, found {' '.join(row)!r}")
    return rows
