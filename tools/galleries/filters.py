"""Which rows of a store are meant: by camera, identity, source, track, time and id, as an expression of its engine."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime

from utils.errors import UserError

EVERY_ROW = "id >= 0"


@dataclass(frozen=True)
class RowFilter:
    """Rows that fulfil every condition that is set.

    since, until: seconds of ``time``, the first included and the second not; rows without a time never match. ids:
    likewise. added_before: seconds since the epoch.
    """

    identity: tuple[str, ...] = ()
    camid: tuple[str, ...] = ()
    source: tuple[str, ...] = ()
    seq: tuple[str, ...] = ()
    path: tuple[str, ...] = ()
    since: float | None = None
    until: float | None = None
    added_before: float | None = None
    ids: tuple[int, int] | None = None

    def expression(self, quote: Callable[[str], str], listed: Callable[[str, list[str]], str], least_time: str) -> str:
        """Returns the filter as an engine writes it; ``EVERY_ROW`` without a condition.

        quote: a text as a literal. listed: (column, literals) -> the condition that the column is one of them.
        least_time: the condition that a time is known.
        """
        terms = []
        for column in ("identity", "camid", "source", "seq", "path"):
            if values := getattr(self, column):
                terms.append(listed(column, [quote(value) for value in values]))
        if self.since is not None or self.until is not None:
            terms.append(least_time)
        if self.since is not None:
            terms.append(f"time >= {self.since!r}")
        if self.until is not None:
            terms.append(f"time < {self.until!r}")
        if self.added_before is not None:
            terms.append(f"added < {self.added_before!r}")
        if self.ids is not None:
            terms.append(f"id >= {self.ids[0]} and id < {self.ids[1]}")
        return " and ".join(terms) or EVERY_ROW

    def columns(self) -> set[str]:
        """Returns the columns that must be known for the filter to match anything."""
        used = {column for column in ("identity", "camid", "seq", "path") if getattr(self, column)}
        return used | ({"time"} if self.since is not None or self.until is not None else set())


def seconds_of(word: str, option: str) -> float:
    """Returns the seconds that a word means: a number, or a date and time such as 2026-11-30T08:00, in UTC.

    Raises ``UserError`` for anything else. option: whose value it is.
    """
    try:
        seconds = float(word)
    except ValueError:
        try:
            moment = datetime.fromisoformat(word)
        except ValueError:
            raise UserError(
                f"{option}: expected seconds or a date and time such as 2026-11-30T08:00, got {word!r}"
            ) from None
        seconds = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()
    if not math.isfinite(seconds):
        raise UserError(f"{option}: expected seconds or a date and time, got {word!r}")
    return seconds
