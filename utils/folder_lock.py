"""A run's folder in the hands of one run at a time, and without what killed ones left in it.

The lock is a record lock (``fcntl.lockf``) on the file ``.lock``. The system releases it when the process ends, however
it ends; forked workers do not inherit it; and it works across machines on network file systems that support locks.
Where they do not, runs on one machine still see each other by the process number in the file, runs on two machines do
not.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path

from utils.errors import UserError
from utils.files import remove_left_over
from utils.processes import host_name, is_gone

NAME = ".lock"
MOST = 2000
"""Bytes of the file that are read."""


@dataclass(frozen=True)
class Holder:
    """Who works in a folder. command: the program's name. since: an ISO time in UTC."""

    host: str
    pid: int
    command: str
    since: str

    @classmethod
    def here(cls) -> Holder:
        """Returns this process."""
        now = datetime.now(UTC).isoformat(sep=" ", timespec="seconds")
        return cls(host_name(), os.getpid(), Path(sys.argv[0] or "python").name, now)

    @classmethod
    def read(cls, descriptor: int) -> Holder | None:
        """Returns what a lock file says, None if it says nothing that can be understood."""
        try:
            content = json.loads(os.pread(descriptor, MOST, 0))
            holder = cls(*(kind(content[name]) for name, kind in _FIELDS.items()))
        except (OSError, ValueError, TypeError, KeyError, RecursionError, OverflowError):
            return None
        return holder if all(str(value).isprintable() for value in vars(holder).values()) else None

    def __str__(self) -> str:
        return f"{self.command} on {self.host} (process {self.pid}, since {self.since})"


_FIELDS = {"host": str, "pid": int, "command": str, "since": str}


@contextmanager
def sole_user(folder: str | Path, key: str = "OUTPUT_DIR") -> Iterator[int]:
    """Keeps other runs out of a folder, which is made if it is missing, and gives the number of files it removed there.

    These are the half-written files of killed processes. key: the setting that named the folder. Raises ``UserError``
    if another run has the folder or it cannot be written. A process that has it already must not ask for it again.
    """
    folder = Path(folder)
    lock, removed = _take(folder, key)
    try:
        yield removed
    finally:
        (folder / NAME).unlink(missing_ok=True)  # while it is held: nobody loses a file that he has locked
        os.close(lock)


def _take(folder: Path, key: str) -> tuple[int, int]:
    """Returns the descriptor of the locked file, and the number of half-written files that it removed."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor, before = _locked(folder / NAME, key)
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(asdict(Holder.here())).encode(), 0)
        gone = {(before.host, before.pid)} if before else set()
        return descriptor, sum(remove_left_over(path, gone) for path in (folder, *_readable_folders(folder)))
    except OSError as error:
        raise UserError(
            f"{key}: {folder} cannot be written ({error.strerror}); set {key} elsewhere"
        ) from None


def _readable_folders(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.is_dir() and os.access(path, os.R_OK | os.W_OK | os.X_OK)]


def _locked(path: Path, key: str) -> tuple[int, Holder | None]:
    """Returns the descriptor of the file, locked, and who had the lock before and did not live to release it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            before = Holder.read(descriptor)
            if not _lock(descriptor, before):
                raise UserError(
                    f"{key}: {path.parent} is in use by {before or 'another process'}; wait until it ends, or set "
                    f"another {key}"
                )
            if path.exists() and os.path.samestat(os.stat(path), os.fstat(descriptor)):
                return descriptor, Holder.read(descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # its holder has removed it meanwhile: the next one in line makes a new file


def _lock(descriptor: int, named: Holder | None) -> bool:
    """Takes the lock if it is free and returns whether it was. named: who the file says has it."""
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        here = named is not None and named.host == host_name()  # locks are not supported
        return named is None or not here or is_gone(named.host, named.pid, os.fstat(descriptor).st_mtime)
    return True
