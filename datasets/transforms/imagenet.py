"""The augmentation of ImageNet training by timm: random resized crops, RandAugment, mixup and CutMix."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
from PIL import Image
from timm.data.mixup import Mixup
from timm.data.transforms_factory import create_transform
from torch import Tensor
from yacs.config import CfgNode

from datasets.storage.pixels import PLAIN, PixelRules, to_rgb
from utils import switch
from utils.errors import UserError

CENTRE = 0.875
"""Share of the shorter side that evaluation crops from the centre: 224 of 256 pixels."""


class ImageNetTransform:
    """Applies timm's transform, drawing from Python's and torch's generators alone, as all training transforms do."""

    def __init__(
        self, transform: Callable[[Image.Image], Tensor], size: tuple[int, int], rules: PixelRules = PLAIN
    ):
        self.transform, self.size, self.rules = transform, size, rules

    def __call__(self, image: Image.Image, out: Tensor | None = None) -> Tensor:
        """Returns (3, H, W) float32, written into ``out`` if that is passed."""
        state = np.random.get_state()
        np.random.seed(random.getrandbits(32))  # RandAugment draws from NumPy's generator
        try:
            pixels = self.transform(to_rgb(image, self.rules))
        finally:
            np.random.set_state(state)
        return pixels if out is None else out.copy_(pixels)


def make_imagenet_transform(cfg: CfgNode, is_train: bool) -> ImageNetTransform:
    """Returns the transform of INPUT.PIPELINE 'imagenet'.

    Training: a crop of 8 to 100 % of the area, mirror, RandAugment, erasing. Evaluation: the centre.
    """
    height, width = cfg.INPUT.SIZE_TRAIN if is_train else cfg.INPUT.SIZE_TEST
    rules = PixelRules.from_cfg(cfg)
    create = partial(
        create_transform,
        (3, height, width),
        interpolation="bicubic",
        mean=tuple(cfg.INPUT.PIXEL_MEAN),
        std=tuple(cfg.INPUT.PIXEL_STD),
    )
    if not is_train:
        return ImageNetTransform(only_one(create(crop_pct=CENTRE)), (height, width), rules)
    try:
        transform = create(
            is_training=True,
            hflip=cfg.INPUT.PROB,
            auto_augment=cfg.INPUT.AUTO_AUGMENT or None,
            re_prob=cfg.INPUT.RE_PROB,
            re_mode=cfg.INPUT.RE_MODE,
        )
    except (AssertionError, ValueError) as error:
        raise UserError(f"INPUT.AUTO_AUGMENT: timm has no {cfg.INPUT.AUTO_AUGMENT!r} ({error})") from None
    return ImageNetTransform(only_one(transform), (height, width), rules)


def only_one(transform: Any) -> Callable[[Image.Image], Tensor]:
    """Returns timm's transform, which is a tuple only if a caller asks for its parts."""
    assert not isinstance(transform, tuple)
    return transform


def make_mixup(cfg: CfgNode, num_class: int) -> Mixup | None:
    """Returns Mixup and CutMix of a batch, (images, labels) -> (images, (B, C)); None when both are off.

    Where both are on, each gets half of the batches. The targets are smoothed if MODEL.IF_LABELSMOOTH is on.
    """
    if not (cfg.INPUT.MIXUP or cfg.INPUT.CUTMIX):
        return None
    smoothing = 0.1 if switch("MODEL.IF_LABELSMOOTH", cfg.MODEL.IF_LABELSMOOTH) else 0.0
    return Mixup(cfg.INPUT.MIXUP, cfg.INPUT.CUTMIX, label_smoothing=smoothing, num_classes=num_class)
