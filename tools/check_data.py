"""Checks data before training: ``python -m tools.check_data --config_file FILE [KEY VALUE ...]``.

Prints counts, images per identity and camera, what looks wrong, missing and damaged files, copies, blurred images and
near-duplicates, and mean and standard deviation per channel; draws a contact sheet. Ends with 0, with 1 when files are
missing or damaged, with 2 when the data cannot be read at all.
"""

from __future__ import annotations

import hashlib
import os
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import numpy as np

from configs import load_config
from datasets import quality as image_quality
from datasets.catalogue.spec import Counts
from datasets.checks import findings, same_images
from datasets.dataset import ReIDDataset, make_dataset
from datasets.options import options_of_run
from datasets.records import SPLITS, Records
from datasets.storage.files import read_bytes
from datasets.storage.pillow_decoding import BadImage, cropped, decode
from datasets.storage.pixels import KINDS, PLAIN, PixelRules, unused_depth, used_levels
from tools.pages.sheet import Cell, contact_sheet
from utils.commands import make_parser, run_command

SHOWN = 5
SAMPLE, RUN = 2_000, 50
"""Images of a dataset whose blur and likeness are measured, unless --sample says otherwise, and how many of them stand
side by side: near-duplicates are often neighbours."""

Box = tuple[int, ...]

BEYOND, TRUNCATED = "beyond", "truncated"
COUNTED = KINDS | {
    BEYOND: "with a crop box that reaches beyond the image, cut off at its edge",
    TRUNCATED: "truncated, a part of the damaged",
}
"""Kinds of images that are counted, and what happens to them."""


@dataclass(frozen=True)
class Examined:
    """What one file holds: a fault, or the digest of its bytes, its size and the moments of its channels in [0, 1].

    quality: its blur and thumbnail, for images of the sample. kinds: of ``KINDS``.
    levels: the lowest and the highest of an image of 16 bits, scaled to 8.
    """

    fault: str = ""
    digest: bytes = b""
    size: tuple[int, int] = (0, 0)
    mean: np.ndarray | None = None
    square: np.ndarray | None = None
    quality: image_quality.ImageQuality | None = None
    kinds: frozenset[str] = frozenset()
    levels: tuple[int, int] | None = None


def examine(path: str, box: Box | None, sampled: bool, rules: PixelRules = PLAIN) -> Examined:
    """Reads and decodes one image. sampled: measure its quality too. rules: how files become pixels."""
    kinds: set[str] = set()
    try:
        raw = read_bytes(path)
    except FileNotFoundError:
        return Examined(fault="missing")
    except OSError as error:
        return Examined(fault=error.strerror or str(error))
    except ValueError as error:  # a name that no file can have
        return Examined(fault=str(error))
    try:
        whole = decode(raw, path, rules=rules, kinds=kinds)
        image = cropped(whole, box, path)
    except BadImage as error:
        fault = str(error).removeprefix(f"{path}: the image ")
        return Examined(fault=fault, kinds=frozenset(kinds | ({TRUNCATED} if "truncated" in fault.lower() else set())))
    if box is not None and (box[2] > whole.width or box[3] > whole.height):
        kinds.add(BEYOND)
    pixels = np.asarray(image, np.float32).reshape(-1, 3) / 255
    return Examined(
        digest=hashlib.blake2b(raw, digest_size=16).digest(),
        size=image.size,
        mean=pixels.mean(0),
        square=(pixels**2).mean(0),
        quality=image_quality.examine(image) if sampled else None,
        kinds=frozenset(kinds),
        levels=used_levels(whole) if "deep" in kinds else None,
    )


def examine_all(records: Records, sampled: np.ndarray, workers: int, rules: PixelRules) -> Iterator[Examined]:
    """Yields what each file of a list holds, in order. sampled: (N,) bool, images whose quality is measured."""
    boxes = [None] * len(records) if records.boxes is None else [tuple(box) for box in records.boxes.tolist()]
    with ThreadPoolExecutor(workers) as pool:
        yield from pool.map(partial(examine, rules=rules), records.paths, boxes, sampled.tolist())


def spread(counts: np.ndarray) -> str:
    """Returns the least, the median and the greatest of some counts."""
    return f"{counts.min():,} / {int(np.median(counts)):,} / {counts.max():,}"


def table(dataset: ReIDDataset, published: Counts) -> list[str]:
    """Returns the counts of each split beside the published ones, images per identity and per camera."""
    head = f"{'split':8s} {'ids':>9s} {'images':>11s} {'cameras':>8s}  {'published':24s} images per id"
    lines = [f"{head} (least/median/most)"]
    for split in SPLITS:
        records = dataset.split(split)
        if not len(records):
            lines.append(f"{split:8s} {'none':>9s}")
            continue
        ids, images, cameras = records.counts()
        expected = " / ".join("?" if n is None else f"{n:,}" for n in published[split]) if split in published else "-"
        per_identity = spread(np.unique(records.pids, return_counts=True)[1])
        lines.append(f"{split:8s} {ids:9,d} {images:11,d} {cameras:8d}  {expected:24s} {per_identity}")
    lines.append("images per camera")
    for split in SPLITS:
        cameras, counts = np.unique(dataset.split(split).original_camids(), return_counts=True)
        shown = ", ".join(f"{c}: {n:,}" for c, n in zip(cameras[:20], counts[:20], strict=True))
        lines.append(f"  {split:8s} {shown}{', ...' if len(cameras) > 20 else ''}")
    return lines


def copies(digests: dict[str, list[bytes]], lists: dict[str, Records]) -> list[str]:
    """Returns lines on files with the same bytes and another path, within a split and from one split to another."""
    paths: dict[bytes, dict[str, set[str]]] = defaultdict(lambda: defaultdict(set))
    for split, values in digests.items():
        for path, digest in zip(lists[split].paths, values, strict=True):
            if digest:
                paths[digest][split].add(path)
    lines = []
    for i, first in enumerate(SPLITS):
        for second in SPLITS[i:]:
            pairs = [
                sorted(by_split[first] | by_split[second])[:2]
                for by_split in paths.values()
                if first in by_split and second in by_split and len(by_split[first] | by_split[second]) > 1
            ]
            if pairs:
                where = f"in {first}" if first == second else f"in {first} and {second}"
                lines.append(f"{len(pairs)} contents more than once {where}, such as {pairs[0][0]} = {pairs[0][1]}")
    return lines


@dataclass
class Sampled:
    """The images whose quality was measured, with the place of each in its list."""

    cells: list[Cell] = field(default_factory=list)
    qualities: list[image_quality.ImageQuality] = field(default_factory=list)
    digests: list[bytes] = field(default_factory=list)

    def blurred(self) -> list[Cell]:
        """Returns the blurred images, the worst first, each with its blur."""
        blurs = np.array([q.blur for q in self.qualities])
        order = np.argsort(-blurs, kind="stable")[: int((blurs > image_quality.BLURRED).sum())]
        return [self.cells[i].captioned(f"blur {blurs[i]:.2f}") for i in order]

    def near_duplicates(self) -> list[tuple[Cell, Cell]]:
        """Returns the pairs of near-duplicates, those of two identities first, then the most similar first.

        Files with the same bytes are reported as copies, not here.
        """
        pairs = []
        for similarity, i, j in image_quality.near_duplicates([q.thumbnail for q in self.qualities]):
            if self.digests[i] != self.digests[j] and self.cells[i].path != self.cells[j].path:
                caption = f"similar {similarity:.3f}"
                pairs.append((self.cells[i].captioned(caption), self.cells[j].captioned(caption)))
        return sorted(pairs, key=lambda pair: not differ(*pair))


def differ(first: Cell, second: Cell) -> bool:
    """Returns whether two images are of different identities, or one trains and the other tests."""
    if "train" in (first.split, second.split) and first.split != second.split:
        return True
    return first.records.pids[first.row] != second.records.pids[second.row]


def quality_lines(sampled: Sampled, total: int, blurred: list[Cell], similar: list[tuple[Cell, Cell]]) -> list[str]:
    """Returns the lines on blurred images and near-duplicates. total: images of the dataset."""
    count = len(sampled.cells)
    images = f"{count:,} of {total:,} images (--sample 0: all)" if count < total else f"all {total:,} images"
    lines = [f"quality of {images}: {len(blurred):,} blurred, {len(similar):,} pairs of near-duplicates"]
    for cell in blurred[:SHOWN]:
        lines.append(f"  {cell.caption}: {cell.path}")
    for first, second in similar[:SHOWN]:
        note = " (different identities or splits)" if differ(first, second) else ""
        lines.append(f"  {first.caption}: {first.path} ~ {second.path}{note}")
    serious = sum(differ(*pair) for pair in similar)
    if serious:
        lines.append(
            f"notice: {serious:,} pairs of near-duplicates have different identities or are in training and test"
        )
    return lines


def sample_of(lists: dict[str, Records], sample: int) -> dict[str, np.ndarray]:
    """Returns split -> (N,) bool: ``sample`` images of all lists together, in evenly spaced runs; 0: every image."""
    sizes = [len(records) for records in lists.values()]
    total = sum(sizes)
    chosen = np.ones(total, bool)
    if 0 < sample < total:
        chosen[:] = False
        length = min(RUN, sample)
        for start in np.linspace(0, total - length, sample // length).astype(np.int64):
            chosen[start : start + length] = True
    return dict(zip(lists, np.split(chosen, np.cumsum(sizes)[:-1]), strict=True))


@dataclass
class Contents:
    """What the files of a dataset hold. means, squares: moments of the channels, (3,) each, of measured images."""

    faults: list[str] = field(default_factory=list)
    digests: dict[str, list[bytes]] = field(default_factory=lambda: defaultdict(list))
    sizes: list[tuple[int, int]] = field(default_factory=list)
    means: list[np.ndarray] = field(default_factory=list)
    squares: list[np.ndarray] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    levels: list[tuple[int, int]] = field(default_factory=list)
    sampled: Sampled = field(default_factory=Sampled)

    def add(self, image: Examined, split: str, records: Records, row: int, measured: bool) -> None:
        """Adds one image of a list. measured: its colours count."""
        self.digests[split].append(image.digest)
        self.kinds.update(image.kinds)
        if image.fault:
            self.faults.append(f"{records.paths[row]}: {image.fault}")
            return
        self.sizes.append(image.size)
        self.levels += [image.levels] if image.levels is not None else []
        if measured and image.mean is not None and image.square is not None:
            self.means.append(image.mean)
            self.squares.append(image.square)
        if image.quality is not None:
            self.sampled.cells.append(Cell(split, records, row))
            self.sampled.qualities.append(image.quality)
            self.sampled.digests.append(image.digest)

    def lines(self) -> list[str]:
        """Returns the lines on missing, damaged and special files."""
        missing, total = sum(fault.endswith(": missing") for fault in self.faults), len(self.faults)
        lines = [f"files: {len(self.sizes):,} read, {missing:,} missing, {total - missing:,} damaged"]
        lines += [f"  {fault}" for fault in self.faults[:SHOWN]]
        lines += [f"  ... and {total - SHOWN:,} more"] if total > SHOWN else []
        for kind, meaning in COUNTED.items():
            if self.kinds[kind]:
                lines.append(f"notice: {self.kinds[kind]:,} images: {meaning}")
        dark = unused_depth(self.levels)
        return [*lines, f"warning: {dark}"] if dark else lines

    def size_and_colour_lines(self) -> list[str]:
        """Returns the lines on the images' sizes, and on mean and standard deviation per channel."""
        lines = []
        if self.sizes:
            widths, heights = (np.array(sides) for sides in zip(*self.sizes, strict=True))
            lines.append(f"width {spread(widths)}, height {spread(heights)} (least/median/most)")
        if self.means:
            mean = np.array(self.means, np.float64).mean(0)
            std = np.sqrt(np.maximum(np.array(self.squares, np.float64).mean(0) - mean**2, 0))
            mean_text, std_text = (", ".join(f"{v:.4f}" for v in row.tolist()) for row in (mean, std))
            lines.append(f'INPUT.PIXEL_MEAN "[{mean_text}]" INPUT.PIXEL_STD "[{std_text}]"')
        return lines


def report(
    dataset: ReIDDataset,
    published: Counts,
    workers: int,
    sheet: Path | None,
    sample: int = SAMPLE,
    rules: PixelRules = PLAIN,
) -> int:
    """Prints everything about one dataset and returns how many files are missing or damaged.

    sheet: where the contact sheet goes, None for none. sample: images whose quality is measured, 0: all. rules: how
    files become pixels.
    """
    print(f"{dataset.spec.name} in {dataset.folder}, protocol {dataset.protocol}")
    print("\n".join(table(dataset, published)))
    for note in dataset.notes:
        print(f"notice: {note}")
    for finding in findings(dataset):
        print(f"{'warning' if finding.serious else 'notice'}: {finding.text}")
    lists = {split: dataset.split(split) for split in SPLITS}
    if dataset.same_list or same_images(dataset.query, dataset.gallery):
        del lists["gallery"]
    contents, chosen = Contents(), sample_of(lists, sample)
    for split, records in lists.items():
        for row, image in enumerate(examine_all(records, chosen[split], workers, rules)):
            contents.add(image, split, records, row, measured=split == "train" or not len(dataset.train))
    print("\n".join(contents.lines()))
    for line in copies(contents.digests, lists):
        print(f"warning: {line}")
    blurred, similar = contents.sampled.blurred(), contents.sampled.near_duplicates()
    print("\n".join(quality_lines(contents.sampled, len(contents.sizes), blurred, similar)))
    for line in contents.size_and_colour_lines():
        print(line)
    extra = {"blurred": blurred, "similar": [cell for pair in similar for cell in pair]}
    if sheet is not None and contact_sheet(dataset, sheet, extra=extra, rules=rules):
        print(f"contact sheet: {sheet}")
    return len(contents.faults)


def main(argv: list[str] | None = None) -> None:
    """Runs the command."""
    example = "--config_file configs/transreid/market1501.yml DATASETS.ROOT_DIR /data"
    parser = make_parser("python -m tools.check_data", __doc__ or "", example, settings=True)
    parser.add_argument("--sheet", default="", metavar="PATH", help="the contact sheet; default: OUTPUT_DIR/NAME.png")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="threads that read files")
    parser.add_argument(
        "--sample", type=int, default=SAMPLE, help=f"images whose blur and likeness are measured, 0: all; {SAMPLE:,}"
    )
    args = parser.parse_args(argv)
    cfg = load_config(args.config_file, args.opts)
    faults = 0
    for i, (name, options) in enumerate(options_of_run(cfg).items()):
        dataset = make_dataset(name, cfg.DATASETS.ROOT_DIR, **options)
        folder = Path(cfg.OUTPUT_DIR or "runs/check")
        sheet = Path(args.sheet) if args.sheet and i == 0 else folder / f"{dataset.spec.name}.png"
        rules = PixelRules.from_cfg(cfg)
        published = dataset.spec.published(**options)
        faults += report(dataset, published, max(1, args.workers), sheet, max(0, args.sample), rules)
    sys.exit(1 if faults else 0)


if __name__ == "__main__":
    run_command(main)
