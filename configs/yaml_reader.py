"""YAML files read strictly: what YAML would drop, expand or reinterpret without a word is refused with its line."""

from __future__ import annotations

import re
from typing import Any

import yaml

from utils.errors import UserError

DEEPEST = 40
"""Levels of nesting; the key tree has four."""
MOST_VALUES = 100_000
"""Values after aliases are expanded: nine lines of aliases of aliases make a thousand million."""
OCTAL = re.compile(r"[-+]?0[0-7_]*[1-7][0-7_]*")
BASE_60 = re.compile(r"[-+]?[1-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?")


class YAMLMistake(UserError):
    """What is wrong, with the line (from 1); the caller adds the file."""

    def __init__(self, line: int, what: str):
        super().__init__(f"line {line}: {what}")
        self.line, self.what = line, what


def parse_yaml(text: str) -> Any:
    """Returns the value of a YAML text, of plain types only.

    Raises ``YAMLMistake`` for a key that is given twice, a number that YAML 1.1 reads in another base than ten,
    nesting beyond ``DEEPEST`` and aliases that expand beyond ``MOST_VALUES``; ``yaml.YAMLError`` for other text.
    """
    check_depth(text)
    node = yaml.compose(text, yaml.SafeLoader)
    if node is None:
        return None
    check_nodes(node)
    return yaml.safe_load(text)


def check_depth(text: str) -> None:
    """Raises where collections are nested too deeply, before a parser that calls itself sees them."""
    depth = 0
    for event in yaml.parse(text, yaml.SafeLoader):
        if isinstance(event, (yaml.SequenceStartEvent, yaml.MappingStartEvent)):
            depth += 1
            if depth > DEEPEST:
                raise YAMLMistake(event.start_mark.line + 1, f"nested more than {DEEPEST} levels deep")
        elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
            depth -= 1


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
            raise YAMLMistake(line, f"{name[:60]!r} is given twice, first in line {first[name]}; keep one of them")
        first[name] = line


def check_number(node: yaml.Node) -> None:
    if not isinstance(node, yaml.ScalarNode) or node.style is not None:
        return
    value = node.value
    if node.tag == "tag:yaml.org,2002:int" and OCTAL.fullmatch(value):
        decimal = value.replace("_", "").lstrip("+-0")
        raise YAMLMistake(
            node.start_mark.line + 1, f"{value[:30]} begins with 0, which YAML reads as octal; write {decimal[:30]}"
        )
    if node.tag in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float") and BASE_60.fullmatch(value):
        raise YAMLMistake(
            node.start_mark.line + 1, f"{value[:30]} is read as a number of base 60; put it in quotes"
        )
