"""Erasing on the batch: what is blackened, how often, how large."""

from __future__ import annotations

import pytest
import torch

from model.layers.batch_erasing import BatchErasing
from utils.errors import UserError


def rectangles(images: torch.Tensor) -> list[tuple[int, int, int, int] | None]:
    """top, left, height, width of what is 0 in each image; the assertion is that it is a rectangle in all channels."""
    found = []
    for image in images:
        hole = image.eq(0).any(0)
        if not hole.any():
            found.append(None)
            continue
        rows, columns = hole.any(1).nonzero().flatten(), hole.any(0).nonzero().flatten()
        box = hole[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        assert box.all() and hole.sum() == box.numel() and image[:, hole].eq(0).all()
        found.append((int(rows[0]), int(columns[0]), *box.shape))
    return found


def test_half_of_the_images_lose_a_rectangle_of_the_stated_size_anywhere():
    torch.manual_seed(0)
    images = torch.ones(2000, 3, 40, 20)
    found = rectangles(BatchErasing(0.4).train()(images))
    assert images.eq(1).all()  # the batch itself is left alone
    boxes = torch.tensor([box for box in found if box]).float()
    assert 0.46 < len(boxes) / 2000 < 0.54
    top, left, h, w = boxes.T
    assert (top + h <= 40).all() and (left + w <= 20).all()
    assert (top.min(), left.min()) == (0, 0) and (top + h).max() == 40 and (left + w).max() == 20
    area = h * w / 800
    assert area.min() > 0.01 and area.max() < 0.45
    assert 0.19 < area.mean() < 0.23  # uniform in 0.02..0.4
    free = (w < 20) & (h < 40)
    assert (w / h)[free].max() < 3.9 and (w / h)[free].median() > 1  # uniform, not log-uniform: mostly wide


def test_evaluation_and_a_share_of_0_leave_the_images_alone():
    images = torch.ones(50, 3, 8, 8)
    assert BatchErasing(0.4).eval()(images) is images
    assert BatchErasing(0.0).train()(images) is images
    assert BatchErasing(0.4, probability=0.0).train()(images).eq(1).all()


def test_tiny_images_and_whole_images_are_no_trouble():
    torch.manual_seed(0)
    assert BatchErasing(0.02, 1.0).train()(torch.ones(100, 3, 2, 2)).isfinite().all()
    found = rectangles(BatchErasing(1.0, 1.0).train()(torch.ones(500, 3, 16, 8)))
    assert max(h * w for _, _, h, w in filter(None, found)) == 16 * 8


@pytest.mark.parametrize("largest", [0.01, 1.5, -0.1])
def test_impossible_shares_are_refused(largest):
    with pytest.raises(UserError, match=r"MODEL\.MSVIT\.BATCH_ERASING"):
        BatchErasing(largest)
