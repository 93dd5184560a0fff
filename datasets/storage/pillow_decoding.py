"""Decodes the bytes of a file by Pillow, and words the errors of files that cannot be decoded; without torch."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING, TypeAlias, overload

import numpy as np
from PIL import Image, UnidentifiedImageError

from datasets.storage.files import read_bytes
from datasets.storage.pixels import (
    FORMATS,
    MORE_FORMATS,
    ON_THEIR_SIDE,
    PLAIN,
    PixelRules,
    UnclearPixels,
    kinds_of,
    orientation_of,
    to_rgb,
)
from utils.errors import UserError

if TYPE_CHECKING:  # pages of finished runs show images and need no torch
    from torch import Tensor


warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # ``PixelRules`` refuses such images, in one line


class BadImage(UserError):
    """An image that cannot be decoded; the message names its path."""


Bytes = bytes | memoryview
Box = Sequence[int] | np.ndarray
Size = tuple[int, int]
Pixels: TypeAlias = "Image.Image | Tensor"


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


def decode(
    raw: Bytes, path: str, at_least: Size | None = None, rules: PixelRules = PLAIN, kinds: set[str] | None = None
) -> Image.Image:
    """Returns an RGB image from the bytes of its file, as ``to_rgb`` makes it. path: its name in messages.

    at_least: (height, width) that a JPEG may be decoded down to, by halves (Pillow's draft mode): fewer pixels to
    decode, other pixels than a full decoding gives. kinds: collects what of ``pixels.KINDS``
    applies. Raises ``BadImage`` for an empty, damaged or foreign file.
    """
    rules.raise_pillows_limit()
    try:
        with open_image(raw) as image:
            rules.refuse_too_large(image)
            if kinds is not None:
                kinds |= kinds_of(image)
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
