"""The common style of the commands: purpose, examples, and for most of them a YAML file with overrides.

A command is a ``main(argv)`` that parses with ``make_parser`` and raises ``UserError`` for a user's mistake.
``run_command`` starts it and turns such an error into one line on standard error and exit code 2.
"""

from __future__ import annotations

import argparse
import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NoReturn

from utils.errors import UserError, one_line
from utils.interrupt import EXIT_CODE, INTERRUPTED, raise_when_interrupted
from utils.workers import forget_workers, too_many_files, worker_mistake

OUT_OF_MEMORY = (
    "out of memory on this machine: lower SOLVER.IMS_PER_BATCH (with SOLVER.ACCUMULATION), TEST.IMS_PER_BATCH, "
    "DATALOADER.NUM_WORKERS or DATALOADER.CACHE_GB"
)
"""The line for an allocation that the main memory has no room for."""


class Parser(argparse.ArgumentParser):
    """Refuses a command line as every other mistake: in one line, with exit code 2."""

    def error(self, message: str) -> NoReturn:
        refuse(f"{message} ({self.prog} --help shows the options)")


def make_parser(command: str, purpose: str | None, *examples: str, settings: bool = False) -> argparse.ArgumentParser:
    """Returns the parser of a command.

    command: how it is started, such as ``python -m tools.average``. purpose: the module's docstring. examples:
    arguments, shown below the options. settings: the command takes ``--config_file FILE`` and, last of all,
    ``KEY VALUE ...``, which become ``config_file`` and ``opts``.
    """
    lines = [f"  {command} {example}" for example in examples]
    parser = Parser(
        prog=command,
        description=(purpose or "").replace("``", ""),
        epilog="\n".join(["example:" if len(lines) == 1 else "examples:", *lines]) if lines else None,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    if settings:
        parser.add_argument(
            "--config_file", "--config-file", default="", metavar="FILE", help="YAML file under configs/"
        )
        parser.add_argument(
            "opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings that override the file's"
        )
    return parser


def parse_run(argv: list[str] | None, name: str, purpose: str | None, example: str) -> argparse.Namespace:
    """Parses the command line of ``train.py`` or ``test.py``: ``config_file`` and ``opts`` (KEY VALUE ...)."""
    parser = make_parser(f"python {name}.py", purpose, example, settings=True)
    parser.add_argument("--local_rank", "--local-rank", default=0, help="accepted and ignored: torchrun decides")
    return parser.parse_args(argv)


def run_command(main: Callable[[], object]) -> None:
    """Runs a command's ``main`` and reports its errors as ``reported_errors`` does."""
    raise_when_interrupted()  # the imports are done
    with reported_errors():
        main()


@contextmanager
def reported_errors() -> Iterator[None]:
    """Turns a user's mistake into one line on standard error and exit code 2, inside the context."""
    for stream in (sys.stdout, sys.stderr):  # a path may have bytes that no text has
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        yield
    except UserError as error:
        refuse(error)
    except KeyboardInterrupt:
        print(INTERRUPTED, file=sys.stderr)
        sys.exit(EXIT_CODE)
    except RecursionError:
        refuse("a file or a value is nested too deeply to be read")
    except MemoryError:
        refuse(OUT_OF_MEMORY)
    except RuntimeError as error:
        forget_workers()
        line = runtime_mistake(f"{error} {error.__cause__ or ''}")  # torch names a worker's signal in the cause
        if not line:
            raise
        refuse(line)
    except BrokenPipeError:  # the reader of our output has ended
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that was removed, no permission
        if error.errno == errno.EMFILE:
            refuse(too_many_files())
        where = f"{error.filename}: " if error.filename else ""
        refuse(f"{where}{error.strerror or error}")


def refuse(message: object) -> NoReturn:
    """Prints the one line of an error and exits with code 2."""
    forget_workers()
    print(f"error: {one_line(message)}", file=sys.stderr)
    sys.exit(2)


def runtime_mistake(message: str) -> str:
    """Returns the line for torch's errors that are not bugs: no memory, another process that has ended; else ''."""
    if line := worker_mistake(message):
        return line
    if "DefaultCPUAllocator" in message or "can't allocate memory" in message:
        return OUT_OF_MEMORY
    if "out of memory" in message:
        return (
            "out of memory on the device: lower SOLVER.IMS_PER_BATCH (with SOLVER.ACCUMULATION) or TEST.IMS_PER_BATCH, "
            "or set MODEL.GRAD_CHECKPOINT True"
        )
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and ("Connection closed" in message or "Connection reset" in message):
        return "another process of this run has stopped; its message says why"
    return ""
