"""Readers of PRID, LUPerson and the joint set of TransReID-SSL."""

from __future__ import annotations

import io
import json
import logging
import os
import pickle
import random
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np

from datasets.paths import Paths
from datasets.readers import read_folders, read_msmt17, refuse_empty
from datasets.records import RawSplits, Records, Row
from datasets.scan import first_of, image_files, look, require, sub_folders, walk_images
from utils.errors import UserError

log = logging.getLogger("lineup")


def read_prid(spec, folder: Path, split_id: int = 0, seed: int = 0, **options) -> RawSplits:
    """PRID 2011, single shot (Hirzer, SCIA 2011): 100 of the 200 persons in both views train, by one of 10 splits.

    ``splits_single_shot.json`` decides where it is there, else ``seed``. fast-reid's ``slim_train`` only trains.
    """
    if first_of([folder / "slim_train"]) and not first_of([folder / "single_shot"]):
        place, found = folder / "slim_train", []
        for person in sub_folders(place):
            pid = person_number(spec, place, person)
            found += [Row(f"{place}/{person}/{name}", pid) for name in image_files(place / person)]
        return RawSplits(refuse_empty(spec, found, place))
    views = []
    for camera, name in enumerate(("cam_a", "cam_b")):
        place = require(folder / "single_shot" / name, "folder", spec)
        rows = [Row(f"{place}/{n}", person_number(spec, place, n), camera) for n in image_files(place)]
        views.append({row.pid: row for row in refuse_empty(spec, rows, place)})
    splits = prid_splits(spec, folder, seed)
    if not 0 <= split_id < len(splits):
        raise UserError(f"DATASETS.SPLIT_ID: {split_id}; {spec.name} has {len(splits)} splits, counted from 0")
    train, test = splits[split_id]
    first, second = views
    absent = [pid for pid in (*train, *test) if pid not in first or pid not in second]
    if absent:
        raise UserError(f"{spec.name}: {folder}: person {absent[0]} is not in both views ({len(absent)} in all)")
    others = [row for pid, row in second.items() if pid > 200]
    return RawSplits(
        [view[pid] for view in views for pid in train],
        [first[pid] for pid in test],
        sorted([*(second[pid] for pid in test), *others], key=lambda row: row.path),
    )


def person_number(spec, place: Path, name: str) -> int:
    match = re.match(r"person_(\d+)", name)
    if not match:
        raise UserError(f"{spec.name}: {place / name}: the name does not follow the pattern of prid (person_0001)")
    return int(match[1])


def prid_splits(spec, folder: Path, seed: int) -> list[tuple[list[int], list[int]]]:
    """(training ids, test ids) of each split, in ascending order."""
    path = first_of([place / "splits_single_shot.json" for place in (folder, folder.parent)])
    if path is None:
        rng, splits = random.Random(seed), []
        for _ in range(10):
            drawn = rng.sample(range(1, 201), 200)
            splits.append((sorted(drawn[:100]), sorted(drawn[100:])))
        return splits
    try:
        return [
            tuple(sorted(int(re.sub(r"\D", "", str(pid))) for pid in split[part]) for part in ("train", "test"))
            for split in json.loads(path.read_text())
        ]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{spec.name}: {path} is no list of splits with train and test") from None


class ListsOfText(pickle.Unpickler):
    """Reads a pickle of lists and strings; anything that would run code is refused."""

    def find_class(self, module: str, name: str):
        raise pickle.UnpicklingError(f"it asks for {module}.{name}")

    def persistent_load(self, pid):
        raise pickle.UnpicklingError("it refers to other files")


def listed_names(spec, path: Path, keep_num: int | None) -> np.ndarray:
    """The first ``keep_num`` names of a filter list, pickled or one a line, as an array of bytes."""
    look(path)
    blocks = []
    if path.suffix == ".pkl":
        try:
            names = ListsOfText(io.BytesIO(path.read_bytes())).load()
            if not isinstance(names, list):
                raise pickle.UnpicklingError("it is no list")
            names = names[:keep_num]
            for i in range(0, len(names), 1 << 16):
                blocks.append(np.array([os.fsencode(name) for name in names[i : i + (1 << 16)]]))
        except (pickle.UnpicklingError, TypeError, ValueError, EOFError, LookupError, ImportError) as error:
            raise UserError(f"{spec.name}: {path} is no pickled list of names ({error})") from None
    else:
        with open(path, "rb") as handle:
            lines = islice((line.strip() for line in handle if line.strip()), keep_num)
            while block := list(islice(lines, 1 << 16)):
                blocks.append(np.array(block))
    if not blocks:
        raise UserError(f"{spec.name}: the list {path} is empty")
    return np.concatenate(blocks)


def read_luperson(spec, folder: Path, keep_num: int | None = None, **options) -> RawSplits:
    """LUPerson (Fu, CVPR 2021), for pre-training: every image of ``images/``, label 0, camera 0.

    With ``CFS_list.pkl`` (or ``CFS_list.txt``) the first ``keep_num`` of its names, None: all of them.
    """
    place = require(folder / "images", "folder", spec)
    if keep_num is not None and keep_num < 1:
        raise UserError(f"DATASETS.KEEP_NUM: {keep_num} images are none")
    path = first_of([folder / "CFS_list.pkl", folder / "CFS_list.txt"])
    found = RawSplits()
    if path is None and keep_num is not None:
        raise UserError(f"DATASETS.KEEP_NUM: {spec.name} has no CFS_list.pkl nor CFS_list.txt in {folder} to keep from")
    if path is None:
        names = walk_images(place)
    else:
        found.listed = True
        names = listed_names(spec, path, keep_num)
        names.sort()
        if keep_num is not None and len(names) < keep_num:
            found.notes.append(f"{path} lists {len(names):,} images, {keep_num:,} were asked for: all are used")
    if not len(names):
        raise UserError(f"{spec.name}: no images in {place}")
    found.train = Records.of(Paths.of_names(names, str(place)), None)
    return found


def read_mm(spec, folder: Path, **options) -> RawSplits:
    """TransReID-SSL's joint set: MSMT17's ``list_train`` followed by Market-1501; the test is Market-1501's."""
    from datasets.catalogue import find_spec
    from datasets.spec import locate

    msmt17, market = find_spec("msmt17"), find_spec("market1501")
    first = read_msmt17(msmt17, locate(msmt17, folder), use_val=False).train
    found = read_folders(market, locate(market, folder))
    after = 1 + max(row.pid for row in first)
    cameras = 1 + max(row.cam for row in first)
    shifted = [replace(row, pid=row.pid + after, cam=row.cam + cameras) for row in found.train]
    tests = ([replace(row, cam=row.cam + cameras) for row in rows] for rows in (found.query, found.gallery))
    return RawSplits(first + shifted, *tests, listed=True)


def find_mm(root: Path, **options) -> Path:
    return Path(root)
