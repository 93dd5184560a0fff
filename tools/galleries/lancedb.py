"""LanceDB behind ``tools.gallery``: a folder on this machine, or the address of an object store, and no server.

The rows are one table and the facts another, to which facts are appended: the last one of a name counts. A batch of
rows is one commit. Removed rows stay in the files until ``compact`` writes the table again without them and removes the
files of earlier versions.
"""

from __future__ import annotations

import json
import os
import sys
import time
import warnings
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np

from tools.galleries.failures import named_failures
from tools.galleries.filters import EVERY_ROW, RowFilter
from tools.galleries.schema import TEXT, TIMES, StoreMeta, StoreRows
from tools.galleries.store import META, SCAN_ROWS
from utils.errors import UserError
from utils.folder_lock import sole_user

ROWS, FACTS = "rows", "facts"
MISSING = "a store in a folder needs lancedb: pip install -r requirements-extra.txt"
NOW = timedelta(0)
PROBED = (4, 16, 64, 256, 1024, 4096)
"""Partitions of the index that a search reads."""
SCORED = (2, 8, 32, 128)
"""Candidates by the compressed features whose whole features are read, for each row that is wanted. The compressed ones
alone order a million rows too coarsely: with 8 of them the recall is 0.96 at most."""

Table = Any  # lancedb.table.Table: the library is optional


def import_lancedb() -> Any:
    """Returns the library. Raises ``UserError`` if it is not installed."""
    os.environ.setdefault("LANCEDB_LOG", "error")
    try:
        with without_our_datasets() as ours:
            import lancedb
            from lancedb import scannable
    except ImportError:
        raise UserError(MISSING) from None
    if ours:
        getattr(scannable, "_registered_modules", set()).add("datasets")  # it looks again when rows are added
    return lancedb


@contextmanager
def without_our_datasets() -> Iterator[bool]:
    """Hides a package ``datasets`` that is not Hugging Face's, as ours in a checkout; gives whether there is one.

    LanceDB takes any imported module of that name for theirs, and fails.
    """
    module = sys.modules.get("datasets")
    if module is None or hasattr(module, "DatasetDict"):
        yield False
        return
    del sys.modules["datasets"]
    try:
        yield True
    finally:
        sys.modules["datasets"] = module


class LanceStore:
    """See ``Store``. ``LanceStore.open`` and ``LanceStore.create`` make one."""

    shared = True

    def __init__(self, address: str, connection: Any, rows: Table, facts: Table):
        self.address, self.connection, self.table, self.fact_table = address, connection, rows, facts
        self.meta = StoreMeta.of(self.facts(META).get(META), address)

    @classmethod
    def create(cls, address: str, meta: StoreMeta) -> LanceStore:
        """Creates a store. Raises ``UserError`` if there is one, or the folder holds something else."""
        lancedb, folder = import_lancedb(), local_folder(address)
        if folder is not None and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise UserError(f"{address}: exists and is not empty; name another folder")
        import pyarrow as pa

        facts = pa.schema([("name", pa.string()), ("value", pa.string()), ("at", pa.int64())])
        with named_failures(address, "creating the store"):
            connection = lancedb.connect(address, read_consistency_interval=NOW)
            rows = connection.create_table(ROWS, schema=row_schema(meta.width))
            table = connection.create_table(FACTS, fact_rows({META: meta.content()}), schema=facts)
        return cls(address, connection, rows, table)

    @classmethod
    def open(cls, address: str) -> LanceStore:
        """Opens a store. Raises ``UserError`` if there is none."""
        lancedb, folder = import_lancedb(), local_folder(address)
        if folder is not None and not (folder / f"{FACTS}.lance").is_dir():
            raise UserError(f"{address}: no store in it; python -m tools.gallery create makes one")
        with named_failures(address, "opening the store"):
            connection = lancedb.connect(address, read_consistency_interval=NOW)
            rows, facts = connection.open_table(ROWS), connection.open_table(FACTS)
        return cls(address, connection, rows, facts)

    def add(self, rows: StoreRows) -> None:
        with named_failures(self.address, "adding rows"):
            self.table.add(arrow_rows(rows, self.meta.width))

    def count(self, where: RowFilter) -> int:
        with named_failures(self.address, "counting rows"):
            return int(self.table.count_rows(sql(where)))

    def ids(self, where: RowFilter) -> np.ndarray:
        with named_failures(self.address, "reading rows"):
            query = self.table.search().where(sql(where)).select(["id"])
            parts = [batch["id"].to_numpy() for batch in query.to_batches(SCAN_ROWS)]
        return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))

    def scan(self, where: RowFilter) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        with named_failures(self.address, "reading rows"):
            query = self.table.search().where(sql(where)).select(["id", "vector"])
            for batch in query.to_batches(SCAN_ROWS):
                if batch.num_rows:
                    yield batch["id"].to_numpy(), vectors_of(batch["vector"], self.meta.width)

    def rows(self, ids: list[int]) -> dict[int, dict[str, Any]]:
        out: dict[int, dict[str, Any]] = {}
        with named_failures(self.address, "reading rows"):
            for start in range(0, len(ids), 1000):
                listed = ", ".join(map(str, ids[start : start + 1000]))
                query = self.table.search().where(f"id IN ({listed})").select(["id", *TEXT, *TIMES])
                out |= {row.pop("id"): row for row in query.to_arrow().to_pylist()}
        return out

    def nearest(
        self, queries: np.ndarray, count: int, where: RowFilter, effort: dict[str, int]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        out = []
        with named_failures(self.address, "searching the index"):
            for query in queries:
                search = self.table.search(query).distance_type("l2").limit(count).select(["id", "vector", "_distance"])
                search = search.nprobes(effort["partitions"]).refine_factor(effort["factor"])
                if where != RowFilter():
                    search = search.where(sql(where), prefilter=True)
                found = search.to_arrow().combine_chunks()
                out.append((found["id"].to_numpy(), vectors_of(found["vector"].combine_chunks(), self.meta.width)))
        return out

    def efforts(self) -> list[dict[str, int]]:
        most = self.partitions()
        probed = [n for n in PROBED if n < most] + [most]
        return [{"partitions": partitions, "factor": factor} for partitions in probed for factor in SCORED]

    def partitions(self) -> int:
        """Returns the number of partitions of the index for so many rows."""
        return max(round(self.table.count_rows() ** 0.5), 1)

    def build_index(self) -> dict[str, Any]:
        what = {"kind": "IVF_PQ", "partitions": self.partitions(), "rows": self.table.count_rows()}
        with named_failures(self.address, "building the index"):
            self.table.create_index(
                metric="l2", vector_column_name="vector", index_type="IVF_PQ", num_partitions=what["partitions"],
                replace=True,
            )  # fmt: skip
            drop_old_versions(self.table)
        return what

    def remove(self, where: RowFilter) -> None:
        with named_failures(self.address, "removing rows"):
            self.table.delete(sql(where))

    def compact(self) -> None:
        with named_failures(self.address, "rewriting the files"):
            for index in self.table.list_indices():
                self.table.drop_index(index.name)
            # compaction leaves files alone of which less than a tenth is removed; an update writes every row again
            self.table.update(where=EVERY_ROW, values_sql={"added": "added"})
            self.fact_table = self.connection.create_table(FACTS, fact_rows(self.facts()), mode="overwrite")
            for table in (self.table, self.fact_table):
                drop_old_versions(table)

    def facts(self, prefix: str = "") -> dict[str, Any]:
        with named_failures(self.address, "reading what the store says about itself"):
            rows = self.fact_table.search().to_arrow().to_pylist()
            last = {row["name"]: row["value"] for row in sorted(rows, key=lambda row: row["at"])}
            return {n: json.loads(v) for n, v in last.items() if v is not None and n.startswith(prefix)}

    def set_fact(self, name: str, value: Any) -> None:
        with named_failures(self.address, "writing to it"):
            self.fact_table.add(fact_rows({name: value}))

    def drop_fact(self, name: str) -> None:
        with named_failures(self.address, "writing to it"):
            self.fact_table.add([{"name": name, "value": None, "at": time.time_ns()}])

    def writing(self) -> AbstractContextManager[Any]:
        folder = local_folder(self.address)
        return nullcontext() if folder is None else sole_user(folder, "--store")

    def size(self) -> int | None:
        folder = local_folder(self.address)
        if folder is None:
            return None
        return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())

    def close(self) -> None:
        """Leaves the engine; nothing is open between calls."""


def drop_old_versions(table: Table) -> None:
    """Removes the files of all versions but the last. A query that another process has just begun may fail."""
    with warnings.catch_warnings(action="ignore"):  # which says the same
        table.optimize(cleanup_older_than=NOW, delete_unverified=True)


def local_folder(address: str) -> Path | None:
    """Returns the folder of an address, None for an object store."""
    return None if "://" in address else Path(address)


def sql(where: RowFilter) -> str:
    """Returns a filter as SQL."""
    return where.expression(
        lambda text: "'" + text.replace("'", "''") + "'",
        lambda column, values: f"{column} IN ({', '.join(values)})",
        "time IS NOT NULL",
    )


def row_schema(width: int) -> Any:
    """Returns the Arrow schema of the rows."""
    import pyarrow as pa

    columns = [("id", pa.int64()), ("vector", pa.list_(pa.float32(), width))]
    return pa.schema([*columns, *((name, pa.string()) for name in TEXT), *((name, pa.float64()) for name in TIMES)])


def arrow_rows(rows: StoreRows, width: int) -> Any:
    """Returns rows as an Arrow table; an unknown time is null."""
    import pyarrow as pa

    flat = pa.array(np.ascontiguousarray(rows.feats, np.float32).reshape(-1))
    columns = [pa.array(rows.ids), pa.FixedSizeListArray.from_arrays(flat, width)]
    columns += [pa.array(list(rows.columns[name]), pa.string()) for name in TEXT]
    columns += [pa.array(np.asarray(rows.columns[name], float), from_pandas=True) for name in TIMES]
    return pa.table(columns, schema=row_schema(width))


def vectors_of(column: Any, width: int) -> np.ndarray:
    """Returns features (n, D) of an Arrow column."""
    return column.flatten().to_numpy().reshape(-1, width)


def fact_rows(facts: dict[str, Any]) -> list[dict[str, Any]]:
    """Returns the rows of facts."""
    now = time.time_ns()
    return [{"name": name, "value": json.dumps(value), "at": now} for name, value in facts.items()]
