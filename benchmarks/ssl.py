"""Time of one DINO step, beside a step that runs the student on one crop after the other; and of loading its crops.

    python -m benchmarks.ssl [--config configs/dino/synthetic.yml] [--batch 32] [--steps 8] [--threads 2] [--device cpu]

Both steps have the same loss from the same weights, which is checked first. Loading is beside one that decodes the
image again for every crop, on images of --image pixels; decodings are counted.
"""

from __future__ import annotations

import argparse
import io
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from configs import load_config
from datasets.images import Batch
from datasets.storage.pillow_decoding import decode
from datasets.transforms.multi_crop import MultiCrops, make_multi_crop_transform
from loss import DINOLoss
from model import make_model
from model.networks.dino import MultiCrop
from processor.methods.dino import DINO, Ranges, make_following_teacher
from processor.trainer import Trainer
from solver.optimizer import matrices_and_vectors
from utils.commands import run_command
from utils.device import choose_device, choose_precision


class CropByCrop(MultiCrop):
    """The same network with a pass of backbone and head for every crop."""

    def forward(self, crops, cam_label=None, view_label=None) -> Tensor:
        return torch.cat([self.head(self.backbone(crop)) for crop in crops])


def make_step(cfg, kind: type[MultiCrop], device: torch.device) -> tuple[DINO, Trainer]:
    """A stage on the device with its optimizer, and a trainer for its updates."""
    torch.manual_seed(0)
    student = make_model(cfg, 1).to(device)
    student.__class__ = kind
    crops = 2 + cfg.DINO.LOCAL_CROPS_NUMBER
    function = DINOLoss(cfg.DINO.OUT_DIM, crops, 0.04, 0.04, 0, 2).to(device)
    stage = DINO(
        student, 2, teacher=make_following_teacher(student), loader=None, loss_function=function,
        make_solver=lambda module: (torch.optim.AdamW(matrices_and_vectors(module, 0.04), lr=0.0), None),
        ranges=Ranges((1e-6, 1e-6), (0.04, 0.4), 0.996),
    )  # fmt: skip
    stage.begin()
    student.train()
    stage.teacher.train()
    dtype = choose_precision("auto", device)
    return stage, Trainer(device=device, dtype=dtype, folder=".", model_name="", fingerprint={})


def random_batch(cfg, images: int, device: torch.device) -> Batch:
    sizes = make_multi_crop_transform(cfg).sizes
    crops = [torch.randn(images, 3, *size, device=device) for size in sizes]
    nothing = torch.zeros(images, dtype=torch.int64, device=device)
    return Batch(crops[0], nothing, nothing, nothing, nothing, views=tuple(crops[1:]))


def seconds_of(work: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    """Seconds of each of ``repeats`` calls, the GPU's work included."""
    found = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        found.append(time.perf_counter() - began)
    return found


def compare_steps(cfg, images: int, steps: int, device: torch.device) -> tuple[float, float]:
    """Median seconds of a step: ours, and crop by crop. They take turns."""
    batch = random_batch(cfg, images, device)
    pairs = [make_step(cfg, kind, device) for kind in (MultiCrop, CropByCrop)]
    if not any(isinstance(part, torch.nn.modules.batchnorm._BatchNorm) for part in pairs[0][0].model.modules()):
        losses = [float(stage.losses(batch)["dino"].detach()) for stage, _ in pairs]
        assert abs(losses[0] - losses[1]) < 1e-3 * abs(losses[0]), losses
    taken: list[list[float]] = [[], []]
    for step in range(steps + 1):
        for (stage, trainer), own in zip(pairs, taken, strict=True):
            stage.set_rates(1, step, steps + 1)
            own += seconds_of(lambda s=stage, t=trainer: t.step(s, [batch], ""), 1, device)
    return tuple(statistics.median(own[1:]) for own in taken)  # the first one warms up


def compare_loading(cfg, size: tuple[int, int], images: int) -> tuple[float, float, int, int]:
    """Seconds per image: all crops of one decoding, and a decoding for each crop; then decodings of both."""
    rng = np.random.default_rng(0)
    smooth = Image.fromarray(rng.integers(0, 255, (size[0] // 8, size[1] // 8, 3), np.uint8)).resize(size[::-1])
    buffer = io.BytesIO()
    smooth.save(buffer, "JPEG", quality=90)
    raw, counted = buffer.getvalue(), [0, 0]
    transform: MultiCrops = make_multi_crop_transform(cfg)

    def decoded(which: int) -> Image.Image:
        counted[which] += 1
        return decode(raw, "an image")

    def once() -> None:
        transform(decoded(0))

    def for_each_crop() -> None:
        for crop in transform.crops:
            crop(decoded(1))

    taken: list[list[float]] = [[], []]
    for _ in range(images):
        for work, own in ((once, taken[0]), (for_each_crop, taken[1])):
            own += seconds_of(work, 1, torch.device("cpu"))
    return statistics.median(taken[0]), statistics.median(taken[1]), counted[0], counted[1]


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.ssl", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config", default="configs/dino/synthetic.yml", help="setting of the networks and crops")
    parser.add_argument("--batch", type=int, default=32, help="images of a step")
    parser.add_argument("--steps", type=int, default=8, help="steps of each kind")
    parser.add_argument("--images", type=int, default=50, help="images that are loaded")
    parser.add_argument("--image", type=int, nargs=2, default=(256, 128), help="height and width of these")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("opts", nargs="*", metavar="KEY VALUE", help="settings that override the file's")
    args = parser.parse_args(argv)
    torch.set_num_threads(args.threads)
    cfg, device = load_config(args.config, args.opts), choose_device(args.device)
    crops = 2 + cfg.DINO.LOCAL_CROPS_NUMBER
    ours, theirs = compare_steps(cfg, args.batch, args.steps, device)
    print(
        f"step, {args.batch} images of {crops} crops on {device}: {args.batch / ours:.1f} images/s, crop by crop "
        f"{args.batch / theirs:.1f} images/s: {theirs / ours:.2f} times"
    )
    one, each, few, many = compare_loading(cfg, tuple(args.image), args.images)
    print(
        f"loading, {args.image[0]} x {args.image[1]} JPEG: {1000 * one:.1f} ms an image with {few // args.images} "
        f"decoding, {1000 * each:.1f} ms with {many // args.images}: {each / one:.2f} times"
    )


if __name__ == "__main__":
    run_command(main)
