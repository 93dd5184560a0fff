"""A camera over a street: draws one frame of the pedestrians that walk through it, and says where they are.

Those who are nearer hide those behind, a pillar hides all, and now and then the camera loses its focus for a moment, so
the images of one crossing are of unequal quality.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from datasets.synthetic.person import Person, Pose, draw_person
from datasets.synthetic.raster import between, chance, generator, pick, rectangle, shade, vary
from datasets.synthetic.scene import SS, Camera, Climate, expose, make_camera, view
from datasets.synthetic.walks import KEY, Visit

HEIGHT, WIDTH = 270, 480
"""Of a frame, in pixels."""
_HORIZON = 40


@dataclass(frozen=True)
class Shown:
    """A pedestrian in a frame. box: left, top, right, bottom in pixels, before it is cut at the frame's edges.

    visible: share of the box that is inside the frame and not behind something, 0 to 1.
    """

    visit: Visit
    box: tuple[int, int, int, int]
    visible: float


@dataclass(frozen=True)
class Street:
    """What a camera sees without people. pillar: left and right edge in pixels of the canvas."""

    camera: Camera
    canvas: np.ndarray
    pillar: tuple[int, int]
    colour: tuple[int, int, int]


@functools.lru_cache(maxsize=8)
def street_of(climate: Climate, camid: int, seed: int) -> Street:
    """Returns the street of a camera, always the same of a climate, a camera and a seed."""
    rng = generator(KEY, "camera", camid, seed)
    camera = replace(make_camera(rng, climate, camid, HEIGHT * SS, WIDTH * SS, _HORIZON), shadow=0)
    canvas = view(rng, camera, HEIGHT * SS, WIDTH * SS)
    left = between(rng, WIDTH * SS // 4, WIDTH * SS * 3 // 4)
    colour = vary(rng, pick(rng, ((62, 64, 66), (168, 166, 160), (104, 84, 58))), 16)
    return Street(camera, canvas, (left, left + between(rng, 24, 48)), colour)


def place_of(visit: Visit, person: Person, frame: int) -> tuple[int, int, int]:
    """Returns x and y of the feet and the height of an average person there, in pixels of the frame."""
    y, scale = HEIGHT * (60 + 36 * visit.lane // 100) // 100, 84 + 58 * visit.lane // 100
    half = scale * person.height // 500
    step = (frame - visit.start) * 256 // max(1, visit.length - 1)
    x = -half + (WIDTH + 2 * half) * step // 256
    return (x if visit.rightwards else WIDTH - x), y, scale


def pose_of(visit: Visit, frame: int, seed: int) -> Pose:
    """Returns the pose of a pedestrian: one way through a whole visit, one gait, and arms as they please."""
    rng = generator(KEY, "pose", visit.pid, visit.number, seed)
    arms = tuple(pick(rng, {"swing": 6, "raised": 1, "pocket": 1}) for _ in range(2))
    phase = (between(rng, 0, 7) + 2 * (frame - visit.start)) % 8
    return Pose(visit.heading % 72, phase, between(rng, 150, 256), (arms[0], arms[1]), between(rng, -14, 14))


def shown_in(visits: Sequence[Visit], people: dict[int, Person], frame: int, pillar: tuple[int, int]) -> list[Shown]:
    """Returns the pedestrians in a frame, the farthest first. pillar: left and right edge in pixels of the canvas."""
    present = [visit for visit in visits if visit.shows(frame)]
    present.sort(key=lambda visit: (visit.lane, visit.pid))
    boxes = []
    for visit in present:
        person = people[visit.pid]
        x, y, scale = place_of(visit, person, frame)
        tall = scale * person.height // 100
        boxes.append((x - tall // 5, y - tall * 101 // 100, x + tall // 5, y + tall * 3 // 100))
    hiding = (pillar[0] // SS, 0, pillar[1] // SS, HEIGHT)
    return [
        Shown(visit, box, visible_share(box, [*boxes[i + 1 :], hiding]))
        for i, (visit, box) in enumerate(zip(present, boxes, strict=True))
    ]


def visible_share(box: tuple[int, int, int, int], nearer: Sequence[tuple[int, int, int, int]]) -> float:
    """Returns the share of a box that is inside the frame and that no nearer box covers."""
    left, top, right, bottom = box
    seen = np.zeros((bottom - top, right - left), bool)
    seen[max(0, -top) : max(0, HEIGHT - top), max(0, -left) : max(0, WIDTH - left)] = True
    for x1, y1, x2, y2 in nearer:
        seen[max(0, y1 - top) : max(0, y2 - top), max(0, x1 - left) : max(0, x2 - left)] = False
    return float(seen.mean())


def draw_frame(
    street: Street, visits: Sequence[Visit], people: dict[int, Person], camid: int, frame: int, seed: int
) -> tuple[np.ndarray, list[Shown]]:
    """Draws a frame, (HEIGHT, WIDTH, 3) uint8, and returns it with the pedestrians in it, the farthest first.

    visits: of this camera. people: by identity. frame: from 0. It depends on these and on no other frame.
    """
    canvas, shown = street.canvas.copy(), shown_in(visits, people, frame, street.pillar)
    for one in shown:
        visit, person = one.visit, people[one.visit.pid]
        x, y, scale = place_of(visit, person, frame)
        draw_person(canvas, person, pose_of(visit, frame, seed), x * SS, y * SS, scale * SS)
    left, right = street.pillar
    rectangle(canvas, left, 0, right, HEIGHT * SS, street.colour)
    rectangle(canvas, left, 0, left + (right - left) // 4, HEIGHT * SS, shade(street.colour, 310))
    unfocused = chance(generator(KEY, "focus", camid, frame // 3, seed), 15)
    camera = replace(street.camera, blur=street.camera.blur + 5) if unfocused else street.camera
    return expose(canvas, camera, generator(KEY, "light", camid, frame, seed)), shown
