"""Decodes the bytes of a file to pixels, and words the errors of files that cannot be decoded."""

from __future__ import annotations

import io
from collections.abc import Sequence
from contextlib import suppress
from typing import overload

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from datasets.storage.files import read_bytes
from utils.errors import UserError


class BadImage(UserError):
    """An image that cannot be decoded; the message names its path."""


Bytes = bytes | memoryview
Pixels = Image.Image | Tensor
Box = Sequence[int] | np.ndarray
Size = tuple[int, int]


def read_image(path: str) -> bytes:
    """Returns the file's bytes. Raises ``BadImage`` if it is missing or cannot be read."""
    try:
        return read_bytes(path)
    except FileNotFoundError:
        raise BadImage(f"{path}: the image is missing") from None
    except OSError as error:
        raise BadImage(f"{path}: the image cannot be read ({error.strerror or error})") from None


def decode(raw: Bytes, path: str, at_least: Size | None = None) -> Image.Image:
    """Returns an RGB image from the bytes of its file. path: its name in messages.

    at_least: (height, width) that a JPEG may be decoded down to, by halves (Pillow's draft mode): fewer pixels to
    decode, other pixels than a full decoding gives. Raises ``BadImage`` for an empty, damaged or foreign file.
    """
    try:
        with Image.open(io.BytesIO(raw)) as image:
            if at_least is not None:
                image.draft("RGB", (at_least[1], at_least[0]))
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except UnidentifiedImageError:
        reason = "no known format" if len(raw) else "empty file"
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        reason = str(error).split("\n")[0]
    raise BadImage(f"{path}: the image cannot be read ({reason})")


def decode_by_torchvision(raw: Bytes, path: str, at_least: Size | None = None) -> Pixels:
    """Returns a JPEG as uint8 (3, H, W), a view of (H, W, 3) in memory; other and damaged files as ``decode`` does.

    Faster by the copies that it saves. The pixels are Pillow's as long as both libraries decode the same way.
    """
    if bytes(raw[:2]) == b"\xff\xd8":
        writable = raw if isinstance(raw, memoryview) else bytearray(raw)
        with suppress(RuntimeError):
            pixels = decode_jpeg(torch.frombuffer(writable, dtype=torch.uint8), mode=ImageReadMode.RGB)
            assert isinstance(pixels, Tensor)  # a list is for several files
            return pixels
    return decode(raw, path, at_least)


DECODERS = {"pillow": decode, "torchvision": decode_by_torchvision}


@overload
def cropped(image: Image.Image, box: Box | None, path: str) -> Image.Image: ...
@overload
def cropped(image: Tensor, box: Box | None, path: str) -> Tensor: ...
def cropped(image: Pixels, box: Box | None, path: str) -> Pixels:
    """Returns the crop in the box (left, top, right, bottom), cut off at the image's edges.

    box: all 0 or None is the whole image. path: the image's name in messages.
    """
    if box is None or not any(box):
        return image
    width, height = image.size if isinstance(image, Image.Image) else (image.shape[2], image.shape[1])
    left, top, right, bottom = (int(v) for v in box)
    right, bottom = min(right, width), min(bottom, height)
    if left >= right or top >= bottom:
        raise BadImage(f"{path}: the image cannot be read (its crop box is outside of {width} x {height})")
    if isinstance(image, Image.Image):
        return image.crop((left, top, right, bottom))
    return image[:, top:bottom, left:right]


def load_image(path: str, box: Box | None = None) -> Image.Image:
    """Returns an RGB image or its crop. Raises ``BadImage`` for a missing, empty, damaged or foreign file."""
    return cropped(decode(read_image(path), path), box, path)
