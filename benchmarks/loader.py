"""Images per second of the training pipeline per worker, against a plain PIL and torchvision pipeline.

``python -m benchmarks.loader [--images 1024] [--size 256 128] [--workers 0 1 2]``

Writes JPEG files of Market-1501's size (128 x 64) into a temporary folder first.
"""

from __future__ import annotations

import argparse
import random
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as T

from configs import load_config
from datasets.batches import TrainLoader
from datasets.records import Records
from datasets.samplers import EpochSampler, shuffled
from datasets.transforms.pipelines import RandomErasing, build_transforms


def write_images(folder: Path, count: int, height: int = 128, width: int = 64) -> list[str]:
    """Smooth noise, which compresses like photographs do (128 x 64: 4-5 kB a file)."""
    rng = np.random.default_rng(0)
    paths = []
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 255, (height // 4, width // 4, 3), dtype=np.uint8))
        image = small.resize((width, height), Image.Resampling.BICUBIC)
        paths.append(str(folder / f"{i:06d}.jpg"))
        image.save(paths[-1], quality=90)
    return paths


class Plain(Dataset):
    """The usual way: PIL for geometry, torchvision for the rest, one image after another."""

    def __init__(self, paths: list[str], size: list[int], mean, std):
        self.paths = paths
        self.transform = T.Compose([
            T.Resize(size, interpolation=T.InterpolationMode.BICUBIC), T.RandomHorizontalFlip(0.5), T.Pad(10),
            T.RandomCrop(size), T.ToTensor(), T.Normalize(mean, std), RandomErasing(0.5),
        ])  # fmt: skip

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, i: int):
        return self.transform(Image.open(self.paths[i]).convert("RGB")), i


def rate(batches, repeats: int, clock=time.perf_counter) -> float:
    """The best images/s of several passes."""
    best = 0.0
    for repeat in range(repeats):
        began, count = clock(), 0
        for batch in batches(repeat + 1):
            count += len(batch[0]) if isinstance(batch, list) else len(batch)
        best = max(best, count / (clock() - began))
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--size", type=int, nargs=2, default=[256, 128])
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(0)
    cfg = load_config(opts=["INPUT.SIZE_TRAIN", args.size])
    print(f"{args.images} JPEG of 128 x 64 to {args.size[0]} x {args.size[1]}")
    print(f"{'workers':>7s} {'plain images/s':>15s} {'ours images/s':>14s} {'ratio':>6s}")
    with tempfile.TemporaryDirectory() as folder:
        paths = write_images(Path(folder), args.images)
        records = Records.of(paths, np.arange(len(paths)))
        for workers in args.workers:
            plain = DataLoader(
                Plain(paths, args.size, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD), batch_size=64, shuffle=True,
                num_workers=workers, drop_last=True, persistent_workers=workers > 0,
            )  # fmt: skip
            sampler = EpochSampler(shuffled, records.pids, 64, 1, seed=0)
            ours = TrainLoader(records, build_transforms(cfg, is_train=True), sampler, workers)
            theirs, mine = rate(lambda _, p=plain: p, args.repeats), rate(ours.epoch, args.repeats)
            print(f"{workers:7d} {theirs:15.0f} {mine:14.0f} {mine / theirs:6.2f}", flush=True)


if __name__ == "__main__":
    main()
