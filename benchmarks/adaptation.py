"""Time of the D-MMD loss and its gradient, beside the loop over pairs of identities.

    python -m benchmarks.adaptation [--batch 32] [--instances 4] [--width 2048] [--threads 2] [--repeats 10]

The loop forms every block of distances again, concatenates one pair of identities after the other and lets autograd
keep one array per kernel width, as published code does. Both give the same values and gradients, which is checked.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

import loss
from loss.dmmd import SIGMAS


def gaps(a: Tensor, b: Tensor) -> Tensor:
    """Squared distances by the expanded product. (n, D), (m, D) -> (n, m)."""
    return a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.t()


def kernel_mean(a: Tensor, b: Tensor) -> Tensor:
    squared = (a[:, None] - b[None]).square().sum(2)
    return sum(torch.exp(-squared / (2 * sigma)) for sigma in SIGMAS).mean()


def discrepancy(x: Tensor, y: Tensor) -> Tensor:
    return kernel_mean(x, x) + kernel_mean(y, y) - 2 * kernel_mean(x, y)


def samples(feats: Tensor, k: int) -> tuple[Tensor, Tensor]:
    groups = feats.split(k)
    within = gaps(groups[0], groups[0])
    for group in groups[1:]:
        within = torch.cat([within, gaps(group, group)])
    between = gaps(groups[0], groups[1])
    for a, group in enumerate(groups[1:], 1):
        for b, other in enumerate(groups):
            if a != b:
                between = torch.cat([between, gaps(group, other)])
    return within, between


def by_loops(source: Tensor, target: Tensor, k: int) -> tuple[Tensor, ...]:
    pairs = zip(samples(source, k), samples(target, k), strict=True)
    within, between = (discrepancy(s.detach(), t) for s, t in pairs)
    return within, between, discrepancy(source, target)


def timed(function: Callable, source: Tensor, target: Tensor, k: int, repeats: int) -> tuple[float, float, Tensor]:
    """Median seconds of value and gradient, the value, and the target's gradient."""
    seconds = []
    for _ in range(repeats + 1):  # the first one warms up
        leaf = target.clone().requires_grad_()
        began = time.perf_counter()
        total = sum(function(source, leaf, k))
        total.backward()
        seconds.append(time.perf_counter() - began)
    return sorted(seconds[1:])[repeats // 2], float(total.detach()), leaf.grad


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    for name, default in (("batch", 32), ("instances", 4), ("width", 2048), ("threads", 2), ("repeats", 10)):
        parser.add_argument(f"--{name}", type=int, default=default)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    source, target = torch.rand(2, args.batch, args.width) / args.width**0.5 * 4
    slow, wanted, slope = timed(by_loops, source, target, args.instances, args.repeats)
    quick, found, grad = timed(loss.dmmd, source, target, args.instances, args.repeats)
    apart = float((grad - slope).norm() / slope.norm())
    print(f"batch {args.batch}, {args.instances} instances, {args.width} wide, {args.threads} threads")
    print(f"loops  {1000 * slow:8.2f} ms   value {wanted:.6f}")
    print(f"ours   {1000 * quick:8.2f} ms   value {found:.6f}   gradient apart by {apart:.1e}   {slow / quick:.1f} x")


if __name__ == "__main__":
    main()
