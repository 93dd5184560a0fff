"""How the published layouts are read: folders of images whose names say who and where, and list files."""

from __future__ import annotations

import logging
import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

from datasets.records import RawSplits, Row, relative_order
from utils.errors import UserError

log = logging.getLogger("lineup")

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".webp")
SPLITS = ("train", "query", "gallery")


def image_files(folder: Path) -> Iterator[str]:
    """Names of the image files in a folder, sorted; hidden files and other types are passed over."""
    with os.scandir(folder) as entries:
        names = [e.name for e in entries if e.name.lower().endswith(IMAGE_ENDINGS) and not e.name.startswith(".")]
    return iter(sorted(names))


def existing(folder: str) -> str:
    return ", ".join(sorted(os.listdir(folder))[:6]) or "nothing"


def require(path: Path, what: str, spec) -> Path:
    """``path`` if it is there, else the line that says what is."""
    if not path.exists():
        raise UserError(f"{spec.name}: no {what} {path.name!r} in {path.parent} (found: {existing(path.parent)})")
    return path


def parse(spec, name: str, folder: Path) -> re.Match:
    """The groups of the entry's pattern in a base name, or the line that says which file does not fit."""
    match = re.search(spec.pattern, name)
    if not match:
        raise UserError(
            f"{spec.name}: {folder / name}: the name does not follow the pattern of {spec.name} ({spec.pattern})"
        )
    return match


def row_from_name(spec, folder: Path, name: str, view: int = 0) -> Row:
    groups = parse(spec, name, folder).groupdict()
    return Row(str(folder / name), int(groups["pid"]), int(groups["cam"]), int(groups.get("view") or view))


def read_folders(spec, folder: Path, **options) -> RawSplits:
    """Three folders of images, identity and camera in the file names (Market-1501's layout)."""
    found = RawSplits()
    for split, sub in zip(SPLITS, spec.splits, strict=True):
        place = require(folder / sub, "folder", spec)
        rows = [row_from_name(spec, place, name) for name in image_files(place)]
        dropped = spec.junk + (spec.distractors if split == "train" else ())
        setattr(found, split, [row for row in rows if row.pid not in dropped])
        if not getattr(found, split):
            raise UserError(f"{spec.name}: no images in {place} (looked for {', '.join(IMAGE_ENDINGS[:3])}, ...)")
    return found


def read_lines(path: Path, spec) -> list[list[str]]:
    """The words of each line of a list file."""
    try:
        lines = require(path, "list file", spec).read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError:
        raise UserError(f"{spec.name}: {path} is not a text file") from None
    words = [line.split() for line in lines if line.strip()]
    if not words:
        raise UserError(f"{spec.name}: the list {path} is empty")
    return words


def read_msmt17(spec, folder: Path, use_val: bool = True, **options) -> RawSplits:
    """MSMT17 (Wei, CVPR 2018): ``list_*.txt`` over ``train/`` and ``test/``, or the flat Market-1501 layout."""
    if not (folder / "list_train.txt").exists() and (folder / "bounding_box_train").exists():
        return read_folders(spec, folder)
    masked = spec.name == "msmt17v2" or (spec.name != "msmt17v1" and (folder / "mask_train_v2").exists())
    train, test = ("mask_train_v2", "mask_test_v2") if masked else ("train", "test")
    for sub in (train, test):
        require(folder / sub, "folder", spec)

    def rows(which: str, sub: str) -> list[Row]:
        found = []
        for number, words in enumerate(read_lines(folder / f"list_{which}.txt", spec), 1):
            camera = words[0].rpartition("/")[2].split("_")
            if len(words) < 2 or len(camera) < 3 or not (camera[2].isdigit() and words[1].lstrip("-").isdigit()):
                raise UserError(f"{spec.name}: {folder / f'list_{which}.txt'}, line {number}: expected 'path label'")
            found.append(Row(str(folder / sub / words[0]), int(words[1]), int(camera[2])))
        return found

    val = rows("val", train) if use_val else []
    splits = (rows("train", train) + val, rows("query", test), rows("gallery", test))
    return RawSplits(*(relative_order(found, folder) for found in splits))


def read_veri(spec, folder: Path, missing_view: str = "keep", view_dir: str = "", **options) -> RawSplits:
    """VeRi-776 (Liu, ECCV 2016): Market-like folders, orientations 0-7 in the key-point lists.

    missing_view: ``drop`` images without an orientation (published numbers) or ``keep`` them as view 0.
    """
    if missing_view not in ("keep", "drop"):
        raise UserError(f"DATASETS.MISSING_VIEW: {missing_view!r} is neither 'drop' nor 'keep'")
    found = read_folders(spec, folder)
    views = veri_views(spec, [p for p in (folder, view_dir and Path(view_dir)) if p])
    if not views and missing_view == "drop":
        raise UserError(
            f"{spec.name}: no keypoint_train.txt in {folder} (nor in DATASETS.VIEW_DIR {view_dir!r}), and views are "
            "asked for; put the key-point lists there or set MODEL.SIE_VIEW False"
        )
    if not views:
        log.warning("%s: no keypoint_train.txt in %s nor in DATASETS.VIEW_DIR: all views are 0", spec.name, folder)
    for split in SPLITS:
        rows = getattr(found, split)
        for row in rows:
            row.view = views.get(Path(row.path).name, 0)
        if missing_view == "drop":
            setattr(found, split, [row for row in rows if Path(row.path).name in views])
        if not getattr(found, split):
            raise UserError(f"{spec.name}: the key-point lists name no image of the {split} split in {folder}")
    return found


def veri_views(spec, places: list[Path]) -> dict[str, int]:
    """Base name -> orientation, from the first place that has the lists; the training list first."""
    views: dict[str, int] = {}
    for place in places:
        for name in ("keypoint_train.txt", "keypoint_test.txt"):
            if (place / name).exists():
                for line, words in enumerate(read_lines(place / name, spec), 1):
                    if not words[-1].isdigit():
                        raise UserError(f"{spec.name}: {place / name}, line {line}: the last word is no orientation")
                    views.setdefault(re.split(r"[/\\]", words[0])[-1], int(words[-1]))
        if views:
            break
    return views


def read_vehicleid(spec, folder: Path, test_size: int = 800, seed: int = 0, trial: int = 0, **options) -> RawSplits:
    """PKU VehicleID (Liu, CVPR 2016): per test vehicle one drawn image is the gallery, the others are queries.

    Cameras are unknown: query 0, gallery 1, which switches the camera filter off.
    """
    lists = require(folder / "train_test_split", "folder", spec)

    def rows(name: str) -> list[tuple[str, int]]:
        words = read_lines(lists / name, spec)
        if any(len(w) < 2 or not w[1].isdigit() for w in words):
            raise UserError(f"{spec.name}: {lists / name}: expected lines 'image vehicle'")
        return [(str(folder / "image" / f"{w[0]}.jpg"), int(w[1])) for w in words]

    if not (lists / f"test_list_{test_size}.txt").exists():
        sizes = sorted(int(p.stem.rpartition("_")[2]) for p in lists.glob("test_list_*.txt"))
        raise UserError(
            f"DATASETS.TEST_SIZE: {spec.name} has no test list of {test_size} vehicles in {lists}; found {sizes}"
        )
    train = relative_order([Row(path, pid) for path, pid in rows("train_list.txt")], folder)
    test = rows(f"test_list_{test_size}.txt")
    drawn = draw_one_each([pid for _, pid in test], seed + trial)
    gallery = [Row(*test[i], cam=1) for i in sorted(drawn)]
    query = [Row(path, pid) for i, (path, pid) in enumerate(test) if i not in drawn]
    return RawSplits(train, query, gallery)


def draw_one_each(pids: list[int], seed: int) -> set[int]:
    """For each identity, in order of first appearance, the position of one of its images, drawn from ``seed``."""
    rng, positions = random.Random(seed), {}
    for i, pid in enumerate(pids):
        positions.setdefault(pid, []).append(i)
    return {rng.choice(found) for found in positions.values()}
