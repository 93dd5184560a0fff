"""Values as users write them, in YAML or on a command line, and the types that the keys ask for."""

from __future__ import annotations

import ast
import copy
from datetime import date
from pathlib import Path
from typing import Any

from configs.defaults import KEYS, Key
from utils.errors import UserError


class ConfigError(UserError):
    """A mistake in a YAML file or an override, told in one line."""


def coerce(name: str, value: Any, where: str) -> Any:
    """``value`` in the type of the key's default, within its bounds and words.

    Lenient where no meaning is lost: 1 for 1.0, '1e-4', "('x')".
    """
    found = _typed(name, value, where)
    for one in found if isinstance(found, (list, tuple)) else [found]:
        _refuse_out_of_bounds(name, one, where)
    return found


def _typed(name: str, value: Any, where: str) -> Any:
    key, plain = KEYS[name], literal(value)
    default = key.default
    if type(plain) is type(default) and plain == default:
        return copy.deepcopy(default)
    try:
        if isinstance(default, (list, tuple)):
            return type(default)(_sequence(value, key))
        if key.several and isinstance(plain, (list, tuple)):
            return tuple(_sequence(value, key))
        return _scalar(value, key.of or type(default), default)
    except TypeError:
        raise ConfigError(f"{name}: expected {expected(key)}, not {value!r} ({where})") from None


def _refuse_out_of_bounds(name: str, value: Any, where: str) -> None:
    key = KEYS[name]
    if key.words and value not in key.words:
        raise ConfigError(f"{name}: {value!r} is none of {', '.join(map(repr, key.words))} ({where})")
    if key.least is not None and not value >= key.least:
        raise ConfigError(f"{name}: {value} must be at least {key.least} ({where})")
    if key.most is not None and not value <= key.most:
        raise ConfigError(f"{name}: {value} must be at most {key.most} ({where})")


def _sequence(value: Any, key: Key) -> list:
    values = literal(value)
    if not isinstance(values, (list, tuple)):
        values = [value]
    if key.several or not key.default:
        return [_scalar(v, key.of) for v in values]
    if len(values) != len(key.default):
        raise TypeError
    return [_scalar(v, type(d)) for v, d in zip(values, key.default, strict=True)]


def _scalar(value: Any, kind: type | None, default: Any = None) -> Any:
    """One value as ``kind`` (None: as it is); TypeError when it is something else."""
    plain = literal(value)
    if kind is None:
        return plain
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
        return kind(plain)
    raise TypeError


def literal(value: Any) -> Any:
    """What a text spells as a Python value ("('veri')", '1e-4', '[256, 128]'); the text itself if it spells none."""
    if not isinstance(value, str):
        return value
    try:
        return ast.literal_eval(value.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        return value


def expected(key: Key) -> str:
    """What a key asks for, in words."""
    one = {bool: "True or False", int: "an integer", float: "a number", str: "text", None: "anything"}
    many = {bool: "switches", int: "integers", float: "numbers", str: "names", None: "values"}
    if key.several and not isinstance(key.default, tuple):
        return f"{one[key.of]} or a list of {many[key.of]}"
    if isinstance(key.default, (list, tuple)):
        if key.several or not key.default:
            return f"a list of {many[key.of]}"
        return f"a list such as {list(key.default)}"
    return one[key.of or type(key.default)] + (f" or {key.default!r}" if key.of else "")
