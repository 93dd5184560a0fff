"""Folders of built-in data appear whole or not at all."""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Callable
from pathlib import Path

from utils.errors import UserError


def made_whole(name: str, folder: Path, make: Callable[[Path], None]) -> Path:
    """Returns ``folder``, filled first if it is not there: beside its place, then renamed.

    make: fills the empty folder that it is given. Several processes may ask at once, with the same content. Raises
    ``UserError`` if the data cannot be written. name: of the set, for that message.
    """
    if folder.is_dir():
        return folder
    draft = folder.with_name(f".{folder.name}.{uuid.uuid4().hex[:8]}")
    try:
        draft.mkdir(parents=True)
        make(draft)
        _put_in_place(draft, folder)
    except OSError as error:
        raise UserError(f"{name}: cannot write the built-in data to {folder}: {error.strerror or error}") from error
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return folder


def _put_in_place(draft: Path, folder: Path) -> None:
    try:
        os.rename(draft, folder)
    except OSError:
        # Another process was first, with the same files: ours goes.
        if not folder.is_dir():
            raise
