"""What identifies the training lists of a run, so that a restart notices that they were edited in between."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from datasets.dataset import ReIDDataset
from datasets.paths import Paths, ends
from datasets.records import Records
from datasets.storage.files import own_name
from utils.errors import UserError

Fingerprint = dict[str, dict[str, int | str]]
"""Dataset -> its counts of rows, identities and cameras, and the digest of each column."""

COUNTS = ("rows", "identities", "cameras")
COLUMNS = {"pids": "identities", "camids": "cameras", "viewids": "views", "boxes": "crop boxes"}
"""Columns whose digests are kept beside that of the paths, and what a message calls them."""


def fingerprint_of(datasets: Mapping[str, tuple[ReIDDataset, Records]], image_dir: str = "") -> Fingerprint:
    """Returns what identifies training lists. datasets: name -> (the dataset, its numbered list as it is trained on).

    Paths count as the lists give them, below the dataset's folder or ``image_dir`` (DATASETS.IMAGE_DIR), so that data
    may move to another disk or into shards between two starts. Ids count as the network knows them: renaming
    identities without changing their order is no change.
    """
    return {name: _of_list(records, _homes(dataset, image_dir)) for name, (dataset, records) in datasets.items()}


def _homes(dataset: ReIDDataset, image_dir: str) -> list[str]:
    folder = dataset.folder if dataset.folder.is_dir() else dataset.folder.parent
    homes = {os.path.join(str(Path(place)), "") for place in (image_dir, folder) if str(place)}
    return sorted(homes, key=len, reverse=True)


def _of_list(records: Records, homes: list[str]) -> dict[str, int | str]:
    identities, rows, cameras = records.counts()
    entry: dict[str, int | str] = {"rows": rows, "identities": identities, "cameras": cameras}
    entry["paths"] = _digest(*_names(records.paths, homes))
    for column in COLUMNS:
        values = getattr(records, column)
        entry[column] = "" if values is None else _digest(np.ascontiguousarray(values, "<i8").tobytes())
    return entry


def _names(paths: Paths, homes: list[str]) -> tuple[bytes, bytes]:
    """Returns the names below the homes, one after another, and their lengths; fast where a root is a home."""
    used = {paths.roots[i] for i in np.unique(paths.root).tolist()}
    if used <= set(homes):
        lengths = paths.lengths
        stops = paths.starts + lengths
        if len(paths) and (paths.starts[1:] == stops[:-1]).all():
            names = paths.blob[int(paths.starts[0]) : int(stops[-1])]
        else:
            places = zip(paths.starts.tolist(), stops.tolist(), strict=True)
            names = b"".join([paths.blob[start:stop] for start, stop in places])
    else:
        encoded = [os.fsencode(_below(own_name(path), homes)) for path in paths]
        lengths, names = np.fromiter(map(len, encoded), np.int64, len(encoded)), b"".join(encoded)
    return names, ends(lengths).astype("<i8").tobytes()


def _below(path: str, homes: list[str]) -> str:
    return next((path.removeprefix(home) for home in homes if path.startswith(home)), path)


def _digest(*parts: bytes) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def refuse_other_lists(saved: object, now: Fingerprint, path: Path) -> None:
    """Raises ``UserError`` if a run that resumes from ``path`` was trained on other lists. saved: those of the file."""
    if not isinstance(saved, dict):
        return  # written before lists were kept
    for name in sorted({*saved, *now}, key=str):
        difference = _difference(saved.get(name), now.get(name))
        if difference:
            raise UserError(
                f"{path}: the training list is another than this run's ({name}: {difference}); put the list back to go "
                "on, or train on this one with another OUTPUT_DIR or SOLVER.RESUME never"
            )


def _difference(before: object, after: object) -> str:
    """Returns what differs between two entries; '' if nothing does."""
    if not isinstance(before, dict) or not isinstance(after, dict):
        return "not trained on before" if after else "no longer trained on"
    if any(before.get(count) != after.get(count) for count in COUNTS):
        then, now = (", ".join(f"{counts.get(count)} {count}" for count in COUNTS) for counts in (before, after))
        return f"{then} before, {now} now"
    if before.get("paths") != after.get("paths"):
        return "as many rows and identities, but other images or another order"
    other = [words for column, words in COLUMNS.items() if before.get(column) != after.get(column)]
    return f"the same images, but other {' and '.join(other)}" if other else ""
