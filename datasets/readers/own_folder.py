"""Your own data as folders: ``DATASETS.NAMES: folder`` (``docs/your_data.md``)."""

from __future__ import annotations

import os
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.identifiers import JUNK, canonical
from datasets.readers.scan import existing, image_files, sub_folders, walk_images
from datasets.records import RawRow, RawSplits
from utils.errors import UserError

if TYPE_CHECKING:
    from datasets.catalogue.spec import DatasetSpec

SPLIT_NAMES = {
    "train": ("train", "bounding_box_train", "image_train"),
    "query": ("query", "image_query"),
    "gallery": ("gallery", "bounding_box_test", "image_test"),
    "test": ("test",),
    "val": ("val",),
}
FLAT_NAME = re.compile(r"^(-?\d+)_c\d+")
CAMERA = r"_c(\d+)(?!\d)"


def find_folder(root: str | Path, **options: Any) -> Path:
    """Returns DATASETS.ROOT_DIR, which is the dataset; raises ``UserError`` if it is not a folder."""
    if not Path(root).is_dir():
        raise UserError(f"folder: DATASETS.ROOT_DIR {str(root)!r} is not a folder")
    return Path(root)


def read_folder(
    spec: DatasetSpec, folder: Path, test_share: float = 0.5, seed: int = 0, camera_pattern: str = "", **options: Any
) -> RawSplits:
    """Reads a folder per identity, or flat files ``ID_cCAMERA...``; below split folders, or split here by identity.

    camera_pattern: one group finds the camera in a base name; empty: ``_c(number)`` if every file has it, else there
    are no cameras. ``test`` without ``query`` is searched among itself, with ``query`` it is the gallery. ``val``
    beside ``train`` alone holds images of the same classes, to be classified (as ImageNet's); else it is left out.
    """
    names = sub_folders(folder)
    present = {split: next((n for n in known if n in names), None) for split, known in SPLIT_NAMES.items()}
    if any(present[split] for split in ("train", "query", "gallery", "test")):
        is_tested = any(present[split] for split in ("query", "gallery", "test"))
        rows = {s: rows_below(folder / n) for s, n in present.items() if n and (s != "val" or not is_tested)}
        if "query" in rows and "gallery" not in rows and "test" in rows:
            rows["gallery"] = rows.pop("test")
        has_cameras = set_cameras([row for split_rows in rows.values() for row in split_rows], camera_pattern)
        return from_splits(rows, has_cameras, folder)
    everything = rows_below(folder)
    has_cameras = set_cameras(everything, camera_pattern)
    return drawn_split(everything, test_share, seed, has_cameras, folder)


def rows_below(folder: Path) -> list[RawRow]:
    """Returns a row per image: its identity is the first folder's name, or the number that a flat file begins with."""
    rows = [
        RawRow(f"{folder}/{person}/{os.fsdecode(name)}", identity_of(folder, person))
        for person in sub_folders(folder)
        for name in walk_images(folder / person).tolist()
    ]
    for name in image_files(folder):
        match = FLAT_NAME.match(name)
        if not match:
            raise UserError(
                f"folder: {folder / name}: an image in no identity's folder, and its name does not begin like 0001_c1"
            )
        rows.append(RawRow(f"{folder}/{name}", match[1]))
    rows = [row for row in rows if row.pid != JUNK]
    if not rows:
        raise UserError(f"folder: no images in {folder} (found: {existing(folder)}); expected a folder per identity")
    return sorted(rows, key=lambda row: row.path)


def identity_of(folder: Path, name: str) -> str:
    """Returns the identity that a folder's name spells. Raises ``UserError`` for a missing value, such as ``nan``."""
    try:
        identity = canonical(name)
    except UserError as error:
        raise UserError(f"folder: {folder}: {error}") from None
    if not identity:
        raise UserError(f"folder: {folder / name}: {name!r} is how a missing identity is written; rename the folder")
    return identity


def set_cameras(rows: list[RawRow], pattern: str) -> bool:
    """Sets the camera that every file's name shows and returns whether there are cameras.

    Raises ``UserError`` for a wrong pattern.
    """
    try:
        camera = re.compile(pattern or CAMERA)
    except re.error as error:
        raise UserError(f"DATASETS.CAMERA_PATTERN: {pattern!r} is not a regular expression ({error})") from None
    if camera.groups != 1:
        raise UserError(f"DATASETS.CAMERA_PATTERN: {pattern!r} has {camera.groups} groups, expected one")
    cameras = []
    for row in rows:
        match = camera.search(row.path.rpartition("/")[2])
        if (not match or match[1] is None) and pattern:
            raise UserError(f"DATASETS.CAMERA_PATTERN: {pattern!r} finds no camera in {row.path}")
        if not match:
            return False
        cameras.append(canonical(match[1]) or match[1])
    for row, name in zip(rows, cameras, strict=True):
        row.cam = name
    return True


def from_splits(rows: dict[str, list[RawRow]], has_cameras: bool, folder: Path) -> RawSplits:
    """Returns the splits that the folders give. rows: by split."""
    if "val" in rows:
        classes = {row.pid for row in rows["train"]}
        if strange := sorted({str(row.pid) for row in rows["val"] if row.pid not in classes}):
            raise UserError(f"folder: {folder / 'val'} has classes that train has not, such as {strange[0]!r}")
        return RawSplits(rows["train"], rows["val"], rows["val"], same_list=True, protocol="classification")
    splits = RawSplits(rows.get("train", []), rows.get("query", []), rows.get("gallery", []))
    if not (splits.query or splits.gallery) and "test" in rows:
        return RawSplits(rows.get("train", []), *among_themselves(rows["test"], has_cameras), not has_cameras)
    if bool(splits.query) != bool(splits.gallery):
        present, absent = ("query", "gallery") if splits.query else ("gallery", "query")
        raise UserError(f"folder: {folder} has a {present} folder and none for the {absent}")
    if not has_cameras:
        splits.gallery = [replace(row, cam=1) for row in splits.gallery]
    return splits


def among_themselves(test: list[RawRow], has_cameras: bool) -> tuple[list[RawRow], list[RawRow]]:
    """Returns (query, gallery) for test images that are searched among themselves.

    With cameras, images of a query's identity and camera do not count, itself among them; without, an image is never
    its own match.
    """
    return test, test if has_cameras else [replace(row, cam=1) for row in test]


def drawn_split(rows: list[RawRow], share: float, seed: int, has_cameras: bool, folder: Path) -> RawSplits:
    """Returns splits by a seeded draw of identities: ``share`` of them test, at least one on either side.

    With cameras, one image of each tested identity and camera is a query; all are in the gallery.
    """
    people = sorted({str(row.pid) for row in rows})
    if not 0 <= share < 1:
        raise UserError(f"DATASETS.TEST_SHARE: must be at least 0 and below 1, got {share}")
    if len(people) < 2 and share:
        raise UserError(f"folder: {folder} has one identity only, {people[0]!r}; a test needs others (or TEST_SHARE 0)")
    count = min(max(round(share * len(people)), 1), len(people) - 1) if share else 0
    drawn = set(random.Random(seed).sample(people, count))
    train, test = ([row for row in rows if (row.pid in drawn) is tested] for tested in (False, True))
    if not test:
        return RawSplits(train)
    query, gallery = among_themselves(test, has_cameras)
    if has_cameras:
        first = {id(row) for row in {(row.pid, row.cam): row for row in reversed(test)}.values()}
        query = [row for row in test if id(row) in first]
    return RawSplits(train, query, gallery, same_list=not has_cameras)
