"""Training images in memory: the first of a list within a budget, in one block that worker processes share."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from datasets.storage.files import read_bytes
from datasets.storage.pillow_decoding import Bytes, Pixels
from datasets.transforms.resizing import to_pixels


class ByteStore:
    """Holds the bytes of files. budget: in bytes."""

    def __init__(self, paths: Sequence[str], budget: int):
        block, ends = bytearray(), [0]
        for path in paths:
            try:
                raw = read_bytes(path)
            except (OSError, ValueError):
                raw = b""  # reported when the loader reaches it
            if len(block) + len(raw) > budget:
                break
            block += raw
            ends.append(len(block))
        self.ends = np.array(ends)
        self.block = memoryview(block)

    def __len__(self) -> int:
        return len(self.ends) - 1

    @property
    def nbytes(self) -> int:
        """Memory used, in bytes."""
        return len(self.block)

    def get(self, row: int) -> Bytes | None:
        """Returns the bytes of a row, None when they are not in the store."""
        if row >= len(self) or self.ends[row] == self.ends[row + 1]:
            return None
        return self.block[self.ends[row] : self.ends[row + 1]]


class PixelStore:
    """Holds decoded images.

    images: in the order of the list, None for one that cannot be read. budget: in bytes.
    """

    def __init__(self, images: Iterable[Pixels | None], budget: int):
        ends, sizes = [0], []
        self.block = bytearray()
        for image in images:
            pixels = np.empty((0, 0, 3), np.uint8) if image is None else to_pixels(image).permute(1, 2, 0).numpy()
            if len(self.block) + pixels.size > budget:
                break
            self.block += pixels.tobytes()
            ends.append(len(self.block))
            sizes.append(pixels.shape[:2])
        self.ends, self.sizes = np.array(ends), np.array(sizes, np.int32)

    def __len__(self) -> int:
        return len(self.sizes)

    @property
    def nbytes(self) -> int:
        """Memory used, in bytes."""
        return len(self.block)

    def get(self, row: int) -> Tensor | None:
        """Returns a row's uint8 (3, H, W), a view of the store; None when it is not in the store."""
        if row >= len(self) or self.ends[row] == self.ends[row + 1]:
            return None
        count = int(self.ends[row + 1] - self.ends[row])
        pixels = torch.frombuffer(self.block, dtype=torch.uint8, count=count, offset=int(self.ends[row]))
        return pixels.view(*self.sizes[row].tolist(), 3).permute(2, 0, 1)
