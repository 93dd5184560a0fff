"""Looks at data before training: ``python -m tools.check_data --config_file FILE [KEY VALUE ...]``.

Prints counts, images per identity and camera, what looks wrong, missing and damaged files, copies, and mean and
standard deviation per channel; draws a contact sheet. Ends with 0, with 1 when files are missing or damaged, with 2
when the data cannot be read at all.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from configs import load_config
from datasets.checks import findings
from datasets.dataset import ReIDDataset, make_dataset
from datasets.options import options_of_run
from datasets.records import SPLITS, Records
from datasets.storage.decoding import BadImage, cropped, decode
from datasets.storage.files import read_bytes
from tools.pages.sheet import contact_sheet
from utils.commands import make_parser, run_command

SHOWN = 5


@dataclass(frozen=True)
class Seen:
    """What one file is: a fault, or the digest of its bytes, its size and the moments of its channels in [0, 1]."""

    fault: str = ""
    digest: bytes = b""
    size: tuple[int, int] = (0, 0)
    mean: np.ndarray | None = None
    square: np.ndarray | None = None


def examine(path: str, box: tuple[int, int, int, int] | None) -> Seen:
    try:
        raw = read_bytes(path)
    except FileNotFoundError:
        return Seen(fault="missing")
    except OSError as error:
        return Seen(fault=error.strerror or str(error))
    try:
        image = cropped(decode(raw, path), box, path)
    except BadImage as error:
        return Seen(fault=str(error).removeprefix(f"{path}: the image "))
    pixels = np.asarray(image, np.float32).reshape(-1, 3) / 255
    return Seen("", hashlib.blake2b(raw, digest_size=16).digest(), image.size, pixels.mean(0), (pixels**2).mean(0))


def examine_all(records: Records, workers: int) -> Iterator[Seen]:
    boxes = [None] * len(records) if records.boxes is None else map(tuple, records.boxes.tolist())
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(examine, records.paths, boxes)


def spread(counts: np.ndarray) -> str:
    return f"{counts.min():,} / {int(np.median(counts)):,} / {counts.max():,}"


def per_identity(records: Records) -> str:
    _, counts = np.unique(records.pids, return_counts=True)
    return spread(counts)


def table(dataset: ReIDDataset, published) -> list[str]:
    """Counts of each split beside the published ones, images per identity and per camera."""
    head = f"{'split':8s} {'ids':>9s} {'images':>11s} {'cameras':>8s}  {'published':24s} images per id"
    lines = [f"{head} (least/median/most)"]
    for split in SPLITS:
        records = getattr(dataset, split)
        if not len(records):
            lines.append(f"{split:8s} {'none':>9s}")
            continue
        ids, images, cameras = records.counts()
        told = " / ".join("?" if n is None else f"{n:,}" for n in published[split]) if split in published else "-"
        lines.append(f"{split:8s} {ids:9,d} {images:11,d} {cameras:8d}  {told:24s} {per_identity(records)}")
    lines.append("images per camera (as training numbers them)")
    for split in SPLITS:
        cameras, counts = np.unique(getattr(dataset, split).camids, return_counts=True)
        shown = ", ".join(f"{c}: {n:,}" for c, n in zip(cameras[:20], counts[:20], strict=True))
        lines.append(f"  {split:8s} {shown}{', ...' if len(cameras) > 20 else ''}")
    return lines


def copies(digests: dict[str, list[bytes]], records: dict[str, Records]) -> list[str]:
    """Files with the same bytes: within a split, and from one split to another. Another path only."""
    where: dict[bytes, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for split, values in digests.items():
        for path, digest in zip(records[split].paths, values, strict=True):
            if digest:
                where[digest][split].add(path)
    lines = []
    for i, first in enumerate(SPLITS):
        for second in SPLITS[i:]:
            pairs = [
                sorted(found[first] | found[second])[:2] for found in where.values()
                if first in found and second in found and len(found[first] | found[second]) > 1
            ]  # fmt: skip
            if pairs:
                place = f"in {first}" if first == second else f"in {first} and {second}"
                lines.append(f"{len(pairs)} contents more than once {place}, such as {pairs[0][0]} = {pairs[0][1]}")
    return lines


def report(dataset: ReIDDataset, published, workers: int, sheet: Path | None) -> int:
    """Prints everything about one dataset; returns how many files are missing or damaged."""
    print(f"{dataset.spec.name} in {dataset.folder}, protocol {dataset.protocol}")
    print("\n".join(table(dataset, published)))
    for finding in findings(dataset):
        print(f"{'warning' if finding.serious else 'notice'}: {finding.text}")
    records = {split: getattr(dataset, split) for split in SPLITS}
    looked = {s: r for s, r in records.items() if not (s == "gallery" and dataset.same_list)}
    faults, digests, sizes, means, squares = [], {}, [], [], []
    for split, part in looked.items():
        digests[split] = []
        for path, seen in zip(part.paths, examine_all(part, workers), strict=True):
            digests[split].append(seen.digest)
            if seen.fault:
                faults.append(f"{path}: {seen.fault}")
            else:
                sizes.append(seen.size)
            if not seen.fault and (split == "train" or not len(dataset.train)):
                means.append(seen.mean)
                squares.append(seen.square)
    missing = sum(fault.endswith(": missing") for fault in faults)
    print(f"files: {len(sizes):,} read, {missing:,} missing, {len(faults) - missing:,} damaged")
    for fault in faults[:SHOWN]:
        print(f"  {fault}")
    if len(faults) > SHOWN:
        print(f"  ... and {len(faults) - SHOWN:,} more")
    for line in copies(digests, looked):
        print(f"warning: {line}")
    if sizes:
        widths, heights = (np.array(side) for side in zip(*sizes, strict=True))
        print(f"width {spread(widths)}, height {spread(heights)} (least/median/most)")
    if means:
        mean = np.mean(means, 0, np.float64)
        std = np.sqrt(np.maximum(np.mean(squares, 0, np.float64) - mean**2, 0))
        values = [", ".join(f"{v:.4f}" for v in row) for row in (mean, std)]
        print(f'INPUT.PIXEL_MEAN "[{values[0]}]" INPUT.PIXEL_STD "[{values[1]}]"')
    if sheet is not None and contact_sheet(dataset, sheet):
        print(f"contact sheet: {sheet}")
    return len(faults)


def main(argv: list[str] | None = None) -> None:
    """The command."""
    example = "--config_file configs/transreid/market1501.yml DATASETS.ROOT_DIR /data"
    parser = make_parser("python -m tools.check_data", __doc__, example, settings=True)
    parser.add_argument("--sheet", default="", metavar="PATH", help="the contact sheet; default: OUTPUT_DIR/NAME.png")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads that read files")
    args = parser.parse_args(argv)
    cfg = load_config(args.config_file, args.opts)
    wanted = options_of_run(cfg)
    faults = 0
    for i, (name, options) in enumerate(wanted.items()):
        dataset = make_dataset(name, cfg.DATASETS.ROOT_DIR, **options)
        folder = Path(cfg.OUTPUT_DIR or "runs/check")
        sheet = Path(args.sheet) if args.sheet and i == 0 else folder / f"{dataset.spec.name}.png"
        faults += report(dataset, dataset.spec.published(**options), max(1, args.workers), sheet)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    run_command(main)
