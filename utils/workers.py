"""Processes that load images: what a failure of theirs means, in one line.

A worker that cannot hand over a batch would print a traceback and go on, and training would wait for the batch without
end. It ends instead and leaves the cause in a byte that it shares with the training process, where torch then raises an
error.
"""

from __future__ import annotations

import errno
import mmap
import os
import re
import resource
import shutil
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn

from utils.errors import UserError

UNKNOWN, NO_ROOM, NO_FILES = 0, 1, 2
"""Causes: no room in shared memory, no file descriptor left."""

SHARED_MEMORY, OPEN_FILES = "/dev/shm", "/proc/self/fd"
LOCKS = 5 * 4096
"""Bytes of shared memory that the locks of a worker take, and those of their common queue: a page each."""
FILES, FILES_OF_WORKER, FILES_OF_BATCH = 8, 4, 5
"""Open files of the common queue and for passing batches on; of each worker; and of a batch, one for each tensor."""
FEW_FILES = 256
"""A limit of open files below which a lost connection to a worker is put down to it."""

_cause = mmap.mmap(-1, 1)  # forked workers share it


def cause_of(error: BaseException) -> int:
    """Returns why a batch could not be handed over."""
    number, text = getattr(error, "errno", None), str(error)
    if number in (errno.EMFILE, errno.ENFILE) or "Too many open files" in text or "(24)" in text:
        return NO_FILES
    return NO_ROOM if number == errno.ENOSPC or "No space left" in text or "shared memory" in text else UNKNOWN


def end_worker(error: BaseException, batch: object = None) -> NoReturn:
    """Ends a worker that cannot hand over a batch."""
    _cause[0] = cause_of(error)
    os._exit(1)


def worker_mistake(message: str) -> str:
    """Returns the line for torch's errors about workers, '' for any other message."""
    if "Too many open files" in message or "ancdata" in message:
        return too_many_files()
    if "DataLoader timed out" in message:
        seconds = re.search(r"after ([\d.]+) seconds", message)
        return (
            f"DATALOADER.TIMEOUT: no batch for {seconds[1] if seconds else 'too many'} seconds: the images' storage "
            "does not answer, loading takes longer (set it higher; 0: no end), or the system has too little "
            f"for workers ({shared_memory()}; {open_files()} open files allowed): DATALOADER.NUM_WORKERS 0 starts none"
        )
    if "DataLoader worker" not in message or "Caught " in message:
        return ""
    if _cause[0] == NO_FILES:
        return too_many_files()
    if _cause[0] == NO_ROOM or "Bus error" in message:
        return too_little_room()
    if "Killed" in message:
        return (
            "a process that loads images was killed, most likely by the system for lack of memory: lower "
            "DATALOADER.NUM_WORKERS or DATALOADER.CACHE_GB"
        )
    signal = re.search(r"killed by signal: ([\w ]+)", message)
    how = f"was ended by a signal ({signal[1]})" if signal else "has ended"
    return f"a process that loads images {how}; with DATALOADER.NUM_WORKERS 0 there are none, and an error says more"


def forget_workers() -> None:
    """Keeps torch from raising its error about a worker once more for each that ends while the first is reported."""
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)


def require_room(workers: int, batches: int, batch_bytes: int) -> None:
    """Raises ``UserError`` if workers that are about to start cannot have the shared memory or the files they need.

    Such workers die in many ways, some of which leave tracebacks. Counted is what they need at least: their locks, and
    one batch each. batches: how many will be loaded. batch_bytes: size of one, as far as it is known.
    """
    held = min(workers, batches)
    files = FILES + workers * FILES_OF_WORKER + held * FILES_OF_BATCH
    room = (1 + workers) * LOCKS + held * batch_bytes
    with suppress(OSError):  # a system without this folder
        if open_files() < files + len(os.listdir(OPEN_FILES)) - 1:  # the listing itself is one
            raise UserError(too_many_files(f", and {workers} workers need {files} more"))
    with suppress(OSError):  # a system that has its shared memory elsewhere
        if shutil.disk_usage(SHARED_MEMORY).free < room:
            raise UserError(too_little_room(f", and {workers} workers need {in_words(room)} at least"))


@contextmanager
def lost_workers_named() -> Iterator[None]:
    """Turns the errors of a connection to workers, or of starting them, into the ``UserError`` with their cause."""
    try:
        yield
    except (ConnectionError, EOFError):
        line = worker_mistake("DataLoader worker has ended")
        raise UserError(too_many_files() if open_files() < FEW_FILES else line) from None
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename:
            raise
        raise UserError(too_little_room()) from None


def too_little_room(more: str = "") -> str:
    """Returns the line for shared memory that is too small. more: what is needed."""
    return (
        f"DATALOADER.NUM_WORKERS: batches of the workers do not fit into shared memory: {shared_memory()}{more}. Give "
        "a container more (docker run --shm-size 2g), or set fewer workers (DATALOADER.NUM_WORKERS 0: none)"
    )


def too_many_files(more: str = "") -> str:
    """Returns the line for a limit of open files that is too low. more: what is needed."""
    return (
        f"too many open files: the limit of this shell is {open_files()}{more}; raise it (ulimit -n 4096), or set "
        "fewer workers (DATALOADER.NUM_WORKERS 0: none)"
    )


def open_files() -> int:
    """Returns how many files this process may have open."""
    return resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def shared_memory() -> str:
    """Returns the size of shared memory, in words."""
    try:
        usage = shutil.disk_usage(SHARED_MEMORY)
    except OSError:
        return "the system has no shared memory"
    return f"{SHARED_MEMORY} has {in_words(usage.total)}, {in_words(usage.free)} free"


def in_words(size: int) -> str:
    """Returns a number of bytes with a unit."""
    for unit, bytes_of in (("GB", 10**9), ("MB", 10**6)):
        if size >= bytes_of:
            return f"{size / bytes_of:.1f} {unit}"
    return f"{size / 1e3:.0f} kB"


def usable_cores(processes: int) -> int:
    """Returns the cores that this process may use when the machine is shared by several training processes."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(cores // max(processes, 1), 1)
