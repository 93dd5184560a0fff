"""D-MMD: adaptation in the space of dissimilarities (Mekhazni et al., ECCV 2020, arXiv:2007.13890)."""

from __future__ import annotations

import torch
from torch import Tensor

SIGMAS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 5, 10, 15, 20, 25, 30, 35, 100, 1e3, 1e4, 1e5, 1e6)
"""Widths of the Gaussian kernel's terms, used as variances."""


class GaussianSum(torch.autograd.Function):
    """``sum over s of exp(-d / (2 s))``, value and slope in one pass; autograd would keep one array per width."""

    @staticmethod
    def forward(ctx, squared: Tensor, sigmas: tuple[float, ...]) -> Tensor:
        value, term = torch.zeros_like(squared), torch.empty_like(squared)
        slope = torch.zeros_like(squared) if ctx.needs_input_grad[0] else None
        for sigma in sigmas:
            torch.mul(squared, -0.5 / sigma, out=term).exp_()
            value += term
            if slope is not None:
                slope.add_(term, alpha=-0.5 / sigma)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None


def gaussian_sum(squared: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    """Returns the sum over the widths of ``exp(-squared / (2 width))``, with gradient; the shape stays."""
    value = GaussianSum.apply(squared, sigmas)
    assert isinstance(value, Tensor)
    return value


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Returns squared Euclidean distances. (n, D), (m, D) -> (n, m) float32.

    By the expanded product in double precision: float32 would round equal rows to unequal ones, which narrow kernels
    do not forgive.
    """
    a, b = a.double(), b.double()
    squared = a.square().sum(1, keepdim=True) + b.square().sum(1) - 2 * a @ b.t()
    return squared.clamp(min=0).float()


def among(squared: Tensor, sigmas: tuple[float, ...]) -> Tensor:
    """Returns the mean kernel over all pairs of a sample, each element with itself included. squared: (n, n)."""
    n = len(squared)
    above = torch.triu_indices(n, n, 1, device=squared.device)
    return (n * len(sigmas) + 2 * gaussian_sum(squared[above[0], above[1]], sigmas).sum()) / n**2


def mmd(xx: Tensor, yy: Tensor, xy: Tensor, sigmas: tuple[float, ...] = SIGMAS) -> Tensor:
    """Returns the squared maximum mean discrepancy of two samples under a sum of Gaussian kernels.

    xx: (n, n), yy: (m, m), xy: (n, m), squared distances. The means run over all pairs (the biased estimate). Returns a
    scalar.
    """
    return among(xx, sigmas) + among(yy, sigmas) - 2 * gaussian_sum(xy, sigmas).mean()


def distance_samples(squared: Tensor, num_instances: int) -> tuple[Tensor, Tensor]:
    """Returns within-class and between-class samples, rows of K distances. (P * K, P * K) -> (P * K, K), (n, K).

    The rows of ``squared`` come identity after identity. Every image gives a row of distances to its own identity
    (itself included) and one row to each other identity, n = ((P - 1)**2 + 1) * K: as published, the first identity is
    an anchor against the second only.
    """
    k = num_instances
    groups = len(squared) // k
    blocks = squared.view(groups, k, groups, k).transpose(1, 2)  # (P, P, K, K)
    same = torch.eye(groups, dtype=torch.bool, device=squared.device)
    others = ~same
    others[0, 2:] = False
    return blocks[same].reshape(-1, k), blocks[others].reshape(-1, k)


def dmmd(
    source: Tensor, target: Tensor, num_instances: int, sigmas: tuple[float, ...] = SIGMAS
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the three terms of D-MMD: ``(within, between, overall)``, scalars.

    source, target: (P * K, D) features as they are, identity after identity with ``num_instances`` = K rows each; P
    may differ. ``within`` and ``between`` compare distributions of distances and move the target only; ``overall``
    compares the features and moves both. In float32 whatever the autocast: half precision cannot represent widths
    from 1e-6 to 1e6. Raises ``ValueError`` if the rows are not a multiple of K, or of fewer than two identities.
    """
    for name, feats in (("source", source), ("target", target)):
        if len(feats) % num_instances or len(feats) < 2 * num_instances:
            raise ValueError(
                f"{name}: {len(feats)} rows are not two or more identities of num_instances {num_instances} each"
            )
    sigmas = tuple(sigmas)
    with torch.autocast(source.device.type, enabled=False):
        ss, tt, st = (squared_distances(a, b) for a, b in ((source, source), (target, target), (source, target)))
        terms = []
        samples = zip(distance_samples(ss.detach(), num_instances), distance_samples(tt, num_instances), strict=True)
        for x, y in samples:
            terms.append(mmd(squared_distances(x, x), squared_distances(y, y), squared_distances(x, y), sigmas))
        within, between = terms
        return within, between, mmd(ss, tt, st, sigmas)
