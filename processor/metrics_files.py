"""``metrics.json``, which training writes, and ``test_metrics.json``, which a test writes: read back and checked."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from utils.errors import UserError, reason_of

METRICS, TEST_METRICS = "metrics.json", "test_metrics.json"

COUNTS = ("queries", "valid_queries", "absent_queries")
"""Figures of a test set that are numbers of images; all others are shares of 1."""

AGAIN = "remove it, and train or test again to have it written"

LONGEST = 1000
"""Letters of a name or path in a file of a run."""

SLACK = 1e-6
"""By how much a share may leave [0, 1] through rounding."""

Results = dict[str, dict[str, float]]
"""Name of each test set -> figure -> value."""


@dataclass(frozen=True)
class Metrics:
    """The content of ``metrics.json`` or ``test_metrics.json``, checked.

    content: all of it. results: shares of 1, and counts. mean: over the test sets that count. weight: the file that was
    tested; '' for training. finished: when, as an ISO date and time in UTC; '' if the file does not say.
    """

    content: dict[str, Any]
    results: Results
    mean: dict[str, float]
    commit: str
    config_file: str
    environment: dict[str, Any]
    weight: str
    finished: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ``UserError`` naming the file and the entry if the file is damaged."""
        content = _read_json(path)
        return cls(content, **cls._entries(_Entries(path, content)))

    @classmethod
    def _entries(cls, entries: _Entries) -> dict[str, Any]:
        return {
            "results": entries.results("results"),
            "mean": entries.figures("mean", entries.get("mean", dict, {})),
            "commit": entries.text("commit"),
            "config_file": entries.text("config_file"),
            "environment": entries.environment("environment"),
            "weight": entries.text("weight"),
            "finished": entries.text("finished"),
        }


@dataclass(frozen=True)
class TrainingMetrics(Metrics):
    """The content of ``metrics.json``. history: the metrics of each evaluation. seconds: evaluations included."""

    history: list[dict[str, Any]]
    method: str
    seed: int | None
    seconds: float | None
    machine: str

    @classmethod
    def _entries(cls, entries: _Entries) -> dict[str, Any]:
        return super()._entries(entries) | {
            "history": entries.history("history"),
            "method": entries.text("method"),
            "seed": entries.get("seed", int, None),
            "seconds": entries.seconds("seconds"),
            "machine": entries.text("machine"),
        }


@dataclass(frozen=True)
class _Entries:
    """Reads entries of a JSON object and raises ``UserError`` for a wrong type or range."""

    path: Path
    content: dict[str, Any]

    def get(self, name: str, kind: type | tuple[type, ...], default: Any) -> Any:
        value = self.content.get(name, default)
        if value is not default and (not isinstance(value, kind) or isinstance(value, bool)):
            raise self.damaged(name, value)
        return value

    def text(self, name: str) -> str:
        value = self.get(name, str, "")
        if len(value) > LONGEST:
            raise self.damaged(name, value)
        return value

    def seconds(self, name: str) -> float | None:
        value = self.get(name, (int, float), None)
        if value is not None and not (is_finite(value) and 0 <= value < 1e12):
            raise self.damaged(name, value)
        return value

    def environment(self, name: str) -> dict[str, Any]:
        entries = self.get(name, dict, {})
        for key, value in entries.items():
            if not isinstance(value, str) or len(value) > LONGEST or len(key) > LONGEST:
                raise self.damaged(f"{key} in {name}", value)
        return entries

    def results(self, name: str) -> Results:
        if name not in self.content:
            raise UserError(f"{self.path}: damaged, it has no {name!r}; {AGAIN}")
        sets = self.get(name, dict, None)
        if not isinstance(sets, dict) or not all(0 < len(test) <= LONGEST and test.isprintable() for test in sets):
            raise self.damaged(name, sets)
        return {test: self.figures(f"{name} of {test}", row) for test, row in sets.items()}

    def figures(self, name: str, row: Any) -> dict[str, float]:
        if not isinstance(row, dict):
            raise self.damaged(name, row)
        for figure, value in row.items():
            share = is_finite(value) and -SLACK <= value <= (2**53 if figure in COUNTS else 1 + SLACK)
            if not share or len(figure) > LONGEST:
                raise self.damaged(f"{figure} in {name}", value)
        return dict(row)

    def history(self, name: str) -> list[dict[str, Any]]:
        entries = self.get(name, list, [])
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry.get("stage"), str):
                raise self.damaged(name, entry)
            epoch = entry.get("epoch")
            if not isinstance(epoch, int) or isinstance(epoch, bool) or not 0 <= epoch < 10**9:
                raise self.damaged(f"an epoch in {name}", epoch)
            self.figures(name, {k: v for k, v in entry.items() if k not in ("stage", "epoch", "weights")})
        return entries

    def damaged(self, name: str, value: object) -> UserError:
        return UserError(f"{self.path}: damaged, {name} is {str(value)[:60]!r}; {AGAIN}")


def is_finite(value: object) -> bool:
    """Returns whether a value is a number, no truth value, that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= 1e300  # false for NaN


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({reason_of(error)}); {AGAIN}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged, expected a JSON object; {AGAIN}")
    return content
