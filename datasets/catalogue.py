"""The catalogue: a declarative entry per dataset, and how an entry becomes train, query and gallery lists."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from datasets.readers import SPLITS, read_folders, read_msmt17, read_vehicleid, read_veri
from datasets.records import RawSplits, Records, number, settle
from datasets.synthetic import NAMES as SYNTHETIC_NAMES
from datasets.synthetic import ensure_synthetic
from datasets.table import find_table, read_table
from utils.errors import UserError, nearest

log = logging.getLogger("lineup")


@dataclass(frozen=True)
class DatasetSpec:
    """Where a dataset lies and how its files are named.

    folders: below the data root, first hit wins. pattern: base name -> groups pid, cam and maybe view. aliases:
    other names for it. junk: ids that are nobody, dropped everywhere; distractors: dropped from training only.
    kind: what is searched for. protocol: how it is evaluated. read: reader of the layout; its keyword arguments are
    the dataset's options. make: writes the data first (built-in sets). marker: file or folder that shows a root that
    is itself the dataset.
    """

    name: str
    folders: tuple[str, ...]
    pattern: str = ""
    cite: str = ""
    aliases: tuple[str, ...] = ()
    splits: tuple[str, str, str] = ("bounding_box_train", "query", "bounding_box_test")
    junk: tuple[int, ...] = (-1,)
    distractors: tuple[int, ...] = ()
    kind: str = "person"
    protocol: str = "market1501"
    read: Callable[..., RawSplits] = read_folders
    find: Callable | None = None
    make: Callable | None = None
    marker: str = "bounding_box_train"
    note: str = ""

    @property
    def options(self) -> set[str]:
        """Names of the options that this dataset knows."""
        functions = [f for f in (self.read, self.make, self.find) if f]
        named = {p.name for f in functions for p in inspect.signature(f).parameters.values() if p.kind != p.VAR_KEYWORD}
        return named - {"spec", "folder", "path", "root", "name", "workers"}


DUKE_NAME = r"^(?P<pid>\d+)_c(?P<cam>\d+)_"
MARKET_NAME = r"^(?P<pid>-?\d+)_c(?P<cam>\d+)"
WITHDRAWN = "withdrawn by its authors in 2019 for privacy reasons; no official copy exists and none is fetched"

ENTRIES = (
    DatasetSpec(
        "market1501",
        ("market1501", "Market-1501-v15.09.15", "market1501/Market-1501-v15.09.15"),
        MARKET_NAME,
        "Zheng et al., ICCV 2015",
        aliases=("market",),
        distractors=(0,),
    ),
    DatasetSpec(
        "dukemtmc",
        (
            "dukemtmcreid",
            "dukemtmcreid/DukeMTMC-reID",
            "DukeMTMC-reID",
            "dukemtmc/DukeMTMC-reID",
            "dukemtmc-reid/DukeMTMC-reID",
        ),
        DUKE_NAME,
        "Ristani et al., ECCVW 2016; Zheng et al., ICCV 2017",
        aliases=("dukemtmcreid", "duke"),
        note=WITHDRAWN,
    ),
    DatasetSpec(
        "occ_duke",
        ("Occluded_Duke", "dukemtmcreid/Occluded_Duke"),
        DUKE_NAME,
        "Miao et al., ICCV 2019",
        aliases=("occluded_duke", "occluded_dukemtmc"),
        note=f"made from DukeMTMC-reID, {WITHDRAWN}",
    ),
    DatasetSpec(
        "msmt17",
        (
            "MSMT17",
            "MSMT17_V1",
            "msmt17/MSMT17_V1",
            "msmt17v1/MSMT17_V1",
            "MSMT17_V2",
            "msmt17/MSMT17_V2",
            "msmt/MSMT17_V2",
        ),
        MARKET_NAME,
        "Wei et al., CVPR 2018",
        junk=(),
        read=read_msmt17,
        marker="list_train.txt",
    ),
    DatasetSpec(
        "msmt17v1",
        ("MSMT17_V1", "msmt17/MSMT17_V1", "msmt17v1/MSMT17_V1", "MSMT17"),
        MARKET_NAME,
        "Wei et al., CVPR 2018",
        junk=(),
        read=read_msmt17,
        marker="train",
    ),
    DatasetSpec(
        "msmt17v2",
        ("MSMT17_V2", "msmt17/MSMT17_V2", "msmt/MSMT17_V2", "MSMT17"),
        MARKET_NAME,
        "Wei et al., CVPR 2018, with masked faces",
        aliases=("msmt",),
        junk=(),
        read=read_msmt17,
        marker="mask_train_v2",
    ),
    DatasetSpec(
        "veri",
        ("VeRi", "veri", "veri/VeRi", "veri/VeRi_with_plate"),
        r"^(?P<pid>\d+)_c(?P<cam>\d+)",
        "Liu et al., ECCV 2016",
        aliases=("veri776",),
        splits=("image_train", "image_query", "image_test"),
        junk=(),
        kind="vehicle",
        read=read_veri,
        marker="image_train",
    ),
    *(
        DatasetSpec(
            name,
            ("VehicleID_V1.0", "vehicleid", "vehicleid/VehicleID_V1.0"),
            cite="Liu et al., CVPR 2016",
            aliases=aliases,
            kind="vehicle",
            protocol="vehicleid",
            read=partial(read_vehicleid, test_size=test_size),
            marker="train_test_split",
        )
        for name, aliases, test_size in (
            ("vehicleid", (), 800),
            ("vehicleid_small", ("SmallVehicleID",), 800),
            ("vehicleid_medium", ("MediumVehicleID",), 1600),
            ("vehicleid_large", ("LargeVehicleID",), 2400),
        )
    ),
    DatasetSpec("csv", (), cite="your own table", kind="", read=read_table, find=find_table),
    *(
        DatasetSpec(
            name,
            (),
            MARKET_NAME + r"(?:.*_v(?P<view>\d+)\.)?",
            "drawn by datasets/synthetic.py",
            kind="vehicle" if "vehicle" in name else "person",
            make=ensure_synthetic,
        )
        for name in SYNTHETIC_NAMES
    ),
)
CATALOGUE = {spec.name: spec for spec in ENTRIES}
"""Every dataset by its name; ``register_dataset`` adds one from outside the repository."""


def register_dataset(spec: DatasetSpec) -> None:
    CATALOGUE[spec.name] = spec


def fold(name: str) -> str:
    """Names compare without case, ``-`` and ``_``."""
    return re.sub(r"[-_ ]", "", name.lower())


def find_spec(name: str) -> DatasetSpec:
    known = {fold(alias): spec for spec in CATALOGUE.values() for alias in (spec.name, *spec.aliases)}
    if fold(str(name)) not in known:
        hint = nearest(str(name), [a for s in CATALOGUE.values() for a in (s.name, *s.aliases)])
        raise UserError(f"DATASETS.NAMES: unknown dataset {name!r}{hint} Known: {', '.join(sorted(CATALOGUE))}")
    return known[fold(str(name))]


def locate(spec: DatasetSpec, root: Path) -> Path:
    """The dataset's folder: each candidate below the root, then below a folder of an accepted name, then the root."""
    if not root.is_dir():
        raise UserError(f"{spec.name}: DATASETS.ROOT_DIR {str(root)!r} is no folder; set it to where your datasets are")
    names = {fold(name) for name in (spec.name, *spec.aliases)}
    below = [root, *sorted(place for place in root.iterdir() if fold(place.name) in names and place.is_dir())]
    places = [base / folder for base in below for folder in spec.folders]
    fitting = [p for p in [*places, root] if (p / spec.marker).exists() or (p / spec.splits[0]).exists()]
    if fitting:
        return fitting[0]
    present = [p for p in places if p.is_dir()]
    if present:
        return present[0]  # the reader says what is missing inside
    looked = ", ".join(str(p) for p in places[: len(spec.folders)])
    raise UserError(f"{spec.name}: not found; looked for {looked} (DATASETS.ROOT_DIR is {str(root)!r})")


@dataclass
class ReIDDataset:
    """One dataset: three lists, training ids dense and 0-based. num_cameras, num_views: as training knows them."""

    spec: DatasetSpec
    folder: Path
    train: Records
    query: Records
    gallery: Records
    same_list: bool = False
    num_classes: int = field(init=False)
    num_cameras: int = field(init=False)
    num_views: int = field(init=False)

    def __post_init__(self) -> None:
        self.num_classes, _, self.num_cameras = self.train.counts()
        self.num_views = len(set(self.train.viewids.tolist()))

    def statistics(self) -> list[str]:
        """Lines of a small table: identities, images and cameras of each split."""
        lines = [f"{self.spec.name} ({self.folder})"]
        for split in SPLITS:
            ids, images, cameras = getattr(self, split).counts()
            lines.append(f"  {split:8s} {ids:7,d} ids {images:9,d} images {cameras:4d} cameras")
        return lines


def number_splits(raw: RawSplits) -> dict[str, Records]:
    """Raw ids to numbers: training ids, cameras and views 0-based and dense in raw order, the tests by the same map."""
    tested = [*raw.query, *raw.gallery]
    everything = raw.train + tested
    for rows, column in ((raw.train, "pid"), (tested, "pid"), (everything, "cam"), (everything, "view")):
        settle(rows, column)
    pids = number(row.pid for row in raw.train)
    as_given = all(isinstance(row.pid, int) for row in tested)
    test_pids = {row.pid: row.pid for row in tested} if as_given else number(row.pid for row in tested)
    cams = number((r.cam for r in tested), number(r.cam for r in raw.train))
    views = number((r.view for r in tested), number(r.view for r in raw.train))
    return {
        split: Records.of(
            [r.path for r in rows],
            [(pids if split == "train" else test_pids)[r.pid] for r in rows],
            [cams[r.cam] for r in rows],
            [views[r.view] for r in rows],
        )
        for split, rows in ((s, getattr(raw, s)) for s in SPLITS)
    }


def make_dataset(name: str, root: str | Path, **options) -> ReIDDataset:
    """One dataset by its catalogue name.

    root: the folder that holds datasets (``DATASETS.ROOT_DIR``). options: those of the dataset's reader. Raises
    ``UserError`` for unknown names and options, missing folders and lists, and files that do not fit the pattern.
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
    if spec.make:
        folder = spec.make(spec.name, root, **accepted(spec.make))
    elif spec.find:
        folder = spec.find(root, **accepted(spec.find))
    else:
        folder = locate(spec, root)
    raw = spec.read(spec, folder, **accepted(spec.read))
    if spec.note:
        log.warning("%s: %s", spec.name, spec.note)
    return ReIDDataset(spec, folder, **number_splits(raw), same_list=raw.same_list)
