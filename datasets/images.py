"""From a list of images to batches: decoding, augmentation with a seed per image, collating."""

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
from utils.errors import UserError


class BadImage(UserError):
    """An image that cannot be decoded; the message names its path."""


def load_image(path: str) -> Image.Image:
    """An RGB image. Raises ``BadImage`` for a missing, empty, damaged or foreign file."""
    try:
        with Image.open(path) as image:
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except FileNotFoundError:
        raise BadImage(f"{path}: the image is missing") from None
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = "empty file" if "cannot identify" in str(error) and _is_empty(path) else str(error).split("\n")[0]
        raise BadImage(f"{path}: the image cannot be read ({reason})") from None


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
    user as one line.
    """

    def __init__(self, records: Records, transform: Callable[[Image.Image], Tensor]):
        self.records, self.transform = records, transform

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, key: int | tuple[int, int]) -> tuple[Tensor, int] | str:
        row, seed = key if isinstance(key, tuple) else (key, 0)
        try:
            image = load_image(self.records.paths[row])
        except BadImage as error:
            return str(error)
        with seeded(seed):
            return self.transform(image), row

    def collate(self, items: list) -> Batch:
        good = [item for item in items if not isinstance(item, str)]
        broken = [item for item in items if isinstance(item, str)]
        rows = np.array([row for _, row in good], np.int64)
        images = torch.stack([image for image, _ in good]) if good else torch.empty(0)
        records = self.records
        columns = (torch.from_numpy(c[rows]) for c in (records.pids, records.camids, records.viewids))
        return Batch(images, *columns, torch.from_numpy(rows), broken)
