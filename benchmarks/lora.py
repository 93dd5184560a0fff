"""Time and memory of a training step with low-rank adapters, beside one that trains the whole backbone.

    python -m benchmarks.lora [--batch 8 16] [--threads 2] [--rank 8] [--repeats 3] [--optimizer SGD] [--heap]

ViT-B/16 at 256 x 128, identity and triplet terms. Every row runs in a process of its own; the seconds are those
of the best repeat, ``cpu`` those of all its threads: on a busy machine the steadier figure. "MiB more" is the peak of
the process over that before the network was built. Large blocks are returned to the system when they are freed
(``MALLOC_MMAP_THRESHOLD_``), so that the figure is what tensors take; with ``--heap`` glibc keeps them, as it does by
default, and the holes between them count too.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

import torch

from benchmarks.evaluation import forget_peak, resident_mib

CLASSES = 751
VIT = [
    "MODEL.NAME", "transformer", "MODEL.TRANSFORMER_TYPE", "vit_base_patch16_224_TransReID", "MODEL.NO_MARGIN", True,
    "INPUT.SIZE_TRAIN", [256, 128], "DATALOADER.SAMPLER", "softmax_triplet",
]  # fmt: skip


def measure(rank: int, batch: int, optimizer_name: str) -> dict[str, float]:
    """Returns seconds and processor seconds of a step after a first one, and MiB of peak memory."""
    import loss
    from configs import load_config
    from model import make_model
    from solver import make_optimizer

    images, labels = torch.randn(batch, 3, 256, 128), torch.arange(batch) // 4
    forget_peak()
    before = resident_mib("VmRSS")
    cfg = load_config(opts=[*VIT, "MODEL.LORA.RANK", rank, "SOLVER.OPTIMIZER_NAME", optimizer_name])
    model = make_model(cfg, CLASSES).train()
    optimizer, terms = make_optimizer(cfg, model), loss.make_loss(cfg, CLASSES)
    for _ in range(2):
        start, cpu = time.perf_counter(), time.process_time()
        total = sum(terms(model(images, label=labels), labels).values())
        optimizer.zero_grad(set_to_none=True)
        assert isinstance(total, torch.Tensor)
        total.backward()
        optimizer.step()
        seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "mib": resident_mib() - before}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--batch", type=int, nargs="+", default=[8, 16])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rank", type=int, default=8)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--optimizer", default="SGD", help="SGD keeps one value a parameter, AdamW two")
    parser.add_argument("--heap", action="store_true", help="leave glibc's allocator as it is")
    parser.add_argument("--run", type=int, help="measure this rank in this process and print it as JSON")
    args = parser.parse_args()
    if args.run is not None:
        print(json.dumps(measure(args.run, args.batch[0], args.optimizer)))
        return
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    env |= {} if args.heap else {"MALLOC_MMAP_THRESHOLD_": str(2**18)}
    for batch in args.batch:
        print(f"ViT-B/16, 256 x 128, {batch} images, {args.threads} threads, {args.optimizer}", flush=True)
        found: dict[int, list[dict[str, float]]] = {0: [], args.rank: []}
        for _ in range(args.repeats):
            for rank, results in found.items():
                command = [sys.executable, "-m", "benchmarks.lora", "--run", str(rank), "--batch", str(batch)]
                command += ["--optimizer", args.optimizer]
                results.append(json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout))
        best = {rank: {key: min(row[key] for row in rows) for key in rows[0]} for rank, rows in found.items()}
        for rank, row in best.items():
            ratios = ", ".join(f"{key} {row[key] / best[0][key]:.2f}" for key in row)
            name = f"rank {rank}" if rank else "all of it"
            line = f"{name:10s} {row['seconds']:7.2f} s {row['cpu']:7.2f} cpu s {row['mib']:7.0f} MiB more"
            print(f"{line}   {ratios}", flush=True)


if __name__ == "__main__":
    main()
