"""Turns a catalogue entry into a dataset: its lists read, numbered and counted."""

from __future__ import annotations

import inspect
import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from datasets.catalogue import find_spec
from datasets.catalogue.spec import Counts, DatasetSpec, locate
from datasets.joining import join_training, label_as_trained
from datasets.paths import Paths
from datasets.readers.folders import read_folders
from datasets.readers.scan import counted_endings, recorded_reads
from datasets.records import SPLITS, RawRow, RawSplits, Records, names_of_numbers, number, settle
from datasets.storage import cache
from datasets.storage.shard_index import list_options, read_shards
from utils.errors import UserError

log = logging.getLogger("lineup")


@dataclass
class ReIDDataset:
    """One dataset: three lists, training ids dense and 0-based. num_cameras, num_views: those of the training list.

    protocol: how it is evaluated. use_all: its test images are training images too. shared_ids: identities of
    training that are tested as well. listed: see ``RawSplits``. notes: lines for the log.
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
    notes: list[str] = field(default_factory=list)
    num_classes: int = field(init=False)
    num_cameras: int = field(init=False)
    num_views: int = field(init=False)

    def __post_init__(self) -> None:
        self.protocol = self.protocol or self.spec.protocol
        self.num_classes, _, self.num_cameras = self.train.counts()
        self.num_views = len(np.unique(self.train.viewids))

    def split(self, name: str) -> Records:
        """Returns the list called ``train``, ``query`` or ``gallery``."""
        return {"train": self.train, "query": self.query, "gallery": self.gallery}[name]

    def statistics(self) -> list[str]:
        """Returns the lines of a small table: identities, images and cameras of each split."""
        lines = [f"{self.spec.name} ({self.folder})"]
        for name in SPLITS:
            ids, images, cameras = self.split(name).counts()
            lines.append(f"  {name:8s} {ids:7,d} ids {images:9,d} images {cameras:4d} cameras")
        return lines


def merge_splits(spec: DatasetSpec, raw: RawSplits) -> None:
    """Makes training of train + query + gallery (``use_all``), distractors and junk left out, no image twice.

    Where the numbering restarts, test ids follow those of training.
    """
    if isinstance(raw.train, Records):
        return
    settle(raw.train, "pid")
    tested = [*raw.query, *raw.gallery]
    settle(tested, "pid")
    first = 1 + max((int(row.pid or 0) for row in raw.train), default=-1) if spec.restarts else 0
    known = {(row.path, row.box) for row in raw.train}  # a frame of a video holds several
    trained = {row.cam for row in raw.train}
    no_cameras = len(trained) == 1 and {r.cam for r in raw.query} <= {0} and {r.cam for r in raw.gallery} <= {1}
    for row in tested:
        if (row.path, row.box) not in known and row.pid not in (*spec.junk, *spec.distractors):
            known.add((row.path, row.box))
            pid = int(row.pid or 0) + first if spec.restarts else row.pid
            raw.train.append(replace(row, pid=pid, cam=min(trained) if no_cameras else row.cam))


@dataclass(frozen=True)
class Numbering:
    """The numbers of raw cameras, views and sequences, shared by the splits of a dataset."""

    cams: Mapping[Any, int]
    views: Mapping[Any, int]
    seqs: Mapping[Any, int]

    def records(self, rows: list[RawRow], pids: dict[Any, int], folder: Path) -> Records:
        """Returns the columns of a split. pids: raw identity -> number; folder: most paths begin with it."""
        columns: dict[str, Any] = {}
        if any(row.seq is not None for row in rows):  # a row without one is a sequence of its own
            seqs = [len(self.seqs) + i if r.seq is None else self.seqs[r.seq] for i, r in enumerate(rows)]
            columns["seqs"] = np.array(seqs, np.int64)
        if any(row.frame is not None for row in rows):
            columns["frames"] = np.array([-1 if row.frame is None else row.frame for row in rows], np.int64)
        if any(row.time is not None for row in rows):
            columns["times"] = np.array([np.nan if row.time is None else row.time for row in rows])
        if any(row.box for row in rows):
            columns["boxes"] = np.array([row.box or (0, 0, 0, 0) for row in rows], np.int32)
        names = sorted({name for row in rows for name in row.extra or ()})
        columns["extra"] = {name: np.array([(row.extra or {}).get(name, "") for row in rows]) for name in names}
        return Records.of(
            Paths.of([row.path for row in rows], f"{folder if folder.is_dir() else folder.parent}/"),
            [pids[row.pid] for row in rows],
            [self.cams[row.cam] for row in rows],
            [self.views[row.view] for row in rows],
            identities=names_of_numbers({raw: number for raw, number in pids.items() if raw is not None}),
            cameras=names_of_numbers(dict(self.cams)),
            views=names_of_numbers(dict(self.views)),
            **columns,
        )


def number_splits(raw: RawSplits, folder: Path) -> dict[str, Records]:
    """Returns split -> list: training ids, cameras and views 0-based and dense in raw order, tests by the same map.

    Test identities keep their numbers, unless training's classes are tested. An unlabelled training image has the
    label -1.
    """
    if isinstance(raw.train, Records):
        return {"train": raw.train, "query": Records.of([]), "gallery": Records.of([])}
    tested = [*raw.query, *raw.gallery]
    everything = raw.train + tested
    for rows, column in ((raw.train, "pid"), (tested, "pid"), (everything, "cam"), (everything, "view")):
        settle(rows, column)
    pids: dict[Any, int] = number(row.pid for row in raw.train if row.pid is not None) | {None: -1}
    if raw.protocol == "classification":
        test_pids = pids
    elif all(isinstance(row.pid, int) for row in tested):
        test_pids = {row.pid: row.pid for row in tested if isinstance(row.pid, int)}
    else:
        test_pids = number(row.pid for row in tested)
    numbering = Numbering(
        cams=number((r.cam for r in tested), number(r.cam for r in raw.train)),
        views=number((r.view for r in tested), number(r.view for r in raw.train)),
        seqs=number(row.seq for row in everything if row.seq is not None),
    )
    return {
        "train": numbering.records(raw.train, pids, folder),
        "query": numbering.records(raw.query, test_pids, folder),
        "gallery": numbering.records(raw.gallery, test_pids, folder),
    }


def shared_identities(spec: DatasetSpec, raw: RawSplits) -> int:
    """Returns how many identities of training are tested too, as far as the numbers tell."""
    if spec.restarts or isinstance(raw.train, Records) or raw.protocol == "classification":
        return 0
    tested = [*raw.query, *raw.gallery]
    settle(raw.train, "pid")
    settle(tested, "pid")
    return len({row.pid for row in raw.train} & {row.pid for row in tested})


def check_counts(dataset: ReIDDataset, published: Counts) -> None:
    """Logs one warning with both numbers where a split is not as published."""
    differences = []
    for split, expected in published.items():
        counts = zip(("ids", "images", "cameras"), dataset.split(split).counts(), expected, strict=True)
        differences += [f"{split} {n:,} {what} (published {e:,})" for what, n, e in counts if e is not None and e != n]
    if differences:
        text = ", ".join(differences)
        log.warning("%s: not the published counts: %s; is the archive unpacked whole?", dataset.spec.name, text)


def make_dataset(
    name: str,
    root: str | Path,
    use_all: bool = False,
    list_cache: bool = True,
    shards: str | Path = "",
    **options: Any,
) -> ReIDDataset:
    """Returns a dataset by its catalogue name.

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
    if shards:
        folder, records, others = read_shards(spec, Path(shards), list_options(spec, use_all, options))
        dataset = assemble(spec, folder, records, others, use_all)
    elif spec.parts:
        dataset = compose(spec, Path(root), use_all, list_cache)
    else:
        dataset = read_dataset(spec, Path(root), use_all, list_cache, options)
    for line in (spec.note, *dataset.notes):
        if line:
            log.warning("%s: %s", spec.name, line)
    if not use_all:
        check_counts(dataset, spec.published(**options))
    return dataset


def compose(spec: DatasetSpec, root: Path, use_all: bool, list_cache: bool) -> ReIDDataset:
    """Returns a dataset that joins the training lists of others; its tests are the last part's.

    use_all: train on the test images of that part too. The result counts as one domain.
    """
    parts: dict[str, ReIDDataset] = {}
    for i, (name, options) in enumerate(spec.parts, 1):
        is_tested = i == len(spec.parts)
        parts[name] = read_dataset(find_spec(name), root, use_all and is_tested, list_cache, dict(options))
    tested_name, tested = list(parts.items())[-1]
    if use_all:
        tested.train = tested_identities_last(tested)
    lists = {name: part.train for name, part in parts.items()}
    train = join_training(list(lists.values()))
    query, gallery = (number_as_trained(r, tested_name, lists, train) for r in (tested.query, tested.gallery))
    if all(part.num_views == 1 for part in parts.values()):  # nobody knows views: they are 0 as in each part
        train, query, gallery = (without_views(records) for records in (train, query, gallery))
    return ReIDDataset(
        spec=spec,
        folder=root,
        train=replace(train, domain=np.zeros(len(train), np.int64)),
        query=query,
        gallery=gallery,
        same_list=tested.same_list,
        protocol=tested.protocol,
        use_all=use_all,
        shared_ids=tested.shared_ids,
        listed=any(part.listed for part in parts.values()),
        notes=[note for part in parts.values() for note in (part.spec.note, *part.notes) if note],
    )


def tested_identities_last(dataset: ReIDDataset) -> Records:
    """Returns the training list of ``use_all`` with the tests' identities numbered after training's own."""
    train = dataset.train
    labels = np.unique(train.pids)
    names = labels if train.identities is None else train.identities[labels]
    tested = np.isin(names, np.concatenate([dataset.query.original_pids(), dataset.gallery.original_pids()]))
    order = np.argsort(tested, kind="stable")
    return replace(train, pids=np.argsort(order)[train.pids], identities=names[order])


def without_views(records: Records) -> Records:
    """Returns the list with view 0 for every image."""
    zeros = np.zeros(len(records), np.int64)
    return replace(records, viewids=zeros, view_labels=zeros, views=None)


def number_as_trained(records: Records, name: str, parts: dict[str, Records], train: Records) -> Records:
    """Returns a part's test list with the numbers that joined training gave to its cameras and views.

    name: of the part. parts: training lists by name. train: these lists joined.
    """
    labelled = label_as_trained(records, name, parts)
    _, _, cameras = parts[name].counts()
    views = len(np.unique(parts[name].viewids))
    return replace(
        labelled,
        camids=labelled.cam_labels,
        viewids=labelled.view_labels,
        cameras=followed_by(train.cameras, records.cameras, cameras, records.camids),
        views=followed_by(train.views, records.views, views, records.viewids),
    )


def followed_by(
    trained: np.ndarray | None, names: np.ndarray | None, count: int, numbers: np.ndarray
) -> np.ndarray | None:
    """Returns original ids of joined training with those behind them that a part's tests alone have.

    names: the part's original ids, of which the first ``count`` are trained; None: as the numbers are.
    """
    if trained is None:
        return None
    names = np.arange(1 + numbers.max(initial=-1)) if names is None else names
    return np.concatenate([trained, names[count:]])


def read_dataset(
    spec: DatasetSpec, root: Path, use_all: bool, list_cache: bool, options: dict[str, Any]
) -> ReIDDataset:
    """Returns the dataset of one entry, read from its own folder."""

    def accepted(function: Callable) -> dict[str, Any]:
        return {name: o for name, o in options.items() if name in inspect.signature(function).parameters}

    if spec.make:
        folder = spec.make(spec.name, root, **accepted(spec.make))
    elif spec.find:
        folder = spec.find(root, **accepted(spec.find))
    else:
        folder = locate(spec, root)
    reading = accepted(spec.read or read_folders)
    records, others = lists_of(spec, folder, use_all, list_cache and not spec.make, reading)
    return assemble(spec, folder, records, others, use_all)


def assemble(
    spec: DatasetSpec, folder: Path, records: dict[str, Records], others: dict[str, Any], use_all: bool
) -> ReIDDataset:
    """Returns the dataset of lists that were read or kept. others: its further fields by name."""
    return ReIDDataset(
        spec=spec,
        folder=folder,
        train=records["train"],
        query=records["query"],
        gallery=records["gallery"],
        same_list=others.get("same_list", False),
        protocol=others.get("protocol", ""),
        use_all=use_all,
        shared_ids=others.get("shared_ids", 0),
        listed=others.get("listed", False),
        notes=others.get("notes", []),
    )


def lists_of(
    spec: DatasetSpec, folder: Path, use_all: bool, keep: bool, options: dict[str, Any]
) -> tuple[dict[str, Records], dict[str, Any]]:
    """Returns (split -> records, other fields of the dataset), read or from the copy that an earlier run kept."""
    key = cache.entry_key(spec, {**options, "use_all": use_all}) if keep else ""
    kept = cache.load(folder, key) if keep else None
    if kept:
        return kept
    began = time.time()
    with recorded_reads() as seen, counted_endings() as left_out:
        try:
            raw = (spec.read or read_folders)(spec, folder, **options)
        except OSError as error:
            where = error.filename or folder
            raise UserError(f"{spec.name}: {where} cannot be read ({error.strerror or error})") from None
    others: dict[str, Any] = {
        "same_list": raw.same_list,
        "protocol": raw.protocol,
        "listed": raw.listed,
        "notes": [*raw.notes, *left_out],
    }
    if use_all:
        merge_splits(spec, raw)
    else:
        others["shared_ids"] = shared_identities(spec, raw)
    records = number_splits(raw, folder)
    if keep:
        cache.save(folder, key, records, seen, others, began)
    return records, others
