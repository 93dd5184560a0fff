"""Removes rows for good: from every answer, from the files, and with a record that names nobody."""

from __future__ import annotations

import secrets
import time
from dataclasses import dataclass
from typing import Any

from tools.galleries.filters import RowFilter
from tools.galleries.searching import INDEX
from tools.galleries.sources import forget_sources
from tools.galleries.store import Store

PENDING, ERASURE = "pending", "erasure:"
"""Facts: rows that were removed and may still be in the files; what was erased and is gone from them."""
DAY = 86400.0


@dataclass(frozen=True)
class Erased:
    """What an erasure did. rows: gone now. left: in the store. indexed: the index was built again."""

    rows: int
    left: int
    indexed: bool


def erase(store: Store, where: RowFilter | None, why: str) -> Erased:
    """Removes the rows that match and every byte of them; finishes an erasure that was killed before.

    where: None to do no more than that. why: a word for the record, such as ``identity``: never a value. The index is
    built again without the rows.
    """
    assert where != RowFilter(), "every row of a store is never meant by leaving the conditions out"
    with store.writing():
        rows = store.count(where) if where else 0
        pending = store.facts(PENDING).get(PENDING)
        if not rows and not pending:
            forget_sources(store, where.source if where else ())  # whose addition failed at its first row
            return Erased(0, store.count(RowFilter()), False)
        before = int(pending["rows"]) if pending else 0
        why = why or (pending["why"] if pending else "")
        store.set_fact(PENDING, {"rows": rows + before, "why": why})
        if where and rows:
            store.remove(where)
        forget_sources(store, where.source if where else ())
        indexed = store.facts(INDEX).get(INDEX)
        store.compact()
        left = store.count(RowFilter())
        if indexed and left:
            store.set_fact(INDEX, indexed | {"built": store.build_index()})
        elif indexed:
            store.drop_fact(INDEX)
        record = {"rows": rows + before, "why": why, "when": int(time.time())}
        store.set_fact(f"{ERASURE}{record['when']}-{secrets.token_hex(4)}", record)
        store.drop_fact(PENDING)
        return Erased(rows + before, left, bool(indexed and left))


def expire(store: Store, days: float, by: str = "added") -> Erased:
    """Erases the rows that were added, or whose ``time`` is, more than so many days ago. by: ``added`` or ``time``."""
    limit = time.time() - days * DAY
    where = RowFilter(added_before=limit) if by == "added" else RowFilter(until=limit)
    return erase(store, where, f"expired by {by}")


def records(store: Store) -> list[dict[str, Any]]:
    """Returns the records of erasures, oldest first."""
    return sorted(store.facts(ERASURE).values(), key=lambda record: record["when"])
