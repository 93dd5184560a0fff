"""Readers of the video sets: MARS, iLIDS-VID, PRID 2011 (multi-shot), DukeMTMC-VideoReID, LS-VID."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.readers.folders import refuse_empty
from datasets.readers.matlab import LARGEST, read_matrix
from datasets.readers.prid import person_number, prid_splits
from datasets.readers.scan import first_of, image_files, note_read, read_lines, require, sub_folders
from datasets.records import RawRow, RawSplits
from datasets.storage.files import read_regular
from utils.errors import UserError, reason_of

if TYPE_CHECKING:
    from datasets.catalogue.spec import DatasetSpec

ILIDS_SPLITS = "train-test people splits/train_test_splits_ilidsvid.mat"
PRID_LEAST = 28
"""Images of a sequence of PRID at least, in both views: 178 persons have as many."""


def read_mars(spec: DatasetSpec, folder: Path, **options: Any) -> RawSplits:
    """Reads MARS (Zheng, ECCV 2016): tracklets are ranges in lists of names, queries a list of tracklets.

    As in the authors' evaluation the gallery is all test tracklets, the queries among them: those of the query's
    camera and person never count, and without the others some queries would have no match. Identity -1 is junk and
    left out, identity 0 are distractors.
    """
    info = folder / "info"
    train = mars_tracklets(spec, folder, "train")
    test = mars_tracklets(spec, folder, "test")
    numbers = matrix(spec, info / "query_IDX.mat", "query_IDX").reshape(-1)
    return RawSplits(
        [row for rows in train for row in rows if row.pid not in spec.junk],
        chosen(spec, test, numbers, info / "query_IDX.mat"),
        [row for rows in test for row in rows if row.pid not in spec.junk],
        listed=True,
    )


def mars_tracklets(spec: DatasetSpec, folder: Path, split: str) -> list[list[RawRow]]:
    """Returns the images of each tracklet of a split, in the order of its table."""
    names = [words[0] for words in read_lines(folder / "info" / f"{split}_name.txt", spec)]
    path = folder / "info" / f"tracks_{split}_info.mat"
    table = matrix(spec, path, f"track_{split}_info")
    if table.ndim != 2 or table.shape[1] != 4:
        raise UserError(f"{spec.name}: {path}: expected rows of first and last image, identity and camera")
    tracklets = []
    for number, (first, last, pid, cam) in enumerate(table.tolist(), 1):
        if not 1 <= first <= last <= len(names):
            raise UserError(
                f"{spec.name}: {path}: tracklet {number} is images {first} to {last}, and the list has {len(names):,}"
            )
        home, seq = f"{folder}/bbox_{split}", f"{split} {number}"
        tracklets.append([
            RawRow(f"{home}/{name[:4]}/{name}", pid, cam, seq=seq, frame=last_number(name))
            for name in names[first - 1 : last]
        ])  # fmt: skip
    return tracklets


def read_ilids_vid(spec: DatasetSpec, folder: Path, split_id: int = 0, **options: Any) -> RawSplits:
    """Reads iLIDS-VID (Wang, ECCV 2014). split_id: one of the ten published splits of 150 and 150 persons.

    The first half of a split's row tests, camera 1 searching camera 2.
    """
    views = [folder / "sequences" / f"cam{number}" for number in (1, 2)]
    path = require(first_of([p / ILIDS_SPLITS for p in (folder, folder.parent)]) or folder / ILIDS_SPLITS, "file", spec)
    table = matrix(spec, path, "ls_set")
    people = sub_folders(require(views[0], "folder", spec))
    if table.ndim != 2 or sorted(table[0].tolist()) != list(range(1, len(people) + 1)):
        raise UserError(f"{spec.name}: {path}: each row must hold the persons 1 to {len(people)} of {views[0]} once")
    require_split(spec, split_id, len(table))
    order = [people[number - 1] for number in table[split_id].tolist()]
    half = len(order) // 2
    return two_views(spec, views, sorted(order[half:]), sorted(order[:half]))


def read_prid_video(spec: DatasetSpec, folder: Path, split_id: int = 0, seed: int = 0, **options: Any) -> RawSplits:
    """Reads PRID 2011, multi-shot (Hirzer, SCIA 2011): half of the persons whose sequences are long enough train.

    split_id: one of ten splits, from ``splits_prid2011.json`` if there is one, else drawn by ``seed``.
    """
    views = [require(folder / "multi_shot" / name, "folder", spec) for name in ("cam_a", "cam_b")]
    names = {person_number(spec, views[0], name): name for name in sub_folders(views[0])}
    others = {person_number(spec, views[1], name) for name in sub_folders(views[1])}

    def usable() -> list[int]:
        return [
            pid for pid, name in sorted(names.items()) if pid <= 200 and pid in others
            and all(len(image_files(view / name)) >= PRID_LEAST for view in views)
        ]  # fmt: skip

    splits = prid_splits(spec, folder, seed, "splits_prid2011.json", usable)
    require_split(spec, split_id, len(splits))
    train, test = splits[split_id]
    absent = [pid for pid in (*train, *test) if pid not in names or pid not in others]
    if absent:
        raise UserError(f"{spec.name}: {folder}: person {absent[0]} is not in both views ({len(absent)} in all)")
    return two_views(spec, views, [names[pid] for pid in train], [names[pid] for pid in test])


def two_views(spec: DatasetSpec, views: Sequence[Path], train: Iterable[str], test: Iterable[str]) -> RawSplits:
    """Returns the splits of a set of two cameras with a folder per person: the first camera searches the second."""

    def rows(view: Path, people: Iterable[str]) -> list[RawRow]:
        return [
            RawRow(f"{view}/{person}/{name}", last_number(person), view.name, seq=f"{view.name}/{person}",
                   frame=last_number(name))
            for person in people for name in image_files(require(view / person, "folder", spec))
        ]  # fmt: skip

    train, test = list(train), list(test)
    trained = [row for view in views for row in rows(view, train)]
    return RawSplits(refuse_empty(spec, trained, views[0]), rows(views[0], test), rows(views[1], test))


def read_duke_video(spec: DatasetSpec, folder: Path, **options: Any) -> RawSplits:
    """Reads DukeMTMC-VideoReID (Wu, CVPR 2018): a folder for each person, and in it one for each tracklet.

    The camera stands in the images' names, of the first release (``0005C6F0099X30823.jpg``) or the second
    (``0005_C6_F0099_X30823.jpg``).
    """
    pattern = re.compile(spec.pattern)

    def rows(split: str) -> list[RawRow]:
        home, found = require(folder / split, "folder", spec), []
        for person in sub_folders(home):
            for tracklet in sub_folders(home / person):
                place = home / person / tracklet
                for name in image_files(place):
                    match = pattern.match(name)
                    if not match:
                        raise UserError(f"{spec.name}: {place / name}: the name does not follow {spec.pattern!r}")
                    found.append(RawRow(
                        f"{place}/{name}", int(match["pid"]), int(match["cam"]), seq=f"{split}/{person}/{tracklet}",
                        frame=int(match["frame"]),
                    ))  # fmt: skip
        return refuse_empty(spec, found, home)

    return RawSplits(rows("train"), rows("query"), rows("gallery"))


def read_lsvid(spec: DatasetSpec, folder: Path, **options: Any) -> RawSplits:
    """Reads LS-VID (Li, ICCV 2019): lists of tracklets, each the beginning of its images' names, and of queries.

    As in MARS the gallery is all test tracklets, the queries among them.
    """
    train = lsvid_tracklets(spec, folder, "train")
    test = lsvid_tracklets(spec, folder, "test")
    path = folder / "test" / "data" / "info_test.mat"
    numbers = matrix(spec, path, "query").reshape(-1)
    return RawSplits(
        [row for rows in train for row in rows], chosen(spec, test, numbers, path),
        [row for rows in test for row in rows], listed=True,
    )  # fmt: skip


def lsvid_tracklets(spec: DatasetSpec, folder: Path, split: str) -> list[list[RawRow]]:
    """Returns the images of each tracklet of a split, in the order of its list."""
    path, tracklets = folder / "list_sequence" / f"list_seq_{split}.txt", []
    names: dict[str, list[str]] = {}
    for number, words in enumerate(read_lines(path, spec), 1):
        where = f"{spec.name}: {path}, line {number}"
        if len(words) != 2 or not words[1].isdecimal():
            raise UserError(f"{where}: expected the beginning of a path and an identity, got {' '.join(words)!r}")
        place, _, prefix = words[0].rpartition("/")
        if place not in names:
            names[place] = image_files(require(folder / place, "folder", spec))
        images = [name for name in names[place] if name.startswith(prefix)]
        cams = {name.split("_")[2] for name in images if name.count("_") >= 3}
        if len(cams) != 1 or not all(cam.isdecimal() for cam in cams):
            what = "no image's name begins with it" if not images else "its images' names show no single camera"
            raise UserError(f"{where}: {words[0]}: {what}")
        pid, cam, seq = int(words[1]), int(cams.pop()), f"{split} {number}"
        tracklets.append([
            RawRow(f"{folder}/{place}/{name}", pid, cam, seq=seq, frame=last_number(name)) for name in images
        ])  # fmt: skip
    return tracklets


def chosen(spec: DatasetSpec, tracklets: list[list[RawRow]], numbers: np.ndarray, path: Path) -> list[RawRow]:
    """Returns the images of the tracklets with these numbers, counted from 1. path: the list, in messages."""
    wrong = [number for number in numbers.tolist() if not 1 <= number <= len(tracklets)]
    if wrong:
        raise UserError(f"{spec.name}: {path}: query {wrong[0]} is no tracklet; there are {len(tracklets):,}, from 1")
    return [row for number in numbers.tolist() for row in tracklets[number - 1]]


def require_split(spec: DatasetSpec, split_id: int, count: int) -> None:
    """Raises ``UserError`` unless there is a split of this number."""
    if not 0 <= split_id < count:
        raise UserError(f"DATASETS.SPLIT_ID: {split_id}; {spec.name} has {count} splits, counted from 0")


def last_number(name: str) -> int:
    """Returns the number that a name ends with, but for its ending; 0 for none."""
    digits = re.search(r"(\d{1,15})\D*$", os.path.splitext(name)[0])
    return int(digits[1]) if digits else 0


def matrix(spec: DatasetSpec, path: Path, name: str) -> np.ndarray:
    """Returns a matrix of whole numbers in a MATLAB file of any version, int64.

    Raises ``UserError`` for a file that is none, has no such variable, or other values.
    """
    require(path, "file", spec)
    readers: tuple[Callable[[Path, str], np.ndarray | None], ...] = (matlab_matrix, hdf5_matrix)
    try:
        with open(note_read(path), "rb") as handle:
            is_hdf5 = b"MATLAB 7.3" in handle.read(128)
        values = readers[is_hdf5](path, name)
        if values is None:
            raise UserError(f"{spec.name}: {path}: has no variable {name!r}")
        whole = np.asarray(values, np.float64)
        if not (whole.size and (whole == np.round(whole)).all() and (np.abs(whole) < 2**53).all()):
            raise UserError(f"{spec.name}: {path}: {name} must hold whole numbers")
    except UserError:
        raise
    except ImportError:
        raise UserError(f"{spec.name}: {path} needs h5py: pip install -r requirements-extra.txt") from None
    except Exception as error:  # noqa: BLE001 - damaged files fail in many ways
        raise UserError(f"{spec.name}: {path}: not a MATLAB file ({reason_of(error)})") from None
    return whole.astype(np.int64)


def matlab_matrix(path: Path, name: str) -> np.ndarray | None:
    """Returns a variable of a file before version 7.3; None if the file does not have it."""
    return read_matrix(read_regular(str(path), LARGEST), name)


def hdf5_matrix(path: Path, name: str) -> np.ndarray | None:
    """Returns a variable of a file of version 7.3, which has rows and columns swapped."""
    import h5py

    with h5py.File(path, "r") as archive:
        return np.asarray(archive[name]).T if name in archive else None
