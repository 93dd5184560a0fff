"""Compares an exported file with the network image by image: features and resized pixels."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import nn

from datasets.loaders import TestSet
from datasets.transforms.resizing import make_resizer
from model.deployed import Deployed, Preprocess
from processor.runtimes import Runtime
from tools.exporting.feeding import Feed, photos
from utils.errors import UserError

FEATURE_LIMIT = 1e-3
"""Largest permitted difference of a unit feature's entry from the same pixels, in full precision."""

CHECKED = 64
"""Photographs of every test set on which pixels and features are compared one by one."""


def unit(feature: np.ndarray) -> np.ndarray:
    """Returns features (..., D) scaled to length 1."""
    return feature / np.maximum(np.linalg.norm(feature, axis=-1, keepdims=True), 1e-12)


@torch.no_grad()
def feature_difference(
    reference: Deployed, runtime: Runtime, feed: Feed, tests: list[TestSet], resize: str
) -> float:
    """Returns the largest difference of a unit feature's entry from the same pixels, on some photographs.

    reference: the network that takes whole images. resize: evaluation's, a word of INPUT.RESIZE.
    """
    pre, resize_image, worst = reference.preprocess, make_resizer(resize, is_train=False), 0.0
    margin = pre.margin if isinstance(pre, Preprocess) else 0
    for test in tests:
        for photo in photos(test, reference.sides, CHECKED):
            size = pre.size[0] + margin, pre.size[1] + margin
            pixels = resize_image(Image.fromarray(photo.image), size).permute(1, 2, 0).contiguous()
            labels = (torch.from_numpy(photo.labels[name]) for name in reference.sides)
            expected = nn.functional.normalize(reference(pixels[None], *labels))[0].numpy()
            exported = unit(runtime(feed(pixels.numpy()), **photo.labels)[0])
            worst = max(worst, float(np.abs(exported - expected).max()))
    return worst


def pixel_difference(pre: Preprocess, resizer: Runtime, tests: list[TestSet]) -> float:
    """Returns the largest difference of a resized pixel, in grey levels, on some photographs."""
    resize_image, worst, edge = make_resizer(pre.resize, is_train=False), 0.0, pre.margin // 2
    for test in tests:
        for photo in photos(test, (), CHECKED):
            expected = resize_image(Image.fromarray(photo.image), (pre.size[0] + pre.margin, pre.size[1] + pre.margin))
            cut = expected[:, edge : edge + pre.size[0], edge : edge + pre.size[1]].numpy().astype(np.float32)
            worst = max(worst, float(np.abs(resizer(photo.image[None])[0] - cut).max()))
    return worst


def refuse_differences(found: dict[str, float], feature_limit: float | None, pixel_limit: float) -> None:
    """Raises ``UserError`` if a difference is above its limit. feature_limit: None for none."""
    features, pixels = found["feature_difference"], found["pixel_difference"]
    if feature_limit is not None and features > feature_limit:
        raise UserError(f"not exported: a unit feature differs by {features:.1e}, the limit is {feature_limit:g}")
    if pixels > pixel_limit:
        limit = f"the limit is {pixel_limit:g}"
        raise UserError(f"not exported: a resized pixel differs by {pixels:g} grey levels, {limit}")
