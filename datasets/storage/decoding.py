"""Decodes the bytes of a file to pixels, and words the errors of files that cannot be decoded."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import lru_cache, partial
from importlib.util import find_spec
from typing import overload

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from datasets.storage.files import read_bytes
from datasets.storage.pixels import (
    FORMATS,
    MORE_FORMATS,
    ON_THEIR_SIDE,
    PLAIN,
    PixelRules,
    UnclearPixels,
    orientation_of,
    to_rgb,
)
from utils.errors import UserError


class BadImage(UserError):
    """An image that cannot be decoded; the message names its path."""


Bytes = bytes | memoryview
Pixels = Image.Image | Tensor
Box = Sequence[int] | np.ndarray
Size = tuple[int, int]
Decoder = Callable[[Bytes, str, Size | None], Pixels]
"""Function of (bytes, path, size that a JPEG may be decoded down to), such as ``decode``."""


def read_image(path: str) -> bytes:
    """Returns the file's bytes. Raises ``BadImage`` if it is missing, no file, or cannot be read."""
    try:
        return read_bytes(path)
    except FileNotFoundError:
        raise BadImage(f"{path}: the image is missing") from None
    except OSError as error:
        raise BadImage(f"{path}: the image cannot be read ({error.strerror or error})") from None
    except ValueError as error:  # a name that no file can have
        raise BadImage(f"{path!r}: the image cannot be read ({error})") from None


def open_image(raw: Bytes) -> Image.Image:
    """Returns an image that is not decoded yet. Raises ``UnidentifiedImageError`` for any other kind of file."""
    try:
        return Image.open(io.BytesIO(raw), formats=FORMATS)
    except UnidentifiedImageError:
        return Image.open(io.BytesIO(raw), formats=more_formats())


@lru_cache(maxsize=1)
def more_formats() -> list[str]:
    """Returns the further formats that this Pillow reads; HEIF with the plugin pillow-heif, if it is installed."""
    Image.init()
    if find_spec("pillow_heif"):
        from pillow_heif import register_heif_opener  # pyright: ignore[reportMissingImports]

        register_heif_opener()
    return [name for name in MORE_FORMATS if name in Image.OPEN]


def decode(raw: Bytes, path: str, at_least: Size | None = None, rules: PixelRules = PLAIN) -> Image.Image:
    """Returns an RGB image from the bytes of its file, as ``to_rgb`` makes it. path: its name in messages.

    at_least: (height, width) that a JPEG may be decoded down to, by halves (Pillow's draft mode): fewer pixels to
    decode, other pixels than a full decoding gives. Raises ``BadImage`` for an empty, damaged or foreign file.
    """
    rules.raise_pillows_limit()
    try:
        with open_image(raw) as image:
            rules.refuse_too_large(image)
            if at_least is not None:
                height, width = at_least
                image.draft("RGB", (height, width) if orientation_of(image) in ON_THEIR_SIDE else (width, height))
            return to_rgb(image, rules)
    except UnidentifiedImageError:
        reason = unidentified(raw)
    except UnclearPixels as error:
        reason = str(error)
    except Image.DecompressionBombError:
        reason = str(rules.too_large())
    except Exception as error:  # noqa: BLE001 - damaged files fail in many ways
        reason = str(error).split("\n")[0] or type(error).__name__
    raise BadImage(f"{path}: the image cannot be read ({reason})")


def unidentified(raw: Bytes) -> str:
    """Returns why no reader knows a file."""
    if not len(raw):
        return "empty file"
    if bytes(raw[:4]) in (b"II*\0", b"MM\0*"):
        return "a TIFF of a kind that Pillow does not read, such as colour in floats: save 8 bits"
    if bytes(raw[4:8]) == b"ftyp" and not Image.OPEN.get("HEIF"):
        return "no known format; if it is HEIC, pip install pillow-heif"
    return "no known format"


def decode_by_torchvision(
    raw: Bytes, path: str, at_least: Size | None = None, rules: PixelRules = PLAIN
) -> Pixels:
    """Returns a plain JPEG as uint8 (3, H, W), a view of (H, W, 3) in memory; other files as ``decode`` does.

    Faster by the copies that it saves. The pixels are Pillow's as long as both libraries decode the same way.
    """
    if is_plain_jpeg(raw, rules.most):
        writable = raw if isinstance(raw, memoryview) else bytearray(raw)
        with suppress(RuntimeError):
            pixels = decode_jpeg(torch.frombuffer(writable, dtype=torch.uint8), mode=ImageReadMode.RGB)
            assert isinstance(pixels, Tensor)  # a list is for several files
            return pixels
    return decode(raw, path, at_least, rules)


def is_plain_jpeg(raw: Bytes, most: int) -> bool:
    """Returns whether a file is a JPEG of one or three channels of 8 bits, upright, with at most ``most`` pixels.

    By its header alone. One with EXIF or XMP data that say anything about the orientation is not plain.
    """
    if bytes(raw[:2]) != b"\xff\xd8":
        return False
    place = 2
    while place + 9 < len(raw) and raw[place] == 0xFF:
        marker = raw[place + 1]
        if marker == 0xFF:  # padding
            place += 1
            continue
        length = raw[place + 2] << 8 | raw[place + 3]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # the frame: depth, height, width, channels
            height, width = raw[place + 5] << 8 | raw[place + 6], raw[place + 7] << 8 | raw[place + 8]
            return raw[place + 4] == 8 and raw[place + 9] in (1, 3) and height * width <= most
        if marker == 0xE1 and speaks_of_orientation(bytes(raw[place + 4 : place + 2 + length])):
            return False
        place += 2 + length
    return False


def speaks_of_orientation(segment: bytes) -> bool:
    """Returns whether EXIF data may hold the tag of the orientation, or XMP data its name."""
    return b"\x01\x12\x00\x03" in segment or b"\x12\x01\x03\x00" in segment or b"tiff:Orientation" in segment


DECODERS: dict[str, Callable[..., Pixels]] = {"pillow": decode, "torchvision": decode_by_torchvision}


def make_decoder(rules: PixelRules, name: str = "pillow") -> Decoder:
    """Returns a decoder that follows the rules. name: of ``DECODERS``."""
    return partial(DECODERS[name], rules=rules)


@overload
def cropped(image: Image.Image, box: Box | None, path: str) -> Image.Image: ...
@overload
def cropped(image: Tensor, box: Box | None, path: str) -> Tensor: ...
def cropped(image: Pixels, box: Box | None, path: str) -> Pixels:
    """Returns the crop in the box (left, top, right, bottom), cut off at the image's edges.

    box: all 0 or None is the whole image; it refers to the turned image. path: the image's name in messages.
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


def load_image(path: str, box: Box | None = None, rules: PixelRules = PLAIN) -> Image.Image:
    """Returns an RGB image or its crop. Raises ``BadImage`` for a missing, empty, damaged or foreign file.

    box: refers to the image as ``to_rgb`` turns it.
    """
    return cropped(decode(read_image(path), path, rules=rules), box, path)
