"""Writes datasets as tar shards: ``python -m tools.make_shards --out DIR --config_file FILE [KEY VALUE ...]``.

Writes every dataset of the run to DIR/NAME: ``000000.tar``, ``000001.tar``, ... and ``index.npz``. With
``DATASETS.SHARDS DIR`` the same run reads them instead of folders: the same lists, the same bytes of every image.

The shards have webdataset's layout (``00000042.jpg`` and ``00000042.json`` are one sample), so that other tools stream
them. Ours do not: a batch of P identities with K images each asks for images at any place, and a run that was killed
must go on with the very batch it would have had. The index holds lists and byte ranges; an image is one read.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import sys
import tarfile
from array import array
from collections.abc import Iterator
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
from datasets.storage.cache import packed, savez
from datasets.storage.pillow_decoding import decode, open_image, read_image
from datasets.storage.pixels import is_unclear
from datasets.storage.shard_index import INDEX, list_options
from utils.commands import make_parser, run_command
from utils.errors import UserError


def images_of(splits: dict[str, Records]) -> Iterator[tuple[str, list[tuple[str, int]]]]:
    """Yields each image with its rows (split, number), in the order of the lists; once a row if there are very many."""
    rows = ((path, (split, i)) for split, records in splits.items() for i, path in enumerate(records.paths))
    if sum(map(len, splits.values())) > LONG:
        yield from ((path, [row]) for path, row in rows)
        return
    rows_of_path: dict[str, list] = {}
    for path, row in rows:
        rows_of_path.setdefault(path, []).append(row)
    yield from rows_of_path.items()


def described(name: str, rows: list[tuple[str, int]], splits: dict[str, Records]) -> bytes:
    """Returns the sample's JSON: its path in the dataset and the ids of each row."""
    described_rows = []
    for split, i in rows:
        _, pid, camid, viewid = splits[split][i]
        box = splits[split].boxes
        described_rows.append({"split": split, "pid": pid, "camid": camid, "viewid": viewid})
        if box is not None and box[i].any():
            described_rows[-1]["box"] = box[i].tolist()
    return json.dumps({"path": name, "rows": described_rows}).encode()


class Writer:
    """Writes samples into tar files of about ``size`` bytes each and remembers where each image's bytes begin."""

    def __init__(self, folder: Path, size: int):
        self.folder, self.size = folder, size
        self.tar: tarfile.TarFile | None = None
        self.names, self.ends, self.shard = bytearray(), array("q"), array("H")
        self.shards: list[str] = []

    def add(self, name: str, raw: bytes, text: bytes) -> None:
        """Appends a sample. name: the image's path in the dataset; raw: its bytes; text: the sample's JSON."""
        if self.tar is None or (self.tar.offset and self.tar.offset + len(raw) > self.size):
            self.close()
            self.shards.append(f"{len(self.shards):06d}.tar")
            self.tar = tarfile.open(self.folder / self.shards[-1], "w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115
        key = f"{len(self.ends):08d}"
        begins = self.tar.offset + tarfile.BLOCKSIZE
        add_member(self.tar, f"{key}{Path(name).suffix.lower() or '.bin'}", raw)
        add_member(self.tar, f"{key}.json", text)
        self.names += os.fsencode(f"{begins}+{len(raw)}/{name}")
        self.ends.append(len(self.names))
        self.shard.append(len(self.shards) - 1)

    def close(self) -> None:
        """Finishes the shard that is being written."""
        if self.tar is not None:
            self.tar.close()

    def paths(self, home: Path) -> Paths:
        """Returns the images' paths in the folder ``home``, in the order in which they were added."""
        ends = np.array(self.ends, np.int64)
        lengths = np.diff(ends, prepend=0).astype(np.int32)
        roots = [f"{home}/{shard}/" for shard in self.shards]
        return Paths(bytes(self.names), ends - lengths, lengths, roots, np.array(self.shard, np.uint16))


def add_member(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Appends a file to an archive."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def refuse_unclear(raw: bytes, path: str) -> None:
    """Raises ``BadImage`` for pixels whose range is not certain, which no run reads."""
    try:
        unclear = is_unclear(open_image(raw))
    except Exception:  # noqa: BLE001 - damaged files fail in many ways; the run names or skips them (BAD_IMAGES)
        return
    if unclear:
        decode(raw, path)


def write_shards(dataset: ReIDDataset, out: Path, chosen: dict[str, Any], size: int) -> str:
    """Writes ``out/NAME``, whole or not at all, and returns the line that says what was written.

    chosen: see ``list_options``. size: bytes of a shard. Raises ``UserError`` for an image that is missing, or
    of 32-bit integers or floats.
    """
    home = out / dataset.spec.name
    if home.exists():
        raise UserError(f"{home} already exists; remove it or name another folder with --out")
    splits = {split: dataset.split(split) for split in SPLITS}
    rows = {split: np.zeros(len(records), np.int64) for split, records in splits.items()}
    base = f"{dataset.folder if dataset.folder.is_dir() else dataset.folder.parent}/"
    partial_home = out / f".{dataset.spec.name}.{os.getpid()}.partial"
    try:
        partial_home.mkdir(parents=True)
        writer = Writer(partial_home, size)
        images = tqdm(images_of(splits), desc=dataset.spec.name, leave=False, disable=not sys.stderr.isatty())
        for number, (path, owners) in enumerate(images):
            name, raw = path.removeprefix(base), read_image(path)
            refuse_unclear(raw, path)
            writer.add(name, raw, described(name, owners, splits))
            for split, i in owners:
                rows[split][i] = number
        writer.close()
        sizes = {shard: (partial_home / shard).stat().st_size for shard in writer.shards}
        paths = writer.paths(home)
        lists = {split: replace(r, paths=paths.take(rows[split])) for split, r in splits.items()}
        more = {"same_list": dataset.same_list, "protocol": dataset.protocol, "shared_ids": dataset.shared_ids}
        kept = {"options": chosen, "sizes": sizes, "more": more}
        with open(partial_home / INDEX, "wb") as handle:
            savez(handle, packed(lists, home, **kept))
        partial_home.rename(home)
    except OSError as error:
        raise UserError(f"{home} cannot be written ({error.strerror or error})") from None
    finally:
        shutil.rmtree(partial_home, ignore_errors=True)
    total = sum(sizes.values()) / 1e9
    return f"{dataset.spec.name}: {len(paths):,} images in {len(sizes)} shards of {total:.3f} GB in all, in {home}"


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    example = "--out /data/shards --config_file configs/transreid/msmt17.yml DATASETS.ROOT_DIR /data"
    parser = make_parser("python -m tools.make_shards", __doc__ or "", example, settings=True)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the shards")
    parser.add_argument("--gb", type=float, default=1.0, help="size of a shard in GB (10^9 bytes)")
    args = parser.parse_args(argv)
    cfg = load_config(args.config_file, args.opts)
    if args.gb <= 0:
        raise UserError(f"--gb: must be above 0, got {args.gb:g}")
    for name, options in options_of_run(cfg).items():
        options.pop("shards", None)
        dataset = make_dataset(name, cfg.DATASETS.ROOT_DIR, **options)
        chosen = list_options(dataset.spec, dataset.use_all, options)
        print(write_shards(dataset, args.out, chosen, int(args.gb * 1e9)), flush=True)


if __name__ == "__main__":
    run_command(main)
