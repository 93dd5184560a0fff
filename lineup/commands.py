"""The command ``lineup NAME ...``: training, testing and every command of ``tools`` under one name."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

from lineup import __version__, module_name
from tools.__main__ import list_commands
from utils import interrupt
from utils.commands import refuse
from utils.errors import nearest

PROGRAMS = {
    "train": "Trains a model",
    "test": "Tests a model",
    "configs": "Lists every key with its default, its meaning and its readers",
}
"""The commands that are no files of ``tools``, with what each does."""


def listing() -> str:
    """Returns a line for each command."""
    commands = PROGRAMS | list_commands()
    width = max(map(len, commands))
    lines = [f"lineup {name:{width}s}  {purpose}" for name, purpose in commands.items()]
    return "\n".join([*lines, "", "lineup NAME --help shows a command's options; lineup --version what is installed"])


def main() -> None:
    """Runs the command that the first word names, as if it were a program of its own."""
    name = sys.argv[1].replace("-", "_") if sys.argv[1:] and sys.argv[1][:1] != "-" else ""
    if sys.argv[1:2] == ["--version"]:
        print(f"lineup {__version__} in {Path(__file__).parent}")
    elif not name:
        print(listing())
    elif name in PROGRAMS or name in list_commands():
        interrupt.end_when_interrupted()  # the imports take long enough for a Ctrl-C
        sys.argv = [f"lineup {name}", *sys.argv[2:]]
        module = name if name in PROGRAMS else f"tools.{name}"
        runpy.run_module(module_name(module), run_name="__main__", alter_sys=True)
    else:
        known = (*PROGRAMS, *list_commands())
        refuse(f"lineup: unknown command {sys.argv[1]!r}{nearest(name, known)} lineup alone lists the commands")
