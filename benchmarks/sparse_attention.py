"""Time and memory of MSViT's attention and training step, against top-k + scatter into a matrix of -inf + softmax.

``python -m benchmarks.sparse_attention [--size s] [--batch 8] [--seconds 10] [--precision fp32]``

core: the attention of all blocks of the network, forward and backward, at 384 x 128 (windows of 8 x 8 tokens) and
224 x 224 (7 x 7), ratio 0.3. step: forward, losses, backward and update of the whole network. On a CPU seconds are
those of all its threads together, on a busy machine the steadier figure; memory is the most beyond what stood before,
every row in a process of its own.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

import loss
import model.backbones.msvit as backbone
from benchmarks.evaluation import forget_peak, resident_mib
from benchmarks.train_step import DTYPES
from configs import load_config
from model import make_model
from model.backbones.msvit import MSVIT_TYPES
from model.layers.sparse_attention import LARGEST_SCALE, from_windows, kept_count, sparse_window_attention, to_windows
from solver import make_optimizer

SPLITS = {(384, 128): (8, 8), (224, 224): (7, 7)}
RATIO = 0.3


def scattered(q: Tensor, k: Tensor, v: Tensor, logit_scale: Tensor, split_size, sparse_ratio: float = 1.0) -> Tensor:
    """The baseline: ``sparse_window_attention`` with the kept logits scattered into a matrix of -inf."""
    heads, tokens, shape = len(logit_scale), split_size[0] * split_size[1], v.shape
    q, k, v = (to_windows(x, heads, split_size).transpose(1, 2) for x in (q, k, v))
    logits = (F.normalize(q, dim=-1) @ F.normalize(k, dim=-1).transpose(1, 2)).float()
    logits = logits.unflatten(0, (-1, heads)) * logit_scale.clamp(max=LARGEST_SCALE).exp()
    kept = kept_count(tokens, sparse_ratio)
    if kept < tokens:
        values, places = logits.topk(kept, dim=-1)
        logits = torch.full_like(logits, float("-inf")).scatter(-1, places, values)
    return from_windows(logits.flatten(0, 1).softmax(-1) @ v, shape, heads, split_size)


FORMS = {
    "scattered": (scattered, RATIO),
    "ours": (sparse_window_attention, RATIO),
    "dense": (sparse_window_attention, 1.0),
}


class Core:
    """The attention of every block of a size: forward, and backward where ``train``."""

    def __init__(self, form: str, size: str, image: tuple[int, int], batch: int, device, dtype, train: bool):
        self.attend, self.ratio = FORMS[form]
        self.split, self.train, self.device, self.dtype = SPLITS[image], train, device, dtype
        spec, self.layers = MSVIT_TYPES[size], []
        torch.manual_seed(0)
        for stage, (width, heads) in enumerate(zip(spec.widths, spec.heads, strict=False)):
            shape = batch, width, *(side // 4 // 2**stage for side in image)
            maps = [torch.randn(shape, device=device) for _ in range(4)]
            scale = torch.full((heads, 1, 1), 2.3, device=device)
            inputs = [x.requires_grad_(train) for x in (*maps[:3], scale)]
            self.layers.append((inputs, maps[3], spec.blocks[stage] - 1))

    def __call__(self) -> None:
        with torch.set_grad_enabled(self.train):
            for inputs, cotangent, blocks in self.layers:
                for _ in range(blocks):
                    with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                        out = self.attend(*inputs, self.split, self.ratio)
                    if self.train:
                        torch.autograd.grad((out.float() * cotangent).sum(), inputs)


class Step:
    """A training step of the whole network on random images."""

    def __init__(self, form: str, size: str, image: tuple[int, int], batch: int, device, dtype):
        self.attend, ratio = FORMS[form]
        opts = ["MODEL.NAME", f"{size}", "INPUT.SIZE_TRAIN", image, "INPUT.SIZE_TEST", image, "MODEL.NO_MARGIN", True]
        opts += ["MODEL.MSVIT.SPLIT_SIZE", SPLITS[image], "MODEL.MSVIT.SPARSE_RATIO", ratio, "SOLVER.TRP_L2", True]
        cfg = load_config(opts=[*opts, "MODEL.IF_LABELSMOOTH", "off", "SOLVER.OPTIMIZER_NAME", "SGD"])
        torch.manual_seed(0)
        self.model = make_model(cfg, 751).to(device).train()
        self.optimizer, self.terms = make_optimizer(cfg, self.model), loss.make_loss(cfg, 751)
        self.images = torch.rand(batch, 3, *image, device=device)
        self.labels = torch.arange(batch, device=device) // 4
        self.device, self.dtype = device, dtype

    def __call__(self) -> None:
        kept, backbone.sparse_window_attention = backbone.sparse_window_attention, self.attend
        try:
            self.optimizer.zero_grad(set_to_none=True)
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                total = sum(self.terms(self.model(self.images, label=self.labels), self.labels).values())
            total.backward()
            self.optimizer.step()
        finally:
            backbone.sparse_window_attention = kept


def build(what: str, form: str, args: argparse.Namespace, device: torch.device) -> Callable[[], None]:
    """what: core or step, and the image size, such as ``core 384x128``; ``forward`` behind it for the core alone."""
    kind, image, *rest = what.split()
    image, dtype = tuple(int(side) for side in image.split("x")), DTYPES[args.precision]
    if kind == "step":
        return Step(form, args.size, image, args.batch, device, dtype)
    return Core(form, args.size, image, args.batch, device, dtype, train="forward" not in rest)


def peak_mib(what: str, form: str, args: argparse.Namespace, device: torch.device) -> float:
    """MiB of memory that a call takes at most beyond its inputs, parameters and their gradients."""
    if device.type == "cuda":
        call = build(what, form, args, device)
        call()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        call()
        return (torch.cuda.max_memory_allocated() - before) / 2**20
    command = [sys.executable, "-m", "benchmarks.sparse_attention", "--size", args.size, "--batch", str(args.batch)]
    command += ["--precision", args.precision, "--memory_of", what, form]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def median_times(calls: dict[str, Callable[[], None]], device: torch.device, budget: float) -> dict[str, float]:
    """Median seconds of each call over about ``budget`` seconds, taken in turns."""
    clock = time.perf_counter if device.type == "cuda" else time.process_time
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    while sum(map(sum, times.values())) < budget or len(next(iter(times.values()))) < 3:
        for name, call in calls.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = clock()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(clock() - began)
    return {name: sorted(found)[len(found) // 2] for name, found in times.items()}


def resident_peak(call: Callable[[], None]) -> float:
    """The same for this process, as Linux counts it, of a first call."""
    forget_peak()
    before = resident_mib("VmRSS")
    call()
    return resident_mib() - before


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="msvit_s", choices=sorted(MSVIT_TYPES))
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring per table")
    parser.add_argument("--precision", default="fp32", choices=DTYPES)
    parser.add_argument("--memory_of", nargs=2, metavar=("WHAT", "FORM"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if args.memory_of:
        print(resident_peak(build(*args.memory_of, args, device)))
        return
    where = f"{torch.get_num_threads()} threads on {device}, {args.precision}"
    print(f"{args.size}, batch {args.batch}, ratio {RATIO}, {where}, {torch.__version__}")
    print(f"{'':22s}{'form':12s}{'seconds':>9s}{'MiB more':>10s}{'times faster':>14s}{'of the memory':>15s}")
    for image in SPLITS:
        name = "x".join(map(str, image))
        for what in (f"core {name} forward", f"core {name}", f"step {name}"):
            times = median_times({form: build(what, form, args, device) for form in FORMS}, device, args.seconds)
            memory = {form: peak_mib(what, form, args, device) for form in FORMS}
            for form in FORMS:
                ratio, share = times["scattered"] / times[form], memory[form] / memory["scattered"]
                print(
                    f"{what:22s}{form:12s}{times[form]:9.3f}{memory[form]:10.0f}{ratio:14.2f}{share:15.0%}", flush=True
                )


if __name__ == "__main__":
    main()
