"""How good the image of one box is, as a weight: sharpness, exposure, size, and how much of it a neighbour hides."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

ENOUGH = 128
"""Pixels of height above which size counts no more."""
LONGEST = 128
"""Pixels of the longer side to which larger images are reduced before their blur is measured."""
LEAST = 0.02
"""Weight of the worst image: an image is never worth nothing, as it may be all that there is."""


def image_quality(image: Image.Image) -> float:
    """Returns the quality of an image of one person, ``LEAST`` to 1: sharpness times exposure times size.

    sharpness: 1 less the blur of Crete et al., SPIE 2007. exposure: share of the pixels that are neither black nor
    white, times the contrast up to a standard deviation of 0.1. size: height over ``ENOUGH``, at most 1.
    """
    from skimage.measure import blur_effect

    tall = image.height
    grey = image.convert("L")
    grey.thumbnail((LONGEST, LONGEST))
    pixels = np.asarray(grey, np.float64) / 255
    if min(pixels.shape) < 3 or pixels.max() - pixels.min() < 1 / 255:
        return LEAST
    sharpness = 1 - float(np.mean(blur_effect(pixels)))
    exposure = float(((pixels > 0.03) & (pixels < 0.97)).mean()) * min(1.0, float(pixels.std()) / 0.1)
    return max(LEAST, sharpness * exposure * min(1.0, tall / ENOUGH))


def hidden_shares(boxes: Sequence[Sequence[float]] | np.ndarray) -> np.ndarray:
    """Returns the share of each box of a frame that one nearer box covers most of, (N,) from 0 to 1.

    boxes: (N, 4) left, top, right, bottom. On level ground the nearer of two people stands lower in the picture.
    """
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    left, top, right, bottom = boxes.T
    wide = np.minimum(right[:, None], right) - np.maximum(left[:, None], left)
    high = np.minimum(bottom[:, None], bottom) - np.maximum(top[:, None], top)
    area = np.maximum((right - left) * (bottom - top), 1e-9)
    covered = np.maximum(wide, 0) * np.maximum(high, 0) / area[:, None]
    return np.where(bottom[None] > bottom[:, None], covered, 0).max(1, initial=0.0)


def hidden_in_frames(boxes: np.ndarray, camids: np.ndarray, frames: np.ndarray) -> np.ndarray:
    """Returns ``hidden_shares`` of boxes (N, 4) in many frames, (N,). camids, frames: (N,); frame -1: unknown."""
    order = np.lexsort((frames, camids))
    keys = np.stack([camids[order], frames[order]], 1)
    starts = np.flatnonzero(np.r_[True, (keys[1:] != keys[:-1]).any(1)]) if len(order) else np.empty(0, int)
    shares = np.zeros(len(boxes))
    for rows in np.split(order, starts[1:]):
        if len(rows) > 1 and frames[rows[0]] >= 0:
            unique, where = np.unique(boxes[rows], axis=0, return_inverse=True)  # a box may be query and gallery
            shares[rows] = hidden_shares(unique)[where.reshape(-1)]
    return shares


def quality_weights(qualities: np.ndarray, hidden: np.ndarray) -> np.ndarray:
    """Returns the weights of images, (N,), from ``image_quality`` and the share that is hidden, (N,) each."""
    return np.maximum(LEAST, qualities * (1 - hidden))
