"""Built-in data: pedestrians and vehicles drawn by program, for trying everything out right after installing.

Five sets, all in the layout of Market-1501 (``bounding_box_train``, ``query``, ``bounding_box_test``):

=====================  ================================================================================================
``synthetic``          pedestrians, 128x64 (height x width), in streets and parks
``synthetic_b``        pedestrians of another domain: winter clothes, stations and corridors, dim tinted light
``synthetic_c``        pedestrians of a third one: summer clothes, beaches and lawns, hard light and shadows
``synthetic_occluded`` the pictures of ``synthetic`` with things in the way: in every query, in a quarter of the rest
``synthetic_vehicle``  vehicles, 96x96, seen from eight sides
=====================  ================================================================================================

A file is called ``0001_c1s1_000451_00.jpg``: identity (from 1), camera (from 1), sequence (always 1), number of the
image of this identity under this camera (from 0), box. A vehicle's name ends in its view, as in
``0001_c1s1_000451_00_v3.jpg``: 0 front, 1 rear, 2 left, 3 left front, 4 left rear, 5 right, 6 right front, 7 right
rear, numbered as in VeRi-776. ``PATTERN`` reads both kinds of name.

Pixels depend on (domain, identity, camera, number, seed, camera gap) alone, not on how many others there are, and are
the same on every machine; only the JPEG encoder may differ.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from multiprocessing import get_context
from pathlib import Path

import numpy as np
from PIL import Image

from datasets.synthetic.person import Person, Wardrobe, draw_person, make_person, make_pose
from datasets.synthetic.raster import Rng, between, chance, generator, pick
from datasets.synthetic.scene import OCCLUDERS, SS, Camera, Climate, between_cameras, expose, make_camera, view
from datasets.synthetic.vehicle import VIEWS, Vehicle, draw_vehicle, make_vehicle
from datasets.synthetic.whole_folder import made_whole
from utils.errors import UserError, nearest

FORMAT_VERSION = 1  # raise it when any pixel or file name changes: data written before is then left alone
PATTERN = r"^(?P<pid>\d+)_c(?P<cam>\d+)s1_\d+_00(?:_v(?P<view>\d))?\.jpg$"
FOLDERS = ("bounding_box_train", "query", "bounding_box_test")


@dataclass(frozen=True)
class Domain:
    """What a set is drawn from. height, width: of an image. wardrobe: None for vehicles. key: seeds the generators."""

    key: str
    height: int
    width: int
    horizon: int  # percent of the picture above the ground
    climate: Climate
    wardrobe: Wardrobe | None = None
    occluded: bool = False


_TOWN = Domain(
    "synthetic", 128, 64, 62,
    Climate(
        places=(("facade", "pavement"), ("hedge", "lawn"), ("bricks", "asphalt"), ("shop", "pavement"),
                ("traffic", "zebra"), ("fence", "gravel")),
        casts=((256, 250, 236), (214, 236, 288), (286, 250, 208), (232, 268, 226)),
        gain=(196, 300), contrast=(200, 300), saturation=(130, 280), shadow=25, noise=(4, 16), quality=(62, 92),
        zoom=(88, 104),
    ),
    Wardrobe(
        tops={"black": 5, "grey": 4, "white": 4, "navy": 3, "red": 2, "blue": 2, "green": 1, "beige": 1},
        bottoms={"black": 4, "denim": 5, "navy": 2, "grey": 2, "beige": 1},
        garments={"tee": 4, "shirt": 3, "hoodie": 3, "jacket": 3, "vest": 1, "coat": 1, "tunic": 2, "tank": 1},
        legwear={"slim": 3, "trousers": 4, "loose": 2, "shorts": 2, "capri": 1, "skirt": 2, "long_skirt": 1},
        hats={"none": 7, "cap": 2, "beanie": 1, "brim": 1},
        bags={"none": 4, "backpack": 3, "shoulder": 3, "handbag": 2, "big_pack": 1},
    ),
)  # fmt: skip
_STATION = Domain(
    "synthetic_b", 128, 64, 56,
    Climate(
        places=(("tiled", "dark_floor"), ("corridor", "floor"), ("facade", "snow"), ("shop", "dark_floor"),
                ("bricks", "snow"), ("tiled", "planks")),
        casts=((296, 240, 160), (190, 262, 246), (226, 214, 300), (262, 282, 190)),
        gain=(168, 248), contrast=(190, 260), saturation=(110, 220), shadow=8, noise=(8, 18), quality=(48, 80),
        zoom=(78, 92),
    ),
    Wardrobe(
        tops={"black": 6, "charcoal": 3, "maroon": 3, "olive": 3, "brown": 2, "teal": 2, "purple": 2, "cream": 2},
        bottoms={"black": 5, "charcoal": 4, "brown": 2, "olive": 1, "navy": 2},
        garments={"coat": 4, "long_coat": 4, "jacket": 3, "vest": 3, "hoodie": 2, "shirt": 1},
        legwear={"slim": 4, "trousers": 4, "loose": 3, "long_skirt": 2, "skirt": 1},
        hats={"none": 4, "beanie": 4, "cap": 1, "brim": 2},
        bags={"none": 3, "backpack": 2, "shoulder": 2, "handbag": 3, "big_pack": 3},
    ),
)  # fmt: skip
_SEASIDE = Domain(
    "synthetic_c", 128, 64, 48,
    Climate(
        places=(("sea", "sand"), ("hedge", "lawn"), ("sea", "planks"), ("shop", "zebra"), ("fence", "lawn"),
                ("hedge", "sand")),
        casts=((300, 262, 206), (236, 262, 280), (262, 232, 252), (280, 288, 232)),
        gain=(190, 260), contrast=(220, 310), saturation=(210, 340), shadow=70, noise=(2, 9), quality=(70, 95),
        zoom=(98, 120),
    ),
    Wardrobe(
        tops={"white": 5, "yellow": 3, "coral": 3, "sky": 3, "mint": 2, "pink": 3, "lilac": 2, "orange": 2},
        bottoms={"white": 3, "beige": 4, "sky": 3, "denim": 3, "pink": 1, "mint": 1},
        garments={"tank": 5, "tee": 5, "tunic": 3, "shirt": 1},
        legwear={"shorts": 5, "skirt": 4, "capri": 3, "long_skirt": 2, "slim": 1},
        hats={"none": 4, "brim": 4, "cap": 3},
        bags={"none": 4, "shoulder": 4, "handbag": 3, "backpack": 2},
    ),
)  # fmt: skip
_ROADS = Domain(
    "synthetic_vehicle", 96, 96, 46,
    Climate(
        places=(("facade", "asphalt"), ("hedge", "asphalt"), ("fence", "gravel"), ("bricks", "zebra"),
                ("shop", "asphalt"), ("hedge", "gravel")),
        casts=((256, 252, 244), (230, 242, 274), (274, 250, 224), (242, 262, 238)),
        gain=(216, 296), contrast=(220, 300), saturation=(190, 290), shadow=20, noise=(3, 12), quality=(62, 92),
        zoom=(98, 108),
    ),
)  # fmt: skip
_DOMAINS = {
    "synthetic": _TOWN,
    "synthetic_b": _STATION,
    "synthetic_c": _SEASIDE,
    "synthetic_occluded": replace(_TOWN, occluded=True),
    "synthetic_vehicle": _ROADS,
}
NAMES = tuple(_DOMAINS)


def domain_of(name: str) -> Domain:
    """Returns what a set is drawn from. Raises ``UserError`` for an unknown name."""
    if name not in _DOMAINS:
        hint = nearest(name, NAMES)
        raise UserError(f"DATASETS.NAMES: unknown built-in dataset {name!r}{hint} Known: {', '.join(NAMES)}")
    return _DOMAINS[name]


# Caches of pure functions: a camera's place and an identity's traits are asked for once an image.
@functools.lru_cache(maxsize=64)
def _camera(name: str, camid: int, seed: int, gap: int) -> Camera:
    domain = domain_of(name)
    rng = generator(domain.key, "camera", camid, seed)
    camera = make_camera(rng, domain.climate, camid, domain.height * SS, domain.width * SS, domain.horizon)
    return camera if gap == 100 or camid == 0 else between_cameras(_camera(name, 0, seed, 100), camera, gap)


@functools.lru_cache(maxsize=256)
def identity_of(name: str, pid: int, seed: int) -> Person | Vehicle:
    """Returns the lasting traits of an identity of a set."""
    domain = domain_of(name)
    rng = generator(domain.key, "identity", pid, seed)
    return make_person(rng, domain.wardrobe) if domain.wardrobe else make_vehicle(rng)


def _passer_by(name: str, rng: Rng, seed: int) -> Person:
    """Draws a pedestrian who has no identity."""
    person = identity_of(name, -between(rng, 1, 200), seed)
    assert isinstance(person, Person)  # only sets of pedestrians have passers-by
    return person


def view_of(name: str, pid: int, camid: int, index: int, seed: int = 0) -> int:
    """Returns the view 0..7 from which a vehicle is seen in an image (``VIEWS`` names them); 0 for pedestrians."""
    if domain_of(name).wardrobe:
        return 0
    return between(generator(name, "view", pid, camid, index, seed), 0, len(VIEWS) - 1)


def draw_image(name: str, pid: int, camid: int, index: int, seed: int = 0, gap: int = 100) -> np.ndarray:
    """Draws one image of a set; the pixels are the same on every machine and do not depend on any other image.

    name: one of ``NAMES``. pid, camid: from 1. index: of the image of this identity under this camera, from 0; in
    ``synthetic_occluded`` number 0 is always covered, the others one time in four. gap: percent of the difference
    between cameras that is left; at 0 all see one place in one light.
    Returns (H, W, 3) uint8, before compression: 128x64 for pedestrians, 96x96 for vehicles.
    Raises UserError for an unknown name.
    """
    domain = domain_of(name)
    height, width = domain.height * SS, domain.width * SS
    camera, identity = _camera(name, camid, seed, gap), identity_of(name, pid, seed)
    rng = generator(domain.key, "image", pid, camid, index, seed)
    canvas = view(rng, camera, height, width)
    if isinstance(identity, Person):
        _walk(canvas, rng, name, camera, identity, seed)
    else:
        margin = width * (104 - camera.zoom) // 100 + between(rng, -10, 10)
        dx, dy = between(rng, -10, 10), between(rng, -8, 8)
        box = (margin + dx, margin + dy, width - margin + dx, height - margin + dy)
        side = view_of(name, pid, camid, index, seed)
        draw_vehicle(canvas, identity, side, between(rng, -2, 2), between(rng, 3, 5), box)
    if domain.occluded:
        # A generator of its own: what is behind the obstacle is the picture of the plain set.
        hiding = generator(domain.key, "occluder", pid, camid, index, seed)
        if index == 0 or chance(hiding, 25):
            _hide(canvas, hiding, name, seed)
    return expose(canvas, camera, rng)


def _walk(canvas: np.ndarray, rng: Rng, name: str, camera: Camera, person: Person, seed: int) -> None:
    """Puts a pedestrian, and at times another one behind, on the canvas as a jittery detector would crop it."""
    height, width = canvas.shape[:2]
    if chance(rng, 20):
        other = _passer_by(name, rng, seed)
        x = between(rng, -10, width // 4) if chance(rng, 50) else between(rng, width * 3 // 4, width + 10)
        y, scale = height * between(rng, 80, 92) // 100, height * between(rng, 50, 70) // 100
        draw_person(canvas, other, make_pose(rng), x, y, scale)
    scale = height * camera.zoom * between(rng, 84, 100) // 10000
    x, y = width // 2 + between(rng, -14, 14), (height + scale) // 2 + between(rng, -6, 10)
    if chance(rng, 15):  # a bad crop: one side, the feet or the head cut off
        side = pick(rng, ("left", "right", "feet", "head"))
        x += {"left": -24, "right": 24}.get(side, 0)
        y += {"feet": scale // 5, "head": -scale // 10}.get(side, 0)
    draw_person(canvas, person, make_pose(rng), x, y, scale)


def _hide(canvas: np.ndarray, rng: Rng, name: str, seed: int) -> None:
    """Puts something in front: an obstacle or another person."""
    height, width = canvas.shape[:2]
    if chance(rng, 25):
        other = _passer_by(name, rng, seed)
        x = width // 2 + pick(rng, (-1, 1)) * between(rng, 40, 56)
        y, scale = height + between(rng, 10, 40), height * between(rng, 95, 112) // 100
        draw_person(canvas, other, make_pose(rng), x, y, scale)
        return
    pick(rng, OCCLUDERS)(canvas, rng)


def checked(key: str, value: object, least: int) -> int:
    """Returns a size. Raises ``UserError`` that names its key if it is no whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise UserError(f"DATASETS.SYNTHETIC.{key}: must be a whole number of at least {least}, got {value!r}")
    return value


def _file_name(name: str, pid: int, camid: int, index: int, seed: int) -> str:
    stem = f"{pid:04d}_c{camid}s1_{index:06d}_00"
    return f"{stem}.jpg" if domain_of(name).wardrobe else f"{stem}_v{view_of(name, pid, camid, index, seed)}.jpg"


def _write_identity(
    name: str, folder: Path, train: int, cameras: int, images: int, seed: int, gap: int, pid: int
) -> None:
    for camid in range(1, cameras + 1):
        quality = _camera(name, camid, seed, gap).quality
        for index in range(images):
            split = FOLDERS[0] if pid <= train else FOLDERS[1] if index == 0 else FOLDERS[2]
            image = Image.fromarray(draw_image(name, pid, camid, index, seed, gap))
            image.save(folder / split / _file_name(name, pid, camid, index, seed), quality=quality)


def ensure_synthetic(
    name: str,
    root: str | Path,
    ids: int = 64,
    cameras: int = 4,
    images: int = 4,
    seed: int = 0,
    workers: int = 1,
    gap: int = 100,
) -> Path:
    """Returns the folder of a built-in set below ``root``, writing it first if it is not there.

    name: one of ``NAMES``. ids: identities in all (at least 4): numbers 1..ids//2 train, the others test.
    cameras: at least 2. images: of each identity under each camera, at least 2; of a test identity the first is the
    query, the others the gallery, so that every query has ``(cameras - 1) * (images - 1)`` valid matches.
    seed: from 0. workers: processes that draw. gap: 0..100, percent of the difference between cameras that is left.

    The folder is ``<root>/<name>_<hash8>``; the hash is of everything that changes the files. It appears whole or not
    at all: it is written beside its place and then renamed, so several processes may ask for it at once. A process
    that is killed outright leaves a hidden folder ``.<name>_<hash8>.*`` behind, which nothing reads.
    Raises UserError for wrong sizes, an unknown name or a root that cannot be written.
    """
    domain_of(name)
    ids, cameras, images = checked("IDS", ids, 4), checked("CAMERAS", cameras, 2), checked("IMAGES", images, 2)
    seed, workers, gap = checked("SEED", seed, 0), checked("WORKERS", workers, 1), checked("CAMERA_GAP", gap, 0)
    if gap > 100:
        raise UserError(f"DATASETS.SYNTHETIC.CAMERA_GAP: must be a percentage of at most 100, got {gap}")
    contents = (name, ids, cameras, images, seed, FORMAT_VERSION, *([gap] if gap != 100 else []))
    tag = hashlib.sha256(repr(contents).encode()).hexdigest()[:8]

    def make(draft: Path) -> None:
        for split in FOLDERS:
            (draft / split).mkdir(parents=True)
        job = functools.partial(_write_identity, name, draft, ids // 2, cameras, images, seed, gap)
        if workers == 1:
            for pid in range(1, ids + 1):
                job(pid)
        else:
            # Fresh processes: forking one that has threads (a training run has) can hang.
            with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
                list(pool.map(job, range(1, ids + 1), chunksize=4))

    return made_whole(name, Path(root) / f"{name}_{tag}", make)


def _rows(name: str, ids: int, cameras: int, images: int, seed: int, gap: int) -> Iterator[np.ndarray]:
    for pid in range(1, ids + 1):
        shots = [draw_image(name, pid, c, i, seed, gap) for c in range(1, cameras + 1) for i in range(images)]
        yield np.concatenate([np.pad(shot, ((1, 1), (1, 1), (0, 0)), constant_values=255) for shot in shots], axis=1)


def contact_sheet(
    name: str,
    path: str | Path,
    ids: int = 8,
    cameras: int = 4,
    images: int = 3,
    seed: int = 0,
    colours: int | None = 160,
    gap: int = 100,
) -> Path:
    """Writes a picture of a set: a row for each identity 1..ids, in it ``images`` of each camera in turn.

    path: where to, the ending says the format. colours: size of the palette, which keeps a PNG small; None: all.
    gap: as of ``draw_image``. Returns the path. Raises UserError for an unknown name.
    """
    sheet = Image.fromarray(np.concatenate(list(_rows(name, ids, cameras, images, seed, gap))))
    if colours:
        sheet = sheet.quantize(colours, dither=Image.Dither.NONE)
    sheet.save(path)
    return Path(path)
