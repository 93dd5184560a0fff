"""Turns a list of images into batches: augmentation with a seed per image, collating."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from datasets.records import Records
from datasets.storage.decoding import Decoder
from datasets.storage.pillow_decoding import BadImage, Pixels, Size, cropped, decode, read_image
from datasets.storage.stores import ByteStore, PixelStore


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds Python's and torch's global generators inside; afterwards they are as before.

    So an image's augmentation depends on its place in the run alone, whatever the number of workers.
    """
    states = None if get_worker_info() else (random.getstate(), torch.get_rng_state())  # a worker draws nothing else
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        if states:
            random.setstate(states[0])
            torch.set_rng_state(states[1])


@dataclass
class Batch:
    """Images with what is known of them: (B, 3, H, W) float32, and columns of (B,) int64.

    cam_labels, view_labels: rows of the network's side embeddings (see ``Records``). rows: of the list they come from.
    broken: what could not be read, a message each; these images are not in the batch. views: further views of the
    images, (B, 3, H, W) each, maybe of other sizes. qualities: (B,) float64, of the images before the transform, where
    they are measured.
    """

    images: Tensor
    pids: Tensor
    cam_labels: Tensor
    view_labels: Tensor
    rows: Tensor
    broken: list[str] = field(default_factory=list)
    views: tuple[Tensor, ...] = ()
    qualities: Tensor | None = None

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> Batch:
        """Returns the batch on a device."""
        return self._map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        """Returns the batch in pinned memory."""
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        return Batch(
            images=function(self.images),
            pids=function(self.pids),
            cam_labels=function(self.cam_labels),
            view_labels=function(self.view_labels),
            rows=function(self.rows),
            broken=self.broken,
            views=tuple(function(view) for view in self.views),
            qualities=None if self.qualities is None else function(self.qualities),
        )


Item = tuple[Tensor | None, int, list[str]]
"""A transformed image (None: neither it nor any other could be read), its row, what could not be read."""


class ImageList(Dataset):
    """Images of a list under a transform. Indexed by a row, or by (row, seed) for augmentation.

    store: files or pixels that are in memory already. decoder, at_least: see ``decode``. measure: gives the quality of
    an image; batches then have ``qualities``, if the transform announces its size.

    stand_in: where an image cannot be read, another one of its identity takes its place, the next in the list that can
    be read (any other image if there is none), so that every batch has its full length: processes that train together
    take the same steps, and their gathered features are of one shape. What could not be read is reported with the
    batch, so that a worker's error reaches the user as one line.
    """

    def __init__(
        self,
        records: Records,
        transform: Callable[..., Any],
        store: ByteStore | PixelStore | None = None,
        decoder: Decoder = decode,
        at_least: Size | None = None,
        stand_in: bool = False,
        measure: Callable[[Image.Image], float] | None = None,
    ):
        self.records, self.transform, self.store = records, transform, store
        self.decoder, self.at_least, self.stand_in, self.measure = decoder, at_least, stand_in, measure

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> Item:
        row, seed = key if isinstance(key, tuple) else (key, 0)
        image, row, broken = self.readable(row)
        if image is None:
            return None, row, broken
        with seeded(seed):
            return self.transform_of(row)(image), row, broken

    def __getitems__(self, keys: list) -> Batch | list[Item]:
        """Returns a whole batch, each image written in place; a list if the transform does not announce its size."""
        sizes: list[Size] | None = getattr(self.transform, "sizes", None)
        shapes = self.shapes()
        if not shapes:
            return [self[key] for key in keys]
        blocks = [torch.empty(len(keys), 3, *shape) for shape in shapes]
        rows, broken, qualities = [], [], []
        for key in keys:
            row, seed = key if isinstance(key, tuple) else (key, 0)
            image, row, messages = self.readable(row)
            broken += messages
            if image is not None:
                with seeded(seed):
                    out = [block[len(rows)] for block in blocks]
                    self.transform_of(row)(image, out=out if sizes else out[0])
                rows.append(row)
                if self.measure and not isinstance(image, Tensor):
                    qualities.append(self.measure(image))
        batch = self.batch([block[: len(rows)] for block in blocks], rows, broken)
        if self.measure:
            batch.qualities = torch.tensor(qualities, dtype=torch.float64)
        return batch

    def shapes(self) -> list[Size]:
        """Returns (height, width) of an image and its views after the transform; empty if it does not announce them."""
        size: Size | None = getattr(self.transform, "size", None)
        sizes: list[Size] | None = getattr(self.transform, "sizes", None)
        return list(sizes or ([size] if size is not None else []))

    def bytes_of(self, count: int) -> int:
        """Returns the bytes of a batch of ``count`` images, 0 if the transform does not announce its size."""
        return count * sum(4 * 3 * height * width for height, width in self.shapes())

    def readable(self, row: int) -> tuple[Pixels | None, int, list[str]]:
        """Returns the image of a row or of the one that stands in for it, its row, and a message for each that failed.

        The image is a tensor only for a transform that takes pixels, a PIL image for any other.
        """
        broken = []
        for candidate in self.candidates(row):
            try:
                image = self.image(candidate)
            except BadImage as error:
                broken.append(str(error))
                continue
            if isinstance(image, Tensor) and not getattr(self.transform_of(candidate), "takes_pixels", False):
                image = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
            return image, candidate, broken
        return None, row, broken

    def candidates(self, row: int) -> Iterator[int]:
        """Yields the row, then those that may stand in for it: its identity's after it, from the first on, then all."""
        yield row
        if self.stand_in:
            same = np.flatnonzero(self.records.pids == self.records.pids[row])
            after = np.roll(same, -1 - np.searchsorted(same, row))
            yield from map(int, after[:-1])
            yield from (other % len(self) for other in range(row + 1, row + len(self)))

    def transform_of(self, row: int) -> Callable[..., Tensor]:
        """Returns the transform of a row: that of its view, if the transform has one for each (``of_view``)."""
        pick = getattr(self.transform, "of_view", None)
        return pick(int(self.records.viewids[row])) if pick else self.transform

    def image(self, row: int) -> Pixels:
        """Returns a row's image before the transform. Raises ``BadImage`` if it cannot be read."""
        stored = self.store.get(row) if self.store else None
        if isinstance(stored, Tensor):
            return stored
        path, boxes = self.records.paths[row], self.records.boxes
        box = None if boxes is None else boxes[row]
        at_least = None if box is not None and box.any() else self.at_least  # a box is in pixels of the whole image
        return cropped(self.decoder(read_image(path) if stored is None else stored, path, at_least), box, path)

    def images(self) -> Iterator[Pixels | None]:
        """Yields the images as they enter the transform, None for one that cannot be read."""
        for row in range(len(self)):
            try:
                yield self.image(row)
            except BadImage:  # reported when the loader reaches it
                yield None

    def collate(self, items: Batch | list[Item]) -> Batch:
        """Returns the batch of some items."""
        if isinstance(items, Batch):
            return items
        good = [(image, row) for image, row, _ in items if image is not None]
        broken = [message for _, _, messages in items for message in messages]
        images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
        return self.batch([images], [row for _, row in good], broken)

    def batch(self, blocks: list[Tensor], rows: list[int], broken: list[str]) -> Batch:
        """Returns the batch of these rows. blocks: the images and their further views, (B, 3, H, W) each."""
        index = np.array(rows, np.int64)
        return Batch(
            images=blocks[0],
            pids=torch.from_numpy(self.records.pids[index]),
            cam_labels=torch.from_numpy(self.records.cam_labels[index]),
            view_labels=torch.from_numpy(self.records.view_labels[index]),
            rows=torch.from_numpy(index),
            broken=broken,
            views=tuple(blocks[1:]),
        )
