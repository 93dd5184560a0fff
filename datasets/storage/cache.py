"""A copy of parsed lists, good as long as the folders and lists they came from are unchanged.

It lies in ``.lineup`` in the dataset's folder, or under the user's cache folder where that cannot be written; paths in
it are relative, so that a dataset may move. State: names and times of the scanned folders, times and sizes of lists.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
from functools import lru_cache, partial
from pathlib import Path

import numpy as np

from datasets.paths import Paths
from datasets.readers.folders import read_folders
from datasets.records import ORIGINALS, Records
from utils.errors import UserError
from utils.files import write_atomically

log = logging.getLogger("lineup")

LEAST = 10_000
"""Shorter lists are parsed faster than it is worth keeping them."""
JUST_NOW = 2.0
"""Seconds; what changed this lately may change again within the same tick of a file system's clock."""
READING = ("readers/*.py", "catalogue/*.py", "dataset.py", "joining.py", "records.py", "paths.py", "storage/cache.py")
"""The code that makes lists, below ``datasets/``: when one of these files changes, kept lists are made again."""
ID_COLUMNS = ("pids", "camids", "viewids", "domain")
STORED = (*ID_COLUMNS, "seqs", "boxes", *ORIGINALS)
"""Columns of a list that a copy holds; those of ids are left out where all are 0. The network's labels are the ids."""


def entry_key(spec, options: dict) -> str:
    """Tells entries, options and the code that reads apart."""
    reader = spec.read.func if isinstance(spec.read, partial) else spec.read or read_folders
    described = [spec.name, spec.pattern, spec.splits, spec.junk, spec.distractors, spec.restarts, options]
    digest = hashlib.blake2b(json.dumps(described, default=str, sort_keys=True).encode(), digest_size=8)
    digest.update(code_digest(inspect.getsourcefile(reader)))
    return f"{spec.name}-{digest.hexdigest()}.npz"


@lru_cache
def code_digest(reader: str | None) -> bytes:
    """Of the files that decide what lists hold: ours and the one that holds the reader."""
    datasets = Path(__file__).parents[1]
    files = {path for pattern in READING for path in datasets.glob(pattern)}
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(files | ({Path(reader)} if reader else set())):
        digest.update(path.read_bytes())
    return digest.digest()


def places(folder: Path) -> list[Path]:
    """Where a copy may lie: with the data, or in the user's cache under a name made from the folder's."""
    home = folder if folder.is_dir() else folder.parent
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lineup"
    return [home / ".lineup", user / hashlib.blake2b(str(home.resolve()).encode(), digest_size=8).hexdigest()]


def state_of(path: Path) -> list[int] | None:
    """Time and, of a file, size; None when it is not there."""
    try:
        found = path.stat()
    except OSError:
        return None
    return [found.st_mtime_ns, 0 if path.is_dir() else found.st_size]


def relative(path: str, home: Path) -> str:
    return os.path.relpath(path, home) if Path(path).is_relative_to(home) else os.path.abspath(path)


def load(folder: Path, key: str) -> tuple[dict[str, Records], dict] | None:
    """(split -> records, what else was kept), or None when there is no copy or something has changed."""
    home = folder if folder.is_dir() else folder.parent
    for place in places(folder):
        try:
            with np.load(place / key, allow_pickle=False) as held:
                state = json.loads(bytes(held["kept"]))["state"]
                if any(state_of(home / name) != there for name, there in state.items()):
                    continue
                records, kept = unpacked(held, home)
        except FileNotFoundError:
            continue
        except Exception as error:  # a damaged copy is no reason to stop: the lists are read anew
            log.debug("%s: %s", place / key, error)
            continue
        log.info("lists from %s", place / key)
        return records, kept["more"]
    return None


def unpacked(held, home: Path) -> tuple[dict[str, Records], dict]:
    """What ``packed`` made arrays of: split -> records, and the other values."""
    kept = json.loads(bytes(held["kept"]))
    blobs = {name: held[name].tobytes() for name in kept["blobs"]}
    return {split: unpack(held, split, of, blobs, home) for split, of in kept["splits"].items()}, kept


def unpack(held, split: str, of: dict, blobs: dict[str, bytes], home: Path) -> Records:
    roots = [root if mark == "as is" else os.path.join(home, root) for mark, root in of["roots"]]
    paths = Paths(blobs[of["blob"]], held[f"{split}/starts"], held[f"{split}/lengths"], roots, held[f"{split}/root"])
    columns = {name: held[f"{split}/{name}"] for name in of["columns"]}
    ids = [columns.pop(name, None) for name in ID_COLUMNS]
    extra = {name: held[f"{split}/extra/{name}"] for name in of["extra"]}
    return Records.of(paths, *ids, extra=extra, **columns)


def save(folder: Path, key: str, records: dict[str, Records], looked: set[str], more: dict, began: float) -> None:
    """Keeps a copy, unless something that was read has only just changed or the lists are short.

    looked: folders and files that reading looked at; began: when it began; more: other values, as JSON has them.
    """
    if sum(map(len, records.values())) < LEAST:
        return
    home = folder if folder.is_dir() else folder.parent
    state = {relative(path, home): state_of(Path(path)) for path in sorted(looked)}
    if any(found and found[0] > (began - JUST_NOW) * 1e9 for found in state.values()):
        return
    arrays = packed(records, home, state=state, more=more)
    for place in places(folder):
        try:
            make_quietly(place)
            write_atomically(place / key, lambda handle: np.savez(handle, **arrays))
        except (OSError, UserError) as error:
            log.debug("%s: the lists cannot be kept (%s)", place, error)
            continue
        drop_older(place, key)
        return


def packed(records: dict[str, Records], home: Path, **kept) -> dict[str, np.ndarray]:
    """Lists as arrays for ``numpy.savez``, paths relative to ``home``. kept: other values, as JSON has them."""
    arrays, described, blobs = {}, {}, {}
    for split, part in records.items():
        blob = blobs.setdefault(id(part.paths.blob), (f"blob{len(blobs)}", part.paths.blob))[0]
        arrays |= {f"{split}/{name}": getattr(part.paths, name) for name in ("starts", "lengths", "root")}
        columns = {name: getattr(part, name) for name in STORED if getattr(part, name) is not None}
        columns = {name: c for name, c in columns.items() if name not in ID_COLUMNS or c.any()}
        arrays |= {f"{split}/{name}": column for name, column in columns.items()}
        arrays |= {f"{split}/extra/{name}": column for name, column in part.extra.items()}
        roots = [marked(root, home) for root in part.paths.roots]
        described[split] = {"roots": roots, "blob": blob, "columns": list(columns), "extra": list(part.extra)}
    arrays |= {name: np.frombuffer(blob, np.uint8) for name, blob in blobs.values()}
    kept |= {"splits": described, "blobs": [name for name, _ in blobs.values()]}
    return arrays | {"kept": np.frombuffer(json.dumps(kept).encode(), np.uint8)}


def marked(root: str, home: Path) -> list[str]:
    """What stands before names, as it is or below the dataset's folder."""
    if not root or not Path(root).is_relative_to(home):
        return ["as is", root]
    below = Path(root).relative_to(home).as_posix()
    return ["below", "" if below == "." else f"{below}/"]


def make_quietly(place: Path) -> None:
    """Makes the folder and puts its parent's time back: nothing of the data has changed."""
    if place.is_dir():
        return
    if place.name == ".lineup":
        before = place.parent.stat()
        place.mkdir()
        os.utime(place.parent, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        place.mkdir(parents=True)


def drop_older(place: Path, key: str, keep: int = 8) -> None:
    """Copies of other options and of older code are kept up to a number."""
    found = sorted(place.glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in found[keep:]:
        if path.name != key:
            path.unlink(missing_ok=True)
