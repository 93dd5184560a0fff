"""YAML files read strictly: what YAML would drop, expand or reinterpret without a word is refused with its line."""

from __future__ import annotations

import re
from collections.abc import Collection
from difflib import get_close_matches
from typing import Any

import yaml

from utils.errors import NAME, UserError

DEEPEST = 40
"""Levels of nesting; the key tree has four."""
MOST_VALUES = 100_000
"""Values after aliases are expanded: nine lines of aliases of aliases make a thousand million."""
LARGEST_FILE = 2**20
"""Bytes of a file; our longest has five thousand, and a parser takes a hundred times the room."""
OCTAL = re.compile(r"[-+]?0[0-7_]*[1-7][0-7_]*")
OTHER_BASE = re.compile(r"[-+]?0(?:x[0-9a-fA-F_]+|b[01_]+)")
BASE_60 = re.compile(r"[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")


class YAMLMistake(UserError):
    """What is wrong, with the line (from 1; 0 if no line is to blame); the caller adds the file."""

    def __init__(self, line: int, what: str):
        super().__init__(f"line {line}: {what}" if line else what)
        self.line, self.what = line, what


class _Loader(yaml.SafeLoader):
    """PyYAML's loader of plain types, which calls itself for what is nested, to a limit."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        nested = self.check_event(yaml.SequenceStartEvent, yaml.MappingStartEvent)
        if nested and self.depth == DEEPEST:
            line = self.peek_event().start_mark.line + 1
            raise YAMLMistake(line, f"nested more than {DEEPEST} levels deep")
        self.depth += nested
        node = super().compose_node(parent, index)
        self.depth -= nested
        return node


def parse_yaml(text: str, names: Collection[str] | None = None) -> Any:
    """Returns the value of a YAML text, of plain types only.

    names: of sections and keys; a text without any of them at its top is not a configuration, and nothing of it is
    repeated. Raises ``YAMLMistake`` for such a text, for one that is not YAML, a key that is given twice, a number that
    YAML 1.1 reads in another base than ten, nesting beyond ``DEEPEST`` and aliases that expand beyond ``MOST_VALUES``.
    """
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if names is not None:
            refuse_foreign(node, names)
        check_nodes(node)
        return loader.construct_document(node)
    except YAMLMistake:
        raise
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise YAMLMistake(mark.line + 1 if mark else 0, f"not valid YAML{problem_of(error)}") from None
    except Exception:  # noqa: BLE001 - PyYAML's constructors raise many kinds for a date or a number that is none
        raise YAMLMistake(0, "not valid YAML: a value is not what its form or its tag says") from None


def problem_of(error: yaml.YAMLError) -> str:
    """Returns the parser's reason, without the words of the file that it quotes; '' if it has none."""
    problem = getattr(error, "problem", None)
    return ": " + re.sub(r"(['\"])(?!<)[^'\"]{2,}\1", "...", str(problem)) if problem else ""


def refuse_foreign(node: yaml.Node, names: Collection[str]) -> None:
    """Raises for a text that is not a mapping with one of the names at its top: a list, a password file, a log."""
    keys = {str(key.value).upper() for key, _ in node.value} if isinstance(node, yaml.MappingNode) else {""}
    misspelt = (get_close_matches(key[:60], names, n=1, cutoff=0.85) for key in keys)
    if keys and not keys & set(names) and not any(misspelt):
        raise YAMLMistake(0, "expected sections such as 'MODEL:', and found none; this is not a configuration")


def check_nodes(root: yaml.Node) -> None:
    """Raises for keys given twice, numbers of another base, and aliases that expand too far."""
    sizes: dict[int, int] = {}
    path: set[int] = set()

    def size_of(node: yaml.Node) -> int:
        if id(node) in path:
            raise YAMLMistake(node.start_mark.line + 1, "an alias refers to what it stands in")
        if id(node) not in sizes:
            path.add(id(node))
            if isinstance(node, yaml.MappingNode):
                check_keys(node)
                total = 1 + sum(size_of(child) for pair in node.value for child in pair)
            elif isinstance(node, yaml.SequenceNode):
                total = 1 + sum(size_of(child) for child in node.value)
            else:
                check_number(node)
                total = 1
            path.discard(id(node))
            sizes[id(node)] = total
        if sizes[id(node)] > MOST_VALUES:
            raise YAMLMistake(node.start_mark.line + 1, f"aliases expand to more than {MOST_VALUES:,} values")
        return sizes[id(node)]

    size_of(root)


def check_keys(node: yaml.MappingNode) -> None:
    first: dict[str, int] = {}
    for key, _ in node.value:
        name, line = str(key.value), key.start_mark.line + 1
        if name in first and name != "<<":
            shown = repr(name) if NAME.fullmatch(name) else "a key"
            raise YAMLMistake(line, f"{shown} is given twice, first in line {first[name]}; keep one of them")
        first[name] = line


def check_number(node: yaml.Node) -> None:
    if not isinstance(node, yaml.ScalarNode) or node.style is not None:
        return
    value, line = node.value, node.start_mark.line + 1
    if node.tag == "tag:yaml.org,2002:int" and OCTAL.fullmatch(value):
        decimal = value.replace("_", "").lstrip("+-0")
        raise YAMLMistake(line, f"{value} begins with 0, which YAML reads as octal; write {decimal}")
    if node.tag == "tag:yaml.org,2002:int" and OTHER_BASE.fullmatch(value):
        base = "16" if "x" in value else "2"
        raise YAMLMistake(line, f"{value} is read as a number of base {base}; write it in base ten, or in quotes")
    if node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float") and BASE_60.fullmatch(value):
        raise YAMLMistake(line, f"{value} is read as a number of base 60; put it in quotes")
