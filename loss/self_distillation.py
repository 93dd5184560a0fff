"""SSDViT's self distillation in two forms: over feature entries as published, and over identities."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_share(epoch: int, epochs: int, last: float) -> float:
    """Returns the share of the network's own prediction in the soft target.

    It grows linearly to ``last`` in the last epoch, counted from 1, and stays there.
    """
    return last * min(epoch, epochs) / epochs


def divergence(p: Tensor, q: Tensor) -> Tensor:
    """Returns the Kullback-Leibler divergence ``sum p (log p - log q)`` over rows and entries, with both gradients."""
    tiny = torch.finfo(p.dtype).tiny
    return (p * (p.clamp(min=tiny).log() - q.clamp(min=tiny).log())).sum()


def softened(feats: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """Returns one-hot labels mixed with the softmax over the feature's entries. (B, D), (B,) -> (B, D), rows sum to 1.

    Labels beyond the last entry count as the last. In double precision: the divergence of nearly equal rows is a
    difference that float32 rounds away.
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
    """Returns the published terms, which use feature entries as class scores: (random block, strong view), scalars.

    feats, feats_random, feats_strong: (B, D), of the weak view, of its random block, of the strong view. labels,
    labels_strong: (B,). alpha: ``soft_share``. The first term's gradient reaches ``feats`` and ``feats_random``; the
    second compares row by row, although the rows may show different identities, and has no gradient. Of the
    temperature only its square counts. Features of unit length make the softmax almost flat and the gradient tiny.
    """
    scale = weight * temperature**2 / feats.numel()
    with torch.autocast(feats.device.type, enabled=False):
        weak = softened(feats, labels, alpha)
        by_block = scale * divergence(weak, softened(feats_random, labels, alpha))
        with torch.no_grad():
            by_view = scale * divergence(weak, softened(feats_strong, labels_strong, alpha))
    return by_block.float(), by_view.float()


def identity_distillation(
    logits: Tensor, others: Tensor, labels: Tensor, *, alpha: float, temperature: float, weight: float
) -> Tensor:
    """Returns the distillation over identities (Hinton et al., arXiv:1503.02531) from the network's own prediction.

    logits: (B, C) of the weak view, whose softened prediction, mixed with the labels, is the fixed target. others:
    (B, C) of the same images at another depth or in another view. labels: (B,). Returns a scalar.
    """
    with torch.autocast(logits.device.type, enabled=False):
        prediction = (logits.detach().float() / temperature).softmax(1)
        target = (1 - alpha) * F.one_hot(labels, logits.shape[1]) + alpha * prediction
        log_shares = (others.float() / temperature).log_softmax(1)
        return weight * temperature**2 * F.kl_div(log_shares, target, reduction="batchmean")
