"""The errors of engines, which are of many types, as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from utils.errors import UserError, reason_of


class StoreFailure(UserError):
    """An engine that does not do what it should. doing: what was tried. kind: the type of the engine's error."""

    def __init__(self, address: str, doing: str, error: Exception):
        super().__init__(f"{address}: {doing} failed ({reason_of(error)})")
        self.doing, self.kind = doing, type(error).__name__


@contextmanager
def named_failures(address: str, doing: str) -> Iterator[None]:
    """Raises ``StoreFailure`` for whatever an engine raises."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001 - engines raise what their layers raise
        raise StoreFailure(address, doing, error) from None
