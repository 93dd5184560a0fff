"""How many small faults the tests notice: ``python -m tests.mutate loss --tests tests/loss [--count 60] [--seed 0]``.

Draws places in the code (a comparison, an operator, a constant, a condition), changes one at a time and runs the tests
that should notice. Prints the survivors with their lines and the score. Run by hand: it takes minutes.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import io
import os
import random
import sys
import time
from pathlib import Path

import pytest
import torch  # noqa: F401 - imported before the forks, which then start at once

SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Add, ast.Div: ast.Mult, ast.FloorDiv: ast.Div, ast.Mod: ast.Add,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.And: ast.Or, ast.Or: ast.And, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.USub: ast.UAdd,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is,
}  # fmt: skip


def places(tree: ast.Module) -> list[ast.AST]:
    """Returns the nodes that can be changed, annotations and docstrings left out."""
    skipped = {id(n) for node in ast.walk(tree) for n in annotations(node)}
    return [node for node in ast.walk(tree) if id(node) not in skipped and changed(node) is not None]


def annotations(node: ast.AST) -> list[ast.AST]:
    """Returns what is below the annotations of a definition."""
    roots = [getattr(node, "annotation", None), getattr(node, "returns", None)]
    return [below for root in roots if root is not None for below in ast.walk(root)]


def changed(node: ast.AST) -> ast.AST | None:
    """Returns a faulty copy of a node, None where there is nothing to change."""
    if isinstance(node, (ast.BinOp, ast.BoolOp, ast.UnaryOp)) and type(node.op) in SWAPS:
        return type(node)(**{**dict(ast.iter_fields(node)), "op": SWAPS[type(node.op)]()})
    if isinstance(node, ast.Compare) and type(node.ops[0]) in SWAPS:
        return ast.Compare(node.left, [SWAPS[type(node.ops[0])](), *node.ops[1:]], node.comparators)
    if isinstance(node, ast.Constant) and isinstance(node.value, bool):
        return ast.Constant(not node.value)
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)):
        return ast.Constant(node.value + 1)
    if isinstance(node, ast.IfExp):
        return ast.IfExp(node.test, node.orelse, node.body)
    return None


class Replace(ast.NodeTransformer):
    """Puts one node in the place of another."""

    def __init__(self, old: ast.AST, new: ast.AST):
        self.old, self.new = old, new

    def visit(self, node: ast.AST) -> ast.AST:
        return ast.copy_location(self.new, node) if node is self.old else super().visit(node)


class Source(importlib.machinery.SourceFileLoader):
    """Loads a module from another source than its file's; it keeps its file and, for a package, its path."""

    def __init__(self, module: str, path: str, source: str):
        super().__init__(module, path)
        self.source = source

    def get_code(self, fullname: str):
        return compile(self.source, self.path, "exec")  # never the cached one


class Finder(importlib.abc.MetaPathFinder):
    """Finds the modules whose source is replaced. sources: file -> text."""

    def __init__(self, sources: dict[Path, str]):
        self.files = {".".join(file.with_suffix("").parts).removesuffix(".__init__"): file for file in sources}
        self.texts = sources

    def find_spec(self, fullname: str, path: object, target: object = None):
        file = self.files.get(fullname)
        if file is None:
            return None
        loader = Source(fullname, str(file.resolve()), self.texts[file])
        return importlib.util.spec_from_file_location(fullname, loader.path, loader=loader)


def nearest_first(file: Path, tests: list[str]) -> list[str]:
    """Returns the tests with those of the changed file's own name in front: most faults end there."""
    own = Path("tests", file.parent, f"test_{file.name}")
    return [str(own), *tests] if own.exists() else tests


def survives(sources: dict[Path, str], tests: list[str], seconds: float) -> bool:
    """Runs the tests on changed files in a process of their own; a fault that hangs is noticed too."""
    child = os.fork()
    if child == 0:
        sys.meta_path.insert(0, Finder(sources))
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            code = pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-p", "no:xdist", *tests])
        os._exit(0 if code == 0 else 1)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status == 0
        time.sleep(0.05)
    os.kill(child, 9)
    os.waitpid(child, 0)
    return False


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("target", type=Path, help="a package's folder or one file")
    parser.add_argument("--tests", nargs="+", required=True, help="the tests that should notice")
    parser.add_argument("--count", type=int, default=60, help="faults to draw")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args(argv)
    files = sorted(args.target.rglob("*.py")) if args.target.is_dir() else [args.target]
    drawn = [(file, i) for file in files for i in range(len(places(ast.parse(file.read_text()))))]
    drawn = random.Random(args.seed).sample(drawn, min(args.count, len(drawn)))
    began = time.monotonic()
    sound = {file: ast.unparse(ast.parse(file.read_text())) for file in files}  # imported the way that faults are
    if not survives(sound, args.tests, 1e6):
        sys.exit("the tests fail without any fault")
    seconds = 60 + 3 * (time.monotonic() - began)
    survivors = 0
    for file, i in drawn:
        tree = ast.parse(file.read_text())
        node = places(tree)[i]
        line, before = node.lineno, ast.unparse(node)
        new = changed(node)
        faulty = ast.unparse(ast.fix_missing_locations(Replace(node, new).visit(tree)))
        if survives({file: faulty}, nearest_first(file, args.tests), seconds):
            survivors += 1
            print(f"{file}:{line}: {before}  ->  {ast.unparse(new)}", flush=True)
    noticed = len(drawn) - survivors
    print(f"{args.target}: {noticed} of {len(drawn)} faults noticed ({100 * noticed / len(drawn):.0f} %)")


if __name__ == "__main__":
    main()
