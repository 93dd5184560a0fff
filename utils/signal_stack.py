"""The alternate stack on which Linux calls Python's signal handlers, kept from libraries that replace it.

OpenVINO's CPU plugin puts a stack of its own in its place when it is loaded and unmaps that when the plugin is dropped,
but only the dropping thread gets the former stack back. If another thread drops it (a garbage collection there is
enough), the next signal, a Ctrl-C or a scheduler's SIGTERM, ends the process by a segmentation fault.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from contextlib import contextmanager

DISABLED = 2  # SS_DISABLE of Linux: handlers run on the thread's own stack


class Stack(ctypes.Structure):
    """Linux' ``stack_t``: where a stack begins, its flags and its size in bytes."""

    _fields_ = [("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t)]


@contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Gives this thread back, at the end of the context, the alternate stack of its beginning; elsewhere than on Linux
    does nothing."""
    if sys.platform != "linux":
        yield
        return
    before = signal_stack()
    try:
        yield
    finally:
        if not before.start:
            before.flags = DISABLED
        ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)


def signal_stack() -> Stack:
    """Returns this thread's alternate stack; without one ``start`` is None."""
    stack = Stack()
    ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack
