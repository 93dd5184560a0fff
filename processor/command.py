"""The command line that ``train.py`` and ``test.py`` share, and how a user's mistake ends."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable

from utils.commands import make_parser


def parse(argv: list[str] | None, name: str, purpose: str, example: str) -> argparse.Namespace:
    """config_file and opts (KEY VALUE ...)."""
    parser = make_parser(f"python {name}.py", purpose, example, settings=True)
    parser.add_argument("--local_rank", "--local-rank", default=0, help="accepted and ignored: torchrun decides")
    return parser.parse_args(argv)


def guarded(main: Callable[[], object]) -> None:
    """Runs ``main``; a user's mistake becomes one line on standard error and exit code 2, never a traceback."""
    from configs import ConfigError
    from utils.errors import UserError

    try:
        main()
    except (ConfigError, UserError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; a training run goes on by the same command", file=sys.stderr)
        sys.exit(130)
    except RuntimeError as error:
        line = runtime_mistake(str(error))
        if not line:
            raise
        print(f"error: {line}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:  # a full disk, a folder that vanished, no permission
        where = f"{error.filename}: " if error.filename else ""
        print(f"error: {where}{error.strerror or error}", file=sys.stderr)
        sys.exit(2)


def runtime_mistake(message: str) -> str:
    """The line for torch's errors that are no fault of the code: memory, or another process that has gone."""
    if "out of memory" in message:
        return (
            "out of memory on the device: lower SOLVER.IMS_PER_BATCH (with SOLVER.ACCUMULATION) or TEST.IMS_PER_BATCH, "
            "or set MODEL.GRAD_CHECKPOINT True"
        )
    if int(os.environ.get("WORLD_SIZE", 1)) > 1 and ("Connection closed" in message or "Connection reset" in message):
        return "another process of this run has stopped; its own line says why"
    return ""


def run_command(argv: list[str] | None, name: str, purpose: str, example: str) -> None:
    """Parses, loads the configuration and hands over to ``processor.run.train`` or ``.test``."""
    args = parse(argv, name, purpose, example)

    def go() -> None:
        from configs import load_config_with_notes

        cfg, notes = load_config_with_notes(args.config_file, args.opts)
        from processor import run

        getattr(run, name)(cfg, args.config_file, notes)

    guarded(go)
