"""What a pixel is: the one way from an image as Pillow opens it to RGB, uint8, upright and opaque.

Training, tests, extraction, search, caches, pages and export all come through ``to_rgb``, so that a file shows the same
picture everywhere. Colour profiles (ICC) are left alone, as in every published result.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms
from yacs.config import CfgNode

from utils.errors import UserError

MEANING = 2
"""Counts the changes of what a file's pixels are. Features that are kept in files carry it. 1: no image was turned,
composed over a colour or scaled from 16 bits."""

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM")
MORE_FORMATS = ("TIFF", "WEBP", "AVIF", "MPO", "JPEG2000", "TGA", "DIB", "HEIF")
"""Formats of photographs. Others that Pillow knows are not read: EPS starts another program, for one."""

ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT, 3: Image.Transpose.ROTATE_180, 4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE, 6: Image.Transpose.ROTATE_270, 7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}  # fmt: skip
"""EXIF orientation -> what makes the image upright; 1, and a number that does not exist, is upright already."""
ON_THEIR_SIDE = (5, 6, 7, 8)

SPECIAL = frozenset(
    ("transparency", "exif", "xmp", "XML:com.adobe.xmp", "Raw profile type exif", "Raw profile type xmp")
)
"""Entries of ``Image.info`` with which an RGB image may still need turning or composing."""

MOST_UNUSED = 14
"""Bits of 16 up to which images count as dark: no pixel is brighter than a quarter."""
DEEP = ("I;16", "I;16L", "I;16B", "I;16N")
TRANSPARENT = ("RGBA", "RGBa", "LA", "La", "PA")
MIN_IS_WHITE, PHOTOMETRIC, BITS = 0, 262, 258
"""TIFF's tags of what 0 means and of the depth."""


class UnclearPixels(UserError):
    """An image whose pixels cannot be made RGB without a guess, or that is too large. No path is in the message."""


@dataclass(frozen=True)
class PixelRules:
    """What the configuration says about pixels.

    background: RGB that transparent parts are composed over. most: pixels of an image, so that a small damaged or
    hostile file cannot take gigabytes.
    """

    background: tuple[int, int, int] = (124, 116, 104)
    most: int = 89_478_485

    @classmethod
    def from_cfg(cls, cfg: CfgNode) -> PixelRules:
        """Returns the rules by INPUT.BACKGROUND and INPUT.MAX_PIXELS."""
        red, green, blue = cfg.INPUT.BACKGROUND
        return cls((red, green, blue), cfg.INPUT.MAX_PIXELS)

    @classmethod
    def of_run(cls, settings: Any) -> PixelRules:
        """Returns the rules of a finished run. settings: by dotted key, of a file that others may have written."""
        colour = settings.get("INPUT.BACKGROUND") if isinstance(settings, dict) else None
        if not isinstance(colour, list) or len(colour) != 3 or any(level not in range(256) for level in colour):
            return cls()
        return cls((colour[0], colour[1], colour[2]))

    def too_large(self, what: str = "it has") -> UnclearPixels:
        """Returns the error for an image of too many pixels. what: such as ``9 x 9 pixels are``."""
        return UnclearPixels(
            f"{what} more than INPUT.MAX_PIXELS {self.most:,} allows; raise it if the file is sound and the memory "
            "suffices"
        )

    def raise_pillows_limit(self) -> None:
        """Lets Pillow open what these rules allow."""
        if Image.MAX_IMAGE_PIXELS is not None and self.most > Image.MAX_IMAGE_PIXELS:
            Image.MAX_IMAGE_PIXELS = self.most

    def refuse_too_large(self, image: Image.Image) -> None:
        """Raises ``UnclearPixels`` for an image, not decoded yet, of too many pixels."""
        if image.width * image.height > self.most:
            raise self.too_large(f"{image.width:,} x {image.height:,} pixels are")


PLAIN = PixelRules()


def to_rgb(image: Image.Image, rules: PixelRules = PLAIN) -> Image.Image:
    """Returns an image as RGB, uint8: turned by its EXIF orientation, 16 bits scaled to 8, composed over a colour.

    An animation shows its first frame. The result carries no orientation, so it cannot be turned twice. Raises
    ``UnclearPixels`` for 32-bit integers and floats, whose range no format states.
    """
    stored = raw_mode(image) if "transparency" in image.info else ""
    image.load()
    if image.mode == "RGB" and image.format != "TIFF" and SPECIAL.isdisjoint(image.info):
        return image
    orientation = orientation_of(image)
    rgb = opaque(image, stored, rules)
    if orientation in TURNS:
        rgb = rgb.transpose(TURNS[orientation])
        rgb.info = {}
    return rgb


def orientation_of(image: Image.Image) -> int:
    """Returns the EXIF (or XMP) orientation, 1 to 8; 1 where there is none or it is damaged."""
    try:
        orientation = image.getexif().get(ORIENTATION, 1)
    except Exception:  # noqa: BLE001 - damaged EXIF fails in many ways, and other readers ignore it
        return 1
    return orientation if orientation in TURNS else 1


def kinds_of(image: Image.Image) -> set[str]:
    """Returns what of ``KINDS`` applies to an image as Pillow opens it, without decoding it.

    Nearly: the orientation of a PNG that stands behind its pixels is not seen.
    """
    applies: dict[str, Callable[[], bool]] = {
        "deep": lambda: is_deep(image),
        "turned": lambda: (image.format != "PNG" or "exif" in image.info) and orientation_of(image) != 1,
        "unclear": lambda: is_unclear(image),
        "transparent": lambda: image.mode in TRANSPARENT or "transparency" in image.info,
        "animated": lambda: image.format != "MPO" and is_animated(image),
    }
    return {kind for kind, test in applies.items() if test()}


def is_animated(image: Image.Image) -> bool:
    """Returns whether an image has more frames than the first."""
    try:
        return bool(getattr(image, "is_animated", False))
    except Exception:  # noqa: BLE001 - a damaged second frame fails in many ways; the first is what is read
        return True


KINDS = {
    "deep": "of 16 bits, scaled to 8 by the file's depth",
    "turned": "turned by their EXIF orientation; crop boxes refer to the turned image",
    "unclear": "of 32-bit integers or floats, which are refused",
    "transparent": "with transparency, composed over INPUT.BACKGROUND",
    "animated": "animated, of which the first frame is read",
}
"""Kinds of images that need more than decoding, and what happens to them."""


def used_levels(image: Image.Image) -> tuple[int, int]:
    """Returns the lowest and the highest level of an RGB image, 0 to 255."""
    pixels = np.asarray(image)
    return int(pixels.min()), int(pixels.max())


def unused_depth(levels: Sequence[tuple[int, int]]) -> str:
    """Returns a line if 16-bit images use so few of their bits that they stay dark, else ''.

    Cameras of 10, 12 or 14 bits are often saved so. Nothing is scaled by what an image happens to hold: its brightness
    would depend on its content. levels: ``used_levels`` of each image.
    """
    if not levels:
        return ""
    highest = max(high for _, high in levels)
    highest = min(highest, 255 - min(low for low, _ in levels))  # 0 may be white
    bits = 8 + highest.bit_length()
    if bits > MOST_UNUSED:
        return ""
    return (
        f"{len(levels):,} images of 16 bits use only the lower {bits} of them, so they are almost black: if the camera "
        f"gives {bits} bits, multiply the values by {2 ** (16 - bits)} and save them again"
    )


def raw_mode(image: Image.Image) -> str:
    """Returns how the file stores a pixel, such as ``RGB;16B``; '' once the image is decoded."""
    for tile in getattr(image, "tile", ()):
        arguments = tile[3]
        word = arguments if isinstance(arguments, str) else arguments[0] if arguments else ""
        return word if isinstance(word, str) else ""
    return ""


def is_deep(image: Image.Image) -> bool:
    """Returns whether an image that is not decoded yet has more than 8 bits a channel, in a range that is certain."""
    stored = raw_mode(image)
    return not is_unclear(image) and (
        image.mode in (*DEEP, "I") or (";16" in stored and not stored.startswith("BGR"))  # BGR;16 has 5 or 6 bits each
    )


def is_unclear(image: Image.Image) -> bool:
    """Returns whether the range of the values is not certain. PNG and PGM of 16 bits may open as 32-bit integers."""
    return image.mode == "F" or (image.mode == "I" and image.format not in ("PNG", "PPM"))


def opaque(image: Image.Image, stored: str, rules: PixelRules) -> Image.Image:
    """Returns a decoded image as RGB, not turned. stored: its raw mode, '' if unknown."""
    if is_unclear(image):
        what = "floats" if image.mode == "F" else "integers of 32 bits or with a sign"
        raise UnclearPixels(
            f"its pixels are {what}, whose range the file does not state: scale them to 0 to 255 and save 8 bits, or "
            "to 0 to 65535 and save a 16-bit PNG"
        )
    if image.mode in (*DEEP, "I"):
        return deep(image, rules)
    if image.mode == "LAB":
        return ImageCms.applyTransform(image, lab_to_rgb()) or image
    if image.mode in ("1", "L", "RGB") and "transparency" in image.info:
        rgb, colour = image.convert("RGB"), eight_bits(image.info["transparency"], stored)
        return over(rgb, Image.fromarray(differs(np.asarray(rgb), colour)), rules)
    if image.mode in TRANSPARENT or "transparency" in image.info:
        rgba = image.convert("LA").convert("RGBA") if image.mode == "La" else image.convert("RGBA")
        return over(rgba.convert("RGB"), rgba.getchannel("A"), rules)
    return image if image.mode == "RGB" else image.convert("RGB")


def deep(image: Image.Image, rules: PixelRules) -> Image.Image:
    """Returns a 16-bit (or, in TIFF, 12-bit) grey image as RGB: its high bits, as Pillow reads 16-bit colour."""
    values = np.asarray(image).astype(np.int64)
    tags: Any = getattr(image, "tag_v2", {})
    bits = int(tags.get(BITS, (16,))[0])
    grey = (values >> (bits - 8)).clip(0, 255).astype(np.uint8)
    if tags.get(PHOTOMETRIC) == MIN_IS_WHITE:
        grey = 255 - grey
    rgb = Image.fromarray(grey).convert("RGB")
    if "transparency" not in image.info:
        return rgb
    alpha = np.where(values == image.info["transparency"], 0, 255).astype(np.uint8)
    return over(rgb, Image.fromarray(alpha), rules)


def eight_bits(colour: Any, stored: str) -> tuple[int, ...]:
    """Returns PNG's transparent colour, which has the file's own depth, as pixels have it. stored: the raw mode."""
    levels = colour if isinstance(colour, tuple) else (colour, colour, colour)
    if "16" in stored:
        return tuple(level >> 8 for level in levels)
    scale = {"1": 255, "L;2": 85, "L;4": 17}.get(stored, 1)
    return tuple(min(level * scale, 255) for level in levels)  # Pillow 13 gives 255 for white of one bit, 12 gives 1


def differs(pixels: np.ndarray, colour: tuple[int, ...]) -> np.ndarray:
    """Returns an alpha channel, uint8 (H, W): 0 where a pixel has the transparent colour. pixels: (H, W, 3)."""
    return np.where((pixels == np.array(colour)).all(2), 0, 255).astype(np.uint8)


def over(rgb: Image.Image, alpha: Image.Image, rules: PixelRules) -> Image.Image:
    """Returns the image composed over the background colour."""
    canvas = Image.new("RGB", rgb.size, rules.background)
    canvas.paste(rgb, mask=alpha)
    return canvas


@lru_cache(maxsize=1)
def lab_to_rgb() -> ImageCms.ImageCmsTransform:
    """Returns the transform from CIELAB (D50) to sRGB."""
    profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
    return ImageCms.buildTransform(*profiles, "LAB", "RGB")
