"""Processes of this machine: which ones are gone, so that what they left may be removed."""

from __future__ import annotations

import os
import platform
from pathlib import Path

CLOCK_SLACK = 2.0
"""Seconds by which a process's start, counted from the machine's start, may be wrong."""


def host_name() -> str:
    """Returns this machine's name."""
    return platform.node() or "unknown"


def is_gone(host: str, pid: int, written: float) -> bool:
    """Returns whether the process that wrote something at the time ``written`` has ended, as far as can be known.

    written: seconds since the epoch. A process of another machine counts as running. A number that the system has given
    to another process since then counts as gone, this process included: in a container all runs may be number 1.
    """
    if host != host_name():
        return False
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return True
    except PermissionError:  # it runs and is another user's
        pass
    began = start_of(pid)
    return began is not None and began > written + CLOCK_SLACK


def start_of(pid: int) -> float | None:
    """Returns when a process was started, in seconds since the epoch; None where the system does not say."""
    try:
        ticks = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19])
        boot = next(line for line in Path("/proc/stat").read_text().splitlines() if line.startswith("btime "))
    except (OSError, ValueError, IndexError, StopIteration):
        return None
    return int(boot.split()[1]) + ticks / os.sysconf("SC_CLK_TCK")
