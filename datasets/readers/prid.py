"""Reader of PRID 2011."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets.readers.folders import refuse_empty
from datasets.readers.scan import first_of, image_files, require, sub_folders
from datasets.records import RawRow, RawSplits
from utils.errors import UserError

if TYPE_CHECKING:
    from datasets.catalogue.spec import DatasetSpec


def read_prid(spec: DatasetSpec, folder: Path, split_id: int = 0, seed: int = 0, **options: Any) -> RawSplits:
    """Reads PRID 2011, single shot (Hirzer, SCIA 2011): 100 of the 200 persons in both views train.

    split_id: one of 10 splits, from ``splits_single_shot.json`` if there is one, else drawn by ``seed``. fast-reid's
    ``slim_train`` only trains.
    """
    if first_of([folder / "slim_train"]) and not first_of([folder / "single_shot"]):
        people, rows = folder / "slim_train", []
        for person in sub_folders(people):
            pid = person_number(spec, people, person)
            rows += [RawRow(f"{people}/{person}/{name}", pid) for name in image_files(people / person)]
        return RawSplits(refuse_empty(spec, rows, people))
    views: list[dict[int, RawRow]] = []
    for camera in ("cam_a", "cam_b"):
        images = require(folder / "single_shot" / camera, "folder", spec)
        people = {person_number(spec, images, n): RawRow(f"{images}/{n}", 0, camera) for n in image_files(images)}
        for pid, row in people.items():
            row.pid = pid
        refuse_empty(spec, list(people.values()), images)
        views.append(people)
    splits = prid_splits(spec, folder, seed, "splits_single_shot.json", lambda: range(1, 201))
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


def person_number(spec: DatasetSpec, folder: Path, name: str) -> int:
    """Returns the identity that a name such as ``person_0001`` shows."""
    match = re.match(r"person_(\d+)", name)
    if not match:
        raise UserError(f"{spec.name}: {folder / name}: the name does not follow the pattern of prid (person_0001)")
    return int(match[1])


def prid_splits(
    spec: DatasetSpec, folder: Path, seed: int, name: str, people: Callable[[], Sequence[int]]
) -> list[tuple[list[int], list[int]]]:
    """Returns (training ids, test ids) of each split, in ascending order.

    name: of the file that holds them. people: gives those who are shared out where there is no such file.
    """
    path = first_of([parent / name for parent in (folder, folder.parent)])
    if path is None:
        rng, splits, everybody = random.Random(seed), [], people()
        half = len(everybody) // 2
        for _ in range(10):
            drawn = rng.sample(everybody, len(everybody))
            splits.append((sorted(drawn[:half]), sorted(drawn[half:])))
        return splits
    try:
        return [(ids_of(split["train"]), ids_of(split["test"])) for split in json.loads(path.read_text())]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{spec.name}: {path} is not a list of splits with train and test") from None


def ids_of(names: list) -> list[int]:
    """Returns the numbers in names such as ``person_0001``, ascending."""
    return sorted(int(re.sub(r"\D", "", str(name))) for name in names)
