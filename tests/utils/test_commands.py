"""Every command has one style: help with purpose and examples, and one line with exit code 2 for a mistake."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tools.__main__ import list_commands
from utils.commands import make_parser, reported_errors

ROOT = Path(__file__).resolve().parents[2]


def commands() -> list[str]:
    """Modules that can be started, found by what they do at their end."""
    return [f"tools.{name}" for name in list_commands()]


def test_settings_stand_last_and_options_before_them():
    parser = make_parser("python -m some.thing", "``Does`` it.", "--top 3 TEST.FLIP True", settings=True)
    parser.add_argument("--top", type=int, default=10)
    args = parser.parse_args(["--config_file", "a.yml", "--top", "3", "TEST.FLIP", "True"])
    assert (args.config_file, args.top, args.opts) == ("a.yml", 3, ["TEST.FLIP", "True"])
    text = parser.format_help()
    assert "python -m some.thing --top 3 TEST.FLIP True" in text and text.count("example:") == 1
    assert "`" not in text and "Does it." in text
    assert "--config_file" not in make_parser("python -m some.thing", "Does it.").format_help()


@pytest.mark.parametrize("module", commands())
def test_a_command_shows_examples_whose_files_exist(module, capsys):
    main = __import__(module, fromlist=["main"]).main
    with pytest.raises(SystemExit) as stop:
        main(["--help"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    assert re.search(rf"examples?:\n  python -m {module} ", text)
    for name in re.findall(r"configs/\S+\.yml", text.split("example", 1)[1]):
        assert (ROOT / name).is_file(), name


def test_a_mistake_is_one_line_and_exit_code_2(tmp_path):
    words = [sys.executable, "-m", "tools.average", str(tmp_path)]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and done.stdout == ""
    assert len(done.stderr.splitlines()) == 1 and done.stderr.startswith("error: ")


def test_workers_that_end_while_an_error_is_reported_do_not_raise_again(capsys, monkeypatch):
    killed = "DataLoader worker (pid 7) is killed by signal: Killed. "

    def again(*_):  # what torch does whenever a child ends
        raise RuntimeError(killed)

    def during(line):
        os.kill(os.getpid(), signal.SIGCHLD)
        return line

    previous = signal.signal(signal.SIGCHLD, again)
    monkeypatch.setattr("utils.commands.one_line", during)
    try:
        with pytest.raises(SystemExit) as end, reported_errors():
            raise RuntimeError(killed)
    finally:
        signal.signal(signal.SIGCHLD, previous)
    assert end.value.code == 2 and capsys.readouterr().err.startswith("error: a process that loads images was killed")
