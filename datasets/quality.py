"""Image quality: how blurred images are, and which of them are nearly the same."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
from PIL import Image
from skimage.measure import blur_effect
from skimage.metrics import structural_similarity

BLURRED = 0.6
"""Images above this ``blur_effect`` (0 sharp, 1 blurred; Crete et al., SPIE 2007) count as blurred."""
ALIKE = 0.95
"""Pairs of thumbnails above this structural similarity (Wang et al., IEEE TIP 2004) count as near-duplicates."""
LONGEST = 256
"""Pixels of the longer side to which larger images are reduced before their blur is measured: what training sees."""
THUMBNAIL = (32, 32)
BANDS = 4
"""Bands of the 64-bit hash. Thumbnails are compared only if they share one, so pairs with up to 3 other bits are."""
BUCKET = 32
"""Images of one bucket that are all compared with each other; in a larger one, each with the few that follow it."""


@dataclass(frozen=True)
class Look:
    """What is kept of an image. blur: see ``BLURRED``. thumbnail: uint8 (32, 32), grey."""

    blur: float
    thumbnail: np.ndarray


def examine(image: Image.Image) -> Look:
    """Returns the blur and the thumbnail of an RGB image."""
    grey = image.convert("L")
    thumbnail = np.asarray(grey.resize(THUMBNAIL, Image.Resampling.BILINEAR))
    grey.thumbnail((LONGEST, LONGEST))
    pixels = np.asarray(grey, np.float64) / 255
    flat = min(pixels.shape) < 3 or pixels.max() - pixels.min() < 1 / 255
    return Look(1.0 if flat else float(blur_effect(pixels)), thumbnail)


def difference_hash(thumbnail: np.ndarray) -> int:
    """Returns 64 bits: whether each cell of an 8 x 9 grid is brighter than the one to its left."""
    small = Image.fromarray(thumbnail).resize((9, 8), Image.Resampling.BOX)
    cells = np.asarray(small, np.int16)
    return int.from_bytes(np.packbits(cells[:, 1:] > cells[:, :-1]).tobytes(), "big")


def candidates(thumbnails: Sequence[np.ndarray]) -> set[tuple[int, int]]:
    """Returns pairs (i, j), i < j, whose hashes share a band; their number grows linearly with the images'."""
    width = 64 // BANDS
    buckets: dict[tuple[int, int], list[int]] = defaultdict(list)
    for i, thumbnail in enumerate(thumbnails):
        bits = difference_hash(thumbnail)
        for band in range(BANDS):
            buckets[band, (bits >> (band * width)) & ((1 << width) - 1)].append(i)
    pairs: set[tuple[int, int]] = set()
    for rows in buckets.values():
        if len(rows) <= BUCKET:
            pairs |= set(combinations(rows, 2))
        else:
            pairs |= {(rows[i], j) for i in range(len(rows)) for j in rows[i + 1 : i + 1 + BUCKET // 4]}
    return pairs


def near_duplicates(thumbnails: Sequence[np.ndarray]) -> list[tuple[float, int, int]]:
    """Returns (similarity, i, j) of the pairs above ``ALIKE``, the most similar first. thumbnails: uint8 (32, 32)."""
    pairs = []
    for i, j in sorted(candidates(thumbnails)):
        similarity = float(structural_similarity(thumbnails[i], thumbnails[j], data_range=255))
        if similarity > ALIKE:
            pairs.append((similarity, i, j))
    return sorted(pairs, key=lambda pair: (-pair[0], pair[1:]))
