"""The augmentation of ImageNet training, by timm: random resized crops, RandAugment, mixup and CutMix."""

from __future__ import annotations

import random

import numpy as np
from PIL import Image
from timm.data import Mixup, create_transform
from torch import Tensor

from utils import switch
from utils.errors import UserError

CENTRE = 0.875
"""Share of the shorter side that evaluation crops from the centre: 224 of 256 pixels."""


class ImageNetTransform:
    """timm's transform, drawing from Python's and torch's generators alone, as all training transforms here."""

    def __init__(self, transform, size: tuple[int, int]):
        self.transform, self.size = transform, size

    def __call__(self, image: Image.Image, out: Tensor | None = None) -> Tensor:
        """Written into ``out`` (3, H, W) where it is given."""
        held = np.random.get_state()
        np.random.seed(random.getrandbits(32))  # RandAugment draws from NumPy's generator
        try:
            pixels = self.transform(image)
        finally:
            np.random.set_state(held)
        return pixels if out is None else out.copy_(pixels)


def make_imagenet_transform(cfg, is_train: bool) -> ImageNetTransform:
    """INPUT.PIPELINE 'imagenet'. Training: a crop of 8 to 100 % of the area, mirror, RandAugment, erasing. Evaluation:
    the centre."""
    size = tuple(cfg.INPUT.SIZE_TRAIN if is_train else cfg.INPUT.SIZE_TEST)
    shared = {"interpolation": "bicubic", "mean": tuple(cfg.INPUT.PIXEL_MEAN), "std": tuple(cfg.INPUT.PIXEL_STD)}
    if not is_train:
        return ImageNetTransform(create_transform((3, *size), crop_pct=CENTRE, **shared), size)
    try:
        transform = create_transform(
            (3, *size), is_training=True, hflip=cfg.INPUT.PROB, auto_augment=cfg.INPUT.AUTO_AUGMENT or None,
            re_prob=cfg.INPUT.RE_PROB, re_mode=cfg.INPUT.RE_MODE, **shared,
        )  # fmt: skip
    except (AssertionError, ValueError) as error:
        raise UserError(f"INPUT.AUTO_AUGMENT: {cfg.INPUT.AUTO_AUGMENT!r} is none of timm's ({error})") from None
    return ImageNetTransform(transform, size)


def make_mixup(cfg, num_class: int) -> Mixup | None:
    """Mixup and CutMix of a batch, half of the batches each where both are on: (images, labels) -> (images, (B, C)).

    The targets are smoothed where MODEL.IF_LABELSMOOTH says so. None when both are off.
    """
    if not (cfg.INPUT.MIXUP or cfg.INPUT.CUTMIX):
        return None
    smoothing = 0.1 if switch("MODEL.IF_LABELSMOOTH", cfg.MODEL.IF_LABELSMOOTH) else 0.0
    return Mixup(cfg.INPUT.MIXUP, cfg.INPUT.CUTMIX, label_smoothing=smoothing, num_classes=num_class)
