"""From a catalogue entry to a dataset: its lists read, numbered and counted."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from datasets.catalogue import find_spec
from datasets.catalogue.spec import Counts, DatasetSpec, locate
from datasets.paths import Paths
from datasets.readers.folders import read_folders
from datasets.readers.scan import watching
from datasets.records import SPLITS, RawSplits, Records, Row, number, settle
from datasets.storage import cache
from datasets.storage.shard_index import read_shards, settings
from utils.errors import UserError

log = logging.getLogger("lineup")


@dataclass
class ReIDDataset:
    """One dataset: three lists, training ids dense and 0-based. num_cameras, num_views: as training knows them.

    protocol: how it is evaluated. use_all: its test images are training images too. shared_ids: identities of
    training that are tested as well. listed: see ``RawSplits``.
    """

    spec: DatasetSpec
    folder: Path
    train: Records
    query: Records
    gallery: Records
    same_list: bool = False
    protocol: str = ""
    use_all: bool = False
    shared_ids: int = 0
    listed: bool = False
    num_classes: int = field(init=False)
    num_cameras: int = field(init=False)
    num_views: int = field(init=False)

    def __post_init__(self) -> None:
        self.protocol = self.protocol or self.spec.protocol
        self.num_classes, _, self.num_cameras = self.train.counts()
        self.num_views = len(np.unique(self.train.viewids))

    def statistics(self) -> list[str]:
        """Lines of a small table: identities, images and cameras of each split."""
        lines = [f"{self.spec.name} ({self.folder})"]
        for split in SPLITS:
            ids, images, cameras = getattr(self, split).counts()
            lines.append(f"  {split:8s} {ids:7,d} ids {images:9,d} images {cameras:4d} cameras")
        return lines


def merge_splits(spec: DatasetSpec, raw: RawSplits) -> None:
    """Training becomes train + query + gallery (``use_all``), distractors and junk left out, no image twice.

    Where the numbering restarts, test ids follow those of training.
    """
    if isinstance(raw.train, Records):
        return
    settle(raw.train, "pid")
    tested = [*raw.query, *raw.gallery]
    settle(tested, "pid")
    first = 1 + max((row.pid for row in raw.train), default=-1) if spec.restarts else 0
    known = {row.path for row in raw.train}
    trained = {row.cam for row in raw.train}
    no_cameras = len(trained) == 1 and {r.cam for r in raw.query} <= {0} and {r.cam for r in raw.gallery} <= {1}
    for row in tested:
        if row.path not in known and row.pid not in (*spec.junk, *spec.distractors):
            known.add(row.path)
            pid = row.pid + first if spec.restarts else row.pid
            raw.train.append(replace(row, pid=pid, cam=min(trained) if no_cameras else row.cam))


def columns_of(rows: list[Row], pids: dict, cams: dict, views: dict, seqs: dict, folder: Path) -> Records:
    more = {}
    if any(row.seq is not None for row in rows):  # a row without one is a sequence of its own
        more["seqs"] = np.array([len(seqs) + i if r.seq is None else seqs[r.seq] for i, r in enumerate(rows)], np.int64)
    if any(row.box for row in rows):
        more["boxes"] = np.array([row.box or (0, 0, 0, 0) for row in rows], np.int32)
    names = sorted({name for row in rows for name in row.extra or ()})
    more["extra"] = {name: np.array([(row.extra or {}).get(name, "") for row in rows]) for name in names}
    return Records.of(
        Paths.of([row.path for row in rows], f"{folder if folder.is_dir() else folder.parent}/"),
        [pids[row.pid] for row in rows],
        [cams[row.cam] for row in rows],
        [views[row.view] for row in rows],
        **more,
    )


def number_splits(raw: RawSplits, folder: Path) -> dict[str, Records]:
    """Raw ids to numbers: training ids, cameras and views 0-based and dense in raw order, the tests by the same map.

    Test identities keep their numbers, but where training's classes are tested.

    An unlabelled training image has the label -1.
    """
    if isinstance(raw.train, Records):
        return {"train": raw.train, "query": Records.of([], []), "gallery": Records.of([], [])}
    tested = [*raw.query, *raw.gallery]
    everything = raw.train + tested
    for rows, column in ((raw.train, "pid"), (tested, "pid"), (everything, "cam"), (everything, "view")):
        settle(rows, column)
    pids = number(row.pid for row in raw.train if row.pid is not None) | {None: -1}
    as_given = all(isinstance(row.pid, int) for row in tested)
    test_pids = {row.pid: row.pid for row in tested} if as_given else number(row.pid for row in tested)
    if raw.protocol == "classification":
        test_pids = pids
    cams = number((r.cam for r in tested), number(r.cam for r in raw.train))
    views = number((r.view for r in tested), number(r.view for r in raw.train))
    seqs = number(row.seq for row in everything if row.seq is not None)
    shared = (cams, views, seqs, folder)
    return {
        "train": columns_of(raw.train, pids, *shared),
        "query": columns_of(raw.query, test_pids, *shared),
        "gallery": columns_of(raw.gallery, test_pids, *shared),
    }


def shared_identities(spec: DatasetSpec, raw: RawSplits) -> int:
    """How many identities of training are tested too, as far as the numbers tell."""
    if spec.restarts or isinstance(raw.train, Records) or raw.protocol == "classification":
        return 0
    tested = [*raw.query, *raw.gallery]
    settle(raw.train, "pid")
    settle(tested, "pid")
    return len({row.pid for row in raw.train} & {row.pid for row in tested})


def check_counts(dataset: ReIDDataset, published: Counts) -> None:
    """One warning with both numbers when a split is not as published."""
    wrong = []
    for split, wanted in published.items():
        found = getattr(dataset, split).counts()
        pairs = zip(("ids", "images", "cameras"), found, wanted, strict=True)
        wrong += [f"{split} {there:,} {what} (published {w:,})" for what, there, w in pairs if w not in (None, there)]
    if wrong:
        log.warning(
            "%s: not the published counts: %s; is the archive unpacked whole?", dataset.spec.name, ", ".join(wrong)
        )


def make_dataset(
    name: str, root: str | Path, use_all: bool = False, list_cache: bool = True, shards: str | Path = "", **options
) -> ReIDDataset:
    """One dataset by its catalogue name.

    root: the folder that holds datasets (``DATASETS.ROOT_DIR``). use_all: train on query and gallery too; both stay
    what they are. list_cache: keep long lists for the next time (``datasets/storage/cache.py``). shards: read tar
    shards below this folder instead (``datasets/storage/shard_index.py``). options: those of the dataset's reader.
    Raises ``UserError`` for unknown names and options, missing folders and lists, and files that do not fit the
    pattern.
    """
    spec = find_spec(name)
    unknown = sorted(set(options) - spec.options)
    if unknown:
        known = ", ".join(sorted(spec.options)) or "none"
        raise UserError(
            f"DATASETS.{unknown[0].upper()}: {spec.name} has no option {unknown[0]!r}; its options: {known}"
        )

    def accepted(function: Callable) -> dict:
        return {k: v for k, v in options.items() if k in inspect.signature(function).parameters}

    root = Path(root)
    if shards:
        folder, records, more = read_shards(spec, Path(shards), settings(spec, use_all, options))
    else:
        if spec.make:
            folder = spec.make(spec.name, root, **accepted(spec.make))
        elif spec.find:
            folder = spec.find(root, **accepted(spec.find))
        else:
            folder = locate(spec, root)
        reading = accepted(spec.read or read_folders)
        records, more = lists_of(spec, folder, use_all, list_cache and not spec.make, reading)
    for line in (spec.note, *more.pop("notes")):
        if line:
            log.warning("%s: %s", spec.name, line)
    dataset = ReIDDataset(spec, folder, **records, **more, use_all=use_all)
    if not use_all:
        check_counts(dataset, spec.published(**options))
    return dataset


def lists_of(
    spec: DatasetSpec, folder: Path, use_all: bool, keep: bool, options: dict
) -> tuple[dict[str, Records], dict]:
    """(split -> records, other fields of the dataset and notes), read or from the copy of an earlier run."""
    key = cache.entry_key(spec, {**options, "use_all": use_all}) if keep else ""
    held = cache.load(folder, key) if keep else None
    if held:
        return held
    began = time.time()
    with watching() as looked:
        try:
            raw = (spec.read or read_folders)(spec, folder, **options)
        except OSError as error:
            where = error.filename or folder
            raise UserError(f"{spec.name}: {where} cannot be read ({error.strerror or error})") from None
    more = {"same_list": raw.same_list, "protocol": raw.protocol, "listed": raw.listed, "notes": raw.notes}
    if use_all:
        merge_splits(spec, raw)
    else:
        more["shared_ids"] = shared_identities(spec, raw)
    records = number_splits(raw, folder)
    if keep:
        cache.save(folder, key, records, looked, more, began)
    return records, more
