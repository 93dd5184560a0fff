"""Images per second of a training step, against the same model with plain attention and a loop over JPM's branches.

``python -m benchmarks.train_step [--arch NAME ...] [--batch 16] [--size 256 128] [--precision fp32 bf16] [--compile]``

Prints a ratio against the baseline of the same run, and the share of what the machine's matrix product allows: model
FLOPs (forward and backward) over the measured rate of square matrix products in the same precision.

``python -m benchmarks.train_step --beside [--batch 8] [--size 256 128]`` compares SOLIDER, PersonViT and PASS with the
plain network each of them starts from instead: seconds of a training step and of a batch's features, in turns.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from timm.models.vision_transformer import Attention
from torch.utils.flop_counter import FlopCounterMode

import loss
from configs import load_config
from model import make_model
from model.layers.jpm import jigsaw_pieces
from model.networks import reid
from solver import make_optimizer
from utils.device import quick_attention

TRIPLET = ["DATALOADER.SAMPLER", "softmax_triplet"]
VIT = ["MODEL.NAME", "transformer", "MODEL.NO_MARGIN", True, "MODEL.IF_LABELSMOOTH", "off", *TRIPLET]
ARCHITECTURES = {
    "vit_base+jpm": [*VIT, "MODEL.TRANSFORMER_TYPE", "vit_base_patch16_224_TransReID", "MODEL.JPM", True],
    "vit_base": [*VIT, "MODEL.TRANSFORMER_TYPE", "vit_base_patch16_224_TransReID"],
    "deit_small": [*VIT, "MODEL.TRANSFORMER_TYPE", "deit_small_patch16_224_TransReID"],
    "swin_small": [*VIT, "MODEL.TRANSFORMER_TYPE", "swin_small_patch4_window7_224"],
    "resnet50": ["MODEL.NAME", "resnet50", *TRIPLET],
}
SSL = "configs/transreid_ssl/market1501_vit_small.yml"
SWIN = ["MODEL.TRANSFORMER_TYPE", "swin_small_patch4_window7_224"]
PERSONVIT = "configs/personvit/market1501_vit_small.yml"
PLAIN = {  # a network, and the plain one that it starts from: the YAML and settings of each
    "SOLIDER Swin-S": (("configs/solider/market1501_swin_small.yml", []), (SSL, SWIN)),
    "PersonViT ViT-S": ((PERSONVIT, []), (SSL, [])),
    "PersonViT ViT-S, avg_max": ((PERSONVIT, ["MODEL.POOLING", "avg_max"]), (SSL, [])),
    "PASS ViT-S": (("configs/pass/market1501_vit_small.yml", []), (SSL, [])),
}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


def plain_attention(self: Attention, x: torch.Tensor, attn_mask=None, is_causal: bool = False) -> torch.Tensor:
    """Softmax written out, as the published code has it: the baseline."""
    batch, length, width = x.shape
    q, k, v = self.qkv(x).reshape(batch, length, 3, self.num_heads, self.head_dim).permute(2, 0, 3, 1, 4)
    weights = (self.q_norm(q) @ k.transpose(-2, -1) * self.scale).softmax(-1)
    return self.proj((self.attn_drop(weights) @ v).transpose(1, 2).reshape(batch, length, width))


def branch_loop(tokens, whole, local, pool, **layout):
    """One pass of the local branch per piece: the baseline."""
    return [pool(whole(tokens)), *(pool(local(piece)) for piece in jigsaw_pieces(tokens, **layout))]


class baseline:
    """Inside, models run with plain attention and a loop over JPM's branches."""

    def __enter__(self) -> None:
        self.kept = Attention.forward, reid.jigsaw_features
        Attention.forward, reid.jigsaw_features = plain_attention, branch_loop

    def __exit__(self, *error) -> None:
        Attention.forward, reid.jigsaw_features = self.kept


def median_times(calls: dict[str, Callable[[], object]], device: torch.device, seconds: float) -> dict[str, float]:
    """Median seconds of each call over about ``seconds``, taken in turns so that a busy machine slows all alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    while sum(map(sum, times.values())) < seconds or len(next(iter(times.values()))) < 3:
        for name, call in calls.items():
            if device.type == "cuda":
                torch.cuda.synchronize()
            began = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append(time.perf_counter() - began)
    return {name: sorted(found)[len(found) // 2] for name, found in times.items()}


def matrix_product(device: torch.device, dtype: torch.dtype, size: int) -> Callable[[], torch.Tensor]:
    """A square matrix product of 2 * size ** 3 FLOPs."""
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
    return lambda: a @ b


class Step:
    """A training step on random images: forward, losses, backward, update."""

    def __init__(
        self,
        settings: list,
        batch: int,
        size: list[int],
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        *,
        file: str = "",
        compiled: bool = False,
    ):
        opts = [*settings, "SOLVER.OPTIMIZER_NAME", "SGD", "INPUT.SIZE_TRAIN", size, "INPUT.SIZE_TEST", size]
        cfg = load_config(file, opts)
        torch.manual_seed(0)
        self.model = make_model(cfg, 751).to(device).train()
        if compiled:
            self.model.compile()
        self.optimizer = make_optimizer(cfg, self.model)
        self.terms = loss.make_loss(cfg, 751)
        self.images = torch.randn(batch, 3, *size, device=device)
        self.labels = torch.arange(batch, device=device) // 4
        self.device, self.dtype = device, dtype

    def __call__(self) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with quick_attention(self.device, self.dtype):
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
                total = sum(self.terms(self.model(self.images, label=self.labels), self.labels).values())
            total.backward()
        self.optimizer.step()

    @torch.inference_mode()
    def extract(self) -> None:
        """Computes the features of the batch."""
        self.model.eval()(self.images)
        self.model.train()

    def flops(self) -> int:
        """Of one step, matrix products and convolutions alone."""
        with FlopCounterMode(display=False) as counter:
            self()
        return counter.get_total_flops()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", nargs="+", default=["vit_base+jpm"], choices=ARCHITECTURES)
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--size", type=int, nargs=2, default=[256, 128])
    parser.add_argument("--precision", nargs="+", default=["fp32", "bf16"], choices=DTYPES)
    parser.add_argument("--compile", action="store_true", help="a third row with torch.compile")
    parser.add_argument("--seconds", type=float, default=20.0, help="of measuring per row")
    parser.add_argument("--beside", action="store_true", help="SOLIDER, PersonViT and PASS beside their plain networks")
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    height, width = args.size
    print(f"{torch.get_num_threads()} threads on {device}, batch {args.batch}, {height} x {width}, {torch.__version__}")
    if args.beside:
        print_beside(args.batch, args.size, device, args.seconds)
        return
    print(f"{'architecture':14s} precision {'variant':10s} {'images/s':>9s} {'against baseline':>17s} {'of GEMM':>8s}")
    side = 8192 if device.type == "cuda" else 4096
    for arch in args.arch:
        for precision in args.precision:
            dtype = DTYPES[precision]
            steps = {"baseline": Step(ARCHITECTURES[arch], args.batch, args.size, device, dtype)}
            steps["ours"] = Step(ARCHITECTURES[arch], args.batch, args.size, device, dtype)
            if args.compile:
                steps["compiled"] = Step(ARCHITECTURES[arch], args.batch, args.size, device, dtype, compiled=True)
            with baseline():
                flops = steps["baseline"].flops()
            calls = {name: in_baseline(step) if name == "baseline" else step for name, step in steps.items()}
            calls["product"] = matrix_product(device, dtype, side)
            times = median_times(calls, device, args.seconds)
            rate = 2 * side**3 / times.pop("product")
            for variant, seconds in times.items():
                ratio, share = times["baseline"] / seconds, flops / seconds / rate
                speed = args.batch / seconds
                print(f"{arch:14s} {precision:9s} {variant:10s} {speed:9.2f} {ratio:17.2f} {share:8.1%}", flush=True)
            print(f"{'':14s} {precision:9s} GEMM {rate / 1e9:.0f} GFLOP/s, {flops / 1e9:.0f} GFLOP a step", flush=True)


def print_beside(batch: int, size: list[int], device: torch.device, seconds: float) -> None:
    """Prints the seconds of a step and of features for each pair of ``PLAIN``, and their ratio."""
    print("| network | step | plain | ratio | features | plain | ratio |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for name, pair in PLAIN.items():
        new, plain = (Step(settings, batch, size, device, file=file) for file, settings in pair)
        step = median_times({"new": new, "plain": plain}, device, seconds)
        features = median_times({"new": new.extract, "plain": plain.extract}, device, seconds)
        cells = [f"{t['new']:.2f} s | {t['plain']:.2f} s | {t['new'] / t['plain']:.2f}" for t in (step, features)]
        print(f"| {name} | {' | '.join(cells)} |", flush=True)


def in_baseline(step: Step) -> Callable[[], None]:
    def call() -> None:
        with baseline():
            step()

    return call


if __name__ == "__main__":
    main()
