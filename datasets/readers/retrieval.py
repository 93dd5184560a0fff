"""Reads the retrieval sets: classes are split, not images, and there are no cameras."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.catalogue.spec import DatasetSpec
from datasets.readers.scan import existing, first_of, image_files, require, sub_folders, table_of
from datasets.records import RawRow, RawSplits, relative_order
from utils.errors import UserError


def among_themselves(train: list[RawRow], test: list[RawRow], folder: Path) -> RawSplits:
    """Returns splits whose test images are searched among themselves.

    Query camera 0, gallery camera 1: nothing is filtered.
    """
    test = relative_order(test, folder)
    searched = [replace(r, cam=1) for r in test]
    return RawSplits(relative_order(train, folder), test, searched, same_list=True, listed=True)


def by_class(rows: Iterable[RawRow], last: int, folder: Path) -> RawSplits:
    """Returns splits where classes up to ``last`` train and the others test."""
    train, test = [], []
    for row in rows:
        (train if int(row.pid or 0) <= last else test).append(row)
    return among_themselves(train, test, folder)


def labelled_paths(spec: DatasetSpec, folder: Path, name: str, camera: int = 0) -> list[RawRow]:
    """Reads one of fast-reid's lists: lines ``path,label``."""
    lines = table_of(folder / name, spec, "path label", ",")
    return [RawRow(f"{folder}/{path}", label, camera) for path, label, *_ in lines]


def structs(path: Path, spec: DatasetSpec, *fields: str) -> list[tuple]:
    """Returns the named fields of each element of a MATLAB file's struct ``annotations``."""
    from scipy.io import loadmat

    try:
        rows = np.atleast_1d(loadmat(path, squeeze_me=True)["annotations"])
        return [tuple(row[name] for name in fields) for row in rows]
    except (KeyError, ValueError, NotImplementedError, TypeError):
        raise UserError(f"{spec.name}: {path} has no 'annotations' with {', '.join(fields)}") from None


def read_cars(spec: DatasetSpec, folder: Path, **options: Any) -> RawSplits:
    """Reads CARS196 (Krause, 3dRR 2013) in its three forms; classes 1-98 train, 99-196 test."""
    single = first_of([folder / "cars_annos.mat", folder / "devkit" / "cars_annos.mat"])
    if single:
        annotations = structs(single, spec, "relative_im_path", "class")
        return by_class((RawRow(f"{folder}/{path}", int(label)) for path, label in annotations), 98, folder)
    if first_of([folder / "train.txt"]):
        train, test = (labelled_paths(spec, folder, name) for name in ("train.txt", "test.txt"))
        return among_themselves(train, test, folder)
    halves = {"cars_train": "cars_train_annos.mat", "cars_test": "cars_test_annos_withlabels.mat"}
    rows: list[RawRow] = []
    for sub, name in halves.items():
        path = first_of([folder / "devkit" / name, folder / name])
        if path is None:
            raise UserError(
                f"{spec.name}: no cars_annos.mat, train.txt nor devkit/{name} in {folder} (found: {existing(folder)})"
            )
        rows += [RawRow(f"{folder}/{sub}/{file}", int(label)) for file, label in structs(path, spec, "fname", "class")]
    return by_class(rows, 98, folder)


def read_cub(spec: DatasetSpec, folder: Path, **options: Any) -> RawSplits:
    """Reads CUB-200-2011 (Wah, 2011): classes 1-100 train, 101-200 test.

    ``train_test_split.txt`` is another protocol's.
    """
    labels = {image: label for image, label, *_ in table_of(folder / "image_class_labels.txt", spec, "id class")}
    rows = []
    for image, path, *_ in table_of(folder / "images.txt", spec, "id path"):
        if image not in labels or not labels[image].isdigit():
            raise UserError(f"{spec.name}: {folder / 'image_class_labels.txt'} has no class of image {image} ({path})")
        rows.append(RawRow(f"{folder}/images/{path}", int(labels[image])))
    return by_class(rows, 100, folder)


def read_sop(spec: DatasetSpec, folder: Path, **options: Any) -> RawSplits:
    """Reads Stanford Online Products (Oh Song, CVPR 2016): ``Ebay_train.txt`` and ``Ebay_test.txt``."""

    def rows(name: str) -> list[RawRow]:
        lines = table_of(folder / name, spec, "image_id class_id super_class_id path", skip=1)
        return [RawRow(f"{folder}/{words[3]}", words[1]) for words in lines]

    return among_themselves(rows("Ebay_train.txt"), rows("Ebay_test.txt"), folder)


def read_inshop(spec: DatasetSpec, folder: Path, **options: Any) -> RawSplits:
    """Reads In-shop Clothes (Liu, CVPR 2016): ``list_eval_partition.txt``, or fast-reid's three lists."""
    listed = [folder / sub / "list_eval_partition.txt" for sub in ("", "Eval", "Anno")]
    path = first_of(listed)
    splits: dict[str, list[RawRow]] = {"train": [], "query": [], "gallery": []}
    if path is None and first_of([folder / "test_query.txt"]):
        for split, name in zip(splits, ("train.txt", "test_query.txt", "test_gallery.txt"), strict=True):
            splits[split] = labelled_paths(spec, folder, name, int(split == "gallery"))
        return RawSplits(relative_order(splits["train"], folder), splits["query"], splits["gallery"], listed=True)
    if path is None:
        tried = ", ".join(map(str, [*listed, folder / "test_query.txt"]))
        raise UserError(f"{spec.name}: no list of the splits; looked for {tried}")
    images = [sub for sub in ("img", "img_highres", "Img/img", "Img/img_highres") if first_of([folder / sub])]
    for number, (name, item, status, *_) in enumerate(table_of(path, spec, "image_name item_id status", skip=2), 3):
        if status not in splits:
            known = ", ".join(splits)
            raise UserError(f"{spec.name}: {path}, line {number}: status must be one of {known}, got {status!r}")
        top, _, below = name.partition("/")
        sub = next((p for p in images if p == top), images[0] if images else top)  # the other release, if only that
        splits[status].append(RawRow(f"{folder}/{sub}/{below}", item, int(status == "gallery")))
    return RawSplits(relative_order(splits["train"], folder), splits["query"], splits["gallery"], listed=True)


PLATFORMS = ("satellite", "drone", "street", "google")


def read_university(spec: DatasetSpec, folder: Path, direction: str = "drone_satellite", **options: Any) -> RawSplits:
    """Reads University-1652 (Zheng, ACM MM 2020): identity is the building's folder, view the platform.

    direction: ``drone_satellite`` (drone images search satellite ones), ``satellite_drone``, or any other two of
    drone, satellite and street. Training holds satellite, drone and street images; Google's are left out.
    """
    words = [word for word in PLATFORMS if word in str(direction).lower()]
    words.sort(key=str(direction).lower().index)
    if len(words) != 2 or "google" in words:
        raise UserError(
            f"DATASETS.DIRECTION: expected two of drone, satellite, street ('drone_satellite'), got {direction!r}"
        )

    def rows(sub: str, platform: str, camera: int = 0) -> list[RawRow]:
        buildings = require(folder / sub, "folder", spec)
        view, images = PLATFORMS.index(platform), []
        for building in sub_folders(buildings):
            if not building.isdigit():
                raise UserError(f"{spec.name}: {buildings / building}: the folder's name is not a building's number")
            names = image_files(buildings / building)
            images += [RawRow(f"{buildings}/{building}/{n}", int(building), camera, view) for n in names]
        if not images:
            raise UserError(f"{spec.name}: no images in the folders of {buildings}")
        return images

    train = [row for platform in PLATFORMS[:3] for row in rows(f"train/{platform}", platform)]
    query, gallery = words
    return RawSplits(
        relative_order(train, folder),
        rows(f"test/query_{query}", query),
        rows(f"test/gallery_{gallery}", gallery, camera=1),
    )
