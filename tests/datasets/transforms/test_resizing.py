"""Resizing: OpenCV's bilinear in integers against its definition pixel by pixel, and what the key chooses."""

from __future__ import annotations

import math

import numpy as np
import pytest
from PIL import Image

from datasets.storage.pillow_decoding import load_image
from datasets.transforms.resizing import bicubic_by_pillow, by_pillow, cv2_bilinear, make_resizer, quick_bicubic


def draw(height: int, width: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def half_even(x: float) -> int:
    return int(np.rint(x))


def slow(p: np.ndarray, height: int, width: int) -> np.ndarray:
    h, w, _ = p.shape
    out = np.empty((height, width, 3), np.uint8)

    def row(r: int, x: int) -> np.ndarray:
        s = np.float32((x + 0.5) * (w / width) - 0.5)
        i = math.floor(s)
        f = s - np.float32(i)
        if i < 0 or i >= w - 1:
            i, f = min(max(i, 0), w - 1), np.float32(0)
        a, b = p[r, i].astype(int), p[r, min(i + 1, w - 1)].astype(int)
        return half_even(2048 * (1 - f)) * a + half_even(2048 * f) * b

    for y in range(height):
        s = np.float32((y + 0.5) * (h / height) - 0.5)
        j = math.floor(s)
        g = s - np.float32(j)
        j0, j1 = (min(max(j + i, 0), h - 1) for i in (0, 1))
        for x in range(width):
            upper = (half_even(2048 * (1 - g)) * (row(j0, x) >> 4)) >> 16
            lower = (half_even(2048 * g) * (row(j1, x) >> 4)) >> 16
            out[y, x] = (upper + lower + 2) >> 2
    return out


SIZES = [
    ((7, 5), (16, 9)), ((20, 31), (8, 6)), ((9, 9), (9, 9)), ((1, 1), (3, 4)), ((5, 40), (11, 3)), ((13, 6), (13, 12)),
]  # fmt: skip


@pytest.mark.parametrize(("source", "target"), SIZES)
def test_bilinear_is_opencvs_in_integers(source, target):
    pixels = draw(*source)
    found = cv2_bilinear(Image.fromarray(pixels), target)
    np.testing.assert_array_equal(found.permute(1, 2, 0), slow(pixels, *target))


def test_no_antialiasing_where_an_image_shrinks():
    stripes = np.zeros((64, 64, 3), np.uint8)
    stripes[:, ::4] = 255
    assert cv2_bilinear(Image.fromarray(stripes), (16, 16)).float().std() == 0  # it never looks at the white columns
    assert by_pillow(Image.fromarray(stripes), (16, 16)).float().mean() == pytest.approx(64, abs=1)


def test_an_image_is_turned_by_its_exif_orientation_first(tmp_path):
    pixels = draw(8, 4)
    exif = Image.Exif()
    exif[0x0112] = 6  # a camera held upright: turn by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    found = cv2_bilinear(load_image(str(tmp_path / "a.png")), (4, 8))
    np.testing.assert_array_equal(found.permute(1, 2, 0), np.rot90(pixels, -1))


def test_what_the_key_chooses():
    assert make_resizer("auto", True) is quick_bicubic and make_resizer("auto", False) is by_pillow
    for name, function in (
        ("cv2_bilinear", cv2_bilinear), ("pil_bilinear", by_pillow), ("pil_bicubic", bicubic_by_pillow),
    ):  # fmt: skip
        assert make_resizer(name, True) is make_resizer(name, False) is function
    image = Image.fromarray(draw(30, 20))
    wanted = np.asarray(image.resize((8, 16), Image.Resampling.BICUBIC))
    np.testing.assert_array_equal(bicubic_by_pillow(image, (16, 8)).permute(1, 2, 0), wanted)
