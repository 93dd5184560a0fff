"""The decoders of training and tests: Pillow's and, for plain JPEGs, torchvision's."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from functools import partial

import torch
from torch import Tensor
from torchvision.io import ImageReadMode, decode_jpeg

from datasets.storage.pillow_decoding import Bytes, Pixels, Size, decode
from datasets.storage.pixels import PLAIN, PixelRules

Decoder = Callable[[Bytes, str, Size | None], Pixels]
"""Function of (bytes, path, size that a JPEG may be decoded down to), such as ``decode``."""


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
