"""Files that are written whole or not at all."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from utils.errors import UserError


def write_atomically(path: str | Path, write: Callable[[Any], None]) -> None:
    """Writes through a temporary file beside ``path``, made durable, then renamed over it."""
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=f".{path.name}.", delete=False) as handle:
            temporary = Path(handle.name)
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError | RuntimeError):
            raise
        reason = getattr(error, "strerror", None) or " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: could not be written ({reason}); OUTPUT_DIR needs room and permission") from None


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text through ``write_atomically``."""
    write_atomically(path, lambda handle: handle.write(text.encode()))


def write_json(path: str | Path, value: Any) -> None:
    """Writes indented JSON and a final line end through ``write_atomically``."""
    write_text(path, json.dumps(value, indent=2) + "\n")
