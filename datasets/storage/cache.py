"""A copy of parsed lists, valid as long as the folders and lists that they came from are unchanged.

It is kept in ``.lineup`` in the dataset's folder, or in the user's cache folder if that cannot be written; paths in it
are relative, so that a dataset may move. State: names and times of the scanned folders, times and sizes of lists.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import logging
import os
from collections.abc import Mapping
from functools import lru_cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datasets.paths import Paths
from datasets.readers.folders import read_folders
from datasets.records import Records
from utils.errors import UserError
from utils.files import write_atomically

if TYPE_CHECKING:
    from datasets.catalogue.spec import DatasetSpec

log = logging.getLogger("lineup")

LEAST = 10_000
"""Shorter lists are parsed faster than it is worth keeping them."""
JUST_NOW = 2.0
"""Seconds; what changed this lately may change again within the same tick of a file system's clock."""
READING = (
    "readers/*.py", "catalogue/*.py", "identifiers.py", "dataset.py", "joining.py", "records.py", "paths.py",
    "storage/cache.py",
)  # fmt: skip
"""The code that makes lists, below ``datasets/``: when one of these files changes, kept copies are not used."""
ID_COLUMNS = ("pids", "camids", "viewids", "domain")
STORED = (*ID_COLUMNS, "seqs", "frames", "times", "boxes", "identities", "cameras", "views")
"""Columns of a list that a copy holds; those of ids are left out where all are 0. The network's labels are the ids."""


def entry_key(spec: DatasetSpec, options: dict[str, Any]) -> str:
    """Returns a file name that differs by entry, options and the code that reads."""
    reader = spec.read.func if isinstance(spec.read, partial) else spec.read or read_folders
    described = [spec.name, spec.pattern, spec.splits, spec.junk, spec.distractors, spec.restarts, options]
    digest = hashlib.blake2b(json.dumps(described, default=str, sort_keys=True).encode(), digest_size=8)
    digest.update(code_digest(inspect.getsourcefile(reader)))
    return f"{spec.name}-{digest.hexdigest()}.npz"


@lru_cache
def code_digest(reader: str | None) -> bytes:
    """Returns the digest of the files that decide what lists hold: ours and the one with the reader."""
    datasets = Path(__file__).parents[1]
    files = {path for pattern in READING for path in datasets.glob(pattern)}
    digest = hashlib.blake2b(digest_size=8)
    for path in sorted(files | ({Path(reader)} if reader else set())):
        digest.update(path.read_bytes())
    return digest.digest()


def cache_folders(folder: Path) -> list[Path]:
    """Returns where a copy may be: with the data, or in the user's cache under a name made from the folder's."""
    home = folder if folder.is_dir() else folder.parent
    user = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "lineup"
    return [home / ".lineup", user / hashlib.blake2b(str(home.resolve()).encode(), digest_size=8).hexdigest()]


def state_of(path: Path) -> list[int] | None:
    """Returns the time of a folder or file and the size of a file; None when it does not exist."""
    try:
        status = path.stat()
    except OSError:
        return None
    return [status.st_mtime_ns, 0 if path.is_dir() else status.st_size]


def relative(path: str, home: Path) -> str:
    """Returns a path below ``home`` relative to it, any other one absolute."""
    return os.path.relpath(path, home) if Path(path).is_relative_to(home) else os.path.abspath(path)


def load(folder: Path, key: str) -> tuple[dict[str, Records], dict[str, Any]] | None:
    """Returns (split -> records, what else was kept), or None if there is no copy or something has changed."""
    home = folder if folder.is_dir() else folder.parent
    for cache in cache_folders(folder):
        try:
            with np.load(cache / key, allow_pickle=False) as archive:
                state = json.loads(bytes(archive["kept"]))["state"]
                if any(state_of(home / name) != before for name, before in state.items()):
                    continue
                records, kept = unpacked(archive, home)
        except FileNotFoundError:
            continue
        except Exception as error:  # a damaged copy is no reason to stop: the lists are read again
            log.debug("%s: %s", cache / key, error)
            continue
        log.info("lists from %s", cache / key)
        return records, kept["more"]
    return None


def unpacked(archive: Mapping[str, np.ndarray], home: Path) -> tuple[dict[str, Records], dict[str, Any]]:
    """Returns what ``packed`` made arrays of: split -> records, and the other values."""
    kept = json.loads(bytes(archive["kept"]))
    blobs = {name: archive[name].tobytes() for name in kept["blobs"]}
    return {split: unpack(archive, split, of, blobs, home) for split, of in kept["splits"].items()}, kept


def unpack(
    archive: Mapping[str, np.ndarray], split: str, described: dict[str, Any], blobs: dict[str, bytes], home: Path
) -> Records:
    """Returns the list of one split. described: what ``packed`` says of it. Raises ``ValueError`` if it is damaged."""
    roots = [root if mark == "as is" else os.path.join(home, root) for mark, root in described["roots"]]
    starts, lengths, root = (archive[f"{split}/{name}"] for name in ("starts", "lengths", "root"))
    blob = blobs[described["blob"]]
    fits = starts.shape == lengths.shape == root.shape == (len(starts),)
    fits = fits and all(array.dtype.kind in "iu" for array in (starts, lengths, root))
    if not fits or (starts < 0).any() or (lengths < 0).any() or (starts + lengths > len(blob)).any():
        raise ValueError(f"the names of {split} are not within the file")
    if len(root) and not 0 <= root.min() <= root.max() < len(roots):
        raise ValueError(f"the names of {split} begin with what is not listed")
    paths = Paths(blob, starts, lengths, roots, root)
    columns = {name: archive[f"{split}/{name}"] for name in described["columns"]}
    for name in described["columns"]:
        if name in ("seqs", "frames", "times", "boxes", *ID_COLUMNS) and len(columns[name]) != len(paths):
            raise ValueError(f"{split} has {len(paths)} names and {len(columns[name])} {name}")
    ids = [columns.pop(name, None) for name in ID_COLUMNS]
    extra = {name: archive[f"{split}/extra/{name}"] for name in described["extra"]}
    return Records.of(paths, *ids, extra=extra, **columns)


def save(
    folder: Path, key: str, records: dict[str, Records], reads: set[str], more: dict[str, Any], began: float
) -> None:
    """Keeps a copy, unless something that was read has only just changed or the lists are short.

    reads: folders and files that were read; began: when reading began; more: other values, as JSON has them.
    """
    if sum(map(len, records.values())) < LEAST:
        return
    home = folder if folder.is_dir() else folder.parent
    state = {relative(path, home): state_of(Path(path)) for path in sorted(reads)}
    if any(status and status[0] > (began - JUST_NOW) * 1e9 for status in state.values()):
        return
    arrays = packed(records, home, state=state, more=more)
    for cache in cache_folders(folder):
        try:
            make_quietly(cache)
            write_arrays(cache / key, arrays)
        except (OSError, UserError) as error:
            log.debug("%s: the lists cannot be kept (%s)", cache, error)
            continue
        drop_older(cache, key)
        return


def write_arrays(path: Path, arrays: dict[str, np.ndarray]) -> None:
    """Writes a ``.npz`` file, whole or not at all."""
    write_atomically(path, lambda handle: savez(handle, arrays))


def savez(handle: Any, arrays: dict[str, np.ndarray]) -> None:
    """Writes named arrays to an open file."""
    np.savez(handle, **arrays)  # pyright: ignore[reportArgumentType]  (NumPy 2's stubs type the names as allow_pickle)


def packed(records: dict[str, Records], home: Path, **kept: Any) -> dict[str, np.ndarray]:
    """Returns lists as arrays for ``numpy.savez``, paths relative to ``home``. kept: other values, as JSON has them."""
    arrays: dict[str, np.ndarray] = {}
    described: dict[str, dict[str, Any]] = {}
    blobs: dict[int, tuple[str, bytes]] = {}
    for split, split_records in records.items():
        paths = split_records.paths
        blob = blobs.setdefault(id(paths.blob), (f"blob{len(blobs)}", paths.blob))[0]
        arrays |= {f"{split}/{name}": getattr(paths, name) for name in ("starts", "lengths", "root")}
        columns = {name: getattr(split_records, name) for name in STORED}
        columns = {name: c for name, c in columns.items() if c is not None and (name not in ID_COLUMNS or c.any())}
        arrays |= {f"{split}/{name}": column for name, column in columns.items()}
        arrays |= {f"{split}/extra/{name}": column for name, column in split_records.extra.items()}
        roots = [marked(root, home) for root in paths.roots]
        extra = list(split_records.extra)
        described[split] = {"roots": roots, "blob": blob, "columns": list(columns), "extra": extra}
    arrays |= {name: np.frombuffer(blob, np.uint8) for name, blob in blobs.values()}
    kept |= {"splits": described, "blobs": [name for name, _ in blobs.values()]}
    return arrays | {"kept": np.frombuffer(json.dumps(kept).encode(), np.uint8)}


def marked(root: str, home: Path) -> list[str]:
    """Returns a beginning of names, as it is or relative to the dataset's folder, with the word for which it is."""
    if not root or not Path(root).is_relative_to(home):
        return ["as is", root]
    below = Path(root).relative_to(home).as_posix()
    return ["below", "" if below == "." else f"{below}/"]


def make_quietly(cache: Path) -> None:
    """Makes the folder and restores its parent's time: nothing of the data has changed."""
    if cache.is_dir():
        return
    if cache.name == ".lineup":
        before = cache.parent.stat()
        cache.mkdir()
        os.utime(cache.parent, ns=(before.st_atime_ns, before.st_mtime_ns))
    else:
        cache.mkdir(parents=True)


def drop_older(cache: Path, key: str, keep: int = 8) -> None:
    """Removes copies of other options and of older code, all but the latest ``keep``."""
    copies = sorted(cache.glob("*.npz"), key=lambda path: path.stat().st_mtime, reverse=True)
    for path in copies[keep:]:
        if path.name != key:
            path.unlink(missing_ok=True)
