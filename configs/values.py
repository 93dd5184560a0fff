"""Converts values as users write them, in YAML or on a command line, to the types of the keys."""

from __future__ import annotations

import ast
import copy
import math
from datetime import date
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from configs.defaults import KEYS, Key
from configs.paths import BadPath, expanded
from utils.errors import LONGEST_WORD, UserError, cut, nearest

LARGEST_INTEGER = 2**31 - 1
"""No count, size or seed is larger; torch and NumPy would take it for another number, or fail."""
LARGEST_NUMBER = 3.4e38
"""What torch's float32 holds."""


class ConfigError(UserError):
    """A mistake in a YAML file or an override, as one line."""


def coerce(name: str, value: Any, where: str) -> Any:
    """Returns ``value`` in the type of the key's default, within its bounds and choices.

    Lenient where no meaning is lost: 1 for 1.0, '1e-4', "('x')". where: the file or the overrides, for the message.
    Paths have ``~`` and ``$VAR`` replaced. Raises ``ConfigError`` for another type and for what is out of bounds or not
    among the choices.
    """
    typed = _typed(name, value, where)
    if KEYS[name].path:
        typed = _with_paths(name, typed, where)
    if typed != KEYS[name].default:
        for item in typed if isinstance(typed, (list, tuple)) else [typed]:
            _refuse_out_of_bounds(name, item, where)
    return typed


def _typed(name: str, value: Any, where: str) -> Any:
    key, plain = KEYS[name], literal(value)
    default = key.default
    if type(plain) is type(default) and plain == default:
        return copy.deepcopy(default)
    try:
        if isinstance(default, (list, tuple)):
            return type(default)(_sequence(value, key))
        if key.is_list and isinstance(plain, (list, tuple)):
            return tuple(_sequence(value, key))
        return _scalar(value, key.type or type(default), default)
    except TypeError:
        raise ConfigError(f"{name}: expected {expected(key)}, not {shown(value)} ({where})") from None


def lookup(cfg: CfgNode, name: str) -> Any:
    """Returns the value of a dotted key."""
    node = cfg
    for word in name.split("."):
        node = node[word]
    return node


def shown(value: Any) -> str:
    """Returns a value as a message shows it."""
    return cut(repr(value), LONGEST_WORD)


def _with_paths(name: str, value: Any, where: str) -> Any:
    """Returns a path, or each of several, with ``~`` and variables replaced."""
    try:
        return expanded(value) if isinstance(value, str) else type(value)(map(expanded, value))
    except BadPath as error:
        raise ConfigError(f"{name}: {shown(value)}: {error} ({where})") from None


def _refuse_out_of_bounds(name: str, value: Any, where: str) -> None:
    key = KEYS[name]
    if key.choices and value not in key.choices:
        known = ", ".join(choice or "''" for choice in key.choices)
        raise ConfigError(f"{name}: unknown {shown(value)}{nearest(value, key.choices)} Known: {known} ({where})")
    if not isinstance(value, (int, float)):
        return
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"{name}: {value} must be a finite number ({where})")
    hint = f": {key.hint}" if key.hint else ""
    if key.min is not None and not value >= key.min:
        raise ConfigError(f"{name}: {shown(value)} must be at least {key.min}{hint} ({where})")
    if key.max is not None and not value <= key.max:
        raise ConfigError(f"{name}: {shown(value)} must be at most {key.max}{hint} ({where})")
    largest = LARGEST_INTEGER if isinstance(value, int) else LARGEST_NUMBER
    if abs(value) > largest:
        raise ConfigError(f"{name}: {shown(value)} must be at most {largest} ({where})")


def _sequence(value: Any, key: Key) -> list:
    values = literal(value)
    if not isinstance(values, (list, tuple)):
        values = [value]
    if key.is_list or not key.default:
        return [_scalar(v, key.type) for v in values]
    if len(values) != len(key.default):
        raise TypeError
    return [_scalar(v, type(d)) for v, d in zip(values, key.default, strict=True)]


def _scalar(value: Any, kind: type | None, default: Any = None) -> Any:
    """Returns one value as ``kind`` (None: as it is); raises ``TypeError`` when it is something else."""
    plain = literal(value)
    if kind is None:
        return _of_plain_types(plain)
    if kind is str:
        if isinstance(value, str):
            return plain if isinstance(plain, str) else value                     # '007' stays a name
        if isinstance(value, bool):                                               # YAML reads a bare no as False
            return {True: "on", False: "off"}[value] if default in ("on", "off") else {True: "yes", False: "no"}[value]
        if isinstance(value, (int, float, date, Path)):
            return str(value)
    elif kind is bool:
        words = {"true": True, "false": False}
        if isinstance(plain, bool) or str(plain).lower() in words:
            return words[str(plain).lower()]
    elif isinstance(plain, (int, float)) and not isinstance(plain, bool) and (kind is float or plain % 1 == 0):
        try:
            return kind(plain)
        except OverflowError:  # an integer beyond every float
            return math.inf if plain > 0 else -math.inf
    raise TypeError


def _of_plain_types(value: Any) -> Any:
    """Returns a value of no type in particular; raises ``TypeError`` for what YAML cannot write."""
    if isinstance(value, (list, tuple)):
        return type(value)(_of_plain_types(item) for item in value)
    if isinstance(value, float) and not math.isfinite(value):
        raise TypeError
    if value is None or isinstance(value, (str, bool, int, float)):
        return value
    raise TypeError


def literal(value: Any) -> Any:
    """Returns the Python value that a text spells ("('veri')", '1e-4', '[256, 128]'), or the text if it spells none."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def expected(key: Key) -> str:
    """Returns what a key expects, in words."""
    one = {bool: "True or False", int: "an integer", float: "a number", str: "text", None: "anything"}
    many = {bool: "switches", int: "integers", float: "numbers", str: "names", None: "values"}
    if key.is_list and not isinstance(key.default, tuple):
        return f"{one[key.type]} or a list of {many[key.type]}"
    if isinstance(key.default, (list, tuple)):
        if key.is_list or not key.default:
            return f"a list of {many[key.type]}"
        return f"a list such as {list(key.default)}"
    return one[key.type or type(key.default)] + (f" or {key.default!r}" if key.type else "")
