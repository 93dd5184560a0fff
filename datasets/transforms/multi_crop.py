"""DINO's crops: two global ones and several local ones of one decoded image (Caron et al., arXiv:2104.14294)."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

import torch
from PIL import Image, ImageFilter
from torch import Tensor
from torchvision import transforms
from yacs.config import CfgNode

from datasets.storage.pixels import PLAIN, PixelRules, to_rgb
from datasets.transforms.pipelines import ToNormalized
from datasets.transforms.resizing import to_pixels
from utils.errors import UserError


class Blur:
    """Blurs by a Gaussian of a radius uniform in (0.1, 2), with a probability."""

    def __init__(self, probability: float):
        self.probability = probability

    def __call__(self, image: Image.Image) -> Image.Image:
        if random.random() >= self.probability:
            return image
        return image.filter(ImageFilter.GaussianBlur(random.uniform(0.1, 2.0)))


def crop_of(size: tuple[int, int], scale: tuple[float, float], blur: float, solarise: float) -> Callable:
    """Returns one kind of crop, PIL image to PIL image of ``size`` (H, W).

    scale: share of the image that is cut out, at an aspect of 3/4 to 4/3 of the source's pixels whatever ``size`` is,
    as published. blur, solarise: probabilities.
    """
    return transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=scale, interpolation=transforms.InterpolationMode.BICUBIC),
            transforms.RandomHorizontalFlip(0.5),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.2, 0.1)], p=0.8),
            transforms.RandomGrayscale(0.2),
            Blur(blur),
            transforms.RandomSolarize(128, p=solarise),
        ]
    )


class MultiCrops:
    """Makes an image's crops, all from one decoding.

    size, local_size: (H, W) of the two global crops and of the ``local_number`` others. global_scale, local_scale:
    share of the image that they take. normalize: uint8 (3, H, W) -> float32.
    """

    def __init__(
        self,
        size: tuple[int, int],
        local_size: tuple[int, int],
        local_number: int,
        global_scale: tuple[float, float],
        local_scale: tuple[float, float],
        normalize: ToNormalized,
        rules: PixelRules = PLAIN,
    ):
        for key, (least, most) in (("GLOBAL", global_scale), ("LOCAL", local_scale)):
            if not 0 < least <= most <= 1:
                raise UserError(
                    f"DINO.{key}_CROPS_SCALE: expected two shares in (0, 1], ascending, got {(least, most)}"
                )
        local = crop_of(local_size, local_scale, blur=0.5, solarise=0.0)
        self.crops = [
            crop_of(size, global_scale, blur=1.0, solarise=0.0),
            crop_of(size, global_scale, blur=0.1, solarise=0.2),
            *[local] * local_number,
        ]
        self.sizes = [size, size, *[local_size] * local_number]
        self.normalize, self.rules = normalize, rules

    def __call__(self, image: Image.Image, out: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        """Returns (3, H_v, W_v) for each crop, written into those of ``out`` if they are passed."""
        out = [torch.empty(3, *size) for size in self.sizes] if out is None else out
        image = to_rgb(image, self.rules)
        for target, crop in zip(out, self.crops, strict=True):
            self.normalize(to_pixels(crop(image)), target)
        return out


def make_multi_crop_transform(cfg: CfgNode) -> MultiCrops:
    """Returns the crops that INPUT and DINO describe."""
    return MultiCrops(
        size=tuple(cfg.INPUT.SIZE_TRAIN),
        local_size=(cfg.DINO.CROP_HEIGHT, cfg.DINO.CROP_WIDTH),
        local_number=cfg.DINO.LOCAL_CROPS_NUMBER,
        global_scale=tuple(cfg.DINO.GLOBAL_CROPS_SCALE),
        local_scale=tuple(cfg.DINO.LOCAL_CROPS_SCALE),
        normalize=ToNormalized(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD),
        rules=PixelRules.from_cfg(cfg),
    )
