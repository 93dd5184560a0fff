"""Long loops over rows of distances: size of the blocks, number of threads, and progress.

On a CPU each thread works on its own rows with a matrix product of one thread: nothing waits at the end of every small
operation, and a busy machine only slows the loop down. ``torch.set_num_threads`` (or ``OMP_NUM_THREADS``) sets the
number of threads.
"""

from __future__ import annotations

import functools
import logging
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from threadpoolctl import ThreadpoolController
from tqdm import tqdm

from utils.distributed import is_main
from utils.errors import UserError

logger = logging.getLogger("lineup")

TILE = 256  # rows of a strip, at most
EDGE = 16  # strips are a multiple of this high
BLOCK_BYTES = 512 * 2**20  # distances in memory, of all threads together, unless ``max_memory`` allows less
UNKNOWN_FREE = 4 * 2**30  # assumed free memory if the system does not report it


def strip_height(total: int, width: int, max_memory: int | None = None) -> int:
    """Returns how many rows of ``width`` distances a thread works on together: 16 to 256, a multiple of 16."""
    fitting = _budget(max_memory) // (4 * width * torch.get_num_threads()) // EDGE * EDGE
    few = -(-total // (4 * EDGE)) * EDGE  # a few strips even for a few rows, so that threads share them
    return even_cut(total, max(min(TILE, fitting, few), EDGE))


def even_cut(total: int, most: int) -> int:
    """Returns a multiple of 16, up to and near ``most``, that divides ``total`` into pieces of nearly equal size."""
    if total <= most:
        return -(-total // EDGE) * EDGE
    sizes = range(most // EDGE * EDGE, max(most * 5 // 8, EDGE - 1), -EDGE)
    return min(sizes, key=lambda size: -(-total // size) * size)


def each_block(
    total: int,
    width: int,
    block_size: int | None,
    work: Callable[[int, int], object],
    what: str,
    *,
    strip: int | None = None,
    threads: bool = False,
    max_memory: int | None = None,
) -> list[object]:
    """Returns ``[work(start, stop), ...]`` over ``range(total)`` in order, for rows of ``width`` distances.

    strip: every block is a whole number of strips of this height. threads: blocks of one strip, several in parallel, in
    any order; else one block after the other, of ``block_size`` rows, rounded up to whole strips. Either way the blocks
    take up to ``max_memory`` bytes. What does not fit is tried again in halves, so ``work`` must not change anything
    before it has all that it needs. Work of over 5 seconds shows a bar on the first process's terminal, and elsewhere a
    line per minute in the log; ``what`` names it.
    """
    if block_size is not None and block_size < 1:
        raise UserError(f"block_size: expected at least 1 row or None, got {block_size}")
    strip = strip or strip_height(total, width, max_memory)
    fitting = max(_budget(max_memory) // (4 * width * strip), 1)
    with Progress(total, what) as progress:
        if threads:
            spans = [(start, min(start + strip, total)) for start in range(0, total, strip)]
            parallel = -(-block_size // strip) if block_size else fitting
            return in_threads(spans, work, what, lambda span: progress.add(span[1] - span[0]), min(parallel, fitting))
        strips = -(-block_size // strip) if block_size else min(fitting, max(2048 // strip, 1))
        return _one_by_one(total, strip, strips, work, what, progress)


def _one_by_one(total: int, strip: int, strips: int, work: Callable, what: str, progress: Progress) -> list[object]:
    results, start = [], 0
    while start < total:
        stop = min(start + strips * strip, total)
        try:
            results.append(work(start, stop))
        except (MemoryError, RuntimeError) as error:
            if strips == 1 or not _out_of_memory(error):
                raise
            strips = -(-min(strips, -(-(stop - start) // strip)) // 2)
            logger.warning("%s: out of memory, continuing with blocks of %d rows", what, strips * strip)
            continue
        progress.add(stop - start)
        start = stop
    return results


def in_threads(
    jobs: Sequence[tuple],
    work: Callable,
    what: str = "",
    done: Callable[[tuple], None] = lambda job: None,
    most: int | None = None,
) -> list:
    """Returns ``[work(*job), ...]``; up to ``most`` jobs run in parallel, each with a matrix product of one thread.

    ``done(job)`` is called after each, in the calling thread. Jobs that ran out of memory run again, half as many in
    parallel.
    """
    results: list = [None] * len(jobs)
    todo, threads = range(len(jobs)), torch.get_num_threads()
    live = max(min(threads, len(jobs), most or len(jobs)), 1)
    try:
        while todo:
            todo = _in_pool(jobs, todo, work, done, results, live)
            if todo:
                live = max(live // 2, 1)
                logger.warning("%s: out of memory, continuing with %d blocks in parallel", what, live)
    finally:
        torch.set_num_threads(threads)  # the workers' number would be that of every later thread
    return results


def _in_pool(
    jobs: Sequence[tuple],
    todo: Sequence[int],
    work: Callable,
    done: Callable[[tuple], None],
    results: list,
    live: int,
) -> list[int]:
    """Runs the jobs ``todo`` in ``live`` threads, fills in their results and returns those that ran out of memory."""
    failed = []
    with one_blas_thread(), ThreadPoolExecutor(live, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        futures = {pool.submit(work, *jobs[i]): i for i in todo}
        try:
            for future in as_completed(futures):
                index = futures.pop(future)
                try:
                    results[index] = future.result()
                except (MemoryError, RuntimeError) as error:
                    if live == 1 or not _out_of_memory(error):
                        raise
                    failed.append(index)
                else:
                    done(jobs[index])
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return failed


@functools.cache
def _controller() -> ThreadpoolController:
    return ThreadpoolController()


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """Limits NumPy's matrix products to one thread each, inside the context."""
    with _controller().limit(limits=1, user_api="blas"):
        yield


class Progress:
    """Shows a bar on the first process's terminal after 5 seconds of work; elsewhere logs a line per minute."""

    def __init__(self, total: int, what: str, unit: str = "row"):
        self.total, self.what, self.count, self.last = total, what, 0, time.monotonic()
        hidden = None if is_main() else True  # None: hidden unless on a terminal
        self.bar = tqdm(total=total, desc=what, unit=unit, disable=hidden, delay=5, leave=False)

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *error) -> None:
        self.bar.close()

    def add(self, count: int) -> None:
        """Counts work that is done."""
        self.count += count
        self.bar.update(count)
        if time.monotonic() - self.last > 60 and not sys.stderr.isatty():
            self.last = time.monotonic()
            logger.info("%s: %d of %d", self.what, self.count, self.total)


def _budget(max_memory: int | None) -> int:
    return BLOCK_BYTES if max_memory is None else min(BLOCK_BYTES, max_memory)


def _out_of_memory(error: Exception) -> bool:
    # torch has a class for a full accelerator, but a plain RuntimeError for a full host.
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "allocate memory" in str(error)


def free_memory() -> int:
    """Returns the bytes that this process can still take: what is available in the system or in a limited container."""
    limits = []
    try:
        lines = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
        limits.append(1024 * int(lines["MemAvailable"].split()[0]))
    except (OSError, KeyError, ValueError):
        if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
            limits.append(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2)
    for folder, limit, used in (
        (Path("/sys/fs/cgroup"), "memory.max", "memory.current"),
        (Path("/sys/fs/cgroup/memory"), "memory.limit_in_bytes", "memory.usage_in_bytes"),
    ):
        try:  # the limit reads "max" if there is none; cached files count as used and can be dropped
            taken = int((folder / used).read_text())
            cached = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
            cached = int(cached.get("file", cached.get("total_cache", 0)))
            limits.append(max(int((folder / limit).read_text()) - taken + cached, 0))
        except (OSError, ValueError):
            continue
    return min(limits, default=UNKNOWN_FREE)


def whole_number(name: str, value: object, least: int = 1) -> int:
    """Returns ``value`` as an int. Raises ``UserError`` if it is not a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise UserError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    return int(value)
