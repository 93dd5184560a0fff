"""Reader of PRID 2011."""

from __future__ import annotations

import json
import random
import re
from pathlib import Path

from datasets.readers.folders import refuse_empty
from datasets.readers.scan import first_of, image_files, require, sub_folders
from datasets.records import RawRow, RawSplits
from utils.errors import UserError


def read_prid(spec, folder: Path, split_id: int = 0, seed: int = 0, **options) -> RawSplits:
    """PRID 2011, single shot (Hirzer, SCIA 2011): 100 of the 200 persons in both views train, by one of 10 splits.

    ``splits_single_shot.json`` decides where it is there, else ``seed``. fast-reid's ``slim_train`` only trains.
    """
    if first_of([folder / "slim_train"]) and not first_of([folder / "single_shot"]):
        place, found = folder / "slim_train", []
        for person in sub_folders(place):
            pid = person_number(spec, place, person)
            found += [RawRow(f"{place}/{person}/{name}", pid) for name in image_files(place / person)]
        return RawSplits(refuse_empty(spec, found, place))
    views = []
    for camera, name in enumerate(("cam_a", "cam_b")):
        place = require(folder / "single_shot" / name, "folder", spec)
        rows = [RawRow(f"{place}/{n}", person_number(spec, place, n), camera) for n in image_files(place)]
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
