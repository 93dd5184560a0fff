"""The interface of a logger of scalars, and several of them as one that a failure does not stop."""

from __future__ import annotations

import logging
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from utils.errors import reason_of

log = logging.getLogger("lineup")


class ScalarLogger(Protocol):
    """Takes the scalars of a run, on its first process. Any method may raise; ``Loggers`` then goes on without it."""

    def write(self, stage: str, values: dict[str, float], step: int) -> None:
        """Takes named values of a stage. step: of the run, counted over all its stages; it never falls."""

    def flush(self) -> None:
        """Makes what was written safe, since the process may end."""

    def close(self, finished: bool) -> None:
        """Ends the logging. finished: whether training has come to its end."""


class Loggers:
    """Passes scalars on to several loggers, by name. One that raises is dropped with a warning; training goes on.

    As a context, it closes them at its end.
    """

    def __init__(self, loggers: dict[str, ScalarLogger]):
        self.loggers = dict(loggers)

    def write(self, stage: str, values: dict[str, float], step: int) -> None:
        """See ``ScalarLogger.write``."""
        self._each(lambda logger: logger.write(stage, values, step))

    def flush(self) -> None:
        """See ``ScalarLogger.flush``."""
        self._each(lambda logger: logger.flush())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: object, trace: TracebackType | None) -> None:
        self._each(lambda logger: logger.close(kind is None))
        self.loggers.clear()

    def _each(self, call: Callable[[ScalarLogger], None]) -> None:
        for name, logger in list(self.loggers.items()):
            try:
                call(logger)
            except Exception as error:  # noqa: BLE001 - libraries and servers fail in any way, and training matters more
                del self.loggers[name]
                log.warning(
                    "SOLVER.LOGGERS: %s failed (%s: %s) and is used no more; training goes on",
                    name, type(error).__name__, reason_of(error),
                )  # fmt: skip
