"""Lists the commands beside training and testing: ``python -m tools``."""

from __future__ import annotations

import ast
from pathlib import Path


def list_commands() -> dict[str, str]:
    """Returns the first sentence of each command's docstring by the command's name, without importing any of them."""
    commands = {}
    for path in sorted(Path(__file__).parent.glob("[a-z]*.py")):
        source = path.read_text(encoding="utf-8")
        if "run_command(main)" in source:
            purpose = " ".join((ast.get_docstring(ast.parse(source)) or "").split("\n\n")[0].split())
            commands[path.stem] = purpose.partition(": ``")[0].replace("``", "")
    return commands


def main() -> None:
    """Runs the command."""
    commands = list_commands()
    width = max(map(len, commands))
    for name, purpose in commands.items():
        print(f"python -m tools.{name:{width}s}  {purpose}")


if __name__ == "__main__":
    main()
