"""Looking into folders and lists: sorted names without a stat per file, and a note of what was looked at."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

import numpy as np

from utils.errors import UserError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".webp")
_looked: ContextVar[set[str] | None] = ContextVar("looked", default=None)


@contextmanager
def watching() -> Iterator[set[str]]:
    """Inside, the set collects every folder and file that is read, whose state ``storage/cache.py`` keeps."""
    token = _looked.set(set())
    try:
        yield _looked.get()
    finally:
        _looked.reset(token)


def look(path: str | Path) -> Path:
    """Notes that what is read depends on this folder or file, whether or not it is there."""
    seen = _looked.get()
    if seen is not None:
        seen.add(str(path))
    return Path(path)


def is_image(name: str) -> bool:
    return name.lower().endswith(IMAGE_ENDINGS) and not name.startswith(".")


def image_files(folder: Path) -> list[str]:
    """Names of the image files in a folder, sorted; hidden files and other types are passed over."""
    with os.scandir(look(folder)) as entries:
        return sorted(e.name for e in entries if is_image(e.name))


def sub_folders(folder: Path) -> list[str]:
    """Names of the folders in a folder, sorted; hidden ones are passed over."""
    with os.scandir(look(folder)) as entries:
        return sorted(e.name for e in entries if not e.name.startswith(".") and e.is_dir())


def walk_images(folder: Path) -> np.ndarray:
    """Paths of all images at any depth, relative to the folder with /, sorted: (N,) of bytes, no object per name."""
    blocks, waiting = [], [""]
    while waiting:
        place = waiting.pop()
        names: list[bytes] = []
        with os.scandir(look(folder / place)) as entries:
            for entry in entries:
                if is_image(entry.name):
                    names.append(os.fsencode(place + entry.name))
                elif not entry.name.startswith(".") and entry.is_dir():
                    waiting.append(f"{place}{entry.name}/")
                if len(names) == 1 << 16:
                    blocks.append(np.array(names))
                    names = []
        if names:
            blocks.append(np.array(names))
    found = np.concatenate(blocks) if blocks else np.empty(0, "S1")
    found.sort()
    return found


def existing(folder: str | Path) -> str:
    if not os.path.isdir(folder):
        return "no such folder"
    return ", ".join(sorted(os.listdir(folder))[:6]) or "nothing"


def require(path: Path, what: str, spec) -> Path:
    """``path`` if it is there, else the line that says what is."""
    if not look(path).exists():
        place = next((p for p in path.parents if p.is_dir()), path.parent)
        name = path.relative_to(place).as_posix()
        raise UserError(f"{spec.name}: no {what} {name!r} in {place} (found: {existing(place)})")
    return path


def first_of(places: list[Path]) -> Path | None:
    """The first of the places that is there."""
    return next((place for place in places if look(place).exists()), None)


def read_lines(path: Path, spec, separator: str | None = None) -> list[list[str]]:
    """The words of each line of a list file that is not empty. separator: between words, None for white space."""
    try:
        lines = require(path, "list file", spec).read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{spec.name}: {path} is not a text file") from None
    words = [[word.strip() for word in line.split(separator)] for line in lines if line.strip()]
    if not words:
        raise UserError(f"{spec.name}: the list {path} is empty")
    return words


def table_of(path: Path, spec, columns: str, separator: str | None = None, skip: int = 0) -> list[list[str]]:
    """The lines of a list file as rows of named columns. columns: such as ``path label``; skip: lines of a header.

    Raises ``UserError`` naming the first line that has fewer words.
    """
    rows = read_lines(path, spec, separator)[skip:]
    for i, row in enumerate(rows, skip + 1):
        if len(row) < len(columns.split()):
            raise UserError(f"{spec.name}: {path}, line {i}: expected {columns!r}, found {' '.join(row)!r}")
    return rows
