"""Turns a PIL image into a normalised tensor. Training draws from Python's and torch's global generators."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor
from yacs.config import CfgNode

from datasets.storage.pixels import PLAIN, PixelRules, to_rgb
from datasets.transforms.augmentations import make_augmentations
from datasets.transforms.imagenet import make_imagenet_transform
from datasets.transforms.resizing import Resizer, by_pillow, make_resizer, quick_bicubic, to_pixels
from utils.errors import UserError

VIEW_AREA = (0.33, 1 / 3)
"""Share of a self-supervised view that random erasing takes (SVLL-ReID): about a third, whenever it erases."""

CONST_FILL = (0.485, 0.456, 0.406)
"""The colour of random erasing in mode ``const``."""


class ToNormalized:
    """Converts uint8 (3, H, W) to float32, ``(x / 255 - mean) / std`` per channel, in two in-place passes."""

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


def random_crop(pixels: Tensor, height: int, width: int) -> Tensor:
    """Crops (3, H, W) to (3, height, width), every position with the same probability."""
    top = random.randint(0, pixels.shape[1] - height)
    left = random.randint(0, pixels.shape[2] - width)
    return pixels[:, top : top + height, left : left + width]


class PadAndCrop:
    """Takes a random crop of the image's own size from the image with a border of ``padding`` pixels. uint8 (3, H, W).

    mode: ``constant`` is black, ``symmetric`` mirrors the image, edge pixels included. rotation: degrees up to which
    the padded image is turned about its centre first, either way, black outside.
    """

    def __init__(self, padding: int, mode: str = "constant", rotation: float = 0.0):
        self.padding, self.mode, self.rotation = padding, mode, rotation

    def padded(self, pixels: Tensor) -> Tensor:
        """Returns the image with its border."""
        pad, (height, width) = self.padding, pixels.shape[1:]
        if self.mode == "symmetric":
            return torch.from_numpy(np.pad(pixels.numpy(), ((0, 0), (pad, pad), (pad, pad)), "symmetric"))
        padded = pixels.new_zeros(3, height + 2 * pad, width + 2 * pad)
        padded[:, pad : pad + height, pad : pad + width] = pixels
        return padded

    def __call__(self, pixels: Tensor) -> Tensor:
        if not (self.padding or self.rotation):
            return pixels
        padded = self.padded(pixels)
        if self.rotation:
            padded = turned(padded, random.uniform(-self.rotation, self.rotation))
        return random_crop(padded, *pixels.shape[1:])


def turned(pixels: Tensor, degrees: float) -> Tensor:
    """Turns an image about (W // 2, H // 2), bilinear, black outside. uint8 (3, H, W)."""
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    centre = image.width // 2, image.height // 2
    return to_pixels(image.rotate(degrees, Image.Resampling.BILINEAR, center=centre))


class EnlargeAndCrop:
    """Enlarges to 9/8 and takes a random crop of the old size, with a probability. uint8 (3, H, W)."""

    def __init__(self, probability: float):
        self.probability = probability

    def __call__(self, pixels: Tensor) -> Tensor:
        if random.random() >= self.probability:
            return pixels
        height, width = pixels.shape[1:]
        size = round(height * 1.125), round(width * 1.125)
        large = F.interpolate(pixels[None], size=size, mode="bilinear", antialias=True)[0]
        top, left = random.randint(0, size[0] - height), random.randint(0, size[1] - width)
        return large[:, top : top + height, left : left + width]


class RandomErasing:
    """Fills one random rectangle with noise (Zhong et al., AAAI 2020; the pixel mode of timm's).

    probability: of erasing at all. area: share of the image, uniform in this range. aspect: height over width,
    log-uniform in [0.3, 1 / 0.3]. Up to ten tries until the rectangle is strictly smaller than the image.
    mode: ``pixel`` fills with N(0, 1) per pixel and channel. ``const`` is cluster contrast's, as published: one colour,
    ``CONST_FILL``, which is ImageNet's mean but goes into images normalised already; the aspect uniform; 100 tries.
    """

    def __init__(self, probability: float, area: tuple[float, float] = (0.02, 1 / 3), mode: str = "pixel"):
        self.probability, self.area, self.mode = probability, area, mode
        self.log_aspect = (math.log(0.3), math.log(1 / 0.3))

    def aspect(self) -> float:
        """Draws height over width of a rectangle."""
        if self.mode == "const":
            return random.uniform(0.3, 1 / 0.3)
        return math.exp(random.uniform(*self.log_aspect))

    def rectangle(self, height: int, width: int) -> tuple[int, int, int, int] | None:
        """Draws top, left, height and width of the rectangle to fill; None for an image that stays as it is."""
        if random.random() >= self.probability:
            return None
        for _ in range(100 if self.mode == "const" else 10):
            target = random.uniform(*self.area) * height * width
            aspect = self.aspect()
            h, w = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
            if h < height and w < width:
                return random.randint(0, height - h), random.randint(0, width - w), h, w
        return None

    def __call__(self, image: Tensor) -> Tensor:
        box = self.rectangle(*image.shape[1:])
        if box:
            top, left, h, w = box
            fill = torch.randn(3, h, w) if self.mode == "pixel" else torch.tensor(CONST_FILL).view(3, 1, 1)
            image[:, top : top + h, left : left + w] = fill
        return image


class TrainTransform:
    """Resizes, crops a margin off, flips, pads and crops, normalises, erases: the order of the published ReID code.

    margin: pixels by which both sides are resized larger than ``size``. enlarge: probability of enlarging and cropping
    in place of padding and cropping, 0 for the latter. recolour: applied to the cropped pixels, None: nothing.
    """

    def __init__(
        self,
        size: tuple[int, int],
        flip: float,
        padding: int,
        normalize: ToNormalized,
        erase: RandomErasing,
        resize: Resizer = quick_bicubic,
        margin: int = 0,
        padding_mode: str = "constant",
        rotation: float = 0.0,
        enlarge: float = 0.0,
        recolour: Callable[[Tensor], Tensor] | None = None,
        rules: PixelRules = PLAIN,
    ):
        self.size, self.flip, self.normalize, self.erase, self.rules = size, flip, normalize, erase, rules
        self.resize, self.margin, self.recolour = resize, margin, recolour
        self.takes_pixels = resize is quick_bicubic  # images may come as uint8 (3, H, W), which are not written to
        self.crop = EnlargeAndCrop(enlarge) if enlarge else PadAndCrop(padding, padding_mode, rotation)

    def __call__(self, image: Image.Image | Tensor, out: Tensor | None = None) -> Tensor:
        """Returns (3, H, W) float32, written into ``out`` if that is passed."""
        return self.augment(self.resized(image), out)

    def resized(self, image: Image.Image | Tensor) -> Tensor:
        """Returns the resized image, uint8 (3, H, W), with the margin."""
        image = image if isinstance(image, Tensor) else to_rgb(image, self.rules)
        return self.resize(image, (self.size[0] + self.margin, self.size[1] + self.margin))

    def augment(self, pixels: Tensor, out: Tensor | None = None) -> Tensor:
        """Applies what follows the resize. pixels: uint8 (3, H, W), not changed."""
        if self.margin:
            pixels = random_crop(pixels, *self.size)
        if random.random() < self.flip:
            pixels = pixels.flip(2)
        pixels = self.crop(pixels)
        return self.erase(self.normalize(self.recolour(pixels) if self.recolour else pixels, out))


class WithViews:
    """Makes the training image and further views of it, drawn independently from one decoded and resized image.

    transforms: of the same size and resizing; the training image is the one that the first alone would give.
    """

    def __init__(self, *transforms: TrainTransform):
        self.transforms, self.sizes = transforms, tuple(transform.size for transform in transforms)
        self.takes_pixels = transforms[0].takes_pixels

    def __call__(self, image: Image.Image | Tensor, out: Sequence[Tensor] | None = None) -> Sequence[Tensor]:
        """Returns (3, H, W) for each transform, written into those of ``out`` if they are passed."""
        pixels = self.transforms[0].resized(image)
        out = [torch.empty(3, *size) for size in self.sizes] if out is None else out
        for target, transform in zip(out, self.transforms, strict=True):
            transform.augment(pixels, target)
        return out


class ByView:
    """Chooses the training transform by view: ``turned`` for the views listed, ``straight`` for the others."""

    def __init__(self, views: tuple[int, ...], turned: TrainTransform, straight: TrainTransform):
        self.views, self.turned, self.straight = frozenset(views), turned, straight
        self.size = straight.size

    def __call__(self, image: Image.Image | Tensor, out: Tensor | None = None) -> Tensor:
        """Returns (3, H, W) float32 as for a view that is not listed."""
        return self.straight(image, out)

    def of_view(self, view: int) -> TrainTransform:
        """Returns the transform of a view."""
        return self.turned if view in self.views else self.straight


class TestTransform:
    """Resizes, cuts a margin off all round, and normalises."""

    __test__ = False  # not a test class, whatever its name says to pytest

    def __init__(
        self,
        size: tuple[int, int],
        normalize: ToNormalized,
        resize: Resizer = by_pillow,
        margin: int = 0,
        rules: PixelRules = PLAIN,
    ):
        self.size, self.normalize, self.resize, self.margin, self.rules = size, normalize, resize, margin, rules

    def __call__(self, image: Image.Image, out: Tensor | None = None) -> Tensor:
        """Returns (3, H, W) float32, written into ``out`` if that is passed."""
        (height, width), edge = self.size, self.margin // 2
        pixels = self.resize(to_rgb(image, self.rules), (height + self.margin, width + self.margin))
        return self.normalize(pixels[:, edge : edge + height, edge : edge + width], out)


def build_transforms(cfg: CfgNode, is_train: bool) -> Callable[..., Tensor]:
    """Returns the transform of training or of evaluation: PIL image -> float32 (3, H, W)."""
    if cfg.INPUT.PIPELINE == "imagenet":
        return make_imagenet_transform(cfg, is_train)
    if is_train and cfg.INPUT.ROTATE and cfg.INPUT.ROTATE_VIEWS:
        turned = train_transform(cfg, rotation=cfg.INPUT.ROTATE)
        return ByView(tuple(cfg.INPUT.ROTATE_VIEWS), turned, train_transform(cfg))
    if is_train:
        return train_transform(cfg, rotation=cfg.INPUT.ROTATE)
    return TestTransform(
        tuple(cfg.INPUT.SIZE_TEST),
        ToNormalized(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD),
        resize=make_resizer(cfg.INPUT.RESIZE, is_train),
        margin=cfg.INPUT.RESIZE_MARGIN,
        rules=PixelRules.from_cfg(cfg),
    )


def train_transform(
    cfg: CfgNode, erased: tuple[float, float] | None = None, rotation: float = 0.0, policy: bool = True
) -> TrainTransform:
    """Returns training's transform.

    erased: least and largest share of the image that random erasing takes, None: as the keys say. policy: with
    INPUT.AUTOAUGMENT.
    """
    erased = erased or (0.02, cfg.INPUT.RE_MAX_AREA)
    return TrainTransform(
        size=tuple(cfg.INPUT.SIZE_TRAIN),
        flip=cfg.INPUT.PROB,
        padding=cfg.INPUT.PADDING,
        normalize=ToNormalized(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD),
        erase=RandomErasing(cfg.INPUT.RE_PROB, erased, cfg.INPUT.RE_MODE),
        resize=make_resizer(cfg.INPUT.RESIZE, is_train=True),
        margin=cfg.INPUT.RESIZE_MARGIN,
        padding_mode=cfg.INPUT.PADDING_MODE,
        rotation=rotation,
        enlarge=cfg.INPUT.ENLARGE_PROB,
        recolour=make_augmentations(cfg, policy),
        rules=PixelRules.from_cfg(cfg),
    )


def with_views(cfg: CfgNode) -> WithViews:
    """Returns training's transform with two views beside each image, for vision self-supervision."""
    view = train_transform(cfg, VIEW_AREA, cfg.INPUT.ROTATE)
    return WithViews(train_transform(cfg, rotation=cfg.INPUT.ROTATE), view, view)


def weak_and_strong(cfg: CfgNode) -> tuple[TrainTransform, TrainTransform]:
    """Returns the transforms of self distillation's two views: without and with INPUT.AUTOAUGMENT's policy."""
    weak, strong = (train_transform(cfg, rotation=cfg.INPUT.ROTATE, policy=policy) for policy in (False, True))
    return weak, strong
