"""From a list of images to batches: decoding, augmentation with a seed per image, collating."""

from __future__ import annotations

import io
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from datasets.records import Records
from utils.errors import UserError


class BadImage(UserError):
    """An image that cannot be decoded; the message names its path."""


Box = Sequence[int] | np.ndarray
Size = tuple[int, int]


def decode(source: str | BinaryIO, path: str, at_least: Size | None = None) -> Image.Image:
    """An RGB image from a file or its bytes. path: its name in messages.

    at_least: (height, width) that a JPEG may be decoded down to, by halves (Pillow's draft mode): fewer pixels to
    decode, other pixels than a full decoding gives.
    """
    try:
        with Image.open(source) as image:
            if at_least is not None:
                image.draft("RGB", at_least[::-1])
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except FileNotFoundError:
        raise BadImage(f"{path}: the image is missing") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "empty file" if "cannot identify" in str(error) and _is_empty(path) else str(error).split("\n")[0]
        raise BadImage(f"{path}: the image cannot be read ({reason})") from None


def cropped(image: Image.Image, box: Box | None, path: str) -> Image.Image:
    """The part in the box (left, top, right, bottom), cut off at the image's edges; all 0 or None: the whole image."""
    if box is None or not any(box):
        return image
    left, top, right, bottom = (int(v) for v in box)
    right, bottom = min(right, image.width), min(bottom, image.height)
    if left >= right or top >= bottom:
        size = f"{image.width} x {image.height}"
        raise BadImage(f"{path}: the image cannot be read (its crop box lies outside of {size})")
    return image.crop((left, top, right, bottom))


def load_image(path: str, box: Box | None = None) -> Image.Image:
    """An RGB image, or the part of it in a box. Raises ``BadImage`` for a missing, empty, damaged or foreign file."""
    return cropped(decode(path, path), box, path)


class ByteStore:
    """The bytes of the first files of a list within a budget, in one block that worker processes share."""

    def __init__(self, paths: Sequence[str], budget: int):
        self.block, self.ends = bytearray(), [0]
        for path in paths:
            try:
                with open(path, "rb") as handle:
                    raw = handle.read(budget - len(self.block) + 1)
            except OSError:
                raw = b""  # told when it is its turn
            if len(self.block) + len(raw) > budget:
                break
            self.block += raw
            self.ends.append(len(self.block))
        self.ends = np.array(self.ends)
        self.block = memoryview(self.block)

    def __len__(self) -> int:
        return len(self.ends) - 1

    def get(self, row: int) -> BinaryIO | None:
        """The bytes of a row, None when they are not held."""
        if row >= len(self) or self.ends[row] == self.ends[row + 1]:
            return None
        return io.BytesIO(self.block[self.ends[row] : self.ends[row + 1]])


def _is_empty(path: str) -> bool:
    with open(path, "rb") as handle:
        return not handle.read(1)


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
    """images: (B, 3, H, W) float32. pids, camids, viewids, rows: (B,) int64; rows index the list they come from.

    broken: what could not be read, a message each; these images are not in the batch.
    """

    images: Tensor
    pids: Tensor
    camids: Tensor
    viewids: Tensor
    rows: Tensor
    broken: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.rows)

    def to(self, device: torch.device) -> Batch:
        return self._map(lambda t: t.to(device, non_blocking=True))

    def pin_memory(self) -> Batch:
        return self._map(Tensor.pin_memory)

    def _map(self, function: Callable[[Tensor], Tensor]) -> Batch:
        tensors = (self.images, self.pids, self.camids, self.viewids, self.rows)
        return Batch(*map(function, tensors), self.broken)


class ImageList(Dataset):
    """Images of a list under a transform. Indexed by a row, or by (row, seed) for augmentation.

    Returns (image tensor, row), or the message of an image that cannot be read, so that a worker's error reaches the
    user as one line. store: bytes that are in memory already. at_least: see ``decode``.
    """

    def __init__(
        self,
        records: Records,
        transform: Callable[[Image.Image], Tensor],
        store: ByteStore | None = None,
        at_least: Size | None = None,
    ):
        self.records, self.transform, self.store, self.at_least = records, transform, store, at_least

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int] | str:
        row, seed = key if isinstance(key, tuple) else (key, 0)
        try:
            image = self.image(row)
        except BadImage as error:
            return str(error)
        with seeded(seed):
            return self.transform_of(row)(image), row

    def __getitems__(self, keys: list) -> Batch | list:
        """A whole batch, each image written in its place in it; a list where the transform gives no size beforehand."""
        size = getattr(self.transform, "size", None)
        if size is None:
            return [self[key] for key in keys]
        images, rows, broken = torch.empty(len(keys), 3, *size), [], []
        for key in keys:
            row, seed = key if isinstance(key, tuple) else (key, 0)
            try:
                image = self.image(row)
            except BadImage as error:
                broken.append(str(error))
                continue
            with seeded(seed):
                self.transform_of(row)(image, out=images[len(rows)])
            rows.append(row)
        return self.batch(images[: len(rows)], rows, broken)

    def transform_of(self, row: int) -> Callable[..., Tensor]:
        """The transform of a row: the one of its view, where the transform has one for each (``of_view``)."""
        pick = getattr(self.transform, "of_view", None)
        return pick(int(self.records.viewids[row])) if pick else self.transform

    def image(self, row: int) -> Image.Image:
        path, boxes = self.records.paths[row], self.records.boxes
        held = self.store.get(row) if self.store else None
        box = None if boxes is None else boxes[row]
        at_least = None if box is not None and box.any() else self.at_least  # a box is in pixels of the whole image
        return cropped(decode(held or path, path, at_least), box, path)

    def collate(self, items: Batch | list) -> Batch:
        if isinstance(items, Batch):
            return items
        good = [item for item in items if not isinstance(item, str)]
        broken = [item for item in items if isinstance(item, str)]
        images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
        return self.batch(images, [row for _, row in good], broken)

    def batch(self, images: Tensor, rows: list[int], broken: list[str]) -> Batch:
        records, rows = self.records, np.array(rows, np.int64)
        columns = (torch.from_numpy(c[rows]) for c in (records.pids, records.camids, records.viewids))
        return Batch(images, *columns, torch.from_numpy(rows), broken)
