"""What every engine behind ``tools.gallery`` supplies, and the choice of one by the store's address."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np

from tools.galleries.filters import RowFilter
from tools.galleries.schema import StoreMeta, StoreRows

META = "meta"
"""The fact that says what the features of a store are."""
SCAN_ROWS = 1 << 14
"""Rows that are read together."""


class Store(Protocol):
    """Features with their columns, and facts about them, behind one engine.

    address: as it is shown; never with a password. shared: several processes may have it open. A method raises
    ``UserError`` if the engine fails.
    """

    address: str
    meta: StoreMeta
    shared: bool

    def add(self, rows: StoreRows) -> None:
        """Writes rows whose ids are not in the store. Killed inside it, it may leave some of them there."""
        ...

    def count(self, where: RowFilter) -> int:
        """Returns how many rows match."""
        ...

    def ids(self, where: RowFilter) -> np.ndarray:
        """Returns the ids of the rows that match, (n,) int64, ascending."""
        ...

    def scan(self, where: RowFilter) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yields ids (n,) and features (n, D) of the rows that match, in blocks of any order."""
        ...

    def rows(self, ids: list[int]) -> dict[int, dict[str, Any]]:
        """Returns the columns of rows by id; ids that are not there are left out."""
        ...

    def nearest(
        self, queries: np.ndarray, count: int, where: RowFilter, effort: dict[str, int]
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Returns ids (n,) and features (n, D) of about ``count`` near rows of each query (Q, D), from the index.

        effort: the engine's own parameters, of ``efforts``.
        """
        ...

    def efforts(self) -> list[dict[str, int]]:
        """Returns the parameters that a search of the index may have, the fastest first."""
        ...

    def build_index(self) -> dict[str, Any]:
        """Builds the index, in place of an earlier one; returns what it is, in JSON's types."""
        ...

    def remove(self, where: RowFilter) -> None:
        """Removes the rows that match from every answer. Their bytes may stay until ``compact``."""
        ...

    def compact(self) -> None:
        """Rewrites the files so that no byte of a removed row is left in them. An index may have to be built again."""
        ...

    def facts(self, prefix: str = "") -> dict[str, Any]:
        """Returns the facts whose names begin so, by name."""
        ...

    def set_fact(self, name: str, value: Any) -> None:
        """Writes a fact, in place of an earlier one of that name."""
        ...

    def drop_fact(self, name: str) -> None:
        """Removes a fact, if there is one of that name."""
        ...

    def writing(self) -> AbstractContextManager[None]:
        """Keeps other writers out where the engine does not let several write. Raises ``UserError`` if one is there."""
        ...

    def size(self) -> int | None:
        """Returns the bytes on disk, None if they cannot be seen from here."""
        ...

    def close(self) -> None:
        """Leaves the engine."""
        ...
