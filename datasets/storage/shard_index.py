"""The index of a dataset's tar shards: its lists, the options they were made with, and the sizes of the shards."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.readers.scan import existing
from datasets.records import SPLITS, Records
from datasets.storage.cache import unpacked
from datasets.storage.files import opened
from utils.errors import UserError, reason_of

if TYPE_CHECKING:
    from datasets.catalogue.spec import DatasetSpec

INDEX = "index.npz"
SHARD, SHARD_ROOT = re.compile(r"\d{6}\.tar"), re.compile(r"\d{6}\.tar/")
LOCATIONS = ("spec", "folder", "path", "root", "name", "workers", "file", "image_dir", "view_dir", "max_table_gb")
"""Parameters of readers that say where data are, not what they are."""


def list_options(spec: DatasetSpec, use_all: bool, options: dict[str, Any]) -> dict[str, Any]:
    """Returns the value of every option that decides the lists, set or by default, as JSON has it."""
    functions = [f for f in (spec.read, spec.make) if f]
    parameters = [p for f in functions for p in inspect.signature(f).parameters.values() if p.kind != p.VAR_KEYWORD]
    values = {p.name: options.get(p.name, p.default) for p in parameters if p.name not in LOCATIONS}
    return json.loads(json.dumps(values | {"use_all": use_all}, default=str))


def require_sound(records: dict[str, Records], kept: dict[str, Any]) -> None:
    """Raises ``ValueError`` for an index that lacks entries, or names files outside of its folder."""
    if not {*SPLITS} <= records.keys():
        raise ValueError("it lacks a split")
    for name, kind in (("sizes", dict), ("options", dict), ("more", dict)):
        if not isinstance(kept.get(name), kind):
            raise ValueError(f"it has no {name}")
    strange = [name for name in kept["sizes"] if not SHARD.fullmatch(name)]
    for split, of in kept["splits"].items():
        roots = of["roots"] if len(records[split]) else []
        strange += [root for mark, root in roots if mark != "below" or not SHARD_ROOT.fullmatch(root)]
    if strange:
        raise ValueError(f"{strange[0]!r} is no shard of this folder")


def read_shards(
    spec: DatasetSpec, folder: Path, options: dict[str, Any]
) -> tuple[Path, dict[str, Records], dict[str, Any]]:
    """Returns (the dataset's folder of shards, split -> records, other fields of the dataset).

    options: see ``list_options``. Raises ``UserError`` if there is no index, a shard is missing or not whole, or the
    lists were made with other options.
    """
    home = folder / spec.name
    try:
        with np.load(home / INDEX, allow_pickle=False) as archive:
            records, kept = unpacked(archive, home)
        require_sound(records, kept)
    except FileNotFoundError:
        raise UserError(
            f"DATASETS.SHARDS: no {INDEX} in {home} (found: {existing(home)}); python -m tools.make_shards writes it"
        ) from None
    except Exception as error:  # whatever a damaged archive raises
        raise UserError(f"{home / INDEX}: is damaged ({reason_of(error)})") from None
    for shard, size in kept["sizes"].items():
        present = (home / shard).stat().st_size if (home / shard).exists() else None
        if present != size:
            fault = "is missing" if present is None else f"has {present:,} bytes instead of {size:,}"
            raise UserError(f"{home / shard} {fault}; copy the shards again")
    written = kept["options"]
    other = [name for name in sorted({*options, *written}) if options.get(name) != written.get(name)]
    if other:
        raise UserError(
            f"DATASETS.SHARDS: {home} was written with {other[0]} {written.get(other[0])!r}, this run has "
            f"{options.get(other[0])!r}; write other shards with python -m tools.make_shards"
        )
    opened.cache_clear()  # shards of an earlier reading may have been replaced
    return home, records, kept["more"] | {"notes": []}
