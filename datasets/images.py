"""From a list of images to batches: augmentation with a seed per image, collating."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from datasets.records import Records
from datasets.storage.decoding import BadImage, Pixels, Size, cropped, decode, read_image
from datasets.storage.stores import ByteStore, PixelStore


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Inside, Python's and torch's global generators start from ``seed``; afterwards they are as before.

    So an image's augmentation depends on its place in the run alone, whatever the number of workers.
    """
    held = None if get_worker_info() else (random.getstate(), torch.get_rng_state())  # a worker draws nothing else
    random.seed(seed)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        if held:
            random.setstate(held[0])
            torch.set_rng_state(held[1])


@dataclass
class Batch:
    """Images with what is known of them: (B, 3, H, W) float32, and columns of (B,) int64.

    cam_labels, view_labels: rows of the network's side embeddings (see ``Records``). rows: of the list they come from.
    broken: what could not be read, a message each; these images are not in the batch. views: further views of the
    images, (B, 3, H, W) each, maybe of other sizes.
    """

    images: Tensor
    pids: Tensor
    cam_labels: Tensor
    view_labels: Tensor
    rows: Tensor
    broken: list[str] = field(default_factory=list)
    views: tuple[Tensor, ...] = ()

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> Batch:
        return self._map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        tensors = (self.images, self.pids, self.cam_labels, self.view_labels, self.rows)
        return Batch(*map(function, tensors), self.broken, tuple(map(function, self.views)))


Item = tuple[Tensor | None, int, list[str]]
"""An image under the transform (None: neither it nor any other could be read), its row, what could not be read."""


class ImageList(Dataset):
    """Images of a list under a transform. Indexed by a row, or by (row, seed) for augmentation.

    store: files or pixels that are in memory already. decoder, at_least: see ``decode``.

    stand_in: where an image cannot be read, another one of its identity takes its place, the next in the list that can
    be read (any other image where there is none), so that every batch has its full length: processes that train
    together take the same steps, and their gathered features are of one shape. What could not be read is told with the
    batch, so that a worker's error reaches the user as one line.
    """

    def __init__(
        self,
        records: Records,
        transform: Callable[[Image.Image], Tensor],
        store: ByteStore | PixelStore | None = None,
        decoder: Callable[..., Pixels] = decode,
        at_least: Size | None = None,
        stand_in: bool = False,
    ):
        self.records, self.transform, self.store = records, transform, store
        self.decoder, self.at_least, self.stand_in = decoder, at_least, stand_in

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
        """A whole batch, each image written in its place in it; a list where the transform gives no size beforehand."""
        size = getattr(self.transform, "size", None)
        sizes = getattr(self.transform, "sizes", None)  # of an image and its views, each in a block of its own
        if size is None and sizes is None:
            return [self[key] for key in keys]
        blocks = [torch.empty(len(keys), 3, *size) for size in sizes or [size]]
        rows, broken = [], []
        for key in keys:
            row, seed = key if isinstance(key, tuple) else (key, 0)
            image, row, messages = self.readable(row)
            broken += messages
            if image is not None:
                with seeded(seed):
                    places = [block[len(rows)] for block in blocks]
                    self.transform_of(row)(image, out=places if sizes else places[0])
                rows.append(row)
        return self.batch([block[: len(rows)] for block in blocks], rows, broken)

    def readable(self, row: int) -> tuple[Pixels | None, int, list[str]]:
        """The image of a row or of the one that stands in for it, its row, and a message for each that failed.

        Pixels only for a transform that takes them, a PIL image for any other.
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
        """The row, then those that may stand in for it: its identity's after it, from the first again, then all."""
        yield row
        if self.stand_in:
            own = np.flatnonzero(self.records.pids == self.records.pids[row])
            after = np.roll(own, -1 - np.searchsorted(own, row))
            yield from map(int, after[:-1])
            yield from (other % len(self) for other in range(row + 1, row + len(self)))

    def transform_of(self, row: int) -> Callable[..., Tensor]:
        """The transform of a row: the one of its view, where the transform has one for each (``of_view``)."""
        pick = getattr(self.transform, "of_view", None)
        return pick(int(self.records.viewids[row])) if pick else self.transform

    def image(self, row: int) -> Pixels:
        held = self.store.get(row) if self.store else None
        if isinstance(held, Tensor):
            return held
        path, boxes = self.records.paths[row], self.records.boxes
        box = None if boxes is None else boxes[row]
        at_least = None if box is not None and box.any() else self.at_least  # a box is in pixels of the whole image
        return cropped(self.decoder(read_image(path) if held is None else held, path, at_least), box, path)

    def images(self) -> Iterator[Pixels | None]:
        """One after another as they enter the transform, None for one that cannot be read."""
        for row in range(len(self)):
            try:
                yield self.image(row)
            except BadImage:  # told when it is its turn
                yield None

    def collate(self, items: Batch | list[Item]) -> Batch:
        if isinstance(items, Batch):
            return items
        good = [(image, row) for image, row, _ in items if image is not None]
        broken = [message for _, _, messages in items for message in messages]
        images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
        return self.batch([images], [row for _, row in good], broken)

    def batch(self, blocks: list[Tensor], rows: list[int], broken: list[str]) -> Batch:
        """blocks: the images and their further views, (B, 3, H, W) each."""
        records, rows = self.records, np.array(rows, np.int64)
        columns = (torch.from_numpy(c[rows]) for c in (records.pids, records.cam_labels, records.view_labels))
        return Batch(blocks[0], *columns, torch.from_numpy(rows), broken, tuple(blocks[1:]))
