"""Pedestrians of the built-in data: what an identity keeps (``Person``), what an image adds (``Pose``), the drawing.

A body is measured in thousandths of its height, in ``(lat, fwd, up)``: to its own left, ahead, above the ground. It is
turned about the vertical, so that bags, patches and faces show from the sides from which one would see them, and the
parts are painted from the farthest to the nearest.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np

from datasets.synthetic.raster import (
    Cloth,
    Colour,
    Paint,
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

COLOURS: dict[str, Colour] = {
    "black": (34, 34, 38), "charcoal": (66, 66, 72), "grey": (128, 128, 130), "silver": (178, 178, 182),
    "white": (228, 228, 224), "cream": (222, 208, 176), "beige": (188, 164, 126), "brown": (104, 72, 48),
    "navy": (36, 46, 92), "blue": (52, 92, 172), "sky": (128, 172, 214), "denim": (74, 96, 134),
    "red": (178, 40, 44), "maroon": (104, 34, 46), "pink": (222, 148, 164), "orange": (218, 122, 44),
    "yellow": (218, 190, 66), "green": (56, 122, 66), "olive": (96, 98, 56), "teal": (38, 118, 124),
    "purple": (104, 62, 128), "mint": (156, 208, 178), "lilac": (182, 160, 208), "coral": (228, 118, 98),
}  # fmt: skip
SKINS: tuple[Colour, ...] = ((236, 200, 172), (214, 170, 136), (178, 128, 92), (128, 86, 60), (88, 58, 42))
HAIRS: tuple[Colour, ...] = ((30, 24, 24), (60, 42, 30), (104, 72, 42), (182, 146, 84), (140, 138, 136), (128, 56, 32))

# Garments: sleeve is the covered share of the arm (0..2: none, to the elbow, to the wrist); hem is how far the top
# hangs below the hip, in thousandths; loose widens it.
TOPS = {
    "tank": {"sleeve": 0, "hem": 10, "loose": 0},
    "tee": {"sleeve": 1, "hem": 20, "loose": 6},
    "shirt": {"sleeve": 2, "hem": 15, "loose": 0},
    "hoodie": {"sleeve": 2, "hem": 25, "loose": 14, "hood": True},
    "jacket": {"sleeve": 2, "hem": 35, "loose": 14, "open": True},
    "vest": {"sleeve": 2, "hem": 25, "loose": 12, "arms": True},
    "coat": {"sleeve": 2, "hem": 170, "loose": 18, "open": True},
    "long_coat": {"sleeve": 2, "hem": 290, "loose": 24},
    "tunic": {"sleeve": 1, "hem": 120, "loose": 20},
}
# cover: down to where (thousandths of the leg, 1000 = ankle) each leg is clothed; skirt: a cone to there instead.
BOTTOMS = {
    "slim": {"cover": 1000, "wide": 0},
    "trousers": {"cover": 1000, "wide": 10},
    "loose": {"cover": 1000, "wide": 24},
    "shorts": {"cover": 470, "wide": 18},
    "capri": {"cover": 720, "wide": 6},
    "skirt": {"cover": 430, "wide": 30, "skirt": True},
    "long_skirt": {"cover": 860, "wide": 40, "skirt": True},
}
HAIRCUTS = {"bald": 1, "short": 5, "bob": 3, "long": 4, "ponytail": 2, "bun": 2, "curly": 2}
HATS = ("none", "cap", "beanie", "brim")
BAGS = ("none", "backpack", "shoulder", "handbag", "big_pack")
TOP_PATTERNS = {
    "plain": 9, "stripes": 4, "columns": 2, "checks": 3, "grid": 2, "dots": 2, "diagonal": 2, "upper": 3, "lower": 3,
    "band": 3, "halves": 2, "middle": 2,
}  # fmt: skip
LEG_PATTERNS = {"plain": 10, "checks": 1, "columns": 2, "stripes": 1, "middle": 1, "dots": 1}


@dataclass(frozen=True)
class Wardrobe:
    """What a domain wears: colour, garment, hat and bag names with their whole-numbered weights; see the tables."""

    tops: Mapping[str, int]
    bottoms: Mapping[str, int]
    garments: Mapping[str, int]
    legwear: Mapping[str, int]
    hats: Mapping[str, int]
    bags: Mapping[str, int]


@dataclass(frozen=True)
class Person:
    """The lasting traits of an identity. Lengths in thousandths of the height, pitches too, colours RGB."""

    height: int  # percent of the average
    leg: int  # hip above the ground
    shoulder: int  # half widths
    waist: int
    hip: int
    thick: int  # half depth of the trunk
    limb: int  # half width of a thigh
    head: int
    skin: Colour
    hair: Colour
    haircut: str
    top: str
    top_colours: tuple[Colour, Colour]
    top_pattern: str
    top_pitch: int
    inner: Colour
    patch: str  # none, chest, back, both
    patch_colour: Colour
    bottom: str
    bottom_colours: tuple[Colour, Colour]
    bottom_pattern: str
    bottom_pitch: int
    shoes: Colour
    boots: bool
    bag: str
    bag_colour: Colour
    bag_side: int  # 1: on the left, -1: on the right
    hat: str
    hat_colour: Colour
    scarf: bool


@dataclass(frozen=True)
class Pose:
    """What changes from image to image. azimuth: steps of 5 degrees, 0 faces the camera, 18 walks to the right."""

    azimuth: int
    phase: int  # of the gait, 0..7
    stride: int  # 0 stands, 256 walks briskly
    arms: tuple[str, str]  # left and right: swing, raised, pocket
    lean: int  # of the head, thousandths


def make_person(rng: Rng, wardrobe: Wardrobe) -> Person:
    """Draws an identity from a domain's wardrobe."""

    def dye(weights: Mapping[str, int]) -> Colour:
        return vary(rng, COLOURS[pick(rng, weights)], 9)

    def pair(weights: Mapping[str, int]) -> tuple[Colour, Colour]:
        # Two colours that differ visibly in a small picture; otherwise a pattern would not be a trait.
        first = second = dye(weights)
        while sum(abs(a - b) for a, b in zip(first, second, strict=True)) < 150:
            second = vary(rng, COLOURS[pick(rng, {**weights, "white": 3, "black": 2})], 9)
        return first, second

    return Person(
        height=between(rng, 88, 108),
        leg=between(rng, 440, 530),
        shoulder=between(rng, 94, 134),
        waist=between(rng, 76, 128),
        hip=between(rng, 84, 124),
        thick=between(rng, 58, 96),
        limb=between(rng, 34, 52),
        head=between(rng, 60, 72),
        skin=pick(rng, SKINS),
        hair=pick(rng, HAIRS),
        haircut=pick(rng, HAIRCUTS),
        top=pick(rng, wardrobe.garments),
        top_colours=pair(wardrobe.tops),
        top_pattern=pick(rng, TOP_PATTERNS),
        top_pitch=between(rng, 38, 64),
        inner=dye(wardrobe.tops),
        patch=pick(rng, {"none": 6, "chest": 2, "back": 1, "both": 3}),
        patch_colour=dye({**wardrobe.tops, "white": 4, "yellow": 2}),
        bottom=pick(rng, wardrobe.legwear),
        bottom_colours=pair(wardrobe.bottoms),
        bottom_pattern=pick(rng, LEG_PATTERNS),
        bottom_pitch=between(rng, 34, 50),
        shoes=pick(rng, [COLOURS[c] for c in ("black", "white", "brown", "grey", "red")]),
        boots=chance(rng, 25),
        bag=pick(rng, wardrobe.bags),
        bag_colour=dye({**wardrobe.tops, "brown": 2, "black": 2}),
        bag_side=pick(rng, (-1, 1)),
        hat=pick(rng, wardrobe.hats),
        hat_colour=dye(wardrobe.tops),
        scarf=chance(rng, 12),
    )


def make_pose(rng: Rng) -> Pose:
    """Draws a pose: one of eight directions, give or take 15 degrees, and a moment of the gait."""
    return Pose(
        azimuth=(9 * pick(rng, {0: 4, 1: 1, 2: 3, 3: 1, 4: 4, 5: 1, 6: 3, 7: 1}) + between(rng, -3, 3)) % 72,
        phase=between(rng, 0, 7),
        stride=pick(rng, (0, 90, 150, 200, 256)),
        arms=(pick(rng, {"swing": 6, "raised": 1, "pocket": 1}), pick(rng, {"swing": 6, "raised": 1, "pocket": 1})),
        lean=between(rng, -14, 14),
    )


# By gait phase: how far the foot is ahead of the hip, and how high it is off the ground.
_FOOT_AHEAD = (0, 95, 135, 95, 0, -95, -135, -95)
_FOOT_UP = (30, 12, 0, 0, 0, 0, 18, 40)


class Body:
    """A posed person on the canvas: turns body measures into pixels. ``x, y``: where it stands; see ``draw_person``."""

    def __init__(self, person: Person, pose: Pose, x: int, y: int, scale: int) -> None:
        self.person, self.pose = person, pose
        self.x, self.y = x, y
        self.scale = scale * person.height // 100
        self.sin, self.cos = sine(pose.azimuth), cosine(pose.azimuth)

    def px(self, length: int) -> int:
        """Returns a length of the body in pixels, at least one."""
        return max(1, (length * self.scale + 500) // 1000)

    def at(self, lat: int, fwd: int, up: int) -> Point:
        """Returns a point of the body on the canvas."""
        across = (lat * self.cos + fwd * self.sin) * self.scale
        return self.x + across // 256000, self.y - up * self.scale // 1000

    def depth(self, lat: int, fwd: int) -> int:
        """Returns how much nearer to the camera a point is than the body's axis."""
        return (fwd * self.cos - lat * self.sin) >> 8

    def half(self, lat: int, fwd: int) -> int:
        """Returns half the width seen, in thousandths, of something ``lat`` wide and ``fwd`` deep (half widths)."""
        return (lat * abs(self.cos) + fwd * abs(self.sin)) * 15 // (16 * 256) + min(lat, fwd) // 16

    def slab(self, lat: int, fwd: int, levels: tuple[tuple[int, int], ...]) -> list[Point]:
        """Returns an outline round the point (lat, fwd) of a shape with such ``(up, half width)``, from the top."""
        outline = []
        for side, rows in ((-1, levels), (1, levels[::-1])):
            for up, half in rows:
                x, y = self.at(lat, fwd, up)
                outline.append((x + side * self.px(half), y))
        return outline

    def cloth(self, colours: tuple[Colour, Colour], pattern: str, pitch: int, up: int) -> Paint:
        """Returns paint whose pattern is fixed to the body's axis and to the height ``up``."""
        if pattern == "plain":
            return colours[0]
        return Cloth(*colours, pattern, self.px(pitch), (self.x, self.at(0, 0, up)[1]))


# A part yields (depth, shape, arguments of the shape after the canvas); larger depths are painted later.
Parts = Iterator[tuple]


def _legs(body: Body) -> Parts:
    person, pose = body.person, body.pose
    wear = BOTTOMS[person.bottom]
    bare = "skirt" in wear
    cloth = body.cloth(person.bottom_colours, person.bottom_pattern, person.bottom_pitch, person.leg)
    for side in (-1, 1):
        phase = (pose.phase + (4 if side > 0 else 0)) % 8
        ahead = _FOOT_AHEAD[phase] * pose.stride // 256
        lift = _FOOT_UP[phase] * pose.stride // 256
        lat = side * person.hip // 2
        foot = (lat, ahead, 28 + lift)
        knee = (lat, (ahead + max(0, ahead) + lift) // 2, person.leg * 27 // 50)
        hip, ankle = body.at(lat, 0, person.leg), body.at(lat, ahead, 60 + lift)
        # Far legs a little darker, so that crossing legs stay distinct. All legs lie behind the trunk.
        depth = body.depth(lat, ahead) - 2000
        near = 256 if body.depth(lat, 0) >= 0 else 214
        thigh, calf = body.px(person.limb), body.px(person.limb * 3 // 4)
        skin = shade(person.skin, near)
        yield depth, limb, hip, body.at(*knee), thigh, calf, skin
        yield depth, limb, body.at(*knee), ankle, calf, body.px(person.limb // 2), skin
        toe = body.at(lat, ahead + 72, 18 + lift)
        if not bare:
            paint = cloth if isinstance(cloth, Cloth) else shade(cloth, near)
            wide = body.px(person.limb + wear["wide"])
            end = person.leg * (1000 - wear["cover"]) // 1000
            if wear["cover"] >= 700:
                yield depth, limb, hip, body.at(*knee), body.px(person.limb + 6), wide, paint
                rest = min(1000, (wear["cover"] - 460) * 1000 // 540)
                low = tuple(k + (f - k) * rest // 1000 for k, f in zip(knee, (lat, ahead, 55 + lift), strict=True))
                cuff = body.px(person.limb * 5 // 8 + wear["wide"])
                yield depth, limb, body.at(*knee), body.at(*low), wide, cuff, paint
            else:
                low = (lat, knee[1], max(end, knee[2]))
                yield depth, limb, hip, body.at(*low), body.px(person.limb + 8), wide, paint
        shoe = body.px(28)
        if person.boots:
            mid = tuple((k + f) // 2 for k, f in zip(knee, foot, strict=True))
            yield depth + 1, limb, body.at(*mid), ankle, calf, body.px(person.limb * 5 // 8), person.shoes
        yield depth + 1, limb, body.at(*foot), toe, shoe, body.px(24), person.shoes
    if bare:
        low = person.leg * (1000 - wear["cover"]) // 1000
        hip, hem = body.half(person.hip + 6, person.thick), body.half(person.hip + wear["wide"], person.thick + 50)
        yield -500, polygon, body.slab(0, 0, ((person.leg + 40, hip), (low, hem))), cloth
    else:
        hips = body.half(person.hip, person.thick)
        yield -500, polygon, body.slab(0, 0, ((person.leg + 50, hips), (person.leg - 25, hips))), cloth


def _trunk(body: Body) -> Parts:
    person = body.person
    wear = TOPS[person.top]
    loose, hem = wear["loose"], person.leg - wear["hem"]
    cloth = body.cloth(person.top_colours, person.top_pattern, person.top_pitch, 830)
    shoulder = body.half(person.shoulder + loose // 2, person.thick + loose)
    waist = body.half(person.waist + loose, person.thick * 7 // 8 + loose)
    hip = body.half(person.hip + loose, person.thick + loose)
    middle = person.leg + 130
    yield -3, polygon, body.slab(0, 0, ((890, 34), (800, 40))), person.skin
    chest = ((842, shoulder * 5 // 9), (806, shoulder), (middle, waist))
    yield 0, polygon, body.slab(0, 0, chest), cloth
    yield 0, polygon, body.slab(0, 0, ((middle, waist), (hem, hip + wear["hem"] // 12))), cloth
    if body.cos > 60 and "open" in wear:
        strip = ((835, 26), (hem, 12 + wear["hem"] // 16))
        yield 1, polygon, body.slab(0, person.thick * 3 // 4, strip), person.inner
    for where, side in (("chest", 1), ("back", -1)):
        if person.patch in (where, "both") and side * body.cos > 80:
            lat, size = (0, 50) if where == "back" else (34, 32)
            x, y = body.at(lat, side * person.thick, 730)
            yield 2, ellipse, x, y, max(1, body.px(size) * abs(body.cos) >> 8), body.px(size), person.patch_colour
    if "hood" in wear:
        wide = body.half(person.shoulder * 5 // 9, 50)
        levels = ((872, wide * 3 // 4), (835, wide), (796, wide // 2))
        fwd = -person.thick * 3 // 4
        yield body.depth(0, 4 * fwd) // 64, polygon, body.slab(0, fwd, levels), shade(person.top_colours[0], 200)
    if person.scarf:
        wide = body.half(66, 60)
        yield 3, polygon, body.slab(0, 0, ((862, wide), (812, wide))), person.hat_colour


def _arms(body: Body) -> Parts:
    person, pose = body.person, body.pose
    wear = TOPS[person.top]
    colours = (person.inner, person.inner) if "arms" in wear else person.top_colours
    pattern = person.top_pattern if person.top_pattern in ("stripes", "checks", "grid", "dots", "upper") else "plain"
    cloth = body.cloth(colours, "plain" if "arms" in wear else pattern, person.top_pitch, 830)
    for side, way in zip((1, -1), pose.arms, strict=True):
        phase = (pose.phase + (0 if side > 0 else 4)) % 8
        swing = _FOOT_AHEAD[phase] * pose.stride // 320
        lat = side * (person.shoulder - 6)
        shoulder = (lat, 0, 800)
        elbow, hand = {
            "swing": ((lat + side * 22, swing // 2 - 10, 640), (lat + side * 18, swing + 22, 472)),
            "raised": ((lat + side * 16, 40, 640), (lat - side * 30, 130, 770)),
            "pocket": ((lat + side * 46, -30, 645), (lat + side * 6, 30, 520)),
        }[way]
        near = body.depth(lat, 0)
        depth = near + body.depth(0, swing) // 4
        dark = 256 if near >= 0 else 206
        thick, wrist = body.px(34 + wear["loose"] // 2), body.px(25 + wear["loose"] // 3)
        paint = cloth if isinstance(cloth, Cloth) else shade(cloth, dark)
        skin = shade(person.skin, dark)
        points = [body.at(*p) for p in (shoulder, elbow, hand)]
        # A seam of shade round the arm parts it from a trunk of the same colour.
        seam, edge = shade(colours[0] if wear["sleeve"] else person.skin, 150), body.px(9)
        yield depth, limb, points[0], points[1], thick + edge, wrist + edge, seam
        yield depth, limb, points[1], points[2], wrist + edge, body.px(20) + edge, seam
        yield depth, limb, points[1], points[2], body.px(26), body.px(20), skin
        yield depth, ellipse, *points[2], body.px(26), body.px(28), skin
        yield depth, limb, points[0], points[1], body.px(32), body.px(26), skin
        if wear["sleeve"] == 2:
            cuff = body.at(*((e + 7 * h) // 8 for e, h in zip(elbow, hand, strict=True)))
            yield depth, limb, points[1], cuff, wrist, wrist, paint
        if wear["sleeve"]:
            end = (
                elbow if wear["sleeve"] == 2 else tuple((s + 2 * e) // 3 for s, e in zip(shoulder, elbow, strict=True))
            )
            yield depth, limb, points[0], body.at(*end), thick, wrist if wear["sleeve"] == 2 else thick, paint
        if person.bag == "handbag" and side == person.bag_side:
            drop = (hand[0], hand[1], hand[2] - 84)
            wide = body.half(24, 78)
            levels = ((drop[2] + 44, wide * 3 // 4), (drop[2] - 46, wide))
            yield depth - 1, polygon, body.slab(drop[0], drop[1], levels), person.bag_colour


def _head(body: Body) -> Parts:
    person, pose = body.person, body.pose
    size = person.head
    middle = 1000 - size - 12
    x, y = body.at(0, pose.lean, middle)
    wide, high = body.px(size * 7 // 8), body.px(size * 9 // 8)
    turn = body.sin * body.px(size // 3) // 256
    facing = body.cos
    # The skull in hair, then the face set forward: from behind it is out of sight, in profile half of it shows.
    crown = person.skin if person.haircut == "bald" else person.hair
    grow = {"curly": 18, "bob": 8, "long": 6}.get(person.haircut, 2)
    yield 10, ellipse, x, y - body.px(6), wide + body.px(grow), high + body.px(grow // 2), crown
    if person.haircut in ("long", "bob"):
        end = middle - (size + (130 if person.haircut == "long" else 30))
        strands = ((middle + 10, size + grow - 8), (end, size * 7 // 8 + grow))
        yield (-2 if facing > 90 else 11), polygon, body.slab(0, -size // 3, strands), person.hair
    if facing > -110:
        shift = body.px(size // 3) * (1 if facing > 0 else 2)
        yield (
            12,
            ellipse,
            x + turn * shift // body.px(size // 3),
            y + body.px(12),
            wide * 7 // 8,
            high * 7 // 8,
            person.skin,
        )
        fringe = body.px(size // 2)
        if person.haircut != "bald":
            yield 13, ellipse, x - turn // 2, y - high + fringe // 2, wide, fringe, person.hair
    if facing > 120:
        for eye in (-1, 1):
            yield 14, ellipse, x + turn + eye * wide // 3, y + body.px(4), body.px(7), body.px(7), (40, 32, 32)
        yield 14, ellipse, x + turn, y + body.px(44), body.px(16), body.px(5), shade(person.skin, 180)
    if person.haircut == "ponytail":
        top, tip = body.at(0, -size - 14, middle + 12), body.at(0, -size - 34, middle - 130)
        yield (-4 if facing > 90 else 15), limb, top, tip, body.px(20), body.px(12), person.hair
    if person.haircut == "bun":
        px, py = body.at(0, -size * 3 // 4, middle + size)
        yield (9 if facing > 90 else 15), ellipse, px, py, body.px(30), body.px(28), person.hair
    if person.hat != "none":
        cap = body.px(size * 5 // 8)
        yield 16, ellipse, x, y - high // 2, wide + body.px(8), cap, person.hat_colour
        if person.hat == "cap" and facing > -110:
            reach = body.at(0, size + 50, 0)[0] - body.x
            yield 17, limb, (x, y - high // 3), (x + reach, y - high // 3), body.px(12), body.px(9), person.hat_colour
        if person.hat == "brim":
            yield 17, ellipse, x, y - high // 3, wide * 7 // 4, body.px(16), person.hat_colour


def _bags(body: Body) -> Parts:
    person = body.person
    colour, dark = person.bag_colour, shade(person.bag_colour, 190)
    if person.bag in ("backpack", "big_pack"):
        large = person.bag == "big_pack"
        lat, deep, high = (104, 64, 165) if large else (84, 46, 122)
        fwd = -person.thick - deep * 3 // 4
        wide, up = body.half(lat, deep), 700 + (20 if large else 0)
        depth = body.depth(0, fwd)
        yield depth, polygon, body.slab(0, fwd, ((up + high, wide * 4 // 5), (up, wide), (up - high, wide))), colour
        pocket = ((up - high // 4, wide * 3 // 4), (up - high * 4 // 5, wide * 3 // 4))
        yield depth, polygon, body.slab(0, fwd - deep // 2, pocket), dark
        if body.cos > -60:
            for lat in (-68, 68):
                top, low = body.at(lat, person.thick // 2, 830), body.at(lat * 5 // 4, person.thick * 3 // 4, 640)
                yield 4 + body.depth(lat, person.thick) // 8, limb, top, low, body.px(15), body.px(12), colour
    if person.bag == "shoulder":
        lat = person.bag_side * (person.hip + 40)
        front = 1 if body.cos >= 0 else -1
        top = body.at(-person.bag_side * person.shoulder * 3 // 5, front * person.thick // 2, 838)
        yield 5, limb, top, body.at(lat, front * 20, 545), body.px(13), body.px(13), dark
        wide = body.half(40, 92)
        yield body.depth(lat, 0) * 2, polygon, body.slab(lat, 0, ((560, wide * 5 // 6), (425, wide))), colour


_PARTS = (_legs, _trunk, _arms, _head, _bags)


def draw_person(canvas: np.ndarray, person: Person, pose: Pose, x: int, y: int, scale: int) -> None:
    """Paints a person standing at ``(x, y)``; scale: pixels of an average height. The canvas is changed in place."""
    body = Body(person, pose, x, y, scale)
    ellipse(canvas, x, y, body.px(190), body.px(26), mix((40, 40, 44), (70, 70, 72), 128))
    parts = [part for make in _PARTS for part in make(body)]
    for _, shape, *args in sorted(parts, key=lambda part: part[0]):
        shape(canvas, *args)
