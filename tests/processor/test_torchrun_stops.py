"""Two processes under ``torchrun`` stop together, by a signal or by the death of one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from tests.runs import ROOT, TORCHRUN, call, started_ranks
from tests.tiny import options

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def endless(market: Path, folder: Path) -> list[str]:
    """The words of a training that does not end by itself."""
    words = options(
        market, folder / "run", SOLVER__IMS_PER_BATCH=8, SOLVER__MAX_EPOCHS=10_000, SOLVER__EVAL_PERIOD=0,
        SOLVER__CHECKPOINT_PERIOD=0,
    )  # fmt: skip
    return list(map(str, words))


def wait_for_an_epoch(folder: Path, alive: Callable[[], bool]) -> None:
    began = time.monotonic()
    while not (folder / "run" / "last").exists():
        assert alive() and time.monotonic() - began < 120
        time.sleep(0.1)


@pytest.mark.slow
def test_torchrun_that_is_told_to_stop_ends_both_with_their_state_saved(market, tmp_path):
    with open(tmp_path / "output", "wb") as output:
        command = [*TORCHRUN, "train.py", *endless(market, tmp_path)]
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=output, stderr=output)
    try:
        wait_for_an_epoch(tmp_path, lambda: process.poll() is None)
        ranks = children(process.pid)
        assert len(ranks) == 2
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) != 0
    finally:
        process.kill()
    text = (tmp_path / "output").read_text()
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    assert text.count("SIGTERM: stopping after this step") == 2 and "SIGTERM: stopped after" in text
    torch.load(tmp_path / "run" / "last", weights_only=True)


def train_and_exit(words: list[str]) -> None:
    sys.exit(call("train", words))


@pytest.mark.slow
def test_a_rank_whose_other_is_killed_ends_within_a_minute(market, tmp_path):
    first, second = started_ranks(train_and_exit, endless(market, tmp_path), output=tmp_path)
    try:
        wait_for_an_epoch(tmp_path, first.is_alive)
        second.kill()
        first.join(60)
        assert first.exitcode not in (None, 0)
    finally:
        first.kill()
    text = (tmp_path / "rank0.txt").read_text()
    assert "error: another process of this run has stopped; its message says why" in text
