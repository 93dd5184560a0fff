"""Ctrl-C while a program imports its libraries, which takes seconds: one line and exit code 130, no traceback.

Inside a C library's import a ``KeyboardInterrupt`` may come out as another error, so the process ends at once instead;
there is nothing to tidy up yet.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType

INTERRUPTED = "interrupted; the same command resumes a training run"
EXIT_CODE = 130


def end_when_interrupted() -> None:
    """Makes Ctrl-C end the process with one line, until ``raise_when_interrupted`` is called."""
    if threading.current_thread() is threading.main_thread() and signal.getsignal(signal.SIGINT) in _PYTHONS:
        signal.signal(signal.SIGINT, _end)


def raise_when_interrupted() -> None:
    """Makes Ctrl-C a ``KeyboardInterrupt`` again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


def _end(number: int, frame: FrameType | None) -> None:
    os.write(2, f"{INTERRUPTED}\n".encode())
    os._exit(EXIT_CODE)


_PYTHONS = (signal.default_int_handler, signal.SIG_DFL)
"""Handlers that nobody has chosen; a program that ignores Ctrl-C, as one in the background does, goes on so."""
