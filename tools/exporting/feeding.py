"""Test images as an exported file takes them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from datasets.images import ImageList
from datasets.loaders import TestSet
from datasets.transforms.resizing import make_resizer, to_pixels
from model.layouts import Given
from processor.runtimes import Runtime

Feed = Callable[[np.ndarray], np.ndarray]
"""Makes the input of one image, with a batch axis, of its pixels, uint8 (H, W, 3)."""


@dataclass
class Photo:
    """One test image. image: uint8 (H, W, 3). labels: the model's further inputs."""

    image: np.ndarray
    labels: dict[str, np.ndarray]


def photos(test: TestSet, sides: tuple[str, ...], most: int | None = None) -> Iterator[Photo]:
    """Yields the images of a test set's list in order, as they are in their files, upright and opaque."""
    records = test.loader.records
    images = ImageList(records, to_pixels, decoder=test.loader.decoder)
    columns = {"cam_label": records.cam_labels, "view_label": records.view_labels}
    for row in range(len(records) if most is None else min(most, len(records))):
        pixels = to_pixels(images.image(row)).permute(1, 2, 0).numpy()
        yield Photo(pixels, {name: columns[name][row : row + 1] for name in sides})


def whole(image: np.ndarray) -> np.ndarray:
    """Returns what a file takes that resizes itself."""
    return image[None]


def fed(given: Given, size: tuple[int, int], resize: str) -> Feed:
    """Returns what makes of an image what a tracker feeds, (1, 3, H, W) float32. resize: a word of INPUT.RESIZE."""
    resize_image = make_resizer(resize, is_train=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (given.mean, given.std))

    def feed(image: np.ndarray) -> np.ndarray:
        levels = resize_image(Image.fromarray(image), size)
        return ((levels.float() / 255 - mean) / std)[None].numpy()

    return feed


def exported_features(runtime: Runtime, test: TestSet, sides: tuple[str, ...], feed: Feed) -> Tensor:
    """Returns the exported file's features of a test set's list, from the image files' own pixels, (N, D)."""
    found = (runtime(feed(photo.image), **photo.labels)[0] for photo in photos(test, sides))
    return torch.from_numpy(np.stack(list(found)))
