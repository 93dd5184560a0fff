"""The surroundings of the built-in data: places, cameras with their light, things in the way.

A camera keeps its place, cast, blur, noise and compression; from image to image change the part of the place that is
seen, the clutter in it and the light. Pictures are drawn at ``SS`` times the final size and averaged down.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from datasets.synthetic.raster import (
    Cloth,
    Colour,
    Rng,
    between,
    chance,
    ellipse,
    limb,
    pick,
    polygon,
    rectangle,
    shade,
    vary,
)

SS = 2


def _speckle(canvas: np.ndarray, rng: Rng, y0: int, y1: int, amount: int) -> None:
    """Draws coarse grain on rows y0..y1-1, the texture of asphalt or plaster."""
    region = canvas[y0:y1]
    height, width = region.shape[:2]
    grain = rng.integers(-amount, amount + 1, ((height + 3) // 4, (width + 3) // 4)).repeat(4, 0).repeat(4, 1)
    region[:] = np.clip(region.astype(np.int16) + grain[:height, :width, None], 0, 255)


# The back of a place fills rows 0..y-1 of the canvas, its ground the rows from y; both vary with the generator.


def _facade(canvas: np.ndarray, rng: Rng, y: int) -> None:
    wall = vary(rng, pick(rng, ((150, 138, 124), (172, 160, 140), (120, 120, 126), (146, 108, 92))), 14)
    rectangle(canvas, 0, 0, canvas.shape[1], y - 1, wall)
    glass, step, wide = vary(rng, (70, 86, 104), 20), between(rng, 54, 84), between(rng, 24, 40)
    for x in range(between(rng, -30, 0), canvas.shape[1], step):
        for top in range(between(rng, -40, -10), y - 30, 78):
            rectangle(canvas, x, top, x + wide, top + 50, shade(wall, 210))
            rectangle(canvas, x + 3, top + 3, x + wide - 3, top + 46, glass)


def _bricks(canvas: np.ndarray, rng: Rng, y: int) -> None:
    brick = vary(rng, pick(rng, ((142, 78, 58), (164, 112, 84), (110, 70, 62), (170, 160, 148))), 12)
    cloth = Cloth(brick, shade(brick, 190), "bricks", between(rng, 10, 15))
    rectangle(canvas, 0, 0, canvas.shape[1], y - 1, cloth)


def _hedge(canvas: np.ndarray, rng: Rng, y: int) -> None:
    width = canvas.shape[1]
    leaf = vary(rng, (58, 88, 44), 16)
    rectangle(canvas, 0, 0, canvas.shape[1], y - 1, shade(leaf, 200))
    for _ in range(width * 2 // 5):
        x, up, size = between(rng, 0, canvas.shape[1]), between(rng, 0, y), between(rng, 6, 17)
        ellipse(canvas, x, up, size, size * 3 // 4, shade(leaf, between(rng, 170, 330)))
    rectangle(canvas, 0, y - 3, canvas.shape[1], y, shade(leaf, 150))


def _shop(canvas: np.ndarray, rng: Rng, y: int) -> None:
    rectangle(canvas, 0, 0, canvas.shape[1], y - 1, vary(rng, (92, 88, 86), 20))
    step = between(rng, 80, 120)
    for x in range(between(rng, -60, 0), canvas.shape[1], step):
        light = vary(rng, pick(rng, ((206, 196, 160), (176, 190, 200), (84, 96, 108), (212, 172, 120))), 16)
        rectangle(canvas, x, 34, x + step - 12, y - 12, light)
        rectangle(canvas, x, 8, x + step - 12, 28, vary(rng, pick(rng, _SIGNS), 20))
        for _ in range(7):
            a, top = x + between(rng, 2, step - 30), between(rng, 50, max(51, y - 40))
            box = vary(rng, pick(rng, _SIGNS), 40)
            rectangle(canvas, a, top, a + between(rng, 8, 20), top + between(rng, 12, 36), box)


def _tiled(canvas: np.ndarray, rng: Rng, y: int) -> None:
    tile = vary(rng, pick(rng, ((206, 206, 198), (150, 178, 176), (196, 184, 150))), 10)
    rectangle(canvas, 0, 0, canvas.shape[1], y - 1, Cloth(tile, shade(tile, 214), "grid", between(rng, 8, 13)))
    band = between(rng, y // 4, y // 2)
    rectangle(canvas, 0, band, canvas.shape[1], band + between(rng, 14, 30), vary(rng, pick(rng, _SIGNS), 12))


def _corridor(canvas: np.ndarray, rng: Rng, y: int) -> None:
    wall = vary(rng, (190, 186, 172), 18)
    rectangle(canvas, 0, 0, canvas.shape[1], y - 1, wall)
    rectangle(canvas, 0, y * 3 // 5, canvas.shape[1], y, shade(wall, 200))
    for x in range(between(rng, 0, 60), canvas.shape[1], between(rng, 100, 150)):
        rectangle(canvas, x, 30, x + 58, y, vary(rng, pick(rng, ((122, 86, 58), (90, 108, 122), (164, 160, 150))), 14))


def _fence(canvas: np.ndarray, rng: Rng, y: int) -> None:
    sky = vary(rng, (176, 188, 196), 16)
    rectangle(canvas, 0, 0, canvas.shape[1], y - 1, sky)
    rectangle(canvas, 0, y // 3, canvas.shape[1], y - 1, vary(rng, (112, 118, 98), 16))
    for x in range(between(rng, 0, 16), canvas.shape[1], between(rng, 14, 22)):
        rectangle(canvas, x, 20, x + 3, y, (74, 74, 70))
    rectangle(canvas, 0, 40, canvas.shape[1], 46, (80, 80, 76))


def _sea(canvas: np.ndarray, rng: Rng, y: int) -> None:
    rectangle(canvas, 0, 0, canvas.shape[1], y // 2, vary(rng, (164, 200, 228), 12))
    rectangle(canvas, 0, y // 2, canvas.shape[1], y - 1, vary(rng, (60, 122, 156), 16))
    for _ in range(30):
        x, up = between(rng, 0, canvas.shape[1]), between(rng, y // 2 + 3, y - 3)
        rectangle(canvas, x, up, x + between(rng, 10, 40), up + 1, (196, 216, 222))


def _traffic(canvas: np.ndarray, rng: Rng, y: int) -> None:
    _facade(canvas, rng, y)
    for x in range(between(rng, -60, 0), canvas.shape[1], between(rng, 130, 180)):
        parked_car(canvas, x, y + 4, between(rng, 105, 130), vary(rng, pick(rng, _CARS), 16))


_BACKS = {
    "facade": _facade, "bricks": _bricks, "hedge": _hedge, "shop": _shop, "tiled": _tiled, "corridor": _corridor,
    "fence": _fence, "sea": _sea, "traffic": _traffic,
}  # fmt: skip
_SIGNS: tuple[Colour, ...] = (
    (176, 46, 48),
    (44, 92, 160),
    (52, 118, 78),
    (210, 180, 74),
    (64, 64, 70),
    (214, 212, 204),
)
_CARS: tuple[Colour, ...] = ((40, 40, 44), (190, 190, 192), (120, 30, 34), (46, 66, 118), (126, 128, 130), (86, 92, 70))
# Ground: colour, second colour, pattern and pitch (plain where the pattern is empty), grain.
_GROUNDS = {
    "asphalt": ((96, 96, 98), (96, 96, 98), "", 0, 12),
    "pavement": ((158, 152, 142), (130, 126, 118), "grid", 24, 7),
    "lawn": ((88, 122, 58), (88, 122, 58), "", 0, 20),
    "gravel": ((146, 132, 112), (146, 132, 112), "", 0, 22),
    "floor": ((176, 168, 152), (152, 144, 130), "checks", 26, 4),
    "dark_floor": ((84, 80, 82), (66, 62, 66), "checks", 34, 4),
    "zebra": ((92, 92, 94), (204, 204, 198), "columns", 26, 9),
    "sand": ((212, 190, 148), (212, 190, 148), "", 0, 13),
    "snow": ((216, 220, 228), (216, 220, 228), "", 0, 9),
    "planks": ((140, 104, 70), (112, 82, 56), "stripes", 9, 7),
}


def place(rng: Rng, back: str, ground: str, height: int, width: int, horizon: int) -> np.ndarray:
    """Draws a place, (height, width, 3) uint8, whose ground starts at row ``horizon``."""
    canvas = np.zeros((height, width, 3), np.uint8)
    colour, other, pattern, pitch, grain = _GROUNDS[ground]
    colour, other = vary(rng, colour, 12), vary(rng, other, 12)
    paint = Cloth(colour, other, pattern, pitch, (between(rng, 0, 40), horizon)) if pattern else colour
    rectangle(canvas, 0, horizon, width, height, paint)
    _BACKS[back](canvas, rng, horizon)
    # Stretches of lighter and darker ground and wall: a place looks different from crop to crop.
    x = between(rng, -60, 0)
    while x < width:
        end = x + between(rng, width // 16, width // 5)
        stretch = canvas[:, max(0, x) : max(0, end)]
        stretch[:] = np.minimum(stretch.astype(np.int32) * between(rng, 150, 340) >> 8, 255)
        x = end
    _speckle(canvas, rng, horizon, height, grain)
    _speckle(canvas, rng, 0, horizon, 5)
    return canvas


@dataclass(frozen=True)
class Climate:
    """The cameras of a domain: ranges (low, high) that each camera draws from. Light in 1/256, noise in grey levels."""

    places: tuple[tuple[str, str], ...]  # (back, ground); camera k takes the k-th, in turn
    casts: tuple[tuple[int, int, int], ...]  # gains of red, green, blue
    gain: tuple[int, int]
    contrast: tuple[int, int]
    saturation: tuple[int, int]
    shadow: int  # percent of images with a hard shadow
    noise: tuple[int, int]
    quality: tuple[int, int]  # of the JPEG
    zoom: tuple[int, int]  # percent of the usual size


@dataclass(frozen=True)
class Camera:
    """The traits that a camera keeps. plate: its place, larger than the view."""

    plate: np.ndarray
    cast: tuple[int, int, int]
    offset: int
    contrast: int
    saturation: int
    shadow: int
    slope: tuple[int, int]  # light across and down the picture
    blur: int
    noise: int
    quality: int
    zoom: int


def make_camera(rng: Rng, climate: Climate, camid: int, height: int, width: int, horizon: int) -> Camera:
    """Draws a camera. height, width: the canvas of an image; horizon: percent of it above the ground."""
    back, ground = climate.places[(camid - 1) % len(climate.places)]
    cast = climate.casts[(camid - 1 + (camid - 1) // len(climate.casts)) % len(climate.casts)]
    gain = between(rng, *climate.gain)
    tall, wide = height * 5 // 4, width * 6
    plate = place(rng, back, ground, tall, wide, tall * horizon // 100)
    red, green, blue = vary(rng, cast, 14)
    return Camera(
        plate=plate,
        cast=(red * gain // 256, green * gain // 256, blue * gain // 256),
        offset=between(rng, -12, 16),
        contrast=between(rng, *climate.contrast),
        saturation=between(rng, *climate.saturation),
        shadow=climate.shadow,
        slope=(between(rng, -70, 70), between(rng, -60, 60)),
        blur=pick(rng, (0, 0, 1)),
        noise=between(rng, *climate.noise),
        quality=between(rng, *climate.quality),
        zoom=between(rng, *climate.zoom),
    )


def between_cameras(common: Camera, camera: Camera, gap: int) -> Camera:
    """Returns the camera ``gap`` percent (0..100) of the way from ``common`` to ``camera`` in every trait."""

    def blend(near: int, far: int) -> int:
        return near + (far - near) * gap // 100

    red, green, blue = (blend(near, far) for near, far in zip(common.cast, camera.cast, strict=True))
    across, down = (blend(near, far) for near, far in zip(common.slope, camera.slope, strict=True))
    difference = camera.plate.astype(np.int32) - common.plate  # bytes would overflow
    return Camera(
        plate=(common.plate + difference * gap // 100).astype(np.uint8),
        cast=(red, green, blue),
        offset=blend(common.offset, camera.offset),
        contrast=blend(common.contrast, camera.contrast),
        saturation=blend(common.saturation, camera.saturation),
        shadow=blend(common.shadow, camera.shadow),
        slope=(across, down),
        blur=blend(common.blur, camera.blur),
        noise=blend(common.noise, camera.noise),
        quality=blend(common.quality, camera.quality),
        zoom=blend(common.zoom, camera.zoom),
    )


def view(rng: Rng, camera: Camera, height: int, width: int) -> np.ndarray:
    """Returns a canvas (height, width, 3) with a part of the camera's place and new clutter in it."""
    y = between(rng, 0, camera.plate.shape[0] - height)
    x = between(rng, 0, camera.plate.shape[1] - width)
    canvas = camera.plate[y : y + height, x : x + width].copy()
    for _ in range(between(rng, 0, 4)):
        pick(rng, _CLUTTER)(canvas, rng, between(rng, 0, width), between(rng, height // 2, height * 9 // 10))
    return canvas


def _pole(canvas: np.ndarray, rng: Rng, x: int, y: int) -> None:
    rectangle(
        canvas, x, 0, x + between(rng, 3, 9), y, vary(rng, pick(rng, ((70, 72, 74), (150, 150, 148), (96, 78, 58))), 14)
    )


def _box(canvas: np.ndarray, rng: Rng, x: int, y: int) -> None:
    wide, high = between(rng, 16, 46), between(rng, 20, 70)
    colour = vary(rng, pick(rng, _SIGNS), 34)
    rectangle(canvas, x, y - high, x + wide, y, colour)
    rectangle(canvas, x, y - high, x + wide, y - high * 4 // 5, shade(colour, 190))


def _bush(canvas: np.ndarray, rng: Rng, x: int, y: int) -> None:
    leaf = vary(rng, (62, 92, 48), 20)
    for _ in range(7):
        size = between(rng, 8, 17)
        at = x + between(rng, -22, 22), y - between(rng, 0, 36)
        ellipse(canvas, *at, size, size, shade(leaf, between(rng, 180, 320)))


def _sign(canvas: np.ndarray, rng: Rng, x: int, y: int) -> None:
    high, size = between(rng, 90, 170), between(rng, 8, 20)
    rectangle(canvas, x - 2, y - high, x + 2, y, (110, 110, 108))
    shape = pick(rng, (ellipse, rectangle))
    colour = vary(rng, pick(rng, _SIGNS), 24)
    if shape is ellipse:
        ellipse(canvas, x, y - high, size, size, colour)
    else:
        rectangle(canvas, x - size, y - high - size, x + size, y - high + size, colour)


def _passer(canvas: np.ndarray, rng: Rng, x: int, y: int) -> None:
    # Someone far off: three blobs of colour are all that can be seen.
    high = between(rng, 60, 120)
    wide, top, low = high // 7, vary(rng, pick(rng, _SIGNS), 40), vary(rng, pick(rng, _CARS), 20)
    rectangle(canvas, x - wide * 3 // 4, y - high // 2, x + wide * 3 // 4, y, low)
    ellipse(canvas, x, y - high * 2 // 3, wide, high // 4, top)
    ellipse(canvas, x, y - high, wide * 2 // 3, high // 10, (164, 126, 98))


_CLUTTER = (_pole, _box, _bush, _sign, _passer)


def parked_car(canvas: np.ndarray, x: int, y: int, length: int, colour: Colour) -> None:
    """Draws a car from the side, its tyres on row y, its left end at x."""
    high = length * 2 // 7
    unit = length // 20
    roof = y - high - high // 2
    polygon(
        canvas,
        [(x + 5 * unit, y - high), (x + 8 * unit, roof), (x + 14 * unit, roof), (x + 17 * unit, y - high)],
        colour,
    )
    polygon(
        canvas,
        [
            (x + 6 * unit, y - high),
            (x + 8 * unit + 2, roof + 4),
            (x + 14 * unit - 2, roof + 4),
            (x + 16 * unit, y - high),
        ],
        (54, 62, 72),
    )
    polygon(canvas, [(x, y - high + 4), (x + length, y - high), (x + length, y - unit), (x, y - unit)], colour)
    for wheel in (4, 16):
        ellipse(canvas, x + wheel * unit, y - unit, unit * 2, unit * 2, (30, 30, 32))
        ellipse(canvas, x + wheel * unit, y - unit, unit, unit, (130, 130, 132))


# Things in the way. Each covers a part of a canvas whose subject stands in the middle.


def _bars(canvas: np.ndarray, rng: Rng) -> None:
    height, width = canvas.shape[:2]
    colour = vary(rng, pick(rng, ((62, 64, 66), (168, 166, 160), (104, 84, 58), (172, 60, 50))), 16)
    if chance(rng, 50):
        thick = between(rng, width // 10, width // 5)
        x = between(rng, width // 4, width * 3 // 4 - thick)
        rectangle(canvas, x, 0, x + thick, height, colour)
        rectangle(canvas, x, 0, x + thick // 4, height, shade(colour, 310))
        return
    top = between(rng, height * 2 // 5, height * 3 // 5)
    for y in range(top, height, between(rng, 26, 36)):
        rectangle(canvas, 0, y, width, y + between(rng, 10, 15), colour)
    for x in range(between(rng, 0, 30), width, 52):
        rectangle(canvas, x, top, x + 8, height, shade(colour, 210))


def _car(canvas: np.ndarray, rng: Rng) -> None:
    height, width = canvas.shape[:2]
    length = width * between(rng, 15, 21) // 10
    x, y = between(rng, width - length, 0), height + between(rng, -6, 24)
    parked_car(canvas, x, y, length, vary(rng, pick(rng, _CARS), 20))


def _plant(canvas: np.ndarray, rng: Rng) -> None:
    height, width = canvas.shape[:2]
    leaf, x = vary(rng, (56, 92, 46), 18), between(rng, width // 4, width * 3 // 4)
    top = between(rng, height // 2, height * 2 // 3)
    for _ in range(34):
        size = between(rng, 11, 20)
        at = x + between(rng, -width // 3, width // 3), between(rng, top, height)
        ellipse(canvas, *at, size, size * 2 // 3, shade(leaf, between(rng, 160, 330)))


def _crate(canvas: np.ndarray, rng: Rng) -> None:
    height, width = canvas.shape[:2]
    colour = vary(rng, pick(rng, _SIGNS), 30)
    left = between(rng, -20, width // 3)
    top, right = between(rng, height // 2, height * 2 // 3), left + between(rng, width * 3 // 5, width)
    rectangle(canvas, left, top, right, height, colour)
    rectangle(canvas, left, top, right, top + 8, shade(colour, 300))
    rectangle(canvas, left + 14, top + 22, right - 14, top + 48, vary(rng, pick(rng, _SIGNS), 30))


def _panel(canvas: np.ndarray, rng: Rng) -> None:
    # A door leaf or pillar that hides one side.
    height, width = canvas.shape[:2]
    wide, left = between(rng, width // 3, width // 2), chance(rng, 50)
    colour = vary(rng, pick(rng, ((126, 118, 108), (92, 98, 106), (168, 158, 140), (106, 74, 54))), 18)
    rectangle(canvas, 0 if left else width - wide, 0, wide if left else width, height, colour)
    edge = wide if left else width - wide
    rectangle(canvas, edge - 4, 0, edge + 4, height, shade(colour, 190))


def _umbrella(canvas: np.ndarray, rng: Rng) -> None:
    height, width = canvas.shape[:2]
    colour = vary(rng, pick(rng, _SIGNS), 30)
    x, y = between(rng, width // 3, width * 2 // 3), between(rng, height // 4, height // 3)
    limb(canvas, (x, y), (x, height), 3, 3, (50, 50, 52))
    ellipse(canvas, x, y - height // 14, width * 2 // 5, height // 6, colour)
    ellipse(canvas, x, y - height // 14, width // 6, height // 6, shade(colour, 215))


OCCLUDERS: Mapping[Callable, int] = {_bars: 2, _car: 3, _plant: 2, _crate: 2, _panel: 2, _umbrella: 1}


def expose(canvas: np.ndarray, camera: Camera, rng: Rng) -> np.ndarray:
    """Turns a canvas (SS*H, SS*W, 3) into a picture: averaged down, lit, cast, blurred, noisy. (H, W, 3) uint8."""
    height, width = canvas.shape[0] // SS, canvas.shape[1] // SS
    total = np.zeros((height, width, 3), np.int32)
    for dy in range(SS):
        for dx in range(SS):
            total += canvas[dy::SS, dx::SS]
    image = (total + SS * SS // 2) // (SS * SS)

    across = 256 + camera.slope[0] * (2 * np.arange(width) - width) // width + between(rng, -20, 20)
    down = 256 + camera.slope[1] * (2 * np.arange(height) - height) // height
    light = across[None] * down[:, None] >> 8
    if chance(rng, camera.shadow):
        # The shadow's edge is a slanted line; either side may be in it.
        tilt, at = between(rng, -64, 64), between(rng, width // 4, width * 3 // 4)
        dark = (np.arange(width)[None] - at) * 64 > (np.arange(height)[:, None] - height // 2) * tilt
        light = np.where(dark if chance(rng, 50) else ~dark, light * between(rng, 140, 200) >> 8, light)
    exposure = between(rng, 218, 296)
    gains = np.array([c * exposure >> 8 for c in camera.cast])

    grey = image @ np.array([77, 150, 29]) >> 8
    image = grey[..., None] + ((image - grey[..., None]) * camera.saturation >> 8)
    image = image * light[..., None] * gains >> 16
    image = ((image - 112) * camera.contrast >> 8) + 112 + camera.offset
    for _ in range(camera.blur):
        padded = np.pad(image, ((1, 1), (0, 0), (0, 0)), mode="edge")
        image = (padded[:-2] + 2 * image + padded[2:] + 2) >> 2
        padded = np.pad(image, ((0, 0), (1, 1), (0, 0)), mode="edge")
        image = (padded[:, :-2] + 2 * image + padded[:, 2:] + 2) >> 2
    image += rng.integers(-camera.noise, camera.noise + 1, image.shape)
    return np.clip(image, 0, 255).astype(np.uint8)
