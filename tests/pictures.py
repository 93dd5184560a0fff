"""Image files of every kind that people have, each with the RGB pixels that it shows."""

from __future__ import annotations

import io
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageCms

HEIGHT, WIDTH = 24, 16
BACKGROUND = (10, 200, 90)
TURNED = {
    1: lambda p: p, 2: lambda p: p[:, ::-1], 3: lambda p: p[::-1, ::-1], 4: lambda p: p[::-1],
    5: lambda p: p.swapaxes(0, 1), 6: lambda p: np.rot90(p, -1), 7: lambda p: np.rot90(p, 2).swapaxes(0, 1),
    8: lambda p: np.rot90(p),
}  # fmt: skip
"""EXIF orientation -> what the stored pixels look like upright."""

rng = np.random.default_rng(0)
SMOOTH = np.asarray(
    Image.fromarray(rng.integers(0, 256, (4, 3, 3), dtype=np.uint8)).resize((WIDTH, HEIGHT), Image.Resampling.BICUBIC)
)
NOISE = rng.integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
DEEP = rng.integers(0, 65536, (HEIGHT, WIDTH, 3), dtype=np.uint16)
ALPHA = rng.choice(np.array([0, 255], np.uint8), (HEIGHT, WIDTH))


def grey(levels: np.ndarray) -> np.ndarray:
    return np.repeat(levels.astype(np.uint8)[..., None], 3, 2)


def over(pixels: np.ndarray, seen: np.ndarray) -> np.ndarray:
    """The pixels where ``seen`` is true, elsewhere the background."""
    return np.where(seen[..., None], pixels, np.array(BACKGROUND, np.uint8))


def file_of(image: Image.Image, kind: str, **more) -> bytes:
    out = io.BytesIO()
    image.save(out, kind, **more)
    return out.getvalue()


def png(samples: np.ndarray, depth: int, colour: int, claimed: tuple[int, int] = (0, 0), **chunks: bytes) -> bytes:
    """A PNG written by hand, since Pillow does not write all kinds. samples: (H, W) or (H, W, C)."""
    rows = samples.reshape(len(samples), -1)
    height, width = claimed if any(claimed) else samples.shape[:2]
    if depth == 16:
        packed = [row.astype(">u2").tobytes() for row in rows]
    elif depth == 8:
        packed = [row.astype(np.uint8).tobytes() for row in rows]
    else:
        bits = [np.unpackbits(row.astype(np.uint8)[:, None], axis=1)[:, 8 - depth :].reshape(-1) for row in rows]
        packed = [np.packbits(row).tobytes() for row in bits]
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), *((name.encode(), content) for name, content in chunks.items())]
    parts += [(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in packed))), (b"IEND", b"")]
    body = [struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in parts]
    return b"\x89PNG\r\n\x1a\n" + b"".join(body)


def exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


def turned_files() -> dict[str, tuple[bytes, np.ndarray]]:
    made = {}
    for orientation, turn in TURNED.items():
        exif = exif_of(orientation)
        for kind, more in (("PNG", {}), ("TIFF", {}), ("WEBP", {"lossless": True})):
            made[f"turned {orientation} {kind}"] = file_of(Image.fromarray(NOISE), kind, exif=exif, **more), turn(NOISE)
        stored = np.asarray(Image.open(io.BytesIO(file_of(Image.fromarray(SMOOTH), "JPEG"))))
        made[f"turned {orientation} JPEG"] = file_of(Image.fromarray(SMOOTH), "JPEG", exif=exif), turn(stored)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf tiff:Orientation="6"/></x:xmpmeta>'
    made["turned by XMP"] = file_of(Image.fromarray(SMOOTH), "JPEG", xmp=xmp), TURNED[6](stored)
    rgba = np.dstack([NOISE, ALPHA])
    made["turned and transparent"] = (
        file_of(Image.fromarray(rgba), "PNG", exif=exif_of(6)), TURNED[6](over(NOISE, ALPHA > 0)),
    )  # fmt: skip
    return made


def deep_files() -> dict[str, tuple[bytes, np.ndarray]]:
    one = DEEP[..., 0]
    shown = grey(one >> 8)
    big = Image.frombytes("I;16B", (WIDTH, HEIGHT), one.astype(">u2").tobytes())
    white_is_zero = file_of(Image.fromarray(one), "TIFF", tiffinfo={262: 0})
    made = {
        "16-bit PNG": (file_of(Image.fromarray(one), "PNG"), shown),
        "16-bit TIFF": (file_of(Image.fromarray(one), "TIFF"), shown),
        "16-bit TIFF, other end": (file_of(big, "TIFF"), shown),
        "16-bit TIFF, deflated": (file_of(Image.fromarray(one), "TIFF", compression="tiff_adobe_deflate"), shown),
        "16-bit PGM": (b"P5\n%d %d\n65535\n" % (WIDTH, HEIGHT) + one.astype(">u2").tobytes(), shown),
        "16-bit PNG in colour": (png(DEEP, 16, 2), (DEEP >> 8).astype(np.uint8)),
        "16-bit JPEG 2000": (file_of(Image.fromarray(one), "JPEG2000"), shown),
    }
    if Image.open(io.BytesIO(white_is_zero)).tag_v2[262] == 0:  # some Pillows write 1 whatever is asked for
        made["16-bit TIFF, white is zero"] = white_is_zero, 255 - shown
    clear = png(np.dstack([one, ALPHA.astype(np.uint16) * 257]), 16, 4)
    made["16-bit PNG, transparent"] = clear, over(shown, ALPHA > 0)
    return made


def transparent_files() -> dict[str, tuple[bytes, np.ndarray]]:
    rgba, la = np.dstack([NOISE, ALPHA]), np.dstack([NOISE[..., 0], ALPHA])
    seen, one = ALPHA > 0, NOISE[..., 0]
    few = one & 3
    palette = NOISE.reshape(-1, 3)[:4]
    coloured = {"PLTE": palette.tobytes(), "tRNS": bytes([255, 0, 255, 0])}
    deep = DEEP.copy()
    deep[:4] = 258, 3, 65535
    plain = NOISE.copy()
    plain[5:9] = 7, 8, 9
    seen_deep, seen_plain = np.ones_like(seen), np.ones_like(seen)
    seen_deep[:4], seen_plain[5:9] = False, False
    gif = Image.fromarray(few).convert("P")
    gif.putpalette(palette.tobytes())
    one_deep = deep[..., 0]
    return {
        "RGBA PNG": (file_of(Image.fromarray(rgba), "PNG"), over(NOISE, seen)),
        "RGBA WEBP": (file_of(Image.fromarray(rgba), "WEBP", lossless=True), over(NOISE, seen)),
        "RGBA TIFF": (file_of(Image.fromarray(rgba), "TIFF"), over(NOISE, seen)),
        "RGBA TGA": (file_of(Image.fromarray(rgba), "TGA"), over(NOISE, seen)),
        "LA PNG": (file_of(Image.fromarray(la, "LA"), "PNG"), over(grey(one), seen)),
        "palette PNG": (png(few, 2, 3, **coloured), over(palette[few], few % 2 == 0)),
        "palette GIF": (file_of(gif, "GIF", transparency=2), over(palette[few], few != 2)),
        "one grey is clear": (png(one, 8, 0, tRNS=struct.pack(">H", 40)), over(grey(one), one != 40)),
        "one of four greys": (png(few, 2, 0, tRNS=struct.pack(">H", 1)), over(grey(few * 85), few != 1)),
        "one of 16 greys": (png(one & 15, 4, 0, tRNS=struct.pack(">H", 9)), over(grey((one & 15) * 17), one & 15 != 9)),
        "one of two greys": (png(one & 1, 1, 0, tRNS=struct.pack(">H", 1)), over(grey((one & 1) * 255), one & 1 != 1)),
        "one colour is clear": (png(plain, 8, 2, tRNS=struct.pack(">HHH", 7, 8, 9)), over(plain, seen_plain)),
        "one deep colour is clear": (
            png(deep, 16, 2, tRNS=struct.pack(">HHH", 258, 3, 65535)), over((deep >> 8).astype(np.uint8), seen_deep),
        ),
        "one deep grey is clear": (
            png(one_deep, 16, 0, tRNS=struct.pack(">H", 258)), over(grey(one_deep >> 8), one_deep != 258),
        ),
    }  # fmt: skip


def plain_files() -> dict[str, tuple[bytes, np.ndarray]]:
    one = NOISE[..., 0]
    palette = Image.fromarray(NOISE).quantize(16)
    frames = [Image.fromarray(p).quantize(8) for p in (SMOOTH, NOISE)]
    animation = file_of(frames[0], "GIF", save_all=True, append_images=frames[1:])
    cmyk = file_of(Image.fromarray(SMOOTH).convert("CMYK"), "JPEG")
    jpeg, grey_jpeg = file_of(Image.fromarray(SMOOTH), "JPEG"), file_of(Image.fromarray(SMOOTH).convert("L"), "JPEG")
    progressive = file_of(Image.fromarray(SMOOTH), "JPEG", progressive=True)
    lab = Image.frombytes("LAB", (WIDTH, HEIGHT), NOISE.tobytes())
    to_srgb = ImageCms.buildTransform(ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), "LAB", "RGB")
    as_pillow: Callable[[bytes], np.ndarray] = lambda raw: np.asarray(Image.open(io.BytesIO(raw)).convert("RGB"))  # noqa: E731
    return {
        "JPEG": (jpeg, as_pillow(jpeg)), "grey JPEG": (grey_jpeg, as_pillow(grey_jpeg)),
        "progressive JPEG": (progressive, as_pillow(progressive)), "CMYK JPEG": (cmyk, as_pillow(cmyk)),
        "PNG": (file_of(Image.fromarray(NOISE), "PNG"), NOISE), "BMP": (file_of(Image.fromarray(NOISE), "BMP"), NOISE),
        "grey PNG": (file_of(Image.fromarray(one), "PNG"), grey(one)),
        "two-tone PNG": (file_of(Image.fromarray(one > 99), "PNG"), grey((one > 99) * 255)),
        "palette": (file_of(palette, "PNG"), np.asarray(palette.convert("RGB"))),
        "animation": (animation, np.asarray(frames[0].convert("RGB"))),
        "LAB TIFF": (file_of(lab, "TIFF"), np.asarray(ImageCms.applyTransform(lab, to_srgb))),
        "PPM": (file_of(Image.fromarray(NOISE), "PPM"), NOISE),
        "JPEG 2000": (file_of(Image.fromarray(NOISE), "JPEG2000"), NOISE),
    }  # fmt: skip


PICTURES = turned_files() | deep_files() | transparent_files() | plain_files()
"""Kind -> (the file's bytes, its pixels, uint8 (H, W, 3), over ``BACKGROUND``)."""

UNCLEAR = {
    "floats in 0 to 1": file_of(Image.fromarray(NOISE[..., 0].astype(np.float32) / 255), "TIFF"),
    "floats in 0 to 65535": file_of(Image.fromarray(DEEP[..., 0].astype(np.float32)), "TIFF"),
    "32-bit integers": file_of(Image.fromarray(DEEP[..., 0].astype(np.int32)), "TIFF"),
}
