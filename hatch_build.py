"""Builds the wheel: the repository's packages below one package, ``lineup``, with their imports rewritten.

In a checkout the packages stand at the top (``processor``, ``datasets``, ``utils``), where other projects have packages
of the same names. In the wheel they are ``lineup.processor``, ``lineup.datasets`` and so on. What is rewritten is the
import statements, by their place in the syntax tree, and the commands that messages and docstrings name. No source is
kept twice: the files are written while the wheel is built.
"""

from __future__ import annotations

import ast
import re
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from hatchling.metadata.plugin.interface import MetadataHookInterface

ROOMS = ("configs", "datasets", "loss", "model", "processor", "solver", "tools", "utils")
PROGRAMS = ("train.py", "test.py")
FRONT = "lineup"
"""The folder that becomes the top of the package."""
ENDINGS = (".py", ".yml", ".html", ".css", ".js")
COMMIT = "COMMIT"
"""File of the source archive and of the package that names the commit; a checkout asks git."""

COMMANDS = (
    (re.compile(r"python -m (?:tools\.|(?=configs\b))"), f"{FRONT} "),
    (re.compile(r"python -m tools\b"), FRONT),
    (re.compile(r"python (train|test|\{name\})\.py"), rf"{FRONT} \1"),
    (re.compile(r"pip install -r requirements-extra\.txt"), "pip install lineup-reid[all]"),
)
"""How messages and docstrings name commands in a checkout, and what they are once installed."""
EXTRAS = re.compile(r"#\s*\[([\w, -]+)\]")
"""The extras of a line of requirements-extra.txt, at the beginning of its comment."""


# ---------------------------------------------------------------- source


def rewritten(source: str) -> str:
    """Returns the source of a module as the wheel has it: imports of our packages from below ``lineup``."""
    for pattern, command in COMMANDS:
        source = pattern.sub(command, source)
    lines = source.split("\n")
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom) and node.level == 0 and is_ours(node.module or ""):
            line, start = lines[node.lineno - 1], node.col_offset
            lines[node.lineno - 1] = line[:start] + line[start:].replace("from ", f"from {FRONT}.", 1)
        elif isinstance(node, ast.Import) and any(is_ours(alias.name) for alias in node.names):
            assert node.lineno == node.end_lineno, "such an import stands in one line"
            line = lines[node.lineno - 1]
            imports = "; ".join(moved(alias) for alias in node.names)
            lines[node.lineno - 1] = line[: node.col_offset] + imports + line[node.end_col_offset :]
    return "\n".join(lines)


def moved(alias: ast.alias) -> str:
    """Returns the statements that bind what ``import NAME [as OTHER]`` binds."""
    if not is_ours(alias.name):
        return f"import {ast.unparse(alias)}"
    if alias.asname:
        return f"import {FRONT}.{alias.name} as {alias.asname}"
    top = alias.name.partition(".")[0]
    both = [f"import {FRONT}.{alias.name}"] if top != alias.name else []
    return "; ".join([*both, f"from {FRONT} import {top}"])


def is_ours(module: str) -> bool:
    """Returns whether a module stands in one of our packages."""
    return module.partition(".")[0] in ROOMS


def write_package(root: Path, out: Path) -> None:
    """Writes the package ``lineup`` of a checkout into a folder. out: the folder of ``__init__.py``."""
    for source, target in package_files(root):
        path = out / target
        path.parent.mkdir(parents=True, exist_ok=True)
        raw = source.read_bytes()
        path.write_bytes(rewritten(raw.decode()).encode() if source.suffix == ".py" else raw)


def package_files(root: Path) -> list[tuple[Path, Path]]:
    """Returns (file of the checkout, its path inside the package), in order."""
    rooms = (root / room for room in ROOMS)
    files = [(path, path.relative_to(root)) for room in rooms for path in sorted(room.rglob("*"))]
    files += [(root / name, Path(name)) for name in PROGRAMS]
    files += [(path, path.relative_to(root / FRONT)) for path in sorted((root / FRONT).glob("*.py"))]
    return [(path, to) for path, to in files if path.suffix in ENDINGS]


# ---------------------------------------------------------------- metadata


def requirements(path: Path) -> list[tuple[str, tuple[str, ...]]]:
    """Returns each requirement of a file with the extras that its comment names in brackets."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines():
        requirement = line.partition("#")[0].strip()
        if requirement:
            names = EXTRAS.search(line)
            rows.append((requirement, tuple(re.split(r",\s*", names[1])) if names else ()))
    return rows


def extras(path: Path) -> dict[str, list[str]]:
    """Returns extra -> requirements of requirements-extra.txt; ``all`` has every one."""
    groups: dict[str, list[str]] = {"all": []}
    for requirement, names in requirements(path):
        for name in (*names, "all"):
            groups.setdefault(name, []).append(requirement)
    return groups


def commit_of(root: Path) -> str:
    """Returns the commit of a checkout, with a ``+`` if files differ from it, or of a source archive; '' without."""
    if (root / COMMIT).is_file():
        return (root / COMMIT).read_text().strip()
    try:
        words = (["rev-parse", "HEAD"], ["status", "--porcelain"])
        head, changes = (subprocess.check_output(["git", *w], cwd=root, text=True).strip() for w in words)
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + ("+" if changes else "")


# ---------------------------------------------------------------- hooks


class Requirements(MetadataHookInterface):
    """Takes the dependencies from the requirements files."""

    def update(self, metadata: dict[str, Any]) -> None:
        root = Path(self.root)
        metadata["dependencies"] = [requirement for requirement, _ in requirements(root / "requirements.txt")]
        metadata["optional-dependencies"] = extras(root / "requirements-extra.txt")


class Package(BuildHookInterface):
    """Writes the package into a temporary folder, from which the wheel takes it; both archives get the commit."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        if version == "editable":
            raise RuntimeError("an editable install is a checkout: run `python train.py` in it, or `pip install .`")
        root = Path(self.root)
        self.scratch = tempfile.TemporaryDirectory()
        folder = Path(self.scratch.name)
        (folder / COMMIT).write_text(commit_of(root))
        if self.target_name == "wheel":
            write_package(root, folder)
            build_data["force_include"][str(folder)] = FRONT
        else:
            build_data["force_include"][str(folder / COMMIT)] = COMMIT

    def finalize(self, version: str, build_data: dict[str, Any], artifact_path: str) -> None:
        self.scratch.cleanup()
