"""Processes that load images: each way in which they fail ends at once, and in one line."""

from __future__ import annotations

import errno
import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from datasets.batches import TestLoader, one_thread
from datasets.loaders import num_workers
from datasets.records import Records
from tests.tiny import config, options
from utils import workers
from utils.commands import runtime_mistake
from utils.errors import UserError
from utils.files import write_atomically

ROOT = Path(__file__).resolve().parents[2]


class Unsendable:
    """A batch that fails where it is handed over."""

    def __init__(self, error: Exception):
        self.error = error

    def __reduce__(self):
        raise self.error


class Items(torch.utils.data.Dataset):
    def __init__(self, make):
        self.make = make

    def __len__(self):
        return 8

    def __getitem__(self, index):
        return self.make()


def first_batch(make, timeout: float = 60.0, workers: int = 2) -> str:
    """The line of the error that the first batches end in."""
    loader = DataLoader(
        Items(make), batch_size=1, num_workers=workers, collate_fn=lambda items: items[0], worker_init_fn=one_thread,
        timeout=timeout,
    )  # fmt: skip
    began = time.monotonic()
    with pytest.raises(RuntimeError) as error:
        list(loader)
    assert time.monotonic() - began < 30
    line = runtime_mistake(f"{error.value} {error.value.__cause__}")
    del error  # holds the loader's processes, which the garbage collector would wait 5 s each for
    return line


SENDING = {
    "no room": (RuntimeError("unable to write to file </torch_1>: No space left on device (28)"), "shared memory"),
    "no room, another text": (RuntimeError("unable to allocate shared memory(shm) for file"), "--shm-size"),
    "no room, from the system": (OSError(errno.ENOSPC, "No space left on device"), "shared memory"),
    "no descriptor": (OSError(errno.EMFILE, "Too many open files"), "too many open files: the limit of this shell is"),
    "no descriptor, by torch": (RuntimeError("unable to open shared memory: Too many open files (24)"), "ulimit -n"),
    "anything else": (ValueError("odd"), "a process that loads images has ended"),
}


@pytest.mark.parametrize("how", SENDING)
def test_a_batch_that_cannot_be_handed_over_ends_the_run(how, capfd):
    error, words = SENDING[how]
    line = first_batch(lambda: Unsendable(error))
    assert words in line and "DATALOADER.NUM_WORKERS" in line
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    ("number", "words"),
    [(signal.SIGKILL, "was killed, most likely"), (signal.SIGBUS, "shared memory"), (signal.SIGSEGV, "by a signal")],
)  # fmt: skip
def test_a_worker_ended_by_a_signal_is_one_line(number, words):
    assert words in first_batch(lambda: os.kill(os.getpid(), number))


@pytest.mark.slow
def test_a_batch_that_never_comes_is_one_line():
    line = first_batch(lambda: time.sleep(20), timeout=1, workers=1)
    assert line.startswith("DATALOADER.TIMEOUT: no batch for 1 seconds") and "/dev/shm has " in line


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_workers_stay_when_a_scheduler_signals_all_processes(number):
    def item():
        os.kill(os.getpid(), number)
        return torch.ones(2)

    loader = DataLoader(Items(item), batch_size=4, num_workers=2, worker_init_fn=one_thread)
    assert [batch.shape for batch in loader] == [(4, 2), (4, 2)]


def test_a_worker_s_death_inside_a_write_does_not_blame_the_disk(tmp_path):
    def write(handle):
        handle.write(b"half")
        raise RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")

    with pytest.raises(RuntimeError, match="killed by signal") as error:
        write_atomically(tmp_path / "last", write)
    assert "lack of memory" in runtime_mistake(str(error.value)) and not list(tmp_path.iterdir())


def test_other_errors_are_not_taken_for_workers():
    assert runtime_mistake("shape mismatch") == ""
    assert runtime_mistake("Caught ValueError in DataLoader worker process 0.") == ""


def test_no_more_workers_start_than_there_are_cores(market, tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda process: set(range(6)))
    assert [num_workers(config(market, tmp_path, DATALOADER__NUM_WORKERS=n)) for n in (0, 4, 8)] == [0, 4, 6]
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert [num_workers(config(market, tmp_path, DATALOADER__NUM_WORKERS=n)) for n in (0, 4, 8)] == [0, 1, 1]


@pytest.mark.parametrize(("free", "limit", "words"), [
    (0, 1024, "has 1.0 MB, 0 kB free, and 2 workers need 861 kB at least. Give a container more"),
    (800_000, 1024, "2 workers need 861 kB at least"), (900_000, 1024, ""),
    (900_000, 24, "the limit of this shell is 24, and 2 workers need 26 more; raise it"), (900_000, 36, ""),
])  # fmt: skip
def test_workers_without_room_or_files_are_not_started(free, limit, words, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(10**6, 10**6 - free, free))
    monkeypatch.setattr("os.listdir", lambda path: ["0"] * 11)
    monkeypatch.setattr(workers, "open_files", lambda: limit)
    if words:
        with pytest.raises(UserError, match=re.escape(words)):
            workers.require_room(2, batches=9, batch_bytes=400_000)
    else:
        workers.require_room(2, batches=9, batch_bytes=400_000)


def test_a_loader_looks_for_room_before_its_workers_start(monkeypatch):
    records, asked, before = Records.of(["a.jpg"] * 6, np.arange(6)), [], {*multiprocessing.active_children()}

    def refuse(*arguments):
        asked.append(arguments)
        raise UserError("no room")

    monkeypatch.setattr("datasets.batches.require_room", refuse)
    with pytest.raises(UserError, match="no room"):
        list(TestLoader(records, SimpleNamespace(size=(8, 4)), batch_size=4, workers=2))
    assert asked == [(2, 2, 4 * 3 * 8 * 4 * 4)] and {*multiprocessing.active_children()} <= before


@pytest.mark.parametrize(("error", "words"), [
    (ConnectionResetError(104, "Connection reset by peer"), "a process that loads images has ended"),
    (EOFError(), "a process that loads images has ended"),
    (OSError(errno.ENOSPC, "No space left on device"), "do not fit into shared memory"),
])  # fmt: skip
def test_connections_to_workers_that_break_are_one_line(error, words, monkeypatch):
    monkeypatch.setattr(workers, "_cause", bytearray(1))
    monkeypatch.setattr(workers, "open_files", lambda: 1024)
    with pytest.raises(UserError, match=words), workers.lost_workers_named():
        raise error
    monkeypatch.setattr(workers, "open_files", lambda: 28)
    if not isinstance(error, OSError) or error.errno != errno.ENOSPC:
        with pytest.raises(UserError, match="too many open files"), workers.lost_workers_named():
            raise error
    with pytest.raises(OSError, match="disk"), workers.lost_workers_named():
        raise OSError(errno.ENOSPC, "No space left on device", "/disk/full")


@pytest.mark.slow
def test_a_run_with_hardly_any_shared_memory_ends_in_one_line(market, tmp_path):
    script = 'mount -t tmpfs -o size=64k tmpfs /dev/shm || exit 99; exec "$@"'
    words = options(
        market, tmp_path, DATALOADER__NUM_WORKERS=2, INPUT__SIZE_TRAIN=[128, 64], INPUT__SIZE_TEST=[128, 64]
    )
    command = ["unshare", "-m", "bash", "-c", script, "bash", sys.executable, "train.py", *map(str, words)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    try:
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=110)
    except FileNotFoundError:
        pytest.skip("no unshare on this machine")
    if done.returncode in (1, 99):
        pytest.skip("this machine allows no mounts")
    assert done.returncode == 2 and done.stderr.count("\n") == 1, done.stderr
    assert "do not fit into shared memory: /dev/shm has 66 kB" in done.stderr and "--shm-size" in done.stderr
