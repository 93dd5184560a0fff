"""Writes feature files into a store, batch by batch; what was killed continues with the same command."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np

from tools.galleries.schema import StoreRows, checked_features, first_id
from tools.galleries.sources import Source, add_missing, claim_source, finish_shard, finish_source, shards_done
from tools.galleries.store import Store
from utils.errors import UserError
from utils.feature_files import Features
from utils.scoring.blocks import Progress

BATCH_BYTES = 2**26
"""Of the features that are written together: a kill costs no more."""
LONGEST_TEXT = 4000
"""Letters of a column's value."""
CORNERS = ("x1", "y1", "x2", "y2")

Columns = dict[str, str]


@dataclass
class Added:
    """What an addition did. written: rows now; before: rows that had been added already."""

    written: int = 0
    before: int = 0
    seconds: float = 0.0


def batch_rows(width: int) -> int:
    """Returns how many rows are written together."""
    return max(BATCH_BYTES // (4 * width), 1)


def columns_of(lines: list[Columns], source: str, what: str, first: int, now: float) -> dict[str, Any]:
    """Returns a store's columns from lines of ``rows.csv``. first: number of the first line, in messages."""
    moments = [seconds_in(line, f"{what}, row {first + i}") for i, line in enumerate(lines)]
    columns: dict[str, Any] = {
        "identity": [line.get("pid", "") for line in lines],
        "camid": [line.get("camid", "") for line in lines],
        "seq": [line.get("seq", "") for line in lines],
        "path": [line.get("path", "") for line in lines],
        "box": [box_in(line) for line in lines],
        "source": [source] * len(lines),
    }
    for name, values in columns.items():
        columns[name] = [printable_bytes(value) for value in values]
        if max(map(len, columns[name]), default=0) > LONGEST_TEXT:
            raise UserError(f"{what}: a value of the column for {name} has more than {LONGEST_TEXT:,} letters")
    return columns | {"time": np.array(moments), "added": np.full(len(lines), now)}


def printable_bytes(text: str) -> str:
    """Returns a path with bytes that are no text as escapes: engines store UTF-8."""
    return text if text.isascii() else text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def seconds_in(line: Columns, where: str) -> float:
    """Returns the time of a line, NaN if it has none. Raises ``UserError`` if it is not a number."""
    word = line.get("time", "")
    if not word:
        return math.nan
    try:
        seconds = float(word)
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds):
        raise UserError(f"{where}: time must be seconds, got {word!r}")
    return seconds


def box_in(line: Columns) -> str:
    """Returns the crop box of a line as four numbers, '' without one."""
    return " ".join(line[name] for name in CORNERS) if all(line.get(name) for name in CORNERS) else ""


def add_features(store: Store, features: Features, name: str, force: bool = False) -> Added:
    """Adds the rows of a features file, as a source, unless they were added before; returns the counts.

    Raises ``UserError`` for features of another model, width or length, and for NaN; batches before stay in the store.
    """
    what, meta = str(features.path), store.meta
    meta.refuse_other(str(features.meta.get("model_hash", "")), features.array.shape[1], what, store.address, force)
    source = Source(name, digest_of(features), len(features), batch_rows(meta.width))
    added, began, lines = Added(), time.monotonic(), features.lines()
    checked_features(features.array[: source.size], 0, what)  # before the store hears of it
    with store.writing(), Progress(len(features), "adding", "row") as progress:
        first = next(features.lines(), {})
        if claim_source(store, source, known_columns(first))["finished"]:
            return Added(before=len(features))
        done = shards_done(store, source)
        for shard in range(source.shards):
            start, stop = source.span(shard)
            batch = list(islice(lines, stop - start))
            if shard in done:
                added.before += done[shard]["kept"]
            else:
                feats = checked_features(features.array[start:stop], start, what)
                columns = columns_of(batch, name, what, start, time.time())
                rows = StoreRows(first_id(name) + np.arange(start, stop), feats, columns)
                written = add_missing(store, source, rows)
                added.written, added.before = added.written + written, added.before + stop - start - written
                finish_shard(store, source, shard, stop - start, 0)
            progress.add(stop - start)
        exhaust(lines)
        finish_source(store, source)
    added.seconds = time.monotonic() - began
    return added


def exhaust(lines: Iterator[Columns]) -> None:
    """Reads the rest of a table, so that one with too many lines is noticed."""
    for _ in lines:
        pass


def digest_of(features: Features) -> str:
    """Returns what tells the images of one features file from those of another."""
    if not features.meta:
        return f"{features.array.shape[0]} rows of {features.path.name}"
    return f"{features.meta['model_hash'][:16]} {features.meta['list_hash'][:16]} {len(features)}"


def known_columns(line: Columns) -> set[str]:
    """Returns the columns of a store that a table has, by one of its lines."""
    named = {"identity": "pid", "camid": "camid", "seq": "seq", "path": "path", "time": "time"}
    return {column for column, name in named.items() if name in line} | ({"box"} if CORNERS[0] in line else set())
