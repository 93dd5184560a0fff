"""What a GPU changes, each figure beside its baseline: ``python -m benchmarks.gpu --out results/gpu.csv``.

Training steps of ViT-B/16 in three precisions (baseline: fp32), evaluation and re-ranking at Market-1501's size with
features on the GPU (baseline: the bare products there). ``--device cpu --small`` tries the script without a GPU.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import loss
from benchmarks.evaluation import features
from benchmarks.train_step import ARCHITECTURES
from configs import load_config
from model import make_model
from solver import make_optimizer
from utils.metrics import evaluate_features
from utils.provenance import commit, environment

CLASSES = 751


def seconds_of(run: Callable[[], object], device: torch.device, repeats: int = 5) -> float:
    """Median seconds of a run after one that is not counted, the device's queue included."""

    def once() -> float:
        began = time.perf_counter()
        run()
        if device.type == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter() - began

    once()
    return statistics.median(once() for _ in range(repeats))


def step_of(device: torch.device, dtype: torch.dtype, batch: int, size: tuple[int, int]) -> Callable[[], None]:
    """Returns one training step of ViT-B/16 in a precision."""
    cfg = load_config(opts=[*ARCHITECTURES["vit_base"], "INPUT.SIZE_TRAIN", list(size), "INPUT.SIZE_TEST", list(size)])
    network = make_model(cfg, CLASSES).to(device).train()
    optimizer, loss_function = make_optimizer(cfg, network), loss.make_loss(cfg, CLASSES)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
    images, labels = torch.randn(batch, 3, *size, device=device), torch.arange(batch, device=device) // 4

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(device.type, dtype, enabled=dtype != torch.float32):
            total = sum(loss_function(network(images, label=labels), labels).values())
        scaler.scale(total).backward()
        scaler.step(optimizer)
        scaler.update()

    return step


def product(a: Tensor, b: Tensor) -> None:
    """The bare products, a block of rows at a time: what no exact evaluation can do without."""
    for rows in a.split(1024):
        rows @ b.t()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="CSV file for the figures")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--small", action="store_true", help="a small batch and gallery")
    args = parser.parse_args(argv)
    device = torch.device(args.device)
    batch, size = (4, (64, 32)) if args.small else (64, (256, 128))
    rows = []

    def add(what: str, seconds: float, baseline: str, base: float) -> None:
        rows.append({"what": what, "seconds": f"{seconds:.4f}", "baseline": baseline, "ratio": f"{base / seconds:.2f}"})
        print(f"{what:36s} {seconds:9.4f} s   {base / seconds:6.2f} x {baseline}", flush=True)

    precisions = {"fp32": torch.float32, "bf16": torch.bfloat16}
    if device.type == "cuda":
        precisions["fp16"] = torch.float16
    base = 0.0
    for name, dtype in precisions.items():
        seconds = seconds_of(step_of(device, dtype, batch, size), device)
        base = base or seconds
        add(f"ViT-B/16 step, batch {batch}, {name}", seconds, "the step in fp32", base)
    qf, gf, *where = features("small" if args.small else "market")
    one, other = (torch.from_numpy(part).to(device) for part in (qf, gf))
    everything = torch.cat([one, other])
    products = seconds_of(lambda: product(one, other), device)
    squares = seconds_of(lambda: product(everything, everything), device, repeats=2) + products
    scored = seconds_of(lambda: evaluate_features(one, other, *where), device, repeats=2)
    add(f"evaluation, {len(qf)} x {len(gf)}", scored, "the product Q x G", products)
    ranked = seconds_of(lambda: evaluate_features(one, other, *where, rerank=(20, 6, 0.3)), device, repeats=1)
    add("the same, re-ranked", ranked, "the products N x N and Q x G", squares)
    if args.out:
        about = environment(device)
        for row in rows:
            row |= {"device": about["device"], "torch": about["torch"], "commit": commit()[:10]}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        with open(args.out, "w", newline="", encoding="utf-8") as handle:
            writer = csv.DictWriter(handle, rows[0], lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)


if __name__ == "__main__":
    main()
