"""Step time of self distillation beside the published order of work.

    python -m benchmarks.domain [--type vit_mini_patch16_TransReID] [--batch 16] [--size 256 128] [--seconds 60]

published: each view is decoded and passed by itself, and the memory moves by a third pass of the strong view after the
step, one image after the other. Ours: ``released`` (bound to the third pass and to images drawn apart) and ``logits``
with paired views, which decodes each image once and moves the memory by the features of the step. The network's time
and the loader's (decoding and augmenting a step's images; enough workers hide it) are shown apart. The floor is two
passes forward and backward: 6/7 of the published step, when a pass backward costs two forward.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from configs import load_config
from datasets.images import Batch, ImageList
from datasets.loaders import Source
from datasets.records import Records
from datasets.transforms.pipelines import WithViews, weak_and_strong
from loss import triplet
from loss.self_distillation import soft_share
from model import make_model
from processor.methods.domains import DomainBatches
from processor.methods.self_distill import Recipe, SelfDistillation
from utils.device import choose_precision, quick_attention

CLASSES, INSTANCES = 64, 4


def settings(args, **changes):
    keys = {
        "PROCESSOR.NAME": "self_distill", "MODEL.NAME": "ssdvit", "MODEL.TRANSFORMER_TYPE": args.type,
        "MODEL.STEM_CONV": True, "INPUT.SIZE_TRAIN": args.size, "INPUT.SIZE_TEST": args.size, "INPUT.RE_PROB": 0.0,
        "INPUT.RESIZE": "pil_bicubic", "INPUT.ROTATION": 5, "INPUT.AUTOAUGMENT": "imagenet",
        "INPUT.COLOR_JITTER": [[0.5, 2], [0.5, 2], [0.5, 2], [-0.1, 0.1]], "INPUT.OCCLUSION_MAX": 0.8,
    }  # fmt: skip
    return load_config(opts=[word for pair in (keys | changes).items() for word in pair])


class OurStep:
    """A step of the stage on given views, as the trainer runs it."""

    def __init__(self, args, mode: str, views: list[Tensor], labels: Tensor, device: torch.device, dtype: torch.dtype):
        paired = mode == "logits"
        cfg = settings(args, **{"SSD.MODE": mode, "SSD.PAIRED_VIEWS": paired})
        torch.manual_seed(0)
        model = make_model(cfg, 0).to(device).train()
        self.stage = SelfDistillation(
            model, 10, sources=[Source("x", CLASSES, [], None)], recipe=Recipe.from_cfg(cfg), make_solver=None,
            iterations=1,
        )  # fmt: skip
        self.stage.memories.to(device)
        self.stage.memories[0].features.copy_(F.normalize(torch.randn(CLASSES, model.width)))
        self.optimizer, self.device, self.dtype = torch.optim.SGD(model.parameters(), lr=0.008), device, dtype
        weak, strong = views
        self.stage.epoch, nothing = 5, torch.zeros_like(labels)
        rest = (labels, nothing, nothing, nothing)
        parts = [Batch(weak, *rest, views=(strong,))] if paired else [Batch(weak, *rest), Batch(strong, *rest)]
        self.batch = DomainBatches(parts)

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with quick_attention(self.device, self.dtype):
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                total = sum(self.stage.losses(self.batch).values())
            total.backward()
            self.optimizer.step()
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                self.stage.after_step([self.batch])


class PublishedStep(OurStep):
    """The same terms in the published order: one-hot rows, plain softmax, the memory moved row by row."""

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        model, memory, recipe = self.stage.model, self.stage.memories[0], self.stage.recipe
        weak, strong = self.batch.batches
        labels, rows = weak.pids, memory.features
        with quick_attention(self.device, self.dtype):
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                tri, rb, feats, feats_rb = model(weak.images).feats
                other = model(strong.images).feats[2]
                total = sum(0.5 * F.cross_entropy(f @ rows.t() / 0.05, labels) for f in (feats, other))
                total = total + 0.8 * triplet(tri, labels) + 0.2 * triplet(rb, labels)
                alpha, width = soft_share(5, 10, 0.8), feats.shape[1]
                hot = F.one_hot(labels.clamp(max=width - 1), width)
                mixed = [(1 - alpha) * hot + alpha * f.softmax(1) for f in (feats, feats_rb, other.detach())]
                scale = recipe.weight * recipe.temperature**2 / feats.numel()
                total = total + sum(scale * F.kl_div(q.log(), mixed[0], reduction="sum") for q in mixed[1:])
            total.backward()
            self.optimizer.step()
            with torch.no_grad():
                with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                    moved = model(strong.images).feats[2].float()
                for feat, label in zip(moved, labels, strict=True):
                    rows[label] = F.normalize(0.2 * rows[label] + 0.8 * feat, dim=0)


class Floor(OurStep):
    """Both views forward and backward, and nothing else."""

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with quick_attention(self.device, self.dtype):
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                total = sum(
                    self.stage.model(part.images).feats[2].square()[:, ::2].sum() for part in self.batch.batches
                )
            total.backward()
        self.optimizer.step()


def median_times(steps: dict[str, Callable[[], None]], device: torch.device, seconds: float) -> dict[str, float]:
    """Median seconds of each, taken in turns so that they meet the same machine; on a CPU the threads' own seconds."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times: dict[str, list[float]] = {name: [] for name in steps}
    for step in steps.values():  # the first one warms up
        step()
    until = time.perf_counter() + seconds
    while time.perf_counter() < until or len(next(iter(times.values()))) < 3:
        for name, step in steps.items():
            began = clock()
            step()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(clock() - began)
    return {name: float(np.median(values)) for name, values in times.items()}


def pictures(folder: Path, count: int, size: tuple[int, int] = (128, 64)) -> Records:
    """JPEG files of smooth noise, as large as Market-1501's."""
    rng, paths = np.random.default_rng(0), []
    for i in range(count):
        small = Image.fromarray(rng.integers(0, 256, (8, 4, 3), dtype=np.uint8))
        paths.append(str(folder / f"{i}.jpg"))
        small.resize(size[::-1], Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return Records.of(paths, np.arange(count) // INSTANCES)


def loading(args, records: Records) -> dict[str, Callable[[], None]]:
    """What a step's images cost one worker: both views of one list, or a list for each."""
    weak, strong = weak_and_strong(settings(args))
    keys = [(i, i) for i in range(len(records))]
    apart, paired = [ImageList(records, t) for t in (weak, strong)], ImageList(records, WithViews(weak, strong))
    return {
        "apart": lambda: [images.__getitems__(keys) for images in apart],
        "paired": lambda: paired.__getitems__(keys),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--type", default="vit_mini_patch16_TransReID", help="MODEL.TRANSFORMER_TYPE")
    parser.add_argument("--batch", type=int, default=16, help="images of one source and view")
    parser.add_argument("--size", type=int, nargs=2, default=[256, 128])
    parser.add_argument("--seconds", type=float, default=60.0, help="of measuring")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = choose_precision("auto", device)
    threads = torch.get_num_threads()
    print(f"{threads} threads on {device}, {dtype}, {args.type}, {args.batch} images a view of {args.size}")
    views = list(torch.randn(2, args.batch, 3, *args.size, device=device))
    labels = torch.arange(args.batch, device=device) // INSTANCES
    given = (views, labels, device, dtype)
    steps = {
        "published": PublishedStep(args, "released", *given), "released": OurStep(args, "released", *given),
        "logits": OurStep(args, "logits", *given), "floor": Floor(args, "released", *given),
    }  # fmt: skip
    times = median_times(steps, device, args.seconds)
    for name, value in times.items():
        print(f"{name:10s} {1000 * value:8.1f} ms a step   {times['published'] / value:.2f} times the published speed")
    with TemporaryDirectory() as folder:
        read = median_times(loading(args, pictures(Path(folder), args.batch)), torch.device("cpu"), args.seconds / 6)
    print(
        f"reading both views: a list each {1000 * read['apart']:.1f} ms, one list {1000 * read['paired']:.1f} ms, "
        f"{read['apart'] / read['paired']:.2f} times faster"
    )


if __name__ == "__main__":
    main()
