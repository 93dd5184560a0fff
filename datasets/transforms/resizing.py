"""Resizes images: by Pillow's filters, and by OpenCV's bilinear one in exact integers."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

Size = tuple[int, int]


def to_pixels(image: Image.Image | Tensor) -> Tensor:
    """Returns an RGB image as uint8 (3, H, W), a view of (H, W, 3) in memory; pixels are returned as they are."""
    return image if isinstance(image, Tensor) else torch.from_numpy(np.array(image)).permute(2, 0, 1)


def by_pillow(image: Image.Image, size: Size, resample: Image.Resampling = Image.Resampling.BILINEAR) -> Tensor:
    """Resizes by one of Pillow's filters, antialiased. size: (H, W). Returns uint8 (3, H, W)."""
    height, width = size
    return to_pixels(image if image.size == (width, height) else image.resize((width, height), resample))


def bicubic_by_pillow(image: Image.Image, size: Size) -> Tensor:
    """Resizes by Pillow's bicubic filter. size: (H, W). Returns uint8 (3, H, W)."""
    return by_pillow(image, size, Image.Resampling.BICUBIC)


def quick_bicubic(image: Image.Image | Tensor, size: Size) -> Tensor:
    """Resizes by Pillow's bicubic filter in torch's vectorised form, at most two grey levels from it.

    size: (H, W). Returns uint8 (3, H, W).
    """
    pixels = to_pixels(image)
    if pixels.shape[1:] == tuple(size):
        return pixels
    return F.interpolate(pixels[None], size=tuple(size), mode="bicubic", antialias=True)[0]


ONE = 2048
"""OpenCV's fixed point: weights are 11-bit integers."""


@lru_cache(maxsize=4096)
def taps(source: int, target: int, zeroed: bool) -> tuple[np.ndarray, ...]:
    """Returns two source indices and their weights in 1 / ``ONE`` for each target pixel of one axis, (target,) each.

    Half-pixel centres in float32, weights rounded half to even. zeroed: beyond the border the whole weight goes to the
    border pixel; otherwise only the indices are clipped.
    """
    centres = ((np.arange(target) + 0.5) * (source / target) - 0.5).astype(np.float32)
    first = np.floor(centres).astype(np.int64)
    share = centres - first.astype(np.float32)
    if zeroed:
        share[(first < 0) | (first >= source - 1)] = 0
    weights = np.rint((1 - share) * ONE).astype(np.int32), np.rint(share * ONE).astype(np.int32)
    return *(np.clip(first + i, 0, source - 1) for i in (0, 1)), *weights


def cv2_bilinear(image: Image.Image, size: Size) -> Tensor:
    """Resizes as ``cv2.resize(..., INTER_LINEAR)`` does, bit for bit and without OpenCV: no antialiasing at any size.

    size: (H, W). Returns uint8 (3, H, W).
    """
    pixels = np.asarray(image)
    left, right, left_weight, right_weight = taps(pixels.shape[1], size[1], zeroed=True)
    upper, lower, upper_weight, lower_weight = taps(pixels.shape[0], size[0], zeroed=False)
    needed, positions = np.unique(np.stack([upper, lower]), return_inverse=True)
    rows = pixels[needed].astype(np.int32)
    across = (rows[:, left] * left_weight[:, None] + rows[:, right] * right_weight[:, None]) >> 4
    above, below = positions.reshape(2, -1)
    down = (across[above] * upper_weight[:, None, None]) >> 16
    down += (across[below] * lower_weight[:, None, None]) >> 16
    return torch.from_numpy(((down + 2) >> 2).astype(np.uint8)).permute(2, 0, 1)


Resizer = Callable[[Any, Size], Tensor]
"""Function of (PIL image, for ``quick_bicubic`` also uint8 pixels (3, H, W); (H, W)) -> uint8 (3, H, W)."""
RESIZERS: dict[str, Resizer] = {
    "cv2_bilinear": cv2_bilinear, "pil_bilinear": by_pillow, "pil_bicubic": bicubic_by_pillow,
}  # fmt: skip


def make_resizer(name: str, is_train: bool) -> Resizer:
    """Returns the function that INPUT.RESIZE names.

    ``auto`` is bicubic in training and bilinear in evaluation, as in TransReID's code.
    """
    if name == "auto":
        return quick_bicubic if is_train else by_pillow
    return RESIZERS[name]
