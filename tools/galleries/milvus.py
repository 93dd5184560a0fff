"""Milvus behind ``tools.gallery``: ``milvus://HOST[:PORT][/NAME]`` for a server or a cluster, ``FILE.db`` for its local
form, which needs no server and serves one process at a time.

The rows are one collection and the facts another. A row is written under its id, so that writing it twice leaves one.
The server's token is read from the environment variable MILVUS_TOKEN: command lines are seen by others.
"""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np

from tools.galleries.failures import named_failures
from tools.galleries.filters import RowFilter
from tools.galleries.schema import TEXT, TIMES, StoreMeta, StoreRows
from tools.galleries.store import META
from utils.errors import UserError, reason_of

SCHEMES = {"milvus": "http", "milvus+tls": "https"}
PORT = 19530
MISSING = "milvus:// and .db stores need pymilvus and milvus-lite: pip install -r requirements-extra.txt"
TRIES, WAIT, TIMEOUT = 3, 1.0, 10.0
"""Attempts to reach the server, seconds between them and seconds that one may take."""
NO_TIME = -1e300
"""Stands for a time that is not known."""
READ_ROWS = 2000
"""Rows of an answer."""
WRITTEN_BYTES = 2**24
"""Of the features of one request."""
WIDTHS_OF_SEARCH = (16, 32, 64, 128, 256, 512, 1024, 2048)
"""Rows that a search of the graph keeps in view (ef)."""
LONGEST = {"name": 512, "value": 65_535}


@dataclass(frozen=True)
class Place:
    """Where a collection is. uri: as the client takes it. shown: without a password. folder: of the local form."""

    uri: str
    name: str
    shown: str
    local: Path | None

    @classmethod
    def of(cls, address: str) -> Place:
        """Reads an address. Raises ``UserError`` for one that is none."""
        if address.endswith(".db") and "://" not in address:
            return cls(address, "lineup", address, Path(address))
        try:
            parts = urlsplit(address)
            host, port = parts.hostname, parts.port or PORT
        except ValueError:
            host, port = None, 0
        if not host or parts.username or parts.password or parts.query:
            raise UserError("--store: expected milvus://HOST[:PORT][/NAME]; a token goes into MILVUS_TOKEN")
        name = parts.path.strip("/") or "lineup"
        if not name.isidentifier():
            raise UserError(f"--store: {name!r} cannot be the name of a collection: letters, digits and _ only")
        return cls(f"{SCHEMES[parts.scheme]}://{host}:{port}", name, f"{parts.scheme}://{host}:{port}/{name}", None)


def is_milvus(address: str) -> bool:
    """Returns whether an address is one of Milvus."""
    return address.partition("://")[0] in SCHEMES or (address.endswith(".db") and "://" not in address)


def import_pymilvus() -> Any:
    """Returns the library. Raises ``UserError`` if it is not installed."""
    try:
        import pymilvus
    except ImportError:
        raise UserError(MISSING) from None
    for name in ("pymilvus", "grpc._server"):  # they log what they raise, and what the local form does without
        logging.getLogger(name).setLevel(logging.CRITICAL)
    return pymilvus


def connected(place: Place) -> Any:
    """Returns a client. Raises ``UserError`` if the server cannot be reached in ``TRIES`` attempts."""
    pymilvus, why = import_pymilvus(), ""
    for attempt in range(TRIES):
        try:
            return pymilvus.MilvusClient(place.uri, token=os.environ.get("MILVUS_TOKEN", ""), timeout=TIMEOUT)
        except Exception as error:  # noqa: BLE001 - see ``named_failures``
            why = reason_of(error)
        if place.local is not None:
            raise UserError(f"{place.shown}: cannot be opened, or another process has it open ({why})")
        if attempt + 1 < TRIES:
            time.sleep(WAIT * 2**attempt)
    raise UserError(f"{place.shown}: no Milvus answers there, {TRIES} attempts ({why}); check the address, or start it")


class MilvusStore:
    """See ``Store``. ``MilvusStore.open`` and ``MilvusStore.create`` make one."""

    def __init__(self, place: Place, client: Any):
        self.place, self.client, self.address = place, client, place.shown
        self.shared = place.local is None
        self.name, self.fact_name = place.name, f"{place.name}_facts"
        self.meta = StoreMeta.of(self.facts(META).get(META), self.address)

    @classmethod
    def create(cls, address: str, meta: StoreMeta) -> MilvusStore:
        """Creates a store. Raises ``UserError`` if there is one."""
        place = Place.of(address)
        if place.local is not None and place.local.exists():
            raise UserError(f"{address}: exists; name another file")
        client = connected(place)
        with named_failures(place.shown, "creating the store"):
            if client.has_collection(place.name):
                raise UserError(f"{place.shown}: exists; name another collection, milvus://HOST:PORT/NAME")
            make_rows(client, place.name, meta.width)
            make_facts(client, f"{place.name}_facts")
            client.upsert(f"{place.name}_facts", [fact_row(META, meta.content())])
        return cls(place, client)

    @classmethod
    def open(cls, address: str) -> MilvusStore:
        """Opens a store. Raises ``UserError`` if there is none."""
        place = Place.of(address)
        if place.local is not None and not place.local.exists():
            raise UserError(f"{address}: no such store; python -m tools.gallery create makes one")
        client = connected(place)
        with named_failures(place.shown, "opening the store"):
            finish_rewriting(client, place.name)
            if not client.has_collection(place.name) or not client.has_collection(f"{place.name}_facts"):
                raise UserError(f"{place.shown}: no store of that name; python -m tools.gallery create makes one")
            for name in (place.name, f"{place.name}_facts"):
                client.load_collection(name)
        return cls(place, client)

    def add(self, rows: StoreRows) -> None:
        size = max(WRITTEN_BYTES // (4 * self.meta.width), 1)
        with named_failures(self.address, "adding rows"):
            for start in range(0, len(rows), size):
                self.client.upsert(self.name, dictionaries(rows, start, min(start + size, len(rows))))
            self.client.flush(self.name)

    def count(self, where: RowFilter) -> int:
        with named_failures(self.address, "counting rows"):
            rows = self.client.query(
                self.name, filter=expression(where), output_fields=["count(*)"], consistency_level="Strong"
            )
            return int(rows[0]["count(*)"])

    def ids(self, where: RowFilter) -> np.ndarray:
        pages = self.pages(self.name, expression(where), ["id"])
        parts = [np.array([row["id"] for row in rows], np.int64) for rows in pages]
        return np.sort(np.concatenate([np.empty(0, np.int64), *parts]))

    def scan(self, where: RowFilter) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for rows in self.pages(self.name, expression(where), ["id", "vector"]):
            yield np.array([row["id"] for row in rows], np.int64), np.array([row["vector"] for row in rows], np.float32)

    def pages(self, name: str, condition: str, columns: list[str]) -> Iterator[list[dict[str, Any]]]:
        """Yields rows of a collection that match, ``READ_ROWS`` at a time: the server limits an answer."""
        with named_failures(self.address, "reading rows"):
            iterator = self.client.query_iterator(
                name, batch_size=READ_ROWS, filter=condition, output_fields=columns,
                consistency_level="Strong",
            )  # fmt: skip
            try:
                while rows := iterator.next():
                    yield list(rows)
            finally:
                iterator.close()

    def rows(self, ids: list[int]) -> dict[int, dict[str, Any]]:
        out: dict[int, dict[str, Any]] = {}
        with named_failures(self.address, "reading rows"):
            for start in range(0, len(ids), READ_ROWS):
                found = self.client.get(self.name, ids=ids[start : start + READ_ROWS], output_fields=[*TEXT, *TIMES])
                for row in found:
                    row = dict(row)
                    row["time"] = None if row["time"] <= NO_TIME else row["time"]
                    out[int(row.pop("id"))] = row
        return out

    def nearest(
        self, queries: np.ndarray, count: int, where: RowFilter, effort: dict[str, int]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        with named_failures(self.address, "searching the index"):
            found = self.client.search(
                self.name, data=queries.tolist(), anns_field="vector", limit=count, filter=expression(where),
                output_fields=["vector"], consistency_level="Strong",
                search_params={"metric_type": "L2", "params": {"ef": max(effort["ef"], count)}},
            )  # fmt: skip
        width = self.meta.width
        return [
            (np.array([hit["id"] for hit in hits], np.int64),
             np.array([hit["entity"]["vector"] for hit in hits], np.float32).reshape(-1, width))
            for hits in found
        ]  # fmt: skip

    def efforts(self) -> list[dict[str, int]]:
        return [{"ef": width} for width in WIDTHS_OF_SEARCH]

    def build_index(self) -> dict[str, Any]:
        what = {"kind": "HNSW", "M": 16, "efConstruction": 200}
        with named_failures(self.address, "building the index"):
            self.client.release_collection(self.name)
            self.client.drop_index(self.name, "vector")
            self.client.create_index(self.name, index_of("HNSW", M=16, efConstruction=200))
            self.client.load_collection(self.name)
        return what | {"rows": self.count(RowFilter())}

    def remove(self, where: RowFilter) -> None:
        with named_failures(self.address, "removing rows"):
            self.client.delete(self.name, filter=expression(where))
            self.client.flush(self.name)

    def compact(self) -> None:
        with named_failures(self.address, "rewriting the files"):
            if self.place.local is not None:
                self.rewrite()
                return
            job, began = self.client.compact(self.name), time.monotonic()
            while self.client.get_compaction_state(job) != "Completed":
                if time.monotonic() - began > 3600:
                    raise UserError(f"{self.address}: the server has not finished to compact in an hour; erase again")
                time.sleep(WAIT)

    def rewrite(self) -> None:
        """Copies the rows of the local form into a new collection: its own compaction keeps single files as they are.

        Killed before the old collection is dropped, the copy is dropped by the next one; after, it is renamed.
        """
        copy = f"{self.name}_new"
        if self.client.has_collection(copy):
            self.client.drop_collection(copy)
        make_rows(self.client, copy, self.meta.width)
        for rows in self.pages(self.name, expression(RowFilter()), ["id", "vector", *TEXT, *TIMES]):
            self.client.insert(copy, [dict(row) for row in rows])
        self.client.flush(copy)
        self.client.drop_collection(self.name)
        finish_rewriting(self.client, self.name)
        self.client.load_collection(self.name)

    def facts(self, prefix: str = "") -> dict[str, Any]:
        pages = self.pages(self.fact_name, 'name != ""', ["name", "value"])
        texts = {row["name"]: row["value"] for rows in pages for row in rows}
        return {name: json.loads(text) for name, text in texts.items() if name.startswith(prefix)}

    def set_fact(self, name: str, value: Any) -> None:
        with named_failures(self.address, "writing to it"):
            self.client.upsert(self.fact_name, [fact_row(name, value)])
            self.client.flush(self.fact_name)

    def drop_fact(self, name: str) -> None:
        with named_failures(self.address, "writing to it"):
            self.client.delete(self.fact_name, ids=[name])
            self.client.flush(self.fact_name)

    def writing(self) -> AbstractContextManager[None]:
        return nullcontext()  # a row has one id; the local form is open in one process

    def size(self) -> int | None:
        if self.place.local is None:
            return None
        files = [self.place.local, *self.place.local.rglob("*")] if self.place.local.is_dir() else [self.place.local]
        return sum(path.stat().st_size for path in files if path.is_file())

    def close(self) -> None:
        self.client.close()


def index_of(kind: str, **params: int) -> Any:
    """Returns the parameters of an index of the features."""
    out = import_pymilvus().MilvusClient.prepare_index_params()
    out.add_index(field_name="vector", index_type=kind, metric_type="L2", params=params)
    return out


def make_rows(client: Any, name: str, width: int) -> None:
    """Creates the collection of the rows, searched exactly until an index is built."""
    kinds = import_pymilvus().DataType
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("id", kinds.INT64, is_primary=True)
    schema.add_field("vector", kinds.FLOAT_VECTOR, dim=width)
    for column in TEXT:
        schema.add_field(column, kinds.VARCHAR, max_length=16_384)
    for column in TIMES:
        schema.add_field(column, kinds.DOUBLE)
    client.create_collection(name, schema=schema, index_params=index_of("FLAT"), consistency_level="Strong")
    client.load_collection(name)


def make_facts(client: Any, name: str) -> None:
    """Creates the collection of the facts. Every collection must have a vector; this one's says nothing."""
    kinds = import_pymilvus().DataType
    schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
    schema.add_field("name", kinds.VARCHAR, is_primary=True, max_length=LONGEST["name"])
    schema.add_field("value", kinds.VARCHAR, max_length=LONGEST["value"])
    schema.add_field("vector", kinds.FLOAT_VECTOR, dim=2)
    client.create_collection(name, schema=schema, index_params=index_of("FLAT"), consistency_level="Strong")
    client.load_collection(name)


def fact_row(name: str, value: Any) -> dict[str, Any]:
    """Returns the row of a fact. Raises ``UserError`` if it is too long for a text."""
    row = {"name": name, "value": json.dumps(value)}
    for column, text in row.items():
        if len(text.encode()) > LONGEST[column]:
            raise UserError(f"what the store would say about {name[:40]} has more than {LONGEST[column]:,} bytes")
    return row | {"vector": [1.0, 0.0]}


def finish_rewriting(client: Any, name: str) -> None:
    """Gives the copy its name if ``rewrite`` was killed before that."""
    if client.has_collection(f"{name}_new") and not client.has_collection(name):
        client.rename_collection(f"{name}_new", name)


def dictionaries(rows: StoreRows, start: int, stop: int) -> list[dict[str, Any]]:
    """Returns rows as the client takes them."""
    columns = {name: rows.columns[name][start:stop] for name in TEXT}
    columns |= {name: np.nan_to_num(np.asarray(rows.columns[name])[start:stop], nan=NO_TIME).tolist() for name in TIMES}
    return [
        {"id": int(number), "vector": feats} | {name: values[i] for name, values in columns.items()}
        for i, (number, feats) in enumerate(zip(rows.ids[start:stop], rows.feats[start:stop], strict=True))
    ]


def expression(where: RowFilter) -> str:
    """Returns a filter in Milvus' language, whose texts are quoted as in JSON."""
    return where.expression(
        json.dumps, lambda column, values: f"{column} in [{', '.join(values)}]", f"time > {NO_TIME!r}"
    )
