"""Every dataset that can be named: one declarative entry each."""

from __future__ import annotations

from datasets.catalogue.objects import RETRIEVAL, VEHICLES
from datasets.catalogue.person import MARKET_NAME, PERSON
from datasets.catalogue.spec import DatasetSpec, fold
from datasets.catalogue.video import VIDEO
from datasets.readers.own_folder import find_folder, read_folder
from datasets.readers.table import find_table, read_table
from datasets.readers.unlabelled import find_images, read_images
from datasets.synthetic.sets import NAMES as SYNTHETIC_NAMES
from datasets.synthetic.sets import ensure_synthetic
from datasets.synthetic.tracks import ensure_tracks, read_tracks
from utils.errors import UserError, nearest

ENTRIES = (
    *PERSON,
    *VIDEO,
    *VEHICLES,
    *RETRIEVAL,
    DatasetSpec("csv", (), cite="your own table", kind="", read=read_table, find=find_table, availability="yours"),
    DatasetSpec(
        "folder", (), cite="your own folders", kind="", read=read_folder, find=find_folder, availability="yours"
    ),
    DatasetSpec(
        "images", (), cite="your own images", kind="", read=read_images, find=find_images, availability="yours"
    ),
    *(
        DatasetSpec(
            name,
            (),
            MARKET_NAME + r"(?:.*_v(?P<view>\d+)\.)?",
            "drawn by datasets/synthetic/sets.py",
            kind="vehicle" if "vehicle" in name else "person",
            make=ensure_synthetic,
            availability="built in",
        )
        for name in SYNTHETIC_NAMES
    ),
    DatasetSpec(
        "synthetic_tracks",
        (),
        cite="drawn by datasets/synthetic/tracks.py",
        read=read_tracks,
        make=ensure_tracks,
        marker="dataset.csv",
        availability="built in",
    ),
)
CATALOGUE = {spec.name: spec for spec in ENTRIES}
"""Every dataset by its name; ``register_dataset`` adds one from outside the repository."""


def register_dataset(spec: DatasetSpec) -> None:
    """Adds an entry to the catalogue, or replaces the one of the same name."""
    CATALOGUE[spec.name] = spec


def find_spec(name: str, key: str = "DATASETS.NAMES") -> DatasetSpec:
    """Returns the entry of a name or alias; raises ``UserError`` that names ``key`` for an unknown one."""
    known = {fold(alias): spec for spec in CATALOGUE.values() for alias in (spec.name, *spec.aliases)}
    if fold(str(name)) not in known:
        hint = nearest(str(name), [alias for spec in CATALOGUE.values() for alias in (spec.name, *spec.aliases)])
        raise UserError(f"{key}: unknown dataset {name!r}{hint} Known: {', '.join(sorted(CATALOGUE))}")
    return known[fold(str(name))]
