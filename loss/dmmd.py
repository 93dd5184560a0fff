"""D-MMD: adaptation in the space of dissimilarities (Mekhazni et al., ECCV 2020, arXiv:2007.13890)."""

from __future__ import annotations

import torch
from torch import Tensor

SIGMAS = (1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 5, 10, 15, 20, 25, 30, 35, 100, 1e3, 1e4, 1e5, 1e6)
"""Widths of the Gaussian kernel's terms, in the place of variances."""


class GaussianSum(torch.autograd.Function):
    """``sum over s of exp(-d / (2 s))``, value and slope in one pass; autograd would keep one array per width."""

    @staticmethod
    def forward(ctx, squared: Tensor, sigmas: tuple[float, ...]) -> Tensor:
        value, slope = torch.zeros_like(squared), torch.zeros_like(squared)
        for sigma in sigmas:
            term = torch.exp(squared * (-0.5 / sigma))
            value += term
            slope.add_(term, alpha=-0.5 / sigma)
        ctx.save_for_backward(slope)
        return value

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (slope,) = ctx.saved_tensors
        return grad * slope, None


def squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """(n, D), (m, D) -> (n, m), by differences: the narrow kernels see what the expanded product's rounding hides."""
    return torch.cdist(a, b, compute_mode="donot_use_mm_for_euclid_dist").square()


def mmd(x: Tensor, y: Tensor, sigmas: tuple[float, ...] = SIGMAS) -> Tensor:
    """Squared maximum mean discrepancy of two samples under a sum of Gaussian kernels. (n, D), (m, D) -> scalar.

    The means run over all pairs, an element with itself included (the biased estimate).
    """
    xx, yy, xy = (
        GaussianSum.apply(squared_distances(a, b), tuple(sigmas)).mean() for a, b in ((x, x), (y, y), (x, y))
    )
    return xx + yy - 2 * xy


def distance_samples(feats: Tensor, num_instances: int) -> tuple[Tensor, Tensor]:
    """Within-class and between-class samples: rows of K squared distances. (P * K, D) -> (P * K, K), (n, K).

    Rows of ``feats`` come identity after identity. Every image gives a row of distances to its own identity (itself
    included) and one row to each other identity, n = ((P - 1)**2 + 1) * K: as published, the first identity is an
    anchor against the second only.
    """
    k = num_instances
    groups = len(feats) // k
    blocks = squared_distances(feats, feats).view(groups, k, groups, k).transpose(1, 2)  # (P, P, K, K)
    own = torch.eye(groups, dtype=torch.bool, device=feats.device)
    others = ~own
    others[0, 2:] = False
    return blocks[own].reshape(-1, k), blocks[others].reshape(-1, k)


def dmmd(
    source: Tensor, target: Tensor, num_instances: int, sigmas: tuple[float, ...] = SIGMAS
) -> tuple[Tensor, Tensor, Tensor]:
    """The three terms of D-MMD: ``(within, between, overall)``, scalars.

    source, target: (P * K, D) features as they are, identity after identity with ``num_instances`` = K rows each; P
    may differ. ``within`` and ``between`` compare distributions of distances and move the target only; ``overall``
    compares the features and moves both. In float32 whatever the autocast: half precision has no room for widths
    from 1e-6 to 1e6. Raises ``ValueError`` for rows that are no multiple of K, or fewer than two identities.
    """
    for name, feats in (("source", source), ("target", target)):
        if len(feats) % num_instances or len(feats) < 2 * num_instances:
            raise ValueError(
                f"{name}: {len(feats)} rows are not two or more identities of num_instances {num_instances} each"
            )
    with torch.autocast(source.device.type, enabled=False):
        source, target = source.float(), target.float()
        within_source, between_source = distance_samples(source.detach(), num_instances)
        within_target, between_target = distance_samples(target, num_instances)
        return (
            mmd(within_source, within_target, sigmas),
            mmd(between_source, between_target, sigmas),
            mmd(source, target, sigmas),
        )
