"""The one style of the command lines: purpose, examples, and for most a YAML file with overrides behind it.

A command is a ``main(argv)`` that parses with ``make_parser``, raises ``UserError`` for a user's mistake and is started
by ``processor.command.guarded``: one line on standard error and exit code 2, never a traceback.
"""

from __future__ import annotations

import argparse


def make_parser(command: str, purpose: str, *examples: str, settings: bool = False) -> argparse.ArgumentParser:
    """The parser of a command.

    command: how it is started, such as ``python -m processor.average``. purpose: the module's docstring. examples: what
    may stand behind the command, shown below the options. settings: it takes ``--config_file FILE`` and, last of all,
    ``KEY VALUE ...``, which become ``config_file`` and ``opts``.
    """
    lines = [f"  {command} {example}" for example in examples]
    parser = argparse.ArgumentParser(
        prog=command,
        description=purpose.replace("``", ""),
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
