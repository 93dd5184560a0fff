"""Loaders: batches of an epoch for training, and batches of a list in its order for features."""

from __future__ import annotations

import atexit
import logging
import multiprocessing
import multiprocessing.queues
import signal
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL.Image import Image
from torch.utils.data import DataLoader

from datasets.images import Batch, ImageList
from datasets.records import Records
from datasets.samplers import EpochSampler
from datasets.storage.decoding import Decoder
from datasets.storage.pillow_decoding import decode
from datasets.storage.stores import ByteStore, PixelStore
from utils.distributed import gather_objects, rank, world_size
from utils.errors import UserError
from utils.stop_signals import SIGNALS
from utils.workers import end_worker, lost_workers_named, require_room

log = logging.getLogger("lineup")


class TrainLoader:
    """Batches of one epoch after another.

    on_bad: at an image that cannot be read, ``raise`` stops; ``skip`` counts and takes another image of its identity,
    so that batches keep their length. cache: bytes of memory for the first images, which holds ``files`` or ``pixels``
    (cached). decoder: see ``make_decoder``. at_least: size that Pillow may decode JPEG files down to. timeout: seconds
    that a batch of the workers may take, 0 for any.
    """

    def __init__(
        self,
        records: Records,
        transform: Callable[..., Any],
        sampler: EpochSampler,
        workers: int,
        on_bad: str = "raise",
        pin: bool = False,
        cache: int = 0,
        cached: str = "files",
        decoder: Decoder = decode,
        at_least: tuple[int, int] | None = None,
        timeout: float = 0.0,
    ):
        self.records, self.sampler, self.on_bad = records, sampler, on_bad
        images = ImageList(records, transform, decoder=decoder, at_least=at_least, stand_in=on_bad == "skip")
        if cache:
            store = PixelStore(images.images(), cache) if cached == "pixels" else ByteStore(records.paths, cache)
            images.store = store
            size = store.nbytes / 1e9
            log.info("%s of %d of %d training images are in memory (%.2f GB)", cached, len(store), len(records), size)
        self._make = partial(
            DataLoader,
            images,
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=images.collate,
            persistent_workers=workers > 0,
            pin_memory=pin,
            worker_init_fn=one_thread,
            timeout=timeout if workers else 0,
        )
        self.restart()

    def restart(self) -> None:
        """Replaces the loader by one without workers yet, and ends the workers of the old one.

        Left to the garbage collector, they would not end: it closes their queues first, and the request to stop is
        lost.
        """
        self.loader, self.running = self._make(generator=torch.Generator()), False

    def relabel(self, pids: np.ndarray) -> None:
        """Draws batches by other classes from the next epoch on. pids: (N,), -1 for an image to leave out."""
        self.sampler.relabel(pids)

    def epoch(self, number: int) -> EpochBatches:
        """Returns the batches of an epoch, counted from 1: the same for the same seed, whatever the workers."""
        self.sampler.set_epoch(number)
        return EpochBatches(self)


class EpochBatches:
    """One pass over a ``TrainLoader``."""

    def __init__(self, owner: TrainLoader):
        self.owner = owner

    def __len__(self) -> int:
        return len(self.owner.sampler)

    def __iter__(self) -> Iterator[Batch]:
        return self.after(0)

    def after(self, count: int) -> Iterator[Batch]:
        """Yields the batches that follow the first ``count``, which are not loaded."""
        self.owner.sampler.first = count
        skipped: set[str] = set()
        try:
            running, self.owner.running = self.owner.running, True
            for batch in batches_of(self.owner.loader, self.owner.sampler.per_rank, running):
                self._refuse(batch)
                skipped |= set(batch.broken)
                yield batch
        except Exception:
            self.owner.restart()
            raise
        if self.owner.on_bad == "skip":
            skipped = set().union(*gather_objects(skipped))
        if skipped:
            log.warning("%d images could not be read in this epoch; others of their identity stood in", len(skipped))

    def _refuse(self, batch: Batch) -> None:
        if batch.broken and self.owner.on_bad == "raise":
            raise UserError(f"{batch.broken[0]}; DATALOADER.BAD_IMAGES 'skip' trains without such images")
        if not len(batch):
            raise UserError(f"{batch.broken[0]}; nor can any other of the {len(self.owner.records)} images be read")


def batches_of(loader: DataLoader, batch_size: int, running: bool = False) -> Iterator[Batch]:
    """Yields a loader's batches of at most ``batch_size`` images; what its workers lack ends in one line.

    running: its workers are there already.
    """
    images = loader.dataset
    assert isinstance(images, ImageList)
    if not loader.num_workers:
        yield from loader
        return
    if not running:
        require_room(loader.num_workers, len(loader), images.bytes_of(min(batch_size, len(images))))
    with lost_workers_named():
        yield from loader


# Every loader has a generator of its own: starting workers must not draw from the one that training resumes.


def one_thread(worker: int) -> None:
    """Limits a worker to one thread, since workers share the cores with the training process.

    It ignores the signals by which a scheduler ends a run: they reach all processes, and the training process still
    needs batches to finish its step.
    """
    torch.set_num_threads(1)
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    signal.signal(signal.SIGBUS, signal.SIG_DFL)  # torch's handler prints; the training process says more
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(end_worker)  # pyright: ignore
    sys.excepthook = lambda kind, error, trace: end_worker(error)


@atexit.register
def end_workers() -> None:
    """Ends workers that are left when the program ends, before multiprocessing waits for them."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report each one as an error
    for process in multiprocessing.active_children():
        if process.daemon:
            process.kill()


class TestLoader:
    """Batches of a list in order; each of several processes sees its share of the rows."""

    __test__ = False  # not a test class, whatever its name says to pytest

    def __init__(
        self,
        records: Records,
        transform: Callable[..., Any],
        batch_size: int,
        workers: int,
        pin: bool = False,
        decoder: Decoder = decode,
        timeout: float = 0.0,
        measure: Callable[[Image], float] | None = None,
    ):
        images = ImageList(records, transform, decoder=decoder, measure=measure)
        self.records, self.decoder, self.batch_size = records, decoder, batch_size
        share = np.array_split(np.arange(len(records)), world_size())[rank()].tolist()
        self.loader = DataLoader(
            images,
            sampler=share,
            batch_size=batch_size,
            num_workers=workers,
            collate_fn=images.collate,
            pin_memory=pin,
            worker_init_fn=one_thread,
            generator=torch.Generator(),
            timeout=timeout if workers else 0,
        )

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[Batch]:
        for batch in batches_of(self.loader, self.batch_size):
            if batch.broken:
                raise UserError(batch.broken[0])
            yield batch
