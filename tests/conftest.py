"""Fixtures for all tests. They run on the CPU with one thread, so that they share a small machine.

One thread whatever the environment and the tests before say: sums over several differ in their last bits, and tests
compare a process of their own with this one.
"""

from __future__ import annotations

import fcntl
import gc
import logging
import os
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"
if not os.environ.get("LINEUP_GPU_TESTS"):  # make gpu
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest  # noqa: E402

# Torch and what imports it are imported below, in functions: the process that hands tests to workers needs neither.

gc.disable()  # while tests are collected, when next to nothing is freed


def pytest_collection_finish():
    """Leaves modules and collected tests, a million objects, out of every later garbage collection."""
    gc.freeze()
    gc.enable()


def pytest_sessionfinish():
    gc.unfreeze()  # else libraries that look for leaks at the end find some


def pytest_runtest_setup():
    import torch

    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def heard_logger():
    """Lets ``caplog``, which listens at the root, hear the log although a run before this test has set it up."""
    logging.getLogger("lineup").propagate = True


@pytest.fixture(scope="session")
def market(tmp_path_factory):
    """A data root with a tiny Market-1501: 4 training and 4 test identities, 2 cameras, 2 images of each."""
    from tests.tiny import write_market

    return write_market(tmp_path_factory.mktemp("data"))


@pytest.fixture(scope="session")
def together(tmp_path_factory) -> Path:
    """A folder with what ``tests.together`` leaves and what the shares of a step are in one process.

    One worker of the session fills it, the others wait.
    """
    from tests.processor.shares import write_shares

    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "together"
    folder.mkdir(exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "filled").exists():
            from tests.runs import started_ranks
            from tests.together import run_together

            ranks = started_ranks(run_together, folder, output=folder)
            for process in ranks:
                process.join(300)
            failed = any(process.exitcode for process in ranks)
            texts = [(folder / f"rank{number}.txt").read_text()[-3000:] for number in range(2)] if failed else []
            (folder / "filled").write_text("\n".join(texts))
            write_shares(folder)
    assert not (error := (folder / "filled").read_text()), error
    return folder


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """Says how a worker of the session ended that did not end in order; below 0 it is a signal's number."""
    if error:
        process = node.gateway._io.popen
        print(f"\nworker {node.gateway.id}, process {process.pid}, ended with code {process.wait(60)}")
