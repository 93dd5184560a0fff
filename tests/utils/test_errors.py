"""Messages are one printable line, whatever they repeat."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from configs import ConfigError, load_config
from tools import search
from utils.commands import reported_errors, run_command
from utils.errors import LONGEST_LINE, LONGEST_WORD, UserError, cut, one_line, reason_of
from utils.safe_pickle import UnsafePickle

ROOT = Path(__file__).resolve().parents[2]
ODD = {
    "\x1b[31mred\x1b[0m": r"\x1b[31mred\x1b[0m",
    "two\nlines\r\n": r"two\nlines\r\n",
    "nul\0 and tab\t": r"nul\x00 and tab\t",
    "\ud800 alone": r"\ud800 alone",
    "right \u202e to left": r"right \u202e to left",
    "ünïcode 行人": "ünïcode 行人",
}


@pytest.mark.parametrize("kind", [UserError, ConfigError, UnsafePickle])
@pytest.mark.parametrize(("text", "shown"), ODD.items(), ids=map(ascii, ODD))
def test_a_message_shows_control_characters_as_escapes(kind, text, shown):
    assert str(kind(f"file {text}: wrong")) == f"file {shown}: wrong"
    assert str(kind(str(kind(text)))) == shown  # a message within a message


@pytest.mark.parametrize("length", [LONGEST_WORD, LONGEST_WORD + 1, 5_000, 10**6])
def test_a_long_word_is_cut_in_the_middle(length):
    line = str(UserError(f"DATASETS.FILE: {'a' * (length - 3)}xyz is missing"))
    assert line.startswith("DATASETS.FILE: aaa") and line.endswith("xyz is missing")
    assert ("..." in line) == (length > LONGEST_WORD) and len(line) < LONGEST_WORD + 40


@pytest.mark.parametrize("value", ["a b " * 5_000, "[1, " * 5_000, " ".join(map(str, range(5_000)))])
def test_a_long_line_is_cut_in_the_middle(value):
    line = str(UserError(f"KEY: not {value} (in the overrides)"))
    assert len(line) == LONGEST_LINE and line.startswith("KEY: not ") and line.endswith("(in the overrides)")


def test_cutting_keeps_what_is_short_enough_and_both_ends():
    assert cut("abcdefghij", 10) == "abcdefghij"
    assert cut("abcdefghijk", 10) == "abcde...jk"
    assert one_line(12) == "12"


def test_the_reason_of_another_librarys_error_is_one_line():
    assert reason_of(ValueError("first\n   second")) == "first second"
    assert reason_of(KeyError()) == "KeyError"


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (UserError("a\nb"), 2, r"error: a\nb"),
        (OSError(2, "No such file", "a\x1b[31m.pth"), 2, r"error: a\x1b[31m.pth: No such file"),
        (OSError("x" * 5_000), 2, "..."),
        (RecursionError("maximum recursion depth exceeded"), 2, "nested too deeply"),
        (MemoryError(), 2, "out of memory on this machine: lower SOLVER.IMS_PER_BATCH"),
        (
            RuntimeError("[enforce fail at alloc_cpu.cpp:118] err == 0. DefaultCPUAllocator: can't allocate memory: "
                         "you tried to allocate 4 bytes. Error code 12 (Cannot allocate memory)\nstack"),
            2, "out of memory on this machine",
        ),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), 2, "out of memory on the device"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
    ids=["user", "file", "long", "recursion", "memory", "torch's memory", "device", "interrupt"],
)  # fmt: skip
def test_what_is_no_bug_is_one_line(error, code, words, capsys):
    with pytest.raises(SystemExit) as stop, reported_errors():
        raise error
    (line,) = capsys.readouterr().err.splitlines()
    assert stop.value.code == code and words in line and line.isprintable() and len(line) < 400


def test_a_bug_keeps_its_traceback():
    with pytest.raises(RuntimeError, match="a bug"), reported_errors():
        raise RuntimeError("a bug")


@pytest.mark.parametrize("words", [["--top"], ["--unknown\x1b[31m"]])
def test_a_mistake_in_the_options_is_one_line(words, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_command(lambda: search.main(words))
    error = capsys.readouterr().err
    assert len(error.splitlines()) == 1 and error.startswith("error: ") and "--help" in error
    assert error[:-1].isprintable()


INTERRUPTED = """
import signal, sys, time
from importlib.abc import MetaPathFinder

class Slow(MetaPathFinder):
    def find_spec(self, name, path, target=None):
        if name == {name!r}:
            print("importing", flush=True)
            time.sleep(60)

signal.signal(signal.SIGINT, signal.default_int_handler)  # what runs in the background ignores it
sys.meta_path.insert(0, Slow())
import runpy
"""


@pytest.mark.parametrize(
    ("start", "name"),
    [
        ("sys.argv = ['train.py']; runpy.run_path('train.py', run_name='__main__')", "yaml"),
        ("sys.argv = ['test.py']; runpy.run_path('test.py', run_name='__main__')", "torch"),
        ("sys.argv = ['-m']; runpy.run_module('tools.export', run_name='__main__', alter_sys=True)", "torch"),
        ("sys.argv = ['-m']; runpy.run_module('tools.compare', run_name='__main__', alter_sys=True)", "numpy"),
    ],
)
def test_ctrl_c_during_the_imports_is_one_line(start, name):
    """The import of a library stands still; Ctrl-C comes then."""
    code = INTERRUPTED.format(name=name) + start
    child = subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "importing\n"
    child.send_signal(2)
    _, stderr = child.communicate(timeout=60)
    assert child.returncode == 130 and stderr.splitlines() == ["interrupted; the same command resumes a training run"]


def test_a_setting_of_thousands_of_letters_is_cut():
    with pytest.raises(UserError) as error:
        load_config("", ["SOLVER.BASE_LR", "x" * 5_000])
    assert len(str(error.value)) < 400 and str(error.value).startswith("SOLVER.BASE_LR: ")
