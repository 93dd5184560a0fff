"""Integer rasteriser of the built-in data: the same shapes give the same pixels on every machine.

Everything is whole numbers (no float, no library drawing routine), so neither the processor nor the version of a
drawing library can move an edge. A canvas is an array (H, W, 3) of uint8; points are ``(x, y)`` in its pixels and may
lie outside. Shapes are convex; what is not convex is drawn as several shapes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isqrt
from typing import TypeVar

import numpy as np

Colour = tuple[int, int, int]
Point = tuple[int, int]
Rng = np.random.Generator
T = TypeVar("T")

STEPS = 72  # a full turn; one step is 5 degrees
_QUARTER = (0, 22, 44, 66, 88, 108, 128, 147, 165, 181, 196, 210, 222, 232, 241, 247, 252, 255, 256)


def sine(step: int) -> int:
    """Returns 256 sin(5 degrees * step), rounded: from a table, since ``math.sin`` may differ in the last bit."""
    step %= STEPS
    half, sign = (step, 1) if step < 36 else (step - 36, -1)
    return sign * _QUARTER[half if half <= 18 else 36 - half]


def cosine(step: int) -> int:
    """Returns 256 cos(5 degrees * step), rounded."""
    return sine(step + 18)


def generator(*key: object) -> Rng:
    """Returns a generator that depends on ``key`` alone: not on the process, the machine or what was drawn before."""
    digest = hashlib.sha256("/".join(map(str, key)).encode()).digest()
    return np.random.Generator(np.random.PCG64(int.from_bytes(digest[:16], "little")))


def between(rng: Rng, low: int, high: int) -> int:
    """Draws a whole number in low..high, both included."""
    return int(rng.integers(low, high + 1))


def chance(rng: Rng, percent: int) -> bool:
    """Draws True in ``percent`` of 100 draws."""
    return int(rng.integers(100)) < percent


def pick(rng: Rng, weights: Mapping[T, int] | Sequence[T]) -> T:
    """Draws one of a sequence, or one of a mapping's keys in proportion to its whole-numbered weights."""
    if not isinstance(weights, Mapping):
        return weights[int(rng.integers(len(weights)))]
    left = int(rng.integers(sum(weights.values())))
    for value, weight in weights.items():
        left -= weight
        if left < 0:
            return value
    raise AssertionError("weights must be positive")


def mix(a: Colour, b: Colour, share: int) -> Colour:
    """Mixes ``share``/256 of b with the rest of a."""
    red, green, blue = ((p * (256 - share) + q * share) >> 8 for p, q in zip(a, b, strict=True))
    return red, green, blue


def shade(colour: Colour, factor: int) -> Colour:
    """Returns the colour times ``factor``/256, cut to 0..255."""
    red, green, blue = (min(255, max(0, (c * factor) >> 8)) for c in colour)
    return red, green, blue


def vary(rng: Rng, colour: Colour, amount: int) -> Colour:
    """Returns the colour with each channel moved by up to ``amount``."""
    moves = rng.integers(-amount, amount + 1, 3).tolist()
    red, green, blue = (min(255, max(0, c + d)) for c, d in zip(colour, moves, strict=True))
    return red, green, blue


# Where the second colour of a pattern goes: functions of the column xs (1, W) and row ys (H, 1), counted from the
# origin of the cloth, and of the pitch p, all in pixels.
PATTERNS = {
    "stripes": lambda xs, ys, p: (ys // p) % 2 == 0,
    "pinstripes": lambda xs, ys, p: xs % (2 * p) < p // 2 + 1,
    "columns": lambda xs, ys, p: (xs // p) % 2 == 0,
    "checks": lambda xs, ys, p: (xs // p + ys // p) % 2 == 0,
    "grid": lambda xs, ys, p: (xs % (2 * p) < p // 2 + 1) | (ys % (2 * p) < p // 2 + 1),
    "dots": lambda xs, ys, p: (xs % (2 * p) - p) ** 2 + (ys % (2 * p) - p) ** 2 <= p * p * 4 // 9,
    "diagonal": lambda xs, ys, p: ((xs + ys) // p) % 2 == 0,
    "upper": lambda xs, ys, p: (ys < 3 * p) & (xs == xs),
    "lower": lambda xs, ys, p: (ys >= 3 * p) & (xs == xs),
    "band": lambda xs, ys, p: (ys >= 2 * p) & (ys < 4 * p) & (xs == xs),
    "halves": lambda xs, ys, p: (xs >= 0) & (ys == ys),
    "middle": lambda xs, ys, p: (abs(xs) < p) & (ys == ys),
    "bricks": lambda xs, ys, p: (ys % p < 2) | ((xs + (ys // p) % 2 * p) % (2 * p) < 2),
}


@dataclass(frozen=True)
class Cloth:
    """Returns paint of two colours. pattern: a name of ``PATTERNS``; pitch and origin in pixels of the canvas."""

    colour: Colour
    other: Colour
    pattern: str
    pitch: int
    origin: Point = (0, 0)


Paint = Colour | Cloth


def _fill(canvas: np.ndarray, xs: np.ndarray, ys: np.ndarray, mask: np.ndarray, paint: Paint) -> None:
    region = canvas[ys[0, 0] : ys[-1, 0] + 1, xs[0, 0] : xs[0, -1] + 1]
    if not isinstance(paint, Cloth):
        region[mask] = paint
        return
    region[mask] = paint.colour
    x, y = paint.origin
    region[mask & PATTERNS[paint.pattern](xs - x, ys - y, max(2, paint.pitch))] = paint.other


def _window(canvas: np.ndarray, x0: int, y0: int, x1: int, y1: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Returns columns (1, w) and rows (h, 1) of the canvas within x0..x1 and y0..y1, None if nothing is left."""
    height, width = canvas.shape[:2]
    x0, y0, x1, y1 = max(x0, 0), max(y0, 0), min(x1, width - 1), min(y1, height - 1)
    if x0 > x1 or y0 > y1:
        return None
    return np.arange(x0, x1 + 1)[None], np.arange(y0, y1 + 1)[:, None]


def rectangle(canvas: np.ndarray, x0: int, y0: int, x1: int, y1: int, paint: Paint) -> None:
    """Fills columns x0..x1 and rows y0..y1, ends included."""
    window = _window(canvas, x0, y0, x1, y1)
    if window is None:
        return
    xs, ys = window
    if isinstance(paint, Cloth):
        _fill(canvas, xs, ys, np.ones((ys.size, xs.size), bool), paint)
    else:
        canvas[ys[0, 0] : ys[-1, 0] + 1, xs[0, 0] : xs[0, -1] + 1] = paint


def polygon(canvas: np.ndarray, points: Sequence[Point], paint: Paint) -> None:
    """Fills a convex polygon, its edges included; the points may run either way round."""
    columns, rows = zip(*points, strict=True)
    window = _window(canvas, min(columns), min(rows), max(columns), max(rows))
    if window is None:
        return
    xs, ys = window
    ends = list(zip(points, [*points[1:], points[0]], strict=True))
    turn = 1 if sum(ax * by - bx * ay for (ax, ay), (bx, by) in ends) >= 0 else -1
    mask = np.ones((ys.size, xs.size), bool)
    for (ax, ay), (bx, by) in ends:
        # The cross product (b - a) x (p - a) >= 0, its two halves kept apart: one two-dimensional step per edge.
        mask &= (turn * (bx - ax)) * (ys - ay) >= (turn * (by - ay)) * (xs - ax)
    _fill(canvas, xs, ys, mask, paint)


def ellipse(canvas: np.ndarray, x: int, y: int, rx: int, ry: int, paint: Paint) -> None:
    """Fills an upright ellipse round (x, y) with half axes rx and ry."""
    window = _window(canvas, x - rx, y - ry, x + rx, y + ry)
    if window is None or rx <= 0 or ry <= 0:
        return
    xs, ys = window
    _fill(canvas, xs, ys, (xs - x) ** 2 * (ry * ry) + (ys - y) ** 2 * (rx * rx) <= rx * rx * ry * ry, paint)


def limb(canvas: np.ndarray, a: Point, b: Point, ra: int, rb: int, paint: Paint) -> None:
    """Draws a round-ended bar from a, of half width ra, to b, of half width rb."""
    (ax, ay), (bx, by) = a, b
    dx, dy = bx - ax, by - ay
    length = max(1, isqrt(dx * dx + dy * dy))

    def side(x: int, y: int, radius: int, sign: int) -> Point:
        return x - sign * dy * radius // length, y + sign * dx * radius // length

    polygon(canvas, [side(ax, ay, ra, 1), side(bx, by, rb, 1), side(bx, by, rb, -1), side(ax, ay, ra, -1)], paint)
    ellipse(canvas, ax, ay, ra, ra, paint)
    ellipse(canvas, bx, by, rb, rb, paint)
