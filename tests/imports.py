"""The imports of the repository's packages, read from their syntax trees."""

from __future__ import annotations

import ast
from functools import cache
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("utils", "configs", "datasets", "model", "loss", "solver", "processor", "tools")


def python_files(package: str) -> list[Path]:
    """The files of a package, relative to the repository."""
    return [path.relative_to(ROOT) for path in sorted((ROOT / package).rglob("*.py"))]


@cache
def imports_of(path: Path, in_functions: bool = False) -> list[tuple[int, str]]:
    """(line, module) of every import of our own packages, wherever in the file it stands.

    ``from a.b import c`` is ``a.b.c`` where that is a module, else ``a.b``. Imports for type checkers alone count not.
    in_functions: only those that stand inside a function.
    """
    tree = ast.parse((ROOT / path).read_text(encoding="utf-8"))
    if in_functions:
        functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
        inner = {id(node) for scope in ast.walk(tree) if isinstance(scope, functions) for node in ast.walk(scope)}
    typing_only = {
        id(node)
        for block in ast.walk(tree)
        if isinstance(block, ast.If) and "TYPE_CHECKING" in ast.dump(block.test)
        for node in ast.walk(block)
    }
    modules = []
    for node in ast.walk(tree):
        if id(node) in typing_only or (in_functions and id(node) not in inner):
            continue
        if isinstance(node, ast.Import):
            modules += [(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for alias in node.names:
                longer = f"{node.module}.{alias.name}"
                is_module = (ROOT / Path(*longer.split("."))).with_suffix(".py").exists()
                modules.append((node.lineno, longer if is_module else node.module))
    return [(line, module) for line, module in modules if module.split(".")[0] in PACKAGES]
