"""The settings that a study varies: a YAML file of dotted keys, each with choices or a range, checked key by key."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from configs.defaults import INERT, KEYS, SECTIONS
from configs.loader import read_text
from configs.values import ConfigError, coerce, shown
from configs.yaml_reader import YAMLMistake, parse_yaml
from utils.errors import UserError, nearest

FIXED = {
    "DATASETS": "all trials are compared on the same identities",
    "SOLVER.SEED": "the identities held out of training are drawn by it",
    "SOLVER.RESUME": "the study resumes its trials itself",
    "OUTPUT_DIR": "each trial has a folder of its own",
    "EXTRA_MODULES": "all trials share the imported modules",
    "TEST.WEIGHT": "a trial trains its own weights",
}
"""Keys and sections that no study varies, and why."""

FORM = "expected a list of choices, or a range such as {low: 1.0e-4, high: 1.0e-2, log: true}"


class Suggests(Protocol):
    """What is used of an Optuna trial."""

    def suggest_categorical(self, name: str, choices: Any) -> Any: ...

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float: ...

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int: ...


@dataclass(frozen=True)
class Choices:
    """Values of any type, one of which is taken. Optuna stores each as JSON text."""

    values: tuple[Any, ...]

    def suggest(self, trial: Suggests, key: str) -> Any:
        """Returns the trial's value of a key."""
        return json.loads(trial.suggest_categorical(key, [json.dumps(value) for value in self.values]))


@dataclass(frozen=True)
class Range:
    """Numbers from ``low`` to ``high``, both included; ``log``: drawn evenly by their logarithm."""

    low: float
    high: float
    log: bool
    whole: bool

    def suggest(self, trial: Suggests, key: str) -> float:
        """Returns the trial's value of a key."""
        if self.whole:
            return trial.suggest_int(key, int(self.low), int(self.high), log=self.log)
        return trial.suggest_float(key, self.low, self.high, log=self.log)


Space = dict[str, Choices | Range]
"""Dotted key -> what it is drawn from."""


def read_space(path: Path) -> Space:
    """Reads the space of a study.

    Raises ``UserError`` for a file that cannot be read, an unknown key, a key that a study may not vary, a value or an
    end of a range outside what the key accepts, and an empty space.
    """
    try:
        tree = parse_yaml(read_text(path))
    except FileNotFoundError:
        raise UserError(f"--space: {path}: no such file") from None
    except (OSError, UnicodeDecodeError):
        raise UserError(f"--space: {path}: cannot be read as text") from None
    except YAMLMistake as mistake:
        raise UserError(f"--space: {path}: {mistake}") from None
    if not isinstance(tree, dict) or not tree:
        raise UserError(f"--space: {path}: expected dotted keys with their choices or ranges, such as SOLVER.BASE_LR")
    return {key: entry_of(key, value, f"in {path}") for key, value in tree.items()}


def entry_of(key: Any, value: Any, where: str) -> Choices | Range:
    """Returns what a key is drawn from. Raises ``UserError`` for what is not allowed."""
    if key in SECTIONS:
        raise ConfigError(f"{key}: is a section; name a key of it in full, such as SOLVER.BASE_LR ({where})")
    if key not in KEYS:
        raise ConfigError(f"{key}: unknown key{nearest(key, KEYS).removesuffix('.')} ({where})")
    if fixed := next((why for name, why in FIXED.items() if key == name or key.startswith(f"{name}.")), ""):
        raise ConfigError(f"{key}: a study cannot vary it: {fixed} ({where})")
    if key in INERT:
        raise ConfigError(f"{key}: varying it changes nothing: {INERT[key]} ({where})")
    if isinstance(value, list) and value:
        return Choices(tuple(coerce(key, one, where) for one in value))
    if isinstance(value, dict) and {"low", "high"} <= value.keys() <= {"low", "high", "log"}:
        return range_of(key, value, where)
    raise ConfigError(f"{key}: {FORM}, got {shown(value)} ({where})")


def range_of(key: str, value: dict[str, Any], where: str) -> Range:
    """Returns a range. Raises ``UserError`` unless the key takes one number and both ends are in its bounds."""
    kind = KEYS[key].type or type(KEYS[key].default)
    if kind not in (int, float) or KEYS[key].is_list:
        raise ConfigError(f"{key}: does not take one number, so it has no range; list its choices ({where})")
    low, high, log = coerce(key, value["low"], where), coerce(key, value["high"], where), value.get("log", False)
    if not isinstance(log, bool):
        raise ConfigError(f"{key}: log must be true or false, got {shown(log)} ({where})")
    if not low < high:
        raise ConfigError(f"{key}: low {low} must be below high {high} ({where})")
    if log and low <= 0:
        raise ConfigError(f"{key}: low {low} must be above 0 for a range with log ({where})")
    return Range(low, high, log, kind is int)
