"""Two processes under ``torchrun`` stop together, by a signal or by the death of one."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from tests.runs import ROOT, TORCHRUN
from tests.tiny import options

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}


def children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["a rank is killed", "all are told to stop"])
def test_both_processes_end_within_a_minute(market, tmp_path, how):
    words = options(
        market, tmp_path / "run", SOLVER__IMS_PER_BATCH=8, SOLVER__MAX_EPOCHS=10_000, SOLVER__EVAL_PERIOD=0,
        SOLVER__CHECKPOINT_PERIOD=0,
    )  # fmt: skip
    with open(tmp_path / "output", "wb") as output:
        command = [*TORCHRUN, "train.py", *map(str, words)]
        process = subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, stdout=output, stderr=output)
    try:
        began = time.monotonic()
        while not (tmp_path / "run" / "last").exists():
            assert process.poll() is None and time.monotonic() - began < 120
            time.sleep(0.1)
        ranks = children(process.pid)
        assert len(ranks) == 2
        if how == "a rank is killed":
            os.kill(ranks[1], signal.SIGKILL)
        else:
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) != 0
    finally:
        process.kill()
    text = (tmp_path / "output").read_text()
    assert not any(Path(f"/proc/{rank}").exists() for rank in ranks)
    if how == "a rank is killed":
        assert "error: another process of this run has stopped; its message says why" in text
    else:
        assert text.count("SIGTERM: stopping after this step") == 2 and "SIGTERM: stopped after" in text
        torch.load(tmp_path / "run" / "last", weights_only=True)
