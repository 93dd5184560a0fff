"""The index of a dataset's tar shards: its lists, the options they were made with, and the sizes of the shards."""

from __future__ import annotations

import inspect
import json
from pathlib import Path

import numpy as np

from datasets.readers.scan import existing
from datasets.records import Records
from datasets.storage.cache import unpacked
from datasets.storage.files import opened
from utils.errors import UserError

INDEX = "index.npz"
PLACES = ("spec", "folder", "path", "root", "name", "workers", "file", "image_dir", "view_dir")
"""Parameters of readers that say where data are, not what they are."""


def list_options(spec, use_all: bool, options: dict) -> dict:
    """The value of every option that decides the lists, given or by default, as JSON has it."""
    functions = [f for f in (spec.read, spec.make) if f]
    parameters = [p for f in functions for p in inspect.signature(f).parameters.values() if p.kind != p.VAR_KEYWORD]
    values = {p.name: options.get(p.name, p.default) for p in parameters if p.name not in PLACES}
    return json.loads(json.dumps(values | {"use_all": use_all}, default=str))


def read_shards(spec, folder: Path, chosen: dict) -> tuple[Path, dict[str, Records], dict]:
    """(the dataset's folder of shards, split -> records, other fields of the dataset).

    Raises ``UserError`` where there is no index, a shard is missing or not whole, or the lists were made with other
    options than ``chosen``.
    """
    home = folder / spec.name
    try:
        with np.load(home / INDEX, allow_pickle=False) as held:
            records, kept = unpacked(held, home)
    except FileNotFoundError:
        raise UserError(
            f"DATASETS.SHARDS: no {INDEX} in {home} (found: {existing(home)}); python -m tools.make_shards writes it"
        ) from None
    except Exception as error:  # whatever a damaged archive raises
        raise UserError(f"{home / INDEX}: is damaged ({' '.join(str(error).split())})") from None
    for shard, size in kept["sizes"].items():
        there = (home / shard).stat().st_size if (home / shard).exists() else None
        if there != size:
            found = "is missing" if there is None else f"has {there:,} bytes instead of {size:,}"
            raise UserError(f"{home / shard} {found}; copy the shards anew")
    other = [k for k in sorted({*chosen, *kept["options"]}) if chosen.get(k) != kept["options"].get(k)]
    if other:
        raise UserError(
            f"DATASETS.SHARDS: {home} was written with {other[0]} {kept['options'].get(other[0])!r}, this run has "
            f"{chosen.get(other[0])!r}; write other shards with python -m tools.make_shards"
        )
    opened.cache_clear()  # shards of an earlier reading may have been replaced
    return home, records, kept["more"] | {"notes": []}
