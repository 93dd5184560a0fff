"""Who reads which key: attribute chains such as ``cfg.SOLVER.BASE_LR`` in the repository's Python files."""

from __future__ import annotations

import ast
from pathlib import Path

from configs.defaults import KEYS, SECTIONS

ROOT = Path(__file__).resolve().parents[1]
SKIPPED = {"configs", "tests", "benchmarks", "data", "runs"}   # the reader of the keys, and users of the reader


def python_files(root: Path = ROOT) -> list[Path]:
    """The Python files of the rooms and the programs beside them, not of hidden or skipped folders."""
    rooms = [p for p in sorted(root.iterdir()) if p.is_dir() and p.name not in SKIPPED and p.name[0] != "."]
    return [*sorted(root.glob("*.py")), *(f for room in rooms for f in sorted(room.rglob("*.py")))]


def find_readers(root: Path = ROOT) -> dict[str, list[str]]:
    """Key -> ``file:line`` of each place that reads it, over all Python files below ``root``."""
    readers: dict[str, list[str]] = {}
    for path in python_files(root):
        for name, line in keys_read(path.read_text(encoding="utf-8")):
            readers.setdefault(name, []).append(f"{path.relative_to(root).as_posix()}:{line}")
    return readers


def keys_read(source: str) -> list[tuple[str, int]]:
    """(key, line) pairs of one file, in the order of its lines.

    Seen are chains from the name ``cfg``, and from a name that was given a section of it (``solver = cfg.SOLVER``; for
    ``node = cfg.SOLVER.STAGE1 if first else cfg.SOLVER.STAGE2`` both). A name given twice in a file stands for both.
    Where a section is indexed (``cfg.DATASETS[key]``), its keys are the file's strings that are names of them.
    """
    tree = ast.parse(source)
    names: dict[str, set[str]] = {"cfg": {""}}
    for target, value in _assignments(tree):
        sections = set(_given(value, names)) & SECTIONS
        if sections and isinstance(target, ast.Name):
            names.setdefault(target.id, set()).update(sections)
    found = {(chain, node.lineno) for node in ast.walk(tree) for chain in _chains(node, names)}
    indexed = {chain for node in ast.walk(tree) if isinstance(node, ast.Subscript)
               for chain in _chains(node.value, names)} & SECTIONS
    found |= {(f"{section}.{node.value}", node.lineno) for section in indexed for node in ast.walk(tree)
              if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    found = {(name, line) for name, line in found if name in KEYS}
    return sorted(found, key=lambda pair: (pair[1], pair[0]))


def _assignments(tree: ast.AST) -> list[tuple[ast.expr, ast.expr]]:
    """(target, value) of every assignment, ``a, b = x, y`` taken apart, in the order of the lines."""
    pairs = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Assign):
            pairs += [(target, node.value) for target in node.targets]
        elif isinstance(node, (ast.AnnAssign, ast.NamedExpr)) and node.value is not None:
            pairs.append((node.target, node.value))
    apart = []
    for target, value in pairs:
        if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple) and len(target.elts) == len(value.elts):
            apart += zip(target.elts, value.elts, strict=True)
        else:
            apart.append((target, value))
    return sorted(apart, key=lambda pair: pair[1].lineno)


def _given(value: ast.AST, names: dict[str, set[str]]) -> list[str]:
    """The chains that an assigned expression may be as a whole: either branch of an ``if``, any item of a table."""
    if isinstance(value, ast.Attribute):
        return _chains(value, names)
    if isinstance(value, ast.Call):
        return []
    return [chain for child in ast.iter_child_nodes(value) for chain in _given(child, names)]


def _chains(node: ast.AST, names: dict[str, set[str]]) -> list[str]:
    """The dotted names that an expression such as ``cfg.SOLVER.BASE_LR`` or ``solver.BASE_LR`` may mean."""
    words = []
    while isinstance(node, ast.Attribute):
        words.append(node.attr)
        node = node.value
    if not (isinstance(node, ast.Name) and words):
        return []
    return [".".join(filter(None, [section, *reversed(words)])) for section in names.get(node.id, ())]
