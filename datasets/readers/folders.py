"""How the published person and vehicle sets are read: folders of images whose names say who and where, and lists."""

from __future__ import annotations

import random
import re
from pathlib import Path

from datasets.readers.scan import IMAGE_ENDINGS, first_of, image_files, look, read_lines, require, sub_folders, table_of
from datasets.records import SPLITS, RawRow, RawSplits, relative_order
from utils.errors import UserError


def parse(spec, name: str, folder: Path) -> re.Match:
    """The groups of the entry's pattern in a base name, or the line that says which file does not fit."""
    match = re.search(spec.pattern, name)
    if not match:
        raise UserError(
            f"{spec.name}: {folder / name}: the name does not follow the pattern of {spec.name} ({spec.pattern})"
        )
    return match


def row_from_name(spec, folder: Path, name: str) -> RawRow:
    groups = parse(spec, name, folder).groupdict()
    return RawRow(f"{folder}/{name}", int(groups["pid"]), int(groups.get("cam") or 0), int(groups.get("view") or 0))


def refuse_empty(spec, rows: list[RawRow], place: Path) -> list[RawRow]:
    if not rows:
        raise UserError(f"{spec.name}: no images in {place} (looked for {', '.join(IMAGE_ENDINGS[:3])}, ...)")
    return rows


def read_folders(spec, folder: Path, **options) -> RawSplits:
    """Three folders of images, identity and camera in the file names (Market-1501's layout)."""
    found = RawSplits()
    for split, sub in zip(SPLITS, spec.splits, strict=True):
        place = require(folder / sub, "folder", spec)
        rows = [row_from_name(spec, place, name) for name in image_files(place)]
        dropped = spec.junk + (spec.distractors if split == "train" else ())
        setattr(found, split, refuse_empty(spec, [row for row in rows if row.pid not in dropped], place))
    return found


def read_market1501(spec, folder: Path, market1501_500k: bool = False, **options) -> RawSplits:
    """Market-1501 (Zheng, ICCV 2015). market1501_500k: ``images/`` with 500,000 distractors joins the gallery."""
    found = read_folders(spec, folder)
    if market1501_500k:
        place = require(folder / "images", "folder", spec)
        rows = [row_from_name(spec, place, name) for name in image_files(place)]
        found.gallery += refuse_empty(spec, [row for row in rows if row.pid not in spec.junk], place)
    return found


def read_msmt17(spec, folder: Path, use_val: bool = True, **options) -> RawSplits:
    """MSMT17 (Wei, CVPR 2018): ``list_*.txt`` over ``train/`` and ``test/``, or the flat Market-1501 layout.

    Lists beside the flat folders decide which of their images belong.
    """
    flat = (folder / "bounding_box_train").exists()
    if flat and not first_of([folder / "list_train.txt"]):
        return read_folders(spec, folder)
    masked = spec.name == "msmt17v2" or (spec.name != "msmt17v1" and (folder / "mask_train_v2").exists())
    train, test = ("mask_train_v2", "mask_test_v2") if masked else ("train", "test")
    places = spec.splits if flat else (train, test, test)
    for sub in dict.fromkeys(places):
        require(folder / sub, "folder", spec)
    held = {sub: set(image_files(folder / sub)) for sub in places} if flat else {}

    def rows(which: str, sub: str) -> list[RawRow]:
        found, path = [], folder / f"list_{which}.txt"
        for number, words in enumerate(read_lines(path, spec), 1):
            name = words[0].rpartition("/")[2]
            camera = re.search(r"^-?\d+_c(\d+)", name) or re.search(r"^[^_]*_[^_]*_(\d+)(?:_|$)", name)
            if len(words) < 2 or not camera or not words[1].lstrip("-").isdigit():
                raise UserError(f"{spec.name}: {path}, line {number}: expected 'path label'")
            if flat and name not in held[sub]:
                raise UserError(f"{spec.name}: {path}, line {number}: no image {name} in {folder / sub}")
            found.append(RawRow(f"{folder}/{sub}/{name if flat else words[0]}", int(words[1]), int(camera[1])))
        return found

    val = rows("val", places[0]) if use_val else []
    splits = (rows("train", places[0]) + val, rows("query", places[1]), rows("gallery", places[2]))
    return RawSplits(*(relative_order(found, folder) for found in splits), listed=not flat)


def read_occluded_duke(spec, folder: Path, **options) -> RawSplits:
    """Occluded-Duke (Miao, ICCV 2019): folders, or ``*.list`` that pick images from DukeMTMC-reID near by."""
    lists = [folder / f"{split}.list" for split in SPLITS]
    if not all(look(path).exists() and path.stat().st_size for path in lists):
        return read_folders(spec, folder)
    near = [folder, *(p / d for p in (folder, folder.parent) for d in ("DukeMTMC-reID", "dukemtmcreid")), folder.parent]
    near += [folder.parent / d / "DukeMTMC-reID" for d in ("dukemtmcreid", "dukemtmc", "dukemtmc-reid")]
    source = next((place for place in near if look(place / spec.splits[0]).exists()), None)
    if source is None:
        raise UserError(
            f"{spec.name}: {folder} has the lists of names, but no DukeMTMC-reID was found for them; looked for "
            f"{spec.splits[0]} in {', '.join(map(str, near))}"
        )
    where: dict[str, Path] = {}
    for sub in spec.splits:
        where |= dict.fromkeys(image_files(require(source / sub, "folder", spec)), source / sub)
    found = RawSplits()
    for split, path in zip(SPLITS, lists, strict=True):
        names = sorted(words[0].rpartition("/")[2] for words in read_lines(path, spec))
        absent = [name for name in names if name not in where]
        if absent:
            raise UserError(f"{spec.name}: {path}: {len(absent)} images are not in {source}, the first is {absent[0]}")
        rows = [row_from_name(spec, where[name], name) for name in names]
        setattr(found, split, relative_order(rows, source))
    return found


def read_p_duke(spec, folder: Path, **options) -> RawSplits:
    """P-DukeMTMC-reID (Zhuo, ICME 2018): ``{train,test}/{occluded,whole}_body_images/ID/``.

    Occluded images search whole ones. Cameras are not used: occluded is 0, whole is 1, so nothing is filtered.
    """

    def rows(split: str, kind: str, camera: int) -> list[RawRow]:
        place = require(folder / split / f"{kind}_body_images", "folder", spec)
        found = []
        for person in sub_folders(place):
            if not person.isdigit():
                raise UserError(f"{spec.name}: {place / person}: the folder's name is no identity")
            found += [RawRow(f"{place / person}/{n}", int(person), camera) for n in image_files(place / person)]
        return refuse_empty(spec, found, place)

    train = rows("train", "occluded", 0) + rows("train", "whole", 1)
    return RawSplits(relative_order(train, folder), rows("test", "occluded", 0), rows("test", "whole", 1))


def read_cuhk_sysu(spec, folder: Path, **options) -> RawSplits:
    """CUHK-SYSU, cropped (Xiao, CVPR 2017): training only, one camera."""
    place = first_of([folder / "cropped_images", folder / "croppped_images"]) or folder / "cropped_images"
    names = image_files(require(place, "folder", spec))
    return RawSplits(refuse_empty(spec, [row_from_name(spec, place, name) for name in names], place))


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
        found.notes.append(f"no keypoint_train.txt in {folder} nor in DATASETS.VIEW_DIR: all views are 0")
    for split in SPLITS:
        rows = getattr(found, split)
        for row in rows:
            row.view = views.get(row.path.rpartition("/")[2], 0)
        if missing_view == "drop":
            setattr(found, split, [row for row in rows if row.path.rpartition("/")[2] in views])
        if not getattr(found, split):
            raise UserError(f"{spec.name}: the key-point lists name no image of the {split} split in {folder}")
    return found


def veri_views(spec, places: list[Path]) -> dict[str, int]:
    """Base name -> orientation, from the first place that has the lists; the training list first."""
    views: dict[str, int] = {}
    for place in places:
        for name in ("keypoint_train.txt", "keypoint_test.txt"):
            if look(place / name).exists():
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
        words = table_of(lists / name, spec, "image vehicle")
        if any(not w[1].isdigit() for w in words):
            raise UserError(f"{spec.name}: {lists / name}: expected lines 'image vehicle'")
        return [(f"{folder}/image/{w[0]}.jpg", int(w[1])) for w in words]

    if not look(lists / f"test_list_{test_size}.txt").exists():
        sizes = sorted(int(p.stem.rpartition("_")[2]) for p in lists.glob("test_list_*.txt"))
        raise UserError(
            f"DATASETS.TEST_SIZE: {spec.name} has no list file 'test_list_{test_size}.txt' in {lists}; found {sizes}"
        )
    train = relative_order([RawRow(path, pid) for path, pid in rows("train_list.txt")], folder)
    test = rows(f"test_list_{test_size}.txt")
    drawn = draw_one_each([pid for _, pid in test], seed + trial)
    gallery = [RawRow(*test[i], cam=1) for i in sorted(drawn)]
    query = [RawRow(path, pid) for i, (path, pid) in enumerate(test) if i not in drawn]
    return RawSplits(train, query, gallery, listed=True)


def draw_one_each(pids: list[int], seed: int) -> set[int]:
    """For each identity, in order of first appearance, the position of one of its images, drawn from ``seed``."""
    rng, positions = random.Random(seed), {}
    for i, pid in enumerate(pids):
        positions.setdefault(pid, []).append(i)
    return {rng.choice(found) for found in positions.values()}
