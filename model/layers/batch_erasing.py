"""Erasing inside the network, on the batch (MSViT, ``docs/msvit.md``)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from utils.errors import UserError

SMALLEST_AREA = 0.02
ASPECTS = (0.3, 1 / 0.3)


class BatchErasing(nn.Module):
    """Sets one rectangle of some images to 0 in training; returns images unchanged in evaluation. (B, C, H, W).

    largest: the rectangle's share of the image is uniform in [0.02, largest]; 0 switches erasing off. Its width over
    height is uniform in [0.3, 1 / 0.3] (not log-uniform); if the width is cut at the image's, the height grows to keep
    the area. probability: of erasing an image.
    """

    def __init__(self, largest: float, probability: float = 0.5):
        super().__init__()
        if largest and not SMALLEST_AREA <= largest <= 1:
            raise UserError(f"MODEL.MSVIT.BATCH_ERASING: {largest} must be 0 (off) or between {SMALLEST_AREA} and 1")
        self.largest, self.probability = largest, probability

    def rectangles(self, count: int, height: int, width: int, device: torch.device) -> tuple[Tensor, ...]:
        """Returns top, left, height and width, (B,) whole numbers in float32; height 0 leaves the image as it is."""
        chosen, area, aspect, down, across = torch.rand(5, count, device=device)
        area = (SMALLEST_AREA + area * (self.largest - SMALLEST_AREA)) * height * width
        aspect = ASPECTS[0] + aspect * (ASPECTS[1] - ASPECTS[0])
        w = (area * aspect).sqrt().round().clamp(1, width)
        h = (area / w).round().clamp(max=height)
        top = (down * (height - h + 1)).floor().minimum(height - h)  # a draw next to 1 may round up
        left = (across * (width - w + 1)).floor().minimum(width - w)
        return top, left, h * (chosen < self.probability), w

    def forward(self, images: Tensor) -> Tensor:
        if not (self.training and self.largest):
            return images
        count, _, height, width = images.shape
        top, left, h, w = self.rectangles(count, height, width, images.device)

        def inside(length: int, start: Tensor, extent: Tensor) -> Tensor:
            positions = torch.arange(length, device=images.device)
            return (positions >= start[:, None]) & (positions < (start + extent)[:, None])

        box = inside(height, top, h)[:, None, :, None] & inside(width, left, w)[:, None, None, :]
        return images.masked_fill(box, 0.0)
