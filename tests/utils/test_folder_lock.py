"""A run's folder is one run's at a time, and what a killed process left half-written goes with the next start."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from utils.errors import UserError
from utils.files import TEMPORARY, write_atomically, write_text
from utils.folder_lock import NAME, Holder, sole_user
from utils.processes import host_name, is_gone

ROOT = Path(__file__).resolve().parents[2]


def in_a_child(work) -> int:
    """The exit status of a forked process that does ``work``: negative for a signal."""
    child = os.fork()
    if child == 0:
        try:
            os._exit(work() or 0)
        except UserError as error:
            print(error, flush=True)
            os._exit(2)
        except BaseException:
            os._exit(99)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed_while_holding(folder: Path) -> None:
    def work():
        with sole_user(folder):
            os.kill(os.getpid(), signal.SIGKILL)

    assert in_a_child(work) == -signal.SIGKILL


def killed_while_writing(path: Path) -> None:
    assert in_a_child(lambda: write_atomically(path, lambda _: os.kill(os.getpid(), signal.SIGKILL))) == -signal.SIGKILL


def enter(folder: Path) -> None:
    with sole_user(folder):
        pass


def test_a_second_run_is_refused_with_the_first_ones_process_and_time(tmp_path, capfd):
    with sole_user(tmp_path):
        assert in_a_child(lambda: enter(tmp_path)) == 2
        line = capfd.readouterr().out
        assert line.startswith(f"OUTPUT_DIR: {tmp_path} is in use by ") and line.count("\n") == 1
        assert f"on {host_name()} (process {os.getpid()}, since 20" in line and "another OUTPUT_DIR" in line
    assert in_a_child(lambda: enter(tmp_path)) == 0
    assert not list(tmp_path.iterdir())


def test_a_killed_run_does_not_keep_its_folder(tmp_path):
    killed_while_holding(tmp_path)
    assert (tmp_path / NAME).exists()
    enter(tmp_path)
    assert not list(tmp_path.iterdir())


def test_workers_that_outlive_a_killed_run_do_not_keep_its_folder(tmp_path):
    script = (
        "import os, signal, sys, time; from utils.folder_lock import sole_user\n"
        "with sole_user(sys.argv[1]):\n"
        "    if not os.fork(): time.sleep(60); os._exit(0)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    process = subprocess.Popen([sys.executable, "-c", script, str(tmp_path)], cwd=ROOT, start_new_session=True)
    assert process.wait() == -signal.SIGKILL
    try:
        enter(tmp_path)
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_the_lock_is_free_after_an_error(tmp_path):
    with pytest.raises(ZeroDivisionError), sole_user(tmp_path):
        raise ZeroDivisionError
    assert in_a_child(lambda: enter(tmp_path)) == 0


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"{}", b'{"host": 1}', b"\xff" * 5000, b"[" * 1900, b'{"host":"a\\n","pid":"x"}'],
    ids=range(8),
)
def test_a_damaged_lock_file_names_nobody_and_hinders_nobody(tmp_path, content):
    (tmp_path / NAME).write_bytes(content)
    descriptor = os.open(tmp_path / NAME, os.O_RDONLY)
    assert Holder.read(descriptor) is None
    os.close(descriptor)
    enter(tmp_path)


@pytest.mark.parametrize("alive", [True, False])
def test_without_support_for_locks_the_process_in_the_file_decides(tmp_path, monkeypatch, alive):
    pid = os.getpid() if alive else 2**22 + 1

    def unsupported(*args):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr("fcntl.lockf", unsupported)
    text = f'{{"host": "{host_name()}", "pid": {pid}, "command": "train.py", "since": "2026-01-01"}}'
    (tmp_path / NAME).write_text(text)
    assert in_a_child(lambda: enter(tmp_path)) == (2 if alive else 0)


def test_a_folder_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="OUTPUT_DIR: .* cannot be written"), sole_user(tmp_path / "file" / "run"):
        pass


@pytest.mark.parametrize("name", ["last", "per_query.csv", "pictures/map.png", "é" * 120, "a-b.lineup-c-1-12345678"])
def test_what_a_killed_process_was_writing_is_removed(tmp_path, name):
    write_text(tmp_path / name, "whole")
    killed_while_writing(tmp_path / name)
    left = [path for path in tmp_path.rglob("*") if TEMPORARY.fullmatch(path.name)]
    assert len(left) == 1
    with sole_user(tmp_path) as removed:
        assert removed == 1
    assert (tmp_path / name).read_text() == "whole" and not left[0].exists()


def test_files_of_others_stay(tmp_path):
    here = host_name().replace(".", "_")
    running = f".last.lineup-{here}-{os.getpid()}-abcdefgh"
    names = [running, ".last.lineup-elsewhere-12-abcdefgh", ".last.abcdefgh", "last", ".lineup", ".last.lineup-x-1-a"]
    for name in names:
        (tmp_path / name).write_text("")
    with sole_user(tmp_path) as removed:
        assert removed == 0
    assert {path.name for path in tmp_path.iterdir()} == set(names)


def test_files_of_another_machine_go_if_it_had_the_folder_before(tmp_path):
    (tmp_path / NAME).write_text('{"host": "node.7", "pid": 12, "command": "train.py", "since": "2026-01-01"}')
    for pid in (12, 13):
        (tmp_path / f".last.lineup-node_7-{pid}-abcdefgh").write_text("")
    enter(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [".last.lineup-node_7-13-abcdefgh"]


def test_a_number_that_was_given_again_is_another_process():
    assert is_gone(host_name(), os.getpid(), 0.0)  # written long before this process started
    assert not is_gone(host_name(), os.getpid(), os.stat(f"/proc/{os.getpid()}").st_mtime + 60)
    assert not is_gone("elsewhere", os.getpid(), 0.0)
