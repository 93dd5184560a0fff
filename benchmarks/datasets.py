"""Time and memory of reading lists, from disk and from the copy that is kept; images per second by cache and decoder.

``python -m benchmarks.datasets [--tree 126441] [--list 4000000] [--images 2048]``

The tree is MSMT17's in the flat layout, of empty files; the list is LUPerson's as text, without any image. Each row is
a process of its own (Linux), so that memory is that of one reading: the most it held, less what it held before. Images
are of Market-1501's size and of a camera's frame; the system holds their files in memory already, so a disk or a
network that is slower than decoding gains more from shards and from files in memory than is seen here. Without workers
a second is one of the processor's, so that other work on the machine changes little.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from benchmarks.loader import rate, write_images
from configs import load_config
from datasets import make_dataset
from datasets.batches import TrainLoader
from datasets.catalogue import find_spec
from datasets.checks import missing
from datasets.dataset import ReIDDataset
from datasets.records import Records
from datasets.samplers import EpochSampler, shuffled
from datasets.storage.decoding import decode_by_torchvision
from datasets.storage.shard_index import read_shards
from datasets.transforms.pipelines import build_transforms
from tools.make_shards import write_shards

READ = """
import json, sys, time
import datasets
def held(what='VmRSS'):
    return int(next(line for line in open('/proc/self/status') if line.startswith(what)).split()[1]) / 1024
open('/proc/self/clear_refs', 'w').write('5')  # the peak is counted from here
before, began = held(), time.perf_counter()
found = datasets.make_dataset(sys.argv[1], sys.argv[2], list_cache=sys.argv[3] == 'kept')
seconds = time.perf_counter() - began
most = held('VmHWM')
names = sum(len(part) for part in (found.train, found.query, found.gallery))
print(json.dumps([names, seconds, most - before, held() - before]))
"""


def write_tree(root: Path, count: int) -> None:
    """Empty files named like MSMT17's in the flat layout, in its shares of train, query and gallery."""
    train, query = round(0.258 * count), round(0.092 * count)
    sizes = {"bounding_box_train": train, "query": query, "bounding_box_test": count - train - query}
    for sub, size in sizes.items():
        folder, ids = root / "MSMT17" / sub, 1041 if sub == "bounding_box_train" else 3060
        folder.mkdir(parents=True)
        handle = os.open(folder, os.O_RDONLY)
        for i in range(size):
            name = f"{i % ids:04d}_c{i % 15 + 1}_0303morning_{i:06d}_0.jpg"
            os.close(os.open(name, os.O_CREAT | os.O_WRONLY, dir_fd=handle))
        os.close(handle)


def write_list(root: Path, count: int) -> None:
    """LUPerson's filter list as text, best first (so in no order)."""
    (root / "LUP" / "images").mkdir(parents=True)
    order = np.random.default_rng(0).permutation(count)
    with open(root / "LUP" / "CFS_list.txt", "w", encoding="utf-8") as handle:
        for i in order.tolist():
            handle.write(f"video_{i // 400:05d}/{i % 400:04d}_{i * 7919 % 99991:05d}_crop.jpg\n")


def age(root: Path) -> None:
    """Sets folders and lists back in time: what has just changed is not kept."""
    past = time.time() - 60
    for path in [root, *root.rglob("*.txt"), *(p for p in root.rglob("*") if p.is_dir())]:
        os.utime(path, (past, past))


def read(name: str, root: Path, kept: bool) -> list[float]:
    command = [sys.executable, "-c", READ, name, str(root), "kept" if kept else "not kept"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).resolve().parents[1])
    return json.loads(done.stdout)


def lists(name: str, root: Path) -> None:
    age(root)
    for title, kept in (("parsed, nothing kept", False), ("parsed and kept", True), ("from the kept copy", True)):
        names, seconds, most, left = read(name, root, kept)
        memory = f"{most:6.0f} MB at most {left:6.0f} MB left"
        print(f"{name:9s} {names:10,d} names  {title:21s} {seconds:7.2f} s {memory}", flush=True)


def looking(root: Path) -> None:
    """The look for images that a list names, as every start does it."""
    found = make_dataset("msmt17", root)
    began = time.perf_counter()
    looked = sum(missing(part)[1] for part in (found.train, found.query, found.gallery))
    print(f"{looked:,d} listed images looked for in {time.perf_counter() - began:.2f} s", flush=True)


WAYS = {
    "files": {},
    "files in memory": {"cache": 4 * 10**9},
    "pixels in memory": {"cache": 4 * 10**9, "held": "pixels"},
    "torchvision": {"decoder": decode_by_torchvision},
    "draft": {"at_least": (256, 128)},
    "shards": {},
}
REPEATS = 5


def loading(root: Path, count: int, size: tuple[int, int], workers: list[int]) -> None:
    torch.set_num_threads(1)
    transform = build_transforms(load_config(opts=["INPUT.SIZE_TRAIN", [256, 128]]), is_train=True)
    root.mkdir()
    records, none = Records.of(write_images(root, count, *size), np.arange(count)), Records.of([], [])
    dataset = ReIDDataset(find_spec("folder"), root, records, none, none)
    print(write_shards(dataset, root / "shards", {}, 10**9))
    packed = read_shards(dataset.spec, root / "shards", {})[1]["train"]
    mean = np.mean([os.path.getsize(path) for path in records.paths])
    print(f"{count} JPEG of {size[0]} x {size[1]}, {mean / 1000:.0f} kB each")
    for number in workers:
        sampler = EpochSampler(shuffled, records.pids, 64, 1, seed=0)
        loaders, room = {}, {}
        for title, more in WAYS.items():
            began = time.perf_counter()
            loaders[title] = TrainLoader(packed if title == "shards" else records, transform, sampler, number, **more)
            filled, store = time.perf_counter() - began, loaders[title].loader.dataset.store
            room[title] = f", {len(store.block) / 1e6:.0f} MB filled in {filled:.1f} s" if store else ""
        found = dict.fromkeys(WAYS, 0.0)
        clock, unit = (time.perf_counter, "s") if number else (time.process_time, "processor s")
        for _ in range(REPEATS):  # in turn, so that what else the machine does meets all of them
            found = {title: max(best, rate(loaders[title].epoch, 1, clock)) for title, best in found.items()}
        for title, best in found.items():
            gain = f"{best / found['files']:5.2f} of files"
            print(f"{number} workers, {title:16s} {best:7.0f} images/{unit} {gain}{room[title]}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tree", type=int, default=126_441, help="files of the tree")
    parser.add_argument("--list", type=int, default=4_000_000, help="names of the list")
    parser.add_argument("--images", type=int, default=2048)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, write, count in (("msmt17", write_tree, args.tree), ("luperson", write_list, args.list)):
            if count:
                write(Path(folder) / name, count)
                lists(name, Path(folder) / name)
        if args.tree:
            looking(Path(folder) / "msmt17")
        for size, count in (((128, 64), args.images), ((768, 384), args.images // 4)):
            if count:
                loading(Path(folder) / f"images{size[0]}", count, size, args.workers)


if __name__ == "__main__":
    main()
