"""Your own data as folders: ``DATASETS.NAMES: folder`` (``docs/your_data.md``)."""

from __future__ import annotations

import os
import random
import re
from dataclasses import replace
from pathlib import Path

from datasets.readers.scan import existing, image_files, sub_folders, walk_images
from datasets.records import RawRow, RawSplits
from utils.errors import UserError

SPLIT_NAMES = {
    "train": ("train", "bounding_box_train", "image_train"),
    "query": ("query", "image_query"),
    "gallery": ("gallery", "bounding_box_test", "image_test"),
    "test": ("test",),
    "val": ("val",),
}
FLAT_NAME = re.compile(r"^(-?\d+)_c\d+")
CAMERA = r"_c(\d+)(?!\d)"


def find_folder(root: Path, **options) -> Path:
    """DATASETS.ROOT_DIR is the dataset."""
    if not Path(root).is_dir():
        raise UserError(f"folder: DATASETS.ROOT_DIR {str(root)!r} is no folder")
    return Path(root)


def read_folder(
    spec, folder: Path, test_share: float = 0.5, seed: int = 0, camera_pattern: str = "", **options
) -> RawSplits:
    """A folder per identity, or flat files ``ID_cCAMERA...``; below split folders, or split here by identity.

    camera_pattern: one group finds the camera in a base name; empty: ``_c(number)`` if every file has it, else there
    are no cameras. ``test`` without ``query`` is searched among itself, with ``query`` it is the gallery. ``val``
    beside ``train`` alone holds images of the same classes, to be classified (as ImageNet's); else it is left aside.
    """
    names = sub_folders(folder)
    places = {split: next((n for n in known if n in names), None) for split, known in SPLIT_NAMES.items()}
    if any(places[split] for split in ("train", "query", "gallery", "test")):
        tested = any(places[split] for split in ("query", "gallery", "test"))
        rows = {s: rows_below(folder / name) for s, name in places.items() if name and (s != "val" or not tested)}
        if "query" in rows and "gallery" not in rows and "test" in rows:
            rows["gallery"] = rows.pop("test")
        known = set_cameras([row for part in rows.values() for row in part], camera_pattern)
        return from_splits(rows, known, folder)
    everything = rows_below(folder)
    known = set_cameras(everything, camera_pattern)
    return drawn_split(everything, test_share, seed, known, folder)


def rows_below(place: Path) -> list[RawRow]:
    """Identity is the first folder's name, or the number at the start of a file that lies in no folder."""
    people = sub_folders(place)
    found = [
        RawRow(f"{place}/{person}/{os.fsdecode(name)}", person)
        for person in people
        for name in walk_images(place / person).tolist()
    ]
    for name in image_files(place):
        match = FLAT_NAME.match(name)
        if not match:
            raise UserError(
                f"folder: {place / name}: an image in no identity's folder, and its name does not begin like 0001_c1"
            )
        found.append(RawRow(f"{place}/{name}", match[1]))
    found = [row for row in found if row.pid != "-1"]
    if not found:
        raise UserError(f"folder: no images in {place} (found: {existing(place)}); expected a folder per identity")
    return sorted(found, key=lambda row: row.path)


def set_cameras(rows: list[RawRow], pattern: str) -> bool:
    """Finds the camera in every file's name; whether there are cameras. Raises ``UserError`` for a wrong pattern."""
    try:
        wanted = re.compile(pattern or CAMERA)
    except re.error as error:
        raise UserError(f"DATASETS.CAMERA_PATTERN: {pattern!r} is no regular expression ({error})") from None
    if wanted.groups != 1:
        raise UserError(f"DATASETS.CAMERA_PATTERN: {pattern!r} has {wanted.groups} groups, expected one")
    cameras = []
    for row in rows:
        match = wanted.search(row.path.rpartition("/")[2])
        if (not match or match[1] is None) and pattern:
            raise UserError(f"DATASETS.CAMERA_PATTERN: {pattern!r} finds no camera in {row.path}")
        if not match:
            return False
        cameras.append(match[1])
    for row, camera in zip(rows, cameras, strict=True):
        row.cam = camera
    return True


def from_splits(rows: dict[str, list[RawRow]], cameras: bool, folder: Path) -> RawSplits:
    if "val" in rows:
        known = {row.pid for row in rows["train"]}
        if strange := sorted({row.pid for row in rows["val"]} - known):
            raise UserError(f"folder: {folder / 'val'} has classes that train has not, such as {strange[0]!r}")
        return RawSplits(rows["train"], rows["val"], rows["val"], same_list=True, protocol="classification")
    found = RawSplits(rows.get("train", []), rows.get("query", []), rows.get("gallery", []))
    if not (found.query or found.gallery) and "test" in rows:
        return tested_alone(found.train, rows["test"], cameras)
    if bool(found.query) != bool(found.gallery):
        there, absent = ("query", "gallery") if found.query else ("gallery", "query")
        raise UserError(f"folder: {folder} has a {there} folder and none for the {absent}")
    if not cameras:
        found.gallery = [replace(row, cam=1) for row in found.gallery]
    return found


def tested_alone(train: list[RawRow], test: list[RawRow], cameras: bool) -> RawSplits:
    """The test images searched among themselves, by the cameras' rule where there are cameras.

    With cameras, one image of each identity and camera is a query and every image is in the gallery: those of the
    query's own camera, itself among them, do not count.
    """
    if not cameras:
        return RawSplits(train, test, [replace(row, cam=1) for row in test], same_list=True)
    first = {(row.pid, row.cam): row for row in reversed(test)}
    chosen = {id(row) for row in first.values()}
    return RawSplits(train, [row for row in test if id(row) in chosen], test)


def drawn_split(rows: list[RawRow], share: float, seed: int, cameras: bool, folder: Path) -> RawSplits:
    """Identities split by a seeded draw; ``share`` of them test, at least one on either side."""
    people = sorted({row.pid for row in rows})
    if not 0 <= share < 1:
        raise UserError(f"DATASETS.TEST_SHARE: {share} is no share of the identities below 1")
    if len(people) < 2 and share:
        raise UserError(f"folder: {folder} has one identity only, {people[0]!r}; a test needs others (or TEST_SHARE 0)")
    count = min(max(round(share * len(people)), 1), len(people) - 1) if share else 0
    held = set(random.Random(seed).sample(people, count))
    train, test = ([row for row in rows if (row.pid in held) is tested] for tested in (False, True))
    return tested_alone(train, test, cameras) if test else RawSplits(train)
