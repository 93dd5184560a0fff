"""What was added to a store under one name: in shards that are each written once, whoever writes them and when.

A source is a list of images. Its rows have ids of their own (``schema.first_id``), its list is divided into shards, and
a fact is written behind each one that is in the store. So work that was killed goes on, several processes share it,
rows that were erased since do not come back, and the counts are exact.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from tools.galleries.filters import RowFilter
from tools.galleries.schema import StoreRows, first_id, source_number
from tools.galleries.store import Store
from utils.errors import UserError

SOURCE, SHARD = "source:", "shard:"
"""Begin the names of facts: of a source, and of a shard of one that is not finished."""


@dataclass(frozen=True)
class Source:
    """A list of images and its division. digest: tells it from other lists. rows: of the list. size: of a shard."""

    name: str
    digest: str
    rows: int
    size: int

    @property
    def shards(self) -> int:
        """The number of shards."""
        return -(-self.rows // self.size)

    def span(self, shard: int) -> tuple[int, int]:
        """Returns the first row of a shard and the one after its last."""
        return shard * self.size, min((shard + 1) * self.size, self.rows)

    def fact(self, shard: int) -> str:
        """Returns the name of the fact of a shard."""
        return f"{SHARD}{self.name}:{shard}"


def claim_source(store: Store, source: Source, columns: Iterable[str]) -> dict[str, Any]:
    """Writes down what a source is, and returns what the store knows of it.

    columns: those of the store that the list has. Raises ``UserError`` if the store has another source of that name or
    number, or the same one in other shards.
    """
    if not source.name or len(source.name) > 200 or not source.name.isprintable() or ":" in source.name:
        raise UserError(f"--source: expected a name of at most 200 printable letters without ':', got {source.name!r}")
    for fact, known in store.facts(SOURCE).items():
        name = fact.removeprefix(SOURCE)
        if name != source.name and source_number(name) == source_number(source.name):
            raise UserError(f"{store.address}: sources {source.name!r} and {name!r} get one number; rename this one")
        if name == source.name:
            if known["digest"] != source.digest:
                raise UserError(
                    f"{store.address}: has a source {name!r} of other images; give this one another --source, or erase "
                    "that one first"
                )
            if known["size"] != source.size and not known["finished"]:
                raise UserError(
                    f"{store.address}: source {name!r} was begun in shards of {known['size']} images, not "
                    f"{source.size}; go on with the same TEST.IMS_PER_BATCH"
                )
            return known
    known = {
        "digest": source.digest, "columns": sorted(columns), "size": source.size, "finished": False,
        "added": time.time(), "kept": 0, "skipped": 0,
    }  # fmt: skip
    store.set_fact(SOURCE + source.name, known)
    return known


def shards_done(store: Store, source: Source) -> dict[int, dict[str, int]]:
    """Returns the counts of the shards that are in the store, by number."""
    prefix = f"{SHARD}{source.name}:"
    return {int(name.removeprefix(prefix)): counts for name, counts in store.facts(prefix).items()}


def finish_shard(store: Store, source: Source, shard: int, kept: int, skipped: int) -> None:
    """Writes down that a shard is in the store."""
    store.set_fact(source.fact(shard), {"kept": kept, "skipped": skipped})


def finish_source(store: Store, source: Source) -> dict[str, Any]:
    """Writes down the counts of a source whose shards are all in the store, in place of theirs; returns its fact."""
    known, done = store.facts(SOURCE)[SOURCE + source.name], shards_done(store, source)
    if known["finished"]:
        return known
    missing = sorted(set(range(source.shards)) - done.keys())
    if missing:
        raise UserError(
            f"{store.address}: {len(missing)} shards of source {source.name!r} are not written; the same command "
            "goes on"
        )
    kept, skipped = (sum(counts[word] for counts in done.values()) for word in ("kept", "skipped"))
    known |= {"finished": True, "kept": kept, "skipped": skipped}
    store.set_fact(SOURCE + source.name, known)
    for shard in done:
        store.drop_fact(source.fact(shard))
    return known


def missing_rows(store: Store, source: Source, start: int, stop: int) -> np.ndarray:
    """Returns which rows of a part of a source's list the store does not have: (stop - start,) bool."""
    first = first_id(source.name)
    there = store.ids(RowFilter(ids=(first + start, first + stop))) - (first + start)
    missing = np.ones(stop - start, bool)
    missing[there] = False
    return missing


def add_missing(store: Store, source: Source, rows: StoreRows) -> int:
    """Writes the rows that the store does not have; returns how many. rows: of one shard, ascending."""
    first = first_id(source.name)
    start, stop = int(rows.ids[0]) - first, int(rows.ids[-1]) - first + 1
    missing = missing_rows(store, source, start, stop)[rows.ids - (first + start)]
    if missing.any():
        store.add(rows if missing.all() else rows.only(missing))
    return int(missing.sum())


def forget_sources(store: Store, names: Iterable[str]) -> None:
    """Removes the facts of those sources that have no row, so that their names can be used again."""
    for name in names:
        if not store.count(RowFilter(source=(name,))):
            for fact in (*store.facts(f"{SHARD}{name}:"), SOURCE + name):
                store.drop_fact(fact)
