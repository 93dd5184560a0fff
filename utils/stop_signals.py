"""SIGTERM and SIGUSR1, by which schedulers announce that they will end a process soon."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

CODE = 143
"""The exit code after either signal: what a shell reports of a process that SIGTERM ended."""

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopSignals:
    """Ends the process with code 143 at a signal; inside ``deferred``, notes it for somebody who ends it in order.

    received: the name of the first signal that was noted, '' so far. Further ones change nothing: a scheduler and a
    launcher may both send one.
    """

    def __init__(self) -> None:
        self.received, self._deferred, self._process = "", False, os.getpid()

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Handles the signals inside the context; does nothing outside of the main thread, which alone gets signals."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Notes signals inside the context."""
        self._deferred = True
        try:
            yield
        finally:
            self._deferred = False

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a forked process that loads images: its parent decides
        name = signal.Signals(number).name
        if not self._deferred:
            _tell(f"{name}: stopped; the same command starts again")
            sys.exit(CODE)
        if not self.received:
            self.received = name
            _tell(f"{name}: stopping after this step, once it is saved")


def _tell(line: str) -> None:
    """Writes to standard error without Python's buffers, which the signal may have interrupted."""
    os.write(2, f"{line}\n".encode())
