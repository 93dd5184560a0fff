"""Finds the readers of each key: attribute chains such as ``cfg.SOLVER.BASE_LR`` in the repository's Python files."""

from __future__ import annotations

import ast
from pathlib import Path

from configs.defaults import KEYS, SECTIONS

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = {"configs", "tests", "benchmarks", "data", "runs"}   # the reader of the keys, and users of the reader


def python_files(root: Path = ROOT) -> list[Path]:
    """Returns the Python files of the packages and the programs beside them, not of hidden or skipped folders."""
    rooms = [p for p in sorted(root.iterdir()) if p.is_dir() and p.name not in SKIPPED and p.name[0] != "."]
    return [*sorted(root.glob("*.py")), *(f for room in rooms for f in sorted(room.rglob("*.py")))]


def find_readers(root: Path = ROOT) -> dict[str, list[str]]:
    """Returns key -> ``file:line`` of each place that reads it, over all Python files below ``root``."""
    readers: dict[str, list[str]] = {}
    for path in python_files(root):
        for name, line in keys_read(path.read_text(encoding="utf-8")):
            readers.setdefault(name, []).append(f"{path.relative_to(root).as_posix()}:{line}")
    return readers


def keys_read(source: str) -> list[tuple[str, int]]:
    """Returns (key, line) pairs of one file, in the order of its lines.

    Seen are chains from the name ``cfg``, and from a name that a section of it was assigned to (``solver =
    cfg.SOLVER``; for ``node = cfg.SOLVER.STAGE1 if first else cfg.SOLVER.STAGE2`` both). A name assigned twice in a
    file stands for both. Where a section is indexed (``cfg.DATASETS[key]``), its keys are the file's strings that are
    names of them.
    """
    if "cfg" not in source:
        return []
    nodes = list(ast.walk(ast.parse(source)))
    names: dict[str, set[str]] = {"cfg": {""}}
    for target, value in _assignments(nodes):
        sections = set(_assigned_chains(value, names)) & SECTIONS
        if sections and isinstance(target, ast.Name):
            names.setdefault(target.id, set()).update(sections)
    attributes = [node for node in nodes if isinstance(node, ast.Attribute)]
    reads = {(chain, node.lineno) for node in attributes for chain in _chains(node, names)}
    subscripts = [node for node in nodes if isinstance(node, ast.Subscript)]
    indexed = {chain for node in subscripts for chain in _chains(node.value, names)} & SECTIONS
    strings = [node for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    reads |= {(f"{section}.{node.value}", node.lineno) for section in indexed for node in strings}
    return sorted(((name, line) for name, line in reads if name in KEYS), key=lambda pair: (pair[1], pair[0]))


def _assignments(nodes: list[ast.AST]) -> list[tuple[ast.expr, ast.expr]]:
    """Returns (target, value) of every assignment, ``a, b = x, y`` taken apart, in the order of the lines."""
    pairs: list[tuple[ast.expr, ast.expr]] = []
    for node in nodes:
        if isinstance(node, ast.Assign):
            pairs += [(target, node.value) for target in node.targets]
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            pairs.append((node.target, node.value))
    apart: list[tuple[ast.expr, ast.expr]] = []
    for target, value in pairs:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            apart += zip(target.elts, value.elts, strict=True)
        else:
            apart.append((target, value))
    return sorted(apart, key=lambda pair: pair[1].lineno)


def _assigned_chains(value: ast.AST, names: dict[str, set[str]]) -> list[str]:
    """Returns the chains that an assigned expression may be: either branch of an ``if``, any item of a table."""
    if isinstance(value, ast.Attribute):
        return _chains(value, names)
    if isinstance(value, ast.Call):
        return []
    return [chain for child in ast.iter_child_nodes(value) for chain in _assigned_chains(child, names)]


def _chains(node: ast.AST, names: dict[str, set[str]]) -> list[str]:
    """Returns the dotted names that an expression such as ``cfg.SOLVER.BASE_LR`` or ``solver.BASE_LR`` may mean."""
    words: list[str] = []
    while isinstance(node, ast.Attribute):
        words.append(node.attr)
        node = node.value
    if not (isinstance(node, ast.Name) and words):
        return []
    return [".".join(filter(None, [section, *reversed(words)])) for section in names.get(node.id, ())]
