"""A run that is killed inside a write leaves nothing once it has been started again, and ends with the same files."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest
import torch

from tests.runs import assert_same_bytes, call, exit_code_of, weights
from tests.tiny import options
from tools import report

WRITES = ["config.yml", "per_query.csv", "ranked.npz", "transformer_1.pth", "last", "metrics.json", "report.html"]


def die_inside(name: str, command: str, words: list) -> None:
    """Runs a command and is killed when the file of that name has been written but not yet renamed."""
    real = os.fsync

    def fsync(descriptor):
        real(descriptor)
        if Path(os.readlink(f"/proc/self/fd/{descriptor}")).name.startswith(f".{name}.lineup-"):
            os.kill(os.getpid(), signal.SIGKILL)

    os.fsync = fsync
    call(command, words)


def killed_inside(name: str, command: str, words: list) -> None:
    assert exit_code_of(die_inside, name, command, words) == -signal.SIGKILL


def files_of(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if "tensorboard/" not in str(path)}


@pytest.fixture(scope="module")
def whole(market, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert call("train", options(market, folder, SOLVER__MAX_EPOCHS=1, TEST__REPORT=True)) == 0
    return folder


@pytest.mark.parametrize("name", WRITES)
def test_nothing_is_left_of_a_run_killed_inside_a_write(market, whole, tmp_path, name):
    folder = tmp_path / "run"
    words = options(market, folder, SOLVER__MAX_EPOCHS=1, TEST__REPORT=True)
    killed_inside(name, "train", words)
    assert [path for path in folder.rglob(".*") if name in path.name]
    assert call("train", words) == 0
    report.main([str(folder)])  # of a run that was finished before the kill, too
    assert files_of(folder) == files_of(whole)
    assert_same_bytes(weights(folder, 1), weights(whole, 1))
    for same in ("per_query.csv", "ranked.npz"):
        assert (folder / same).read_bytes() == (whole / same).read_bytes()
    ours, theirs = (torch.load(run / "last", weights_only=True) for run in (folder, whole))
    assert_same_bytes(ours["modules"]["model"], theirs["modules"]["model"])


def test_nothing_is_left_of_a_killed_test(market, whole, tmp_path):
    words = options(market, tmp_path, TEST__WEIGHT=whole / "transformer_1.pth")
    for name in ("per_query.csv", "test_metrics.json"):
        killed_inside(name, "test", words)
        assert [path for path in tmp_path.rglob(".*") if name in path.name]
    assert call("test", words) == 0
    assert not list(tmp_path.glob(".*"))


def test_a_second_start_is_one_line_and_touches_nothing(market, whole, tmp_path, capfd):
    words = options(market, tmp_path, TEST__WEIGHT=whole / "transformer_1.pth")
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        from utils.folder_lock import sole_user

        with sole_user(tmp_path):
            os.write(writer, b"x")
            signal.pause()
    try:
        os.read(reader, 1)
        capfd.readouterr()
        for command in ("train", "test"):
            assert call(command, words) == 2
            line = capfd.readouterr().err
            assert line.startswith(f"error: OUTPUT_DIR: {tmp_path} is in use by ") and line.count("\n") == 1
            assert f"process {child}, since 20" in line
        assert files_of(tmp_path) == {".lock"}
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
