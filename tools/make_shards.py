"""Packs datasets into tar shards: ``python -m tools.make_shards --out DIR --config_file FILE [KEY VALUE ...]``.

Writes every dataset of the run to DIR/NAME: ``000000.tar``, ``000001.tar``, ... and ``index.npz``. With
``DATASETS.SHARDS DIR`` the same run reads them instead of folders: the same lists, the same bytes of every image.

The shards have webdataset's layout (``00000042.jpg`` and ``00000042.json`` are one sample), so that other tools can
stream them. Ours do not stream: a batch of P identities with K images each needs images from anywhere, and a run that
was killed must continue with the batch that would have been next. The index holds lists and byte ranges; an image is
one read.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tarfile
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from configs import load_config
from datasets.dataset import ReIDDataset, make_dataset
from datasets.options import options_of_run
from datasets.paths import Paths
from datasets.records import LONG, SPLITS, Records
from datasets.storage.cache import packed
from datasets.storage.decoding import read_image
from datasets.storage.shard_index import INDEX, settings
from utils.commands import make_parser, run_command
from utils.errors import UserError


def distinct_images(splits: dict[str, Records]) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Yields each image with its rows (split, number), in the order of the lists; with very many rows, one per row."""
    rows = ((path, (split, i)) for split, records in splits.items() for i, path in enumerate(records.paths))
    if sum(map(len, splits.values())) > LONG:
        yield from ((path, [row]) for path, row in rows)
        return
    rows_of: dict[str, list[tuple[str, int]]] = {}
    for path, row in rows:
        rows_of.setdefault(path, []).append(row)
    yield from rows_of.items()


def sample_json(name: str, rows: list[tuple[str, int]], splits: dict[str, Records]) -> bytes:
    """Returns the sample's JSON: its path in the dataset and the labels of each of its rows."""
    labels: list[dict[str, Any]] = []
    for split, i in rows:
        _, pid, camid, viewid = splits[split][i]
        box = splits[split].boxes
        labels.append({"split": split, "pid": pid, "camid": camid, "viewid": viewid})
        if box is not None and box[i].any():
            labels[-1]["box"] = box[i].tolist()
    return json.dumps({"path": name, "rows": labels}).encode()


class ShardWriter:
    """Writes samples into tar files of about ``size`` bytes each and records where each image's bytes begin."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size
        self.tar: tarfile.TarFile | None = None
        self.shards: list[str] = []
        self.names, self.ends, self.shard = bytearray(), array("q"), array("H")

    def add(self, name: str, raw: bytes, text: bytes) -> None:
        """Adds a sample. name: the image's path in the dataset. raw: its file's bytes. text: its JSON."""
        tar = self.tar
        if tar is None or (tar.offset and tar.offset + len(raw) > self.size):
            tar = self._open_next()
        key = f"{len(self.ends):08d}"
        begins = tar.offset + tarfile.BLOCKSIZE
        add_member(tar, f"{key}{Path(name).suffix.lower() or '.bin'}", raw)
        add_member(tar, f"{key}.json", text)
        self.names += os.fsencode(f"{begins}+{len(raw)}/{name}")
        self.ends.append(len(self.names))
        self.shard.append(len(self.shards) - 1)

    def _open_next(self) -> tarfile.TarFile:
        self.close()
        self.shards.append(f"{len(self.shards):06d}.tar")
        self.tar = tarfile.open(self.folder / self.shards[-1], "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        return self.tar

    def close(self) -> None:
        """Closes the last shard."""
        if self.tar is not None:
            self.tar.close()

    def paths(self, home: Path) -> Paths:
        """Returns the images' paths in the order in which they were added, as they will be in the folder ``home``."""
        ends = np.array(self.ends, np.int64)
        lengths = np.diff(ends, prepend=0).astype(np.int32)
        roots = [f"{home}/{shard}/" for shard in self.shards]
        return Paths(bytes(self.names), ends - lengths, lengths, roots, np.array(self.shard, np.uint16))


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Adds a file to a tar archive."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def write_shards(dataset: ReIDDataset, out: Path, chosen: dict[str, Any], size: int) -> str:
    """Writes ``out/NAME``, whole or not at all, and returns the line that says what was written.

    chosen: see ``settings``. size: bytes of a shard. Raises ``UserError`` for an image that is not there.
    """
    home = out / dataset.spec.name
    if home.exists():
        raise UserError(f"{home} exists already; remove it or name another folder with --out")
    splits = {split: getattr(dataset, split) for split in SPLITS}
    rows = {split: np.zeros(len(records), np.int64) for split, records in splits.items()}
    base = f"{dataset.folder if dataset.folder.is_dir() else dataset.folder.parent}/"
    partial_home = out / f".{dataset.spec.name}.{os.getpid()}.partial"
    try:
        partial_home.mkdir(parents=True)
        writer = ShardWriter(partial_home, size)
        images = tqdm(distinct_images(splits), desc=dataset.spec.name, leave=False, disable=not sys.stderr.isatty())
        for number, (path, owners) in enumerate(images):
            name = path.removeprefix(base)
            writer.add(name, read_image(path), sample_json(name, owners, splits))
            for split, i in owners:
                rows[split][i] = number
        writer.close()
        sizes = {shard: (partial_home / shard).stat().st_size for shard in writer.shards}
        paths = writer.paths(home)
        lists = {split: replace(records, paths=paths.take(rows[split])) for split, records in splits.items()}
        more = {"same_list": dataset.same_list, "protocol": dataset.protocol, "shared_ids": dataset.shared_ids}
        with open(partial_home / INDEX, "wb") as handle:
            arrays = packed(lists, home, options=chosen, sizes=sizes, more=more)
            np.savez(handle, **arrays)  # pyright: ignore[reportArgumentType] - the stub takes any name for a keyword
        partial_home.rename(home)
    except OSError as error:
        raise UserError(f"{home} cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(partial_home, ignore_errors=True)
    total = sum(sizes.values()) / 1e9
    return f"{dataset.spec.name}: {len(paths):,} images in {len(sizes)} shards of {total:.3f} GB in all, in {home}"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    example = "--out /data/shards --config_file configs/transreid/msmt17.yml DATASETS.ROOT_DIR /data"
    parser = make_parser("python -m tools.make_shards", __doc__, example, settings=True)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the shards")
    parser.add_argument("--gb", type=float, default=1.0, help="size of a shard in GB (10^9 bytes)")
    args = parser.parse_args(argv)
    cfg = load_config(args.config_file, args.opts)
    if args.gb <= 0:
        raise UserError(f"--gb: expected more than 0 GB, got {args.gb:g}")
    for name, options in options_of_run(cfg).items():
        options.pop("shards", None)
        dataset = make_dataset(name, cfg.DATASETS.ROOT_DIR, **options)
        chosen = settings(dataset.spec, dataset.use_all, options)
        print(write_shards(dataset, args.out, chosen, int(args.gb * 1e9)), flush=True)


if __name__ == "__main__":
    run_command(main)
