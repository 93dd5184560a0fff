"""From a PIL image to a normalised tensor. Training draws from Python's and torch's global generators."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from utils.errors import UserError

VIEW_AREA = (0.33, 1 / 3)
"""Share of a self-supervised view that random erasing takes (SVLL-ReID): about a third, whenever it erases."""


def to_pixels(image: Image.Image) -> Tensor:
    """RGB image -> uint8 (3, H, W), a view of (H, W, 3) in memory."""
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def resize(image: Image.Image, size: Sequence[int]) -> Tensor:
    """Evaluation's resize, bilinear by Pillow as in the published code. size: (H, W). Returns uint8 (3, H, W)."""
    height, width = size
    return to_pixels(
        image if image.size == (width, height) else image.resize((width, height), Image.Resampling.BILINEAR)
    )


def quick_resize(image: Image.Image, size: Sequence[int]) -> Tensor:
    """Training's resize, bicubic: Pillow's filter in torch's vectorised form, at most two grey levels from it.

    size: (H, W). Returns uint8 (3, H, W).
    """
    pixels = to_pixels(image)
    if pixels.shape[1:] == tuple(size):
        return pixels
    return F.interpolate(pixels[None], size=tuple(size), mode="bicubic", antialias=True)[0]


class ToNormalized:
    """uint8 (3, H, W) -> float32, ``(x / 255 - mean) / std`` per channel, in two in-place passes."""

    def __init__(self, mean: Sequence[float], std: Sequence[float]):
        if len(mean) != 3 or len(std) != 3 or min(std) <= 0:
            raise UserError(
                f"INPUT.PIXEL_MEAN, INPUT.PIXEL_STD: expected three values each, deviations above 0, got {mean}, {std}"
            )
        self.scale = torch.tensor([1 / (255 * s) for s in std]).view(3, 1, 1)
        self.shift = torch.tensor([-m / s for m, s in zip(mean, std, strict=True)]).view(3, 1, 1)

    def __call__(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        out = torch.empty(pixels.shape) if out is None else out
        return out.copy_(pixels).mul_(self.scale).add_(self.shift)


class PadAndCrop:
    """A random crop of the image's own size from the image with a black border of ``padding`` pixels. (3, H, W)."""

    def __init__(self, padding: int):
        if padding < 0:
            raise UserError(f"INPUT.PADDING: {padding} is below 0")
        self.padding = padding

    def __call__(self, pixels: Tensor) -> Tensor:
        if not self.padding:
            return pixels
        pad, (height, width) = self.padding, pixels.shape[1:]
        padded = pixels.new_zeros(3, height + 2 * pad, width + 2 * pad)
        padded[:, pad : pad + height, pad : pad + width] = pixels
        top, left = random.randint(0, 2 * pad), random.randint(0, 2 * pad)
        return padded[:, top : top + height, left : left + width]


class RandomErasing:
    """Fills one random rectangle with noise (Zhong et al., AAAI 2020; the pixel mode of timm's).

    probability: of erasing at all. area: share of the image, uniform in this range. aspect: height over width,
    log-uniform in [0.3, 1 / 0.3]. Up to ten tries until the rectangle is strictly smaller than the image.
    mode: ``pixel`` fills with N(0, 1) per pixel and channel, ``const`` with 0 (the mean, as images are normalised).
    """

    def __init__(self, probability: float, area: tuple[float, float] = (0.02, 1 / 3), mode: str = "pixel"):
        if not 0 <= probability <= 1:
            raise UserError(f"INPUT.RE_PROB: {probability} is no probability")
        if mode not in ("pixel", "const"):
            raise UserError(f"INPUT.RE_MODE: {mode!r} is neither 'pixel' nor 'const'")
        if not 0 < area[0] <= area[1] <= 1:
            raise UserError(f"INPUT.RE_MAX_AREA: {area[1]} must lie between {area[0]} and 1")
        self.probability, self.area, self.mode = probability, area, mode
        self.log_aspect = (math.log(0.3), math.log(1 / 0.3))

    def rectangle(self, height: int, width: int) -> tuple[int, int, int, int] | None:
        """top, left, height, width of the rectangle to fill; None when this image is spared."""
        if random.random() >= self.probability:
            return None
        for _ in range(10):
            target = random.uniform(*self.area) * height * width
            aspect = math.exp(random.uniform(*self.log_aspect))
            h, w = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if h < height and w < width:
                return random.randint(0, height - h), random.randint(0, width - w), h, w
        return None

    def __call__(self, image: Tensor) -> Tensor:
        box = self.rectangle(*image.shape[1:])
        if box:
            top, left, h, w = box
            fill = torch.randn(3, h, w) if self.mode == "pixel" else 0.0
            image[:, top : top + h, left : left + w] = fill
        return image


class TrainTransform:
    """Resize (bicubic), flip, pad and crop, normalise, erase: the order of the published ReID code."""

    def __init__(self, size, flip: float, padding: int, normalize: ToNormalized, erase: RandomErasing):
        if not 0 <= flip <= 1:
            raise UserError(f"INPUT.PROB: {flip} is no probability")
        self.size, self.flip, self.normalize, self.erase = size, flip, normalize, erase
        self.crop = PadAndCrop(padding)

    def __call__(self, image: Image.Image, out: Tensor | None = None) -> Tensor:
        """Written into ``out`` (3, H, W) where it is given."""
        return self.augment(quick_resize(image, self.size), out)

    def augment(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        """What follows the resize. pixels: uint8 (3, H, W), left as it is."""
        if random.random() < self.flip:
            pixels = pixels.flip(2)
        return self.erase(self.normalize(self.crop(pixels), out))


class WithViews:
    """The training image and two further views of it, drawn independently from one decoded and resized image.

    first, view: the transforms; the training image is the one that ``first`` alone would give.
    """

    count = 3

    def __init__(self, first: TrainTransform, view: TrainTransform):
        self.first, self.view, self.size = first, view, first.size

    def __call__(self, image: Image.Image, out: Tensor | None = None) -> Tensor:
        """(3, 3, H, W), written into ``out`` where it is given."""
        pixels = quick_resize(image, self.size)
        out = torch.empty(self.count, 3, *self.size) if out is None else out
        for place, transform in zip(out, (self.first, self.view, self.view), strict=True):
            transform.augment(pixels, place)
        return out


class TestTransform:
    """Resize (bilinear) and normalise."""

    __test__ = False  # not a test class, whatever its name says to pytest

    def __init__(self, size, normalize: ToNormalized):
        self.size, self.normalize = size, normalize

    def __call__(self, image: Image.Image, out: Tensor | None = None) -> Tensor:
        """Written into ``out`` (3, H, W) where it is given."""
        return self.normalize(resize(image, self.size), out)


def build_transforms(cfg, is_train: bool) -> Callable[[Image.Image], Tensor]:
    """The transform of training or of evaluation: PIL image -> float32 (3, H, W)."""
    normalize = ToNormalized(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)
    if not is_train:
        return TestTransform(tuple(cfg.INPUT.SIZE_TEST), normalize)
    return train_transform(cfg, (0.02, cfg.INPUT.RE_MAX_AREA))


def train_transform(cfg, erased: tuple[float, float]) -> TrainTransform:
    """Training's transform. erased: least and largest share of the image that random erasing takes."""
    normalize = ToNormalized(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD)
    erase = RandomErasing(cfg.INPUT.RE_PROB, erased, cfg.INPUT.RE_MODE)
    return TrainTransform(tuple(cfg.INPUT.SIZE_TRAIN), cfg.INPUT.PROB, cfg.INPUT.PADDING, normalize, erase)


def with_views(cfg) -> WithViews:
    """Training's transform with two views beside each image, for vision self-supervision."""
    return WithViews(build_transforms(cfg, is_train=True), train_transform(cfg, VIEW_AREA))
