"""Images of several clients in one batch: each waits a little for others, and all are embedded together."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class _Job(NamedTuple):
    images: Tensor
    loop: asyncio.AbstractEventLoop
    result: asyncio.Future[np.ndarray]


class Batcher:
    """Embeds images in batches, in a thread of its own.

    embed: (B, 3, H, W) -> (B, D). size: images of a batch, at most. wait: seconds that the first image of a batch waits
    for others. seen: called with the size of each batch.
    """

    def __init__(
        self, embed: Callable[[Tensor], np.ndarray], size: int, wait: float, seen: Callable[[int], object] = lambda n: n
    ):
        self.embed, self.size, self.wait, self.seen = embed, size, wait, seen
        self.jobs: SimpleQueue[_Job | None] = SimpleQueue()
        self.left: _Job | None = None
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    async def __call__(self, images: Tensor) -> np.ndarray:
        """Returns the features (n, D) of images (n, 3, H, W)."""
        loop = asyncio.get_running_loop()
        parts = []
        for some in images.split(self.size):
            job = _Job(some, loop, loop.create_future())
            self.jobs.put(job)
            parts.append(job.result)
        return np.concatenate(await asyncio.gather(*parts))

    def close(self) -> None:
        """Ends the thread, once the images that wait are embedded."""
        self.jobs.put(None)
        self.thread.join()

    def _run(self) -> None:
        while True:
            batch, ended = self._next_batch()
            if batch:
                self._work(batch)
            if ended:
                return

    def _next_batch(self) -> tuple[list[_Job], bool]:
        """Returns the jobs of a batch, and whether they are the last."""
        first = self.left or self.jobs.get()
        self.left = None
        if first is None:
            return [], True
        batch, count, end = [first], len(first.images), time.monotonic() + self.wait
        while count < self.size:
            try:
                job = self.jobs.get(timeout=max(end - time.monotonic(), 0))
            except Empty:
                break
            if job is None:
                return batch, True
            if count + len(job.images) > self.size:
                self.left = job
                break
            batch.append(job)
            count += len(job.images)
        return batch, False

    def _work(self, batch: list[_Job]) -> None:
        try:
            feats = self.embed(torch.cat([job.images for job in batch]))
        except Exception as error:  # noqa: BLE001 - whoever asked gets it
            for job in batch:
                job.loop.call_soon_threadsafe(_fail, job.result, error)
            return
        self.seen(len(feats))
        ends = np.cumsum([len(job.images) for job in batch])[:-1]
        for job, part in zip(batch, np.split(feats, ends), strict=True):
            job.loop.call_soon_threadsafe(_settle, job.result, part)


def _settle(result: asyncio.Future[np.ndarray], feats: np.ndarray) -> None:
    if not result.done():  # its client may have left
        result.set_result(feats)


def _fail(result: asyncio.Future[np.ndarray], error: Exception) -> None:
    if not result.done():
        result.set_exception(error)
