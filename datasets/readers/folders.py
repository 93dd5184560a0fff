"""Reads the published person and vehicle sets: folders of images whose names show identity and camera, and lists."""

from __future__ import annotations

import random
import re
from pathlib import Path
from typing import Any

from datasets.catalogue.spec import DatasetSpec
from datasets.readers.scan import (
    IMAGE_ENDINGS,
    first_of,
    image_files,
    note_read,
    read_lines,
    require,
    sub_folders,
    table_of,
)
from datasets.records import SPLITS, RawRow, RawSplits, relative_order
from utils.errors import UserError


def parse(spec: DatasetSpec, name: str, folder: Path) -> re.Match:
    """Matches the entry's pattern in a base name; raises ``UserError`` that names a file that does not follow it."""
    match = re.search(spec.pattern, name)
    if not match:
        raise UserError(
            f"{spec.name}: {folder / name}: the name does not follow the pattern of {spec.name} ({spec.pattern})"
        )
    return match


def row_from_name(spec: DatasetSpec, folder: Path, name: str) -> RawRow:
    """Returns the row of a file whose name shows its identity, camera and maybe view."""
    groups = parse(spec, name, folder).groupdict()
    return RawRow(f"{folder}/{name}", int(groups["pid"]), int(groups.get("cam") or 0), int(groups.get("view") or 0))


def refuse_empty(spec: DatasetSpec, rows: list[RawRow], folder: Path) -> list[RawRow]:
    """Returns the rows of a folder; raises ``UserError`` when there are none."""
    if not rows:
        raise UserError(f"{spec.name}: no images in {folder} (looked for {', '.join(IMAGE_ENDINGS[:3])}, ...)")
    return rows


def rows_of_folder(spec: DatasetSpec, folder: Path, dropped: tuple[int, ...]) -> list[RawRow]:
    """Returns the rows of a folder's images, without the identities in ``dropped``."""
    rows = [row_from_name(spec, folder, name) for name in image_files(require(folder, "folder", spec))]
    return refuse_empty(spec, [row for row in rows if row.pid not in dropped], folder)


def read_folders(spec: DatasetSpec, folder: Path, **options: Any) -> RawSplits:
    """Reads three folders of images, identity and camera in the file names (Market-1501's layout)."""
    train, query, gallery = (folder / name for name in spec.splits)
    return RawSplits(
        train=rows_of_folder(spec, train, spec.junk + spec.distractors),
        query=rows_of_folder(spec, query, spec.junk),
        gallery=rows_of_folder(spec, gallery, spec.junk),
    )


def read_market1501(spec: DatasetSpec, folder: Path, market1501_500k: bool = False, **options: Any) -> RawSplits:
    """Reads Market-1501 (Zheng, ICCV 2015).

    market1501_500k: ``images/`` with 500,000 distractors joins the gallery.
    """
    splits = read_folders(spec, folder)
    if market1501_500k:
        splits.gallery += rows_of_folder(spec, folder / "images", spec.junk)
    return splits


def read_msmt17(spec: DatasetSpec, folder: Path, use_val: bool = True, **options: Any) -> RawSplits:
    """Reads MSMT17 (Wei, CVPR 2018): ``list_*.txt`` over ``train/`` and ``test/``, or the flat Market-1501 layout.

    Lists beside the flat folders decide which of their images belong.
    """
    flat = (folder / "bounding_box_train").exists()
    if flat and not first_of([folder / "list_train.txt"]):
        return read_folders(spec, folder)
    masked = spec.name == "msmt17v2" or (spec.name != "msmt17v1" and (folder / "mask_train_v2").exists())
    train, test = ("mask_train_v2", "mask_test_v2") if masked else ("train", "test")
    subs = spec.splits if flat else (train, test, test)
    for sub in dict.fromkeys(subs):
        require(folder / sub, "folder", spec)
    present = {sub: set(image_files(folder / sub)) for sub in subs} if flat else {}

    def rows(which: str, sub: str) -> list[RawRow]:
        listed, path = [], folder / f"list_{which}.txt"
        for number, words in enumerate(read_lines(path, spec), 1):
            name = words[0].rpartition("/")[2]
            camera = re.search(r"^-?\d+_c(\d+)", name) or re.search(r"^[^_]*_[^_]*_(\d+)(?:_|$)", name)
            if len(words) < 2 or not camera or not words[1].lstrip("-").isdigit():
                raise UserError(f"{spec.name}: {path}, line {number}: expected 'path label'")
            if flat and name not in present[sub]:
                raise UserError(f"{spec.name}: {path}, line {number}: no image {name} in {folder / sub}")
            listed.append(RawRow(f"{folder}/{sub}/{name if flat else words[0]}", int(words[1]), int(camera[1])))
        return listed

    train_rows = rows("train", subs[0]) + (rows("val", subs[0]) if use_val else [])
    return RawSplits(
        train=relative_order(train_rows, folder),
        query=relative_order(rows("query", subs[1]), folder),
        gallery=relative_order(rows("gallery", subs[2]), folder),
        listed=not flat,
    )


def read_occluded_duke(spec: DatasetSpec, folder: Path, **options: Any) -> RawSplits:
    """Reads Occluded-Duke (Miao, ICCV 2019): folders, or ``*.list`` that pick images from DukeMTMC-reID nearby."""
    lists = [folder / f"{split}.list" for split in SPLITS]
    if not all(note_read(path).exists() and path.stat().st_size for path in lists):
        return read_folders(spec, folder)
    near = [folder, *(p / d for p in (folder, folder.parent) for d in ("DukeMTMC-reID", "dukemtmcreid")), folder.parent]
    near += [folder.parent / d / "DukeMTMC-reID" for d in ("dukemtmcreid", "dukemtmc", "dukemtmc-reid")]
    source = next((parent for parent in near if note_read(parent / spec.splits[0]).exists()), None)
    if source is None:
        raise UserError(
            f"{spec.name}: {folder} has the lists of names, but no DukeMTMC-reID was found for them; looked for "
            f"{spec.splits[0]} in {', '.join(map(str, near))}"
        )
    where: dict[str, Path] = {}
    for sub in spec.splits:
        where |= dict.fromkeys(image_files(require(source / sub, "folder", spec)), source / sub)
    splits = []
    for path in lists:
        names = sorted(words[0].rpartition("/")[2] for words in read_lines(path, spec))
        absent = [name for name in names if name not in where]
        if absent:
            raise UserError(f"{spec.name}: {path}: {len(absent)} images are not in {source}, the first is {absent[0]}")
        rows = [row_from_name(spec, where[name], name) for name in names]
        splits.append(relative_order(rows, source))
    return RawSplits(*splits)


def read_p_duke(spec: DatasetSpec, folder: Path, **options: Any) -> RawSplits:
    """Reads P-DukeMTMC-reID (Zhuo, ICME 2018): ``{train,test}/{occluded,whole}_body_images/ID/``.

    Occluded images search whole ones. Cameras are not used: occluded is 0, whole is 1, so nothing is filtered.
    """

    def rows(split: str, kind: str, camera: int) -> list[RawRow]:
        people = require(folder / split / f"{kind}_body_images", "folder", spec)
        images = []
        for person in sub_folders(people):
            if not person.isdigit():
                raise UserError(f"{spec.name}: {people / person}: the folder's name is not an identity's number")
            images += [RawRow(f"{people / person}/{n}", int(person), camera) for n in image_files(people / person)]
        return refuse_empty(spec, images, people)

    train = rows("train", "occluded", 0) + rows("train", "whole", 1)
    return RawSplits(relative_order(train, folder), rows("test", "occluded", 0), rows("test", "whole", 1))


def read_cuhk_sysu(spec: DatasetSpec, folder: Path, **options: Any) -> RawSplits:
    """Reads CUHK-SYSU, cropped (Xiao, CVPR 2017): training only, one camera."""
    images = first_of([folder / "cropped_images", folder / "croppped_images"]) or folder / "cropped_images"
    return RawSplits(rows_of_folder(spec, images, ()))


def read_veri(
    spec: DatasetSpec, folder: Path, missing_view: str = "keep", view_dir: str = "", **options: Any
) -> RawSplits:
    """Reads VeRi-776 (Liu, ECCV 2016): Market-like folders, orientations 0-7 in the key-point lists.

    missing_view: ``drop`` images without an orientation (published numbers) or ``keep`` them as view 0.
    """
    if missing_view not in ("keep", "drop"):
        raise UserError(f"DATASETS.MISSING_VIEW: must be 'drop' or 'keep', got {missing_view!r}")
    splits = read_folders(spec, folder)
    views = veri_views(spec, [p for p in (folder, view_dir and Path(view_dir)) if p])
    if not views and missing_view == "drop":
        raise UserError(
            f"{spec.name}: no keypoint_train.txt in {folder} (nor in DATASETS.VIEW_DIR {view_dir!r}), and views are "
            "asked for; put the key-point lists there or set MODEL.SIE_VIEW False"
        )
    if not views:
        splits.notes.append(f"no keypoint_train.txt in {folder} nor in DATASETS.VIEW_DIR: all views are 0")
    for split in SPLITS:
        rows = getattr(splits, split)
        for row in rows:
            row.view = views.get(row.path.rpartition("/")[2], 0)
        if missing_view == "drop":
            rows[:] = [row for row in rows if row.path.rpartition("/")[2] in views]
        if not rows:
            raise UserError(f"{spec.name}: the key-point lists name no image of the {split} split in {folder}")
    return splits


def veri_views(spec: DatasetSpec, folders: list[Path]) -> dict[str, int]:
    """Returns base name -> orientation, from the first folder that has the lists; the training list first."""
    views: dict[str, int] = {}
    for folder in folders:
        for name in ("keypoint_train.txt", "keypoint_test.txt"):
            if note_read(folder / name).exists():
                for line, words in enumerate(read_lines(folder / name, spec), 1):
                    if not words[-1].isdigit():
                        raise UserError(
                            f"{spec.name}: {folder / name}, line {line}: the last word is not an orientation"
                        )
                    views.setdefault(re.split(r"[/\\]", words[0])[-1], int(words[-1]))
        if views:
            break
    return views


def read_vehicleid(
    spec: DatasetSpec, folder: Path, test_size: int = 800, seed: int = 0, trial: int = 0, **options: Any
) -> RawSplits:
    """Reads PKU VehicleID (Liu, CVPR 2016): per test vehicle one drawn image is the gallery, the others are queries.

    Cameras are unknown: query 0, gallery 1, which switches the camera filter off.
    """
    lists = require(folder / "train_test_split", "folder", spec)

    def rows(name: str) -> list[tuple[str, int]]:
        words = table_of(lists / name, spec, "image vehicle")
        if any(not w[1].isdigit() for w in words):
            raise UserError(f"{spec.name}: {lists / name}: expected lines 'image vehicle'")
        return [(f"{folder}/image/{w[0]}.jpg", int(w[1])) for w in words]

    if not note_read(lists / f"test_list_{test_size}.txt").exists():
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
    """Returns the position of one image of each identity, drawn from ``seed`` in the order of first appearance."""
    rng, positions = random.Random(seed), {}
    for i, pid in enumerate(pids):
        positions.setdefault(pid, []).append(i)
    return {rng.choice(of_identity) for of_identity in positions.values()}
