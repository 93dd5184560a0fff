"""Vehicles of the built-in data: what an identity keeps (``Vehicle``) and how it is drawn from eight views.

A vehicle is a few prisms: outlines in ``(fwd, up)``, in centimetres, pulled across its width. What lies on a face
(glass, lights, stripes, stickers) is drawn when the face is turned to the camera. Projection is parallel.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from datasets.synthetic.raster import (
    Colour,
    Point,
    Rng,
    between,
    chance,
    cosine,
    ellipse,
    limb,
    mix,
    pick,
    polygon,
    shade,
    sine,
    vary,
)

# View ids as in VeRi-776, with the direction in steps of 5 degrees (0 faces the camera, 18 drives to the right).
VIEWS = ("front", "rear", "left", "left front", "left rear", "right", "right front", "right rear")
_AZIMUTHS = (0, 36, 54, 63, 45, 18, 9, 27)

Outline = tuple[tuple[int, int], ...]


@dataclass(frozen=True)
class Shape:
    """A type of vehicle. lower, upper: outlines (fwd, up) of the body and of what stands on it, upper starting at the
    foot of the windscreen and going up and back; half: half its width; wheels: where the axles are."""

    lower: Outline
    upper: Outline
    half: int
    wheels: tuple[int, ...]
    radius: int
    panes: int  # side windows
    cargo: Outline = ()  # a box behind the cab


SHAPES = {
    "sedan": Shape(
        ((-226, 30), (226, 30), (228, 70), (105, 94), (-160, 98), (-228, 88)),
        ((108, 92), (42, 144), (-92, 144), (-162, 96)), 88, (-138, 142), 33, 2),
    "hatchback": Shape(
        ((-192, 30), (192, 30), (194, 70), (92, 98), (-194, 100)),
        ((96, 96), (34, 152), (-158, 150), (-192, 98)), 86, (-122, 120), 32, 2),
    "suv": Shape(
        ((-226, 40), (226, 40), (228, 92), (108, 112), (-228, 114)),
        ((112, 110), (62, 174), (-196, 174), (-224, 112)), 94, (-138, 142), 38, 3),
    "van": Shape(
        ((-240, 34), (240, 34), (244, 92), (204, 112), (-240, 112)),
        ((206, 110), (146, 208), (-238, 212), (-240, 110)), 98, (-148, 158), 35, 1),
    "minibus": Shape(
        ((-250, 34), (250, 34), (252, 100), (240, 112), (-250, 112)),
        ((242, 110), (206, 218), (-246, 218), (-250, 110)), 98, (-150, 165), 36, 4),
    "pick-up": Shape(
        ((-258, 44), (256, 44), (258, 92), (126, 114), (-258, 112)),
        ((128, 112), (70, 176), (-38, 176), (-60, 112)), 94, (-160, 160), 39, 1),
    "truck": Shape(
        ((-290, 46), (280, 46), (282, 100), (276, 112), (-290, 78)),
        ((276, 110), (256, 206), (146, 206), (146, 96)), 100, (-190, 196), 42, 1,
        ((126, 80), (126, 262), (-292, 262), (-292, 80))),
    "bus": Shape(
        ((-380, 36), (380, 36), (382, 120), (-380, 120)),
        ((380, 118), (370, 286), (-378, 286), (-380, 118)), 116, (-220, 250), 44, 6),
}  # fmt: skip

PAINTS: dict[str, tuple[Colour, int]] = {  # colour, weight
    "white": ((222, 222, 220), 4), "silver": ((170, 172, 176), 3), "grey": ((112, 114, 118), 2),
    "black": ((42, 42, 46), 4), "red": ((160, 36, 38), 3), "blue": ((46, 78, 140), 3), "yellow": ((208, 172, 48), 2),
    "green": ((58, 100, 66), 2), "beige": ((176, 158, 126), 2), "orange": ((206, 108, 44), 1),
    "sky": ((120, 164, 200), 2), "wine": ((98, 36, 52), 2),
}  # fmt: skip
_ACCENTS: tuple[Colour, ...] = (
    (206, 44, 44), (38, 92, 178), (236, 196, 50), (52, 142, 82), (238, 238, 234), (30, 30, 34), (226, 122, 40),
    (124, 66, 146),
)  # fmt: skip


@dataclass(frozen=True)
class Vehicle:
    """The lasting traits of a vehicle. Most of them can be seen from most sides, as far as a real one's can."""

    kind: str
    long: int  # percent of the type's length, and of its height above the belt
    tall: int
    paint: Colour
    roof: Colour
    accent: Colour
    second: Colour  # of stickers and signs
    livery: str  # none, skirt, belt, stripes (over bonnet, roof and boot), ends (front and rear panels)
    bumper: Colour
    glass: Colour
    rack: str  # none, bars, box, ladder, sign, beacon
    lights: str  # round, wide, tall
    lamp: Colour
    grille: str  # wide, narrow, none
    plate: Colour
    hub: Colour
    hub_size: int  # percent of the wheel
    stickers: tuple[str, ...]  # door, flank, bonnet, screen, tail
    sticker_shape: str  # round, square
    mirrors: Colour
    spare: bool


def make_vehicle(rng: Rng) -> Vehicle:
    """Draws an identity."""
    paint = vary(rng, pick(rng, dict(PAINTS.values())), 8)
    accent, second = pick(rng, _ACCENTS), pick(rng, _ACCENTS)
    return Vehicle(
        kind=pick(
            rng, {"sedan": 5, "hatchback": 3, "suv": 3, "van": 2, "minibus": 2, "pick-up": 3, "truck": 3, "bus": 2}
        ),
        long=between(rng, 90, 110),
        tall=between(rng, 90, 116),
        paint=paint,
        roof=pick(rng, {paint: 3, (36, 36, 40): 2, (224, 224, 222): 2, accent: 3}),
        accent=accent,
        second=second,
        livery=pick(rng, {"none": 3, "skirt": 4, "belt": 3, "stripes": 3, "ends": 2}),
        bumper=pick(rng, {paint: 3, (46, 46, 48): 3, (176, 178, 180): 1, accent: 1}),
        glass=pick(rng, ((40, 48, 58), (84, 102, 116), (24, 24, 28))),
        rack=pick(rng, {"none": 4, "bars": 2, "box": 2, "ladder": 1, "sign": 2, "beacon": 1}),
        lights=pick(rng, ("round", "wide", "tall")),
        lamp=pick(rng, ((236, 234, 210), (206, 220, 232), (240, 204, 120))),
        grille=pick(rng, ("wide", "narrow", "none")),
        plate=pick(rng, ((232, 232, 226), (226, 190, 52), (44, 76, 150))),
        hub=pick(rng, ((178, 180, 184), (60, 60, 62), (230, 230, 228), accent)),
        hub_size=pick(rng, (35, 55, 75)),
        stickers=tuple(where for where in ("door", "flank", "bonnet", "screen", "tail") if chance(rng, 34)),
        sticker_shape=pick(rng, ("round", "square")),
        mirrors=pick(rng, {paint: 2, (40, 40, 42): 2, accent: 1}),
        spare=chance(rng, 15),
    )


class Solid:
    """A vehicle turned to the camera: which faces show, and where their points fall on the canvas."""

    def __init__(self, azimuth: int, elevation: int) -> None:
        self.sin, self.cos = sine(azimuth), cosine(azimuth)
        self.rise, self.flat = sine(elevation), cosine(elevation)
        self.x = self.y = 0
        self.scale = 256

    def at(self, fwd: int, lat: int, up: int) -> Point:
        """Returns a point of the vehicle (centimetres) on the canvas."""
        across = lat * self.cos + fwd * self.sin
        near = (fwd * self.cos - lat * self.sin) >> 8
        down = near * self.rise - up * self.flat
        return self.x + (across * self.scale >> 16), self.y + (down * self.scale >> 16)

    def shows(self, fwd: int, lat: int, up: int) -> int:
        """Returns how far a face with this normal is turned to the camera; not positive: it cannot be seen."""
        return ((fwd * self.cos - lat * self.sin) * self.flat >> 8) + up * self.rise

    def fit(self, outlines: list[tuple[Outline, int]], box: tuple[int, int, int, int]) -> None:
        """Scales and moves it so that the ``(outline, half width)`` just fill the canvas box x0, y0, x1, y1."""
        self.x, self.y, self.scale = 0, 0, 1024  # measured large, as coordinates are whole
        seen = [self.at(f, side * half, u) for outline, half in outlines for f, u in outline for side in (-1, 1)]
        xs, ys = zip(*seen, strict=True)
        x0, y0, x1, y1 = box
        self.scale = min((x1 - x0) * 1024 // max(1, max(xs) - min(xs)), (y1 - y0) * 1024 // max(1, max(ys) - min(ys)))
        self.x = (x0 + x1) // 2 - (max(xs) + min(xs)) * self.scale // 2048
        self.y = y1 - max(ys) * self.scale // 1024


Faces = Iterator[tuple]  # (shape, arguments after the canvas), in the order of painting

_SIDE, _END, _TOP = 205, 232, 276  # light on the faces, in 1/256


def _inset(outline: Outline, share: int) -> Outline:
    """Returns the outline shrunk to ``share`` percent about its middle."""
    fwd, up = (sum(c) // len(outline) for c in zip(*outline, strict=True))
    return tuple((fwd + (f - fwd) * share // 100, up + (u - up) * share // 100) for f, u in outline)


def _prism(solid: Solid, outline: Outline, half: int, paint: Colour, roof: Colour | None = None) -> Faces:
    """Returns the faces of an outline pulled across the width; roof: the colour of level faces, if another."""
    middle_f, middle_u = (sum(c) // len(outline) for c in zip(*outline, strict=True))
    for (af, au), (bf, bu) in zip(outline, [*outline[1:], outline[0]], strict=True):
        nf, nu = bu - au, af - bf
        if nf * ((af + bf) // 2 - middle_f) + nu * ((au + bu) // 2 - middle_u) < 0:
            nf, nu = -nf, -nu
        if solid.shows(nf, 0, nu) > 0:
            level = abs(nu) > 2 * abs(nf)
            colour = shade(roof if roof and level else paint, _TOP if level else _END)
            yield polygon, [solid.at(f, lat, u) for f, lat, u in
                            ((af, half, au), (af, -half, au), (bf, -half, bu), (bf, half, bu))], colour  # fmt: skip
    for side in (-1, 1):
        if solid.shows(0, side, 0) > 0:
            yield polygon, [solid.at(f, side * half, u) for f, u in outline], shade(paint, _SIDE)


def _band(solid: Solid, a: tuple[int, int], b: tuple[int, int], lats: tuple[int, int], colour: Colour) -> Faces:
    """Returns a patch on the face between the profile points a and b, from lats[0] to lats[1] across."""
    yield (
        polygon,
        [solid.at(f, lat, u) for (f, u), lat in ((a, lats[0]), (a, lats[1]), (b, lats[1]), (b, lats[0]))],
        colour,
    )


def _along(a: tuple[int, int], b: tuple[int, int], percent: int) -> tuple[int, int]:
    return a[0] + (b[0] - a[0]) * percent // 100, a[1] + (b[1] - a[1]) * percent // 100


def _sticker(solid: Solid, car: Vehicle, centre: tuple[int, int, int], axes: tuple, colour: Colour) -> Faces:
    """Returns a disc or square round ``centre`` (fwd, lat, up), spanned by two ``axes`` of vectors in centimetres."""
    turns = range(0, 72, 9) if car.sticker_shape == "round" else range(9, 72, 18)
    grow = 256 if car.sticker_shape == "round" else 340
    points = []
    for turn in turns:
        c, s = cosine(turn) * grow >> 8, sine(turn) * grow >> 8
        points.append(solid.at(*(m + ((p * c + q * s) >> 8) for m, p, q in zip(centre, *axes, strict=True))))
    yield polygon, points, colour


def _wheels(solid: Solid, car: Vehicle, shape: Shape) -> Faces:
    for side in (-1, 1):
        facing = solid.shows(0, side, 0)
        for axle in shape.wheels:
            fwd = axle * car.long // 100
            size = shape.radius * solid.scale >> 8
            x, y = solid.at(fwd, side * (shape.half - 8), shape.radius)
            wide = max(abs(solid.sin) * size >> 8, size // 3)
            yield facing > 0, ellipse, x, y, max(1, wide), max(1, size), (26, 26, 28)
            if facing > 0:
                hub = car.hub_size
                yield True, ellipse, x, y, max(1, wide * hub // 100), max(1, size * hub // 100), car.hub
                yield True, ellipse, x, y, max(1, wide // 6), max(1, size // 6), (40, 40, 42)


def _sides(solid: Solid, car: Vehicle, lower: Outline, upper: Outline, shape: Shape) -> Faces:
    belt = min(u for _, u in upper)
    front, rear = max(f for f, _ in lower), min(f for f, _ in lower)
    foot = lower[0][1]
    for side in (-1, 1):
        if solid.shows(0, side, 0) <= 0:
            continue
        half = side * (shape.half + 1)

        def face(points: Outline, colour: Colour, half: int = half) -> tuple:
            return polygon, [solid.at(f, half, u) for f, u in points], colour

        if car.livery in ("skirt", "belt"):
            low, high = (foot, foot + (belt - foot) * 2 // 5) if car.livery == "skirt" else (belt - 30, belt - 12)
            yield face(((rear, low), (front, low), (front, high), (rear, high)), shade(car.accent, _SIDE))
        if car.livery == "ends":
            yield face(((rear, foot), (rear + 62, foot), (rear + 62, belt), (rear, belt)), shade(car.accent, _SIDE))
        glass = _inset(upper, 82)
        (bottom_front, top_front), (top_rear, bottom_rear) = glass[:2], glass[2:]
        panes = shape.panes
        if car.kind == "van":  # only the cab has a window
            top_rear, bottom_rear = _along(top_front, top_rear, 30), _along(bottom_front, bottom_rear, 34)
        for pane in range(panes):
            start, end = pane * 100 // panes + (3 if pane else 0), (pane + 1) * 100 // panes
            low, high = (bottom_front, bottom_rear), (top_front, top_rear)
            corners = _along(*low, start), _along(*high, start), _along(*high, end), _along(*low, end)
            yield face(corners, car.glass)
        for door in (30, 55) if panes < 4 else (12, 62):
            fwd = front + (rear - front) * door // 100
            yield face(((fwd, foot + 12), (fwd + 3, foot + 12), (fwd + 3, belt), (fwd, belt)), shade(car.paint, 150))
        spots = {"door": (front + (rear - front) * 44 // 100, (belt + foot) // 2 + 4), "flank": (rear + 52, belt - 14)}
        if shape.cargo:
            spots["flank"] = (rear + 150, 176)
        for where, (fwd, up) in spots.items():
            size = 44 if shape.cargo and where == "flank" else 26
            if where in car.stickers:
                yield from _sticker(solid, car, (fwd, half, up), ((size, 0, 0), (0, 0, size)), car.second)


def _ends(solid: Solid, car: Vehicle, lower: Outline, half: int) -> Faces:
    foot = lower[0][1]
    for sign, ends in ((1, [p for p in lower if p[0] > 0]), (-1, [p for p in lower if p[0] < 0])):
        if solid.shows(sign, 0, 0) <= 0:
            continue
        fwd = max(sign * f for f, _ in ends) * sign + sign
        # The panel goes up to where the outline leaves the end of the vehicle.
        top = max(u for f, u in ends if abs(f) > abs(fwd) - 14)
        high = top - foot

        def panel(low: int, up: int, left: int, right: int, colour: Colour, fwd: int = fwd) -> tuple:
            return (
                polygon,
                [solid.at(fwd, lat, u) for lat, u in ((left, low), (right, low), (right, up), (left, up))],
                colour,
            )

        if car.livery == "ends":
            yield panel(foot, top, -half, half, shade(car.accent, _END))
        if car.livery == "belt":
            yield panel(top - 30, top - 12, -half, half, shade(car.accent, _END))
        if car.livery == "skirt":
            yield panel(foot, foot + high * 2 // 5, -half, half, shade(car.accent, _END))
        if car.livery == "stripes":
            for lat in (-34, 16):
                yield panel(foot, top, lat, lat + 18, shade(car.accent, _END))
        yield panel(foot, foot + high * 3 // 10, -half, half, shade(car.bumper, _END))
        if sign > 0 and car.grille != "none":
            wide = half * (6 if car.grille == "wide" else 3) // 10
            yield panel(foot + high // 2, top - 6, -wide, wide, (30, 30, 34))
        lamp = car.lamp if sign > 0 else (184, 24, 26)
        for side in (-1, 1):
            inner = {"round": 62, "wide": 42, "tall": 78}[car.lights] * half // 100
            bottom = foot + high * (35 if car.lights == "tall" and sign < 0 else 52) // 100
            if car.lights == "round":
                x, y = solid.at(fwd, side * half * 78 // 100, foot + high * 7 // 10)
                size = max(2, 13 * solid.scale >> 8)
                yield ellipse, x, y, max(2, size * abs(solid.cos) >> 8), size, lamp
            else:
                yield panel(bottom, foot + high * 86 // 100, side * inner, side * half * 96 // 100, lamp)
        yield panel(foot + high // 8, foot + high // 8 + 15, -26, 26, car.plate)
        if sign < 0 and car.spare:
            yield from _sticker(solid, car, (fwd - 4, 0, top - 14), ((0, 30, 0), (0, 0, 30)), (28, 28, 30))
        if sign < 0 and "tail" in car.stickers:
            yield from _sticker(solid, car, (fwd - 2, -half // 2, top - 12), ((0, 16, 0), (0, 0, 14)), car.second)


def _glass(solid: Solid, car: Vehicle, upper: Outline, half: int) -> Faces:
    screens = ((upper[0], upper[1], 1), (upper[3], upper[2], -1))
    for bottom, top, sign in screens:
        nf, nu = abs(top[1] - bottom[1]) * sign, abs(top[0] - bottom[0])
        if solid.shows(nf, 0, nu) <= 0 or (sign < 0 and car.kind in ("van", "truck")):
            continue
        low, high, wide = _along(bottom, top, 10), _along(bottom, top, 88), half * 86 // 100
        yield from _band(solid, low, high, (-wide, wide), car.glass)
        if "screen" in car.stickers:
            low = _along(bottom, top, 66)
            yield from _band(solid, low, high, (-wide, wide) if sign > 0 else (-wide, 0), car.second)


def _roof(solid: Solid, car: Vehicle, upper: Outline, half: int) -> Faces:
    front, rear = upper[1], upper[2]
    top = max(front[1], rear[1]) + 1
    if car.livery == "stripes" and solid.rise > 0:
        for lat in (-34, 16):
            yield from _band(solid, front, rear, (lat, lat + 18), shade(car.accent, _TOP))
    length = front[0] - rear[0]
    if car.rack in ("bars", "ladder"):
        for share in (20, 50, 80) if car.rack == "ladder" else (25, 75):
            fwd = rear[0] + length * share // 100
            bar = shade(car.second, 256) if car.rack == "ladder" else (52, 52, 54)
            yield limb, solid.at(fwd, half - 6, top + 10), solid.at(fwd, 6 - half, top + 10), 2, 2, bar
        for side in (-1, 1):
            bar = car.second if car.rack == "ladder" else (52, 52, 54)
            a, b = (
                solid.at(front[0] - 10, side * (half - 14), top + 10),
                solid.at(rear[0] + 10, side * (half - 14), top + 10),
            )
            yield limb, a, b, 2, 2, bar
    boxes = {
        "box": (30, 78, 40, 32, car.second),
        "sign": (52, 66, 34, 24, car.second),
        "beacon": (70, 82, 12, 22, car.accent),
    }
    if car.rack in boxes:
        start, end, wide, high, colour = boxes[car.rack]
        a, b = rear[0] + length * start // 100, rear[0] + length * end // 100
        yield from _prism(solid, ((b, top), (b - 4, top + high), (a + 4, top + high), (a, top)), wide, colour)


def _bonnet(solid: Solid, car: Vehicle, lower: Outline, upper: Outline, belt: int) -> Faces:
    if car.livery == "stripes":
        tops = [p for p in lower if p[1] > belt - 30]
        for a, b in zip(tops, tops[1:], strict=False):
            if a[0] != b[0] and solid.shows(abs(b[1] - a[1]), 0, abs(a[0] - b[0])) > 0:
                for lat in (-34, 16):
                    yield from _band(solid, a, b, (lat, lat + 18), shade(car.accent, _TOP))
    # Where there is no bonnet to speak of, its sticker is left out.
    if "bonnet" in car.stickers and lower[2][0] - upper[0][0] > 60 and solid.shows(1, 0, 2) > 0:
        fwd, up = _along(lower[2], upper[0], 50)
        yield from _sticker(solid, car, (fwd, 0, up + 2), ((24, 0, -5), (0, 26, 0)), car.second)


def _mirrors(solid: Solid, car: Vehicle, upper: Outline, half: int, belt: int) -> Faces:
    for side in (-1, 1):
        x, y = solid.at(upper[0][0] - 14, side * (half + 12), belt + 14)
        size = max(2, 9 * solid.scale >> 8)
        if solid.cos > 0 or solid.shows(0, side, 0) > 0:
            yield ellipse, x, y, size, size, car.mirrors


def draw_vehicle(
    canvas: np.ndarray, car: Vehicle, view: int, turn: int, elevation: int, box: tuple[int, int, int, int]
) -> None:
    """Paints a vehicle so that it fills the canvas box (x0, y0, x1, y1).

    view: 0..7, see ``VIEWS``; turn: steps of 5 degrees away from it; elevation: of the camera, in steps, at least 1.
    """
    shape = SHAPES[car.kind]
    half, cabin = shape.half, shape.half * 94 // 100
    belt = min(u for _, u in shape.upper)
    lower = tuple((f * car.long // 100, u) for f, u in shape.lower)
    upper = tuple((f * car.long // 100, belt + (u - belt) * car.tall // 100) for f, u in shape.upper)
    cargo = tuple((f * car.long // 100, u) for f, u in shape.cargo)
    rear, front = lower[0][0], lower[1][0]
    solid = Solid(_AZIMUTHS[view] + turn, elevation)
    solid.fit([(lower, half), (((rear, 0), (front, 0)), half), (upper, cabin), (cargo or upper, cabin)], box)

    corners = ((rear, half + 8), (rear, -half - 8), (front, -half - 8), (front, half + 8))
    polygon(canvas, [solid.at(f, lat, 4) for f, lat in corners], (48, 48, 52))
    cab = [
        *_prism(solid, upper, cabin, car.paint, car.roof),
        *_glass(solid, car, upper, cabin),
        *_sides(solid, car, lower, upper, shape),
        *_roof(solid, car, upper, cabin),
    ]
    load = list(_prism(solid, cargo, half, mix(car.accent, (236, 236, 232), 96), car.roof)) if cargo else []
    wheels = list(_wheels(solid, car, shape))
    faces = [
        *(face for near, *face in wheels if not near),
        *_prism(solid, lower, half, car.paint),
        *_bonnet(solid, car, lower, upper, belt),
        *_ends(solid, car, lower, half),
        *(load + cab if solid.cos > 0 else cab + load),  # the farther one first
        *(face for near, *face in wheels if near),
        *_mirrors(solid, car, upper, half, belt),
    ]
    for drawn, *args in faces:
        drawn(canvas, *args)
