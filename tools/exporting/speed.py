"""Images per second of a network in a runtime, with a number of threads."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

import numpy as np
import torch

from model.deployed import Deployed
from model.exporting import example_images
from utils.workers import usable_cores

BATCH, REPEATS = 8, 5


@contextlib.contextmanager
def threads(count: int) -> Iterator[None]:
    """Lets torch, and the runtimes that are opened inside the context, use a number of threads."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def thread_counts() -> tuple[int, ...]:
    """Returns one thread, and as many as this process has cores."""
    return tuple(sorted({1, usable_cores(1)}))


def drawn_inputs(deployed: Deployed, batch: int = BATCH) -> dict[str, np.ndarray]:
    """Returns random images of the test's size as the file takes them, and labels 0."""
    size, generator = deployed.preprocess.size, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8, generator=generator)
    if example_images(deployed).dtype != torch.uint8:
        images = images.permute(0, 3, 1, 2).float().contiguous() / 255
    return {"images": images.numpy(), **{name: np.zeros(batch, np.int64) for name in deployed.sides}}


def images_per_second(work: Callable[[], object], batch: int = BATCH, repeats: int = REPEATS) -> float:
    """Returns the best of some passes over ``batch`` images; the first one warms up."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return batch / min(times[1:])


@torch.no_grad()
def eager_speed(deployed: Deployed) -> float:
    """Returns images per second of the network in PyTorch, its preprocessing included."""
    inputs = {name: torch.from_numpy(value) for name, value in drawn_inputs(deployed).items()}
    return images_per_second(lambda: deployed(*inputs.values()))
