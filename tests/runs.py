"""What tests of whole runs share: commands called in this process or another, and runs that are killed."""

from __future__ import annotations

import multiprocessing
import os
import socket
import sys
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from configs import load_config_with_notes
from processor import run
from processor.methods.supervised import Supervised
from tools.pictures import report_with_pictures
from utils.commands import parse_run, reported_errors


def call(name: str, argv: list) -> int:
    """The exit code of ``train.py`` or ``test.py``, run in this process."""
    args = parse_run([str(word) for word in argv], name, "", "")
    try:
        with reported_errors():
            cfg, notes = load_config_with_notes(args.config_file, args.opts)
            getattr(run, name)(cfg, args.config_file, notes, after=report_with_pictures)
    except SystemExit as stop:
        return stop.code
    return 0


def weights(folder, epoch: int, name: str = "transformer") -> dict[str, torch.Tensor]:
    return torch.load(folder / f"{name}_{epoch}.pth", weights_only=True)


def assert_same_bytes(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        assert torch.equal(a[key], b[key]), key


class Killed(Exception):
    pass


def kill_at(monkeypatch, step: int, stage: type = Supervised) -> None:
    """The process dies in the given step of training in stages of that kind, counted over the run from 1."""
    count, real = iter(range(1, 10**6)), stage.losses

    def losses(self, batch):
        if next(count) == step:
            raise Killed
        return real(self, batch)

    monkeypatch.setattr(stage, "losses", losses)


FRESH = multiprocessing.get_context("forkserver")
FRESH.set_forkserver_preload([
    "processor.run", "tools.extract", "tools.pictures",
    "sklearn.decomposition", "sklearn.manifold", "torch.utils.tensorboard",  # what a run imports once it needs them
    "lance_namespace", "pyarrow.dataset", "pandas",  # what LanceDB imports; itself it starts a thread
])  # fmt: skip


def started(target: Callable, *args) -> BaseProcess:
    """A process that calls ``target``, as new as one that the system starts but without the seconds of imports.

    It is a fork of a process that has done nothing but import. One of this process would lack OpenMP's threads, which
    other tests may have started.
    """
    process = FRESH.Process(target=forking, args=(target, args))
    process.start()
    return process


def forking(target: Callable, args: tuple) -> None:
    """Calls ``target`` where processes that load images are forks again, as in a program that the system starts.

    Else they would be children of another server, and outlive a training process that is killed.
    """
    multiprocessing.set_start_method("fork", force=True)
    target(*args)


def started_ranks(target: Callable, *args, output: Path) -> list[BaseProcess]:
    """Two such processes, the ranks of a group; ``rank0.txt`` and ``rank1.txt`` in ``output`` have what they print."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return [started(as_rank, number, port, output / f"rank{number}.txt", target, args) for number in range(2)]


def as_rank(number: int, port: int, output: Path, target: Callable, args: tuple) -> None:
    """Calls ``target`` as one of two ranks that find each other by a port of this machine."""
    os.environ |= {"RANK": f"{number}", "LOCAL_RANK": f"{number}", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": f"{port}"}
    with open(output, "w") as file:
        os.dup2(file.fileno(), sys.stdout.fileno())
        os.dup2(file.fileno(), sys.stderr.fileno())
    torch.set_num_threads(1)
    target(*args)


def exit_code_of(target: Callable, *args) -> int | None:
    """The exit code of such a process; below 0 it is the signal that ended it."""
    process = started(target, *args)
    process.join(300)
    return process.exitcode


ROOT = Path(__file__).resolve().parents[1]


TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]


