"""SSDViT's self distillation in two readings: over feature entries as published, and over identities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_share(epoch: int, epochs: int, last: float) -> float:
    """Share of the network's own answer in the soft target: grows linearly to ``last`` in the last epoch, counted from
    1, and stays there."""
    return last * min(epoch, epochs) / epochs


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Kullback-Leibler divergence ``sum p (log p - log q)`` over rows and entries, with gradient into both."""
    tiny = torch.finfo(p.dtype).tiny
    return (p * (p.clamp(min=tiny).log() - q.clamp(min=tiny).log())).sum()


def softened(feats: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """One-hot labels mixed with the softmax over the feature's own entries. (B, D), (B,) -> (B, D), rows sum to 1.

    Labels beyond the last entry fall on it. In double precision: the divergence of nearly equal rows is a difference
    that float32 rounds away.
    """
    hard = F.one_hot(labels.clamp(max=feats.shape[1] - 1), feats.shape[1])
    return (1 - alpha) * hard + alpha * feats.double().softmax(1)


def entry_distillation(
    feats: Tensor,
    feats_random: Tensor,
    feats_strong: Tensor,
    labels: Tensor,
    labels_strong: Tensor,
    *,
    alpha: float,
    temperature: float,
    weight: float,
) -> tuple[Tensor, Tensor]:
    """The published terms, which take feature entries for class scores: (random block, strong view), scalars.

    feats, feats_random, feats_strong: (B, D), of the weak view, of its random block, of the strong view. labels,
    labels_strong: (B,). alpha: ``soft_share``. The first term's gradient reaches ``feats`` and ``feats_random``; the
    second compares row by row, though the rows may show different identities, and carries no gradient. temperature
    counts by its square alone. Features of unit length make the softmax almost flat and the gradient next to nothing.
    """
    scale = weight * temperature**2 / feats.numel()
    with torch.autocast(feats.device.type, enabled=False):
        own = softened(feats, labels, alpha)
        by_block = scale * divergence(own, softened(feats_random, labels, alpha))
        with torch.no_grad():
            by_view = scale * divergence(own, softened(feats_strong, labels_strong, alpha))
    return by_block.float(), by_view.float()


def identity_distillation(
    logits: Tensor, others: Tensor, labels: Tensor, *, alpha: float, temperature: float, weight: float
) -> Tensor:
    """Distillation over identities (Hinton et al., arXiv:1503.02531) from the network's own answer. -> scalar.

    logits: (B, C) of the weak view, whose softened answer, mixed with the labels, is the fixed target. others: (B, C)
    of the same images read at another depth or from another view. labels: (B,).
    """
    with torch.autocast(logits.device.type, enabled=False):
        own = (logits.detach().float() / temperature).softmax(1)
        target = (1 - alpha) * F.one_hot(labels, logits.shape[1]) + alpha * own
        found = (others.float() / temperature).log_softmax(1)
        return weight * temperature**2 * F.kl_div(found, target, reduction="batchmean")
