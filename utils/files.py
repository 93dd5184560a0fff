"""Files that are written whole or not at all."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any, TextIO

from utils.errors import UserError, reason_of
from utils.processes import host_name, is_gone

TEMPORARY = re.compile(r"\..*\.lineup-(?P<host>[\w-]+)-(?P<pid>\d{1,10})-\w{8}", re.DOTALL)
"""Names of files that are being written: behind a dot the name to come, then the machine and process that write."""


def write_atomically(path: str | Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Writes through a temporary file beside ``path``, made durable, then renamed over it.

    write: puts the content into the open file. Raises ``UserError`` if the folder has no room or cannot be written to.
    """
    path = Path(path)
    temporary = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        prefix = f".{os.fsdecode(os.fsencode(path.name)[:150])}.lineup-{_plain(host_name())}-{os.getpid()}-"
        with tempfile.NamedTemporaryFile("wb", dir=path.parent, prefix=prefix, delete=False) as handle:
            temporary = Path(handle.name)
            write(handle)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException as error:
        if temporary is not None:
            temporary.unlink(missing_ok=True)
        if not isinstance(error, OSError | RuntimeError) or "DataLoader" in str(error):
            raise  # torch reports a dead worker as a RuntimeError, wherever the process is
        where = f"{path}: could not be written"
        raise UserError(f"{where} ({_why(error)}); OUTPUT_DIR needs room and permission") from None


def _why(error: BaseException) -> str:
    """Returns the system's words for a failed write, which torch puts behind an error of its own."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            return cause.strerror
        cause = cause.__context__
    return reason_of(error)


def sha256_of(path: Path) -> bytes:
    """Returns the SHA-256 of a file, 32 bytes."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").digest()


def remove_left_over(folder: Path, gone: Collection[tuple[str, int]] = ()) -> int:
    """Removes the temporary files in ``folder`` whose process was killed while it wrote; returns their number.

    gone: (machine, process) of further processes that are known to have ended; of another machine nothing else is
    known, and its files stay.
    """
    ended, removed = {(_plain(host), pid) for host, pid in gone}, 0
    for path in folder.iterdir():
        match = TEMPORARY.fullmatch(path.name)
        if match is None:
            continue
        owner = match["host"], int(match["pid"])
        host = host_name() if owner[0] == _plain(host_name()) else ""
        with suppress(FileNotFoundError):  # its process has finished it meanwhile
            if owner in ended or is_gone(host, owner[1], path.stat().st_mtime):
                path.unlink()
                removed += 1
    return removed


def _plain(host: str) -> str:
    """Returns a machine's name as it stands in file names."""
    return re.sub(r"[^A-Za-z0-9-]", "_", host)[:40]


def copy_files(folder: Path, out: Path, last: str) -> None:
    """Copies the files of a folder into another, each whole or not at all. last: the one that stands for the others."""
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(folder.iterdir(), key=lambda file: file.name == last):
        shutil.copyfile(file, out / f".{file.name}")
        (out / f".{file.name}").replace(out / file.name)


def write_text(path: str | Path, text: str) -> None:
    """Writes UTF-8 text through ``write_atomically``; file names that are not UTF-8 keep their bytes."""
    write_lines(path, [text])


def write_lines(path: str | Path, lines: Iterable[str]) -> None:
    """Writes UTF-8 lines, which bring their own line ends, one by one through ``write_atomically``."""

    def write(handle: IO[bytes]) -> None:
        with as_text(handle) as text:
            text.writelines(lines)

    write_atomically(path, write)


def write_json(path: str | Path, value: Any) -> None:
    """Writes indented JSON and a final line end through ``write_atomically``."""
    write_text(path, json.dumps(value, indent=2) + "\n")


def write_csv(path: str | Path, columns: Sequence[str], rows: Iterable[Sequence]) -> None:
    """Writes a CSV file with a header, row by row through ``write_atomically``."""

    def write(handle: IO[bytes]) -> None:
        with as_text(handle) as text:
            writer = csv.writer(text, lineterminator="\n")
            writer.writerow(columns)
            writer.writerows(rows)

    write_atomically(path, write)


@contextmanager
def as_text(handle: IO[bytes]) -> Iterator[TextIO]:
    """Gives a binary file as UTF-8 text; the file stays open."""
    text = io.TextIOWrapper(handle, "utf-8", "surrogateescape", newline="", write_through=True)
    try:
        yield text
    finally:
        text.detach()
