"""The errors of engines, which are of many types, as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from utils.errors import UserError, reason_of


@contextmanager
def named_failures(address: str, doing: str) -> Iterator[None]:
    """Raises ``UserError`` with the store's address and what was being done for whatever an engine raises."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - engines raise what their layers raise
        raise UserError(f"{address}: {doing} failed ({reason_of(error)})") from None
