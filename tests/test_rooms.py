"""Imports run down the table of rooms only, and no file imports in a circle (docs/architecture.md)."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from docs.architecture import OUT, draw
from tests.imports import PACKAGES, ROOT, imports_of, python_files

LEAVES = {"utils.errors", "utils.switches", "utils.methods", "utils.names", "utils.trees"}
"""Modules of ``utils`` that need no torch: all that ``configs`` may import."""
ALLOWED = {
    "utils": set(),
    "configs": set(),
    "datasets": {"utils", "configs"},
    "model": {"utils"},
    "loss": {"utils"},
    "solver": {"utils"},
    "processor": {"utils", "configs", "datasets", "model", "loss", "solver"},
    "tools": {"utils", "configs", "datasets", "model", "loss", "solver", "processor"},
}


@pytest.mark.parametrize("package", PACKAGES)
def test_a_room_imports_only_rooms_below_it(package):
    files = python_files(package)
    assert len(files) >= 5
    wrong = []
    for path in files:
        for line, module in imports_of(path):
            room = module.split(".")[0]
            if room == package or room in ALLOWED[package] or (package == "configs" and module in LEAVES):
                continue
            wrong.append(f"{path}:{line}: {package} may not import {module}")
    assert not wrong, "\n".join(wrong)


def test_the_leaves_that_the_configuration_imports_need_no_torch():
    code = f"import sys, {', '.join(sorted(LEAVES))}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


@pytest.mark.parametrize("package", PACKAGES)
def test_nothing_is_imported_inside_a_function_to_hide_a_circle(package):
    hidden = []
    for path in python_files(package):
        hidden += [f"{path}:{line}: {module}" for line, module in imports_of(path, in_functions=True)]
    assert not hidden, "\n".join(hidden)


def test_no_file_imports_itself_through_others():
    graph = {}
    for package in PACKAGES:
        for path in python_files(package):
            graph[module_name(path)] = {module for _, module in imports_of(path)}
    assert len(graph) >= 100
    known, done, circles = graph.keys(), set(), []

    def visit(name: str, way: list[str]) -> None:
        if name in way:
            circles.append(" -> ".join([*way[way.index(name) :], name]))
        elif name not in done:
            for other in sorted(graph[name] & known):
                visit(other, [*way, name])
            done.add(name)

    for name in sorted(known):
        visit(name, [])
    assert not circles, "\n".join(circles)


def test_nobody_but_the_programs_and_tests_imports_tools():
    for program in ("train.py", "test.py"):
        assert any(module.startswith("tools") for _, module in imports_of(Path(program)))


def module_name(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def test_the_picture_of_the_rooms_is_drawn_from_today_s_imports():
    assert OUT.read_text() == draw(), "run python -m docs.architecture"
