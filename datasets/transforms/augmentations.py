"""Augmentations of the picture between crop and normalisation: learned policy, rotation, colours, occlusion.

Those that torchvision has are torchvision's, on PIL images; all draw from torch's and Python's global generators.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from PIL import Image
from torch import Tensor
from torchvision import transforms

from datasets.transforms.resizing import to_pixels
from utils.errors import UserError

GREY = [128, 128, 128]
"""What the policy's shears and rotations lay bare, as in the published policy; torchvision's default is black."""


class RandomOcclusion:
    """Paints one white square on every image. uint8 (3, H, W), left as it is.

    least, greatest: the side as shares of the shorter side m of the image; in pixels a uniform integer from
    ``max(1, int(m * least))`` to ``int(m * greatest) - 1``, nothing where there is none.
    """

    def __init__(self, least: float, greatest: float):
        self.least, self.greatest = least, greatest

    def square(self, height: int, width: int) -> tuple[int, int, int] | None:
        """left, top, side."""
        shorter = min(height, width)
        low, high = max(1, int(shorter * self.least)), int(shorter * self.greatest) - 1
        if high < low:
            return None
        side = random.randint(low, high)
        return random.randint(0, width - side - 1), random.randint(0, height - side - 1), side

    def __call__(self, pixels: Tensor) -> Tensor:
        place = self.square(*pixels.shape[1:])
        if place is None:
            return pixels
        left, top, side = place
        pixels = pixels.clone()
        pixels[:, top : top + side, left : left + side] = 255
        return pixels


class Augmentations:
    """Steps on a PIL image and then, if wanted, an occlusion. uint8 (3, H, W) -> the same."""

    def __init__(self, steps: Sequence[Callable[[Image.Image], Image.Image]], occlude: RandomOcclusion | None = None):
        self.steps, self.occlude = list(steps), occlude

    def __call__(self, pixels: Tensor) -> Tensor:
        if self.steps:
            image = Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())
            for step in self.steps:
                image = step(image)
            pixels = to_pixels(image)
        return self.occlude(pixels) if self.occlude else pixels


def make_jitter(ranges: Sequence) -> transforms.ColorJitter:
    """INPUT.COLOR_JITTER: [least, greatest] of brightness, contrast, saturation and hue, applied in random order."""
    try:
        brightness, contrast, saturation, hue = (tuple(map(float, pair)) for pair in ranges)
        return transforms.ColorJitter(brightness, contrast, saturation, hue)
    except (TypeError, ValueError) as error:
        raise UserError(
            "INPUT.COLOR_JITTER: expected four pairs such as [[0.5, 2], [0.5, 2], [0.5, 2], [-0.1, 0.1]], not "
            f"{list(ranges)} ({error})"
        ) from None


def make_augmentations(cfg, policy: bool = True) -> Augmentations | None:
    """What the INPUT keys ask for, in the published order; None for nothing. policy: with INPUT.AUTOAUGMENT."""
    steps: list[Callable[[Image.Image], Image.Image]] = []
    if cfg.INPUT.AUTOAUGMENT == "imagenet" and policy:
        steps.append(transforms.AutoAugment(transforms.AutoAugmentPolicy.IMAGENET, fill=GREY))
    if cfg.INPUT.ROTATION:
        steps.append(transforms.RandomRotation(cfg.INPUT.ROTATION))
    if cfg.INPUT.COLOR_JITTER:
        steps.append(make_jitter(cfg.INPUT.COLOR_JITTER))
    occlude = None
    if cfg.INPUT.OCCLUSION_MAX or cfg.INPUT.OCCLUSION_MIN:
        occlude = RandomOcclusion(cfg.INPUT.OCCLUSION_MIN, cfg.INPUT.OCCLUSION_MAX)
    return Augmentations(steps, occlude) if steps or occlude else None
