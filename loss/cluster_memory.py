"""Cluster contrast: a memory of one unit vector per class in place of a classifier.

Dai et al., "Cluster Contrast for Unsupervised Person Re-Identification", ACCV 2022, arXiv:2103.11568.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

UPDATES = ("mean", "hard")


class ClusterMemory(nn.Module):
    """Contrast of features with the memory's rows, which follow the features by a moving average.

    features: (C, D) rows of unit length, kept as the buffer ``features``. temperature: of the softmax over classes.
    momentum: share of the old row that stays. update: ``mean`` moves a class's row by each of its images in turn, in
    the batch's order; ``hard`` by the one farthest from it alone. normalize: scale the features to unit length first,
    with gradient through it; off if they already have it.
    """

    features: Tensor

    def __init__(
        self,
        features: Tensor,
        temperature: float = 0.05,
        momentum: float = 0.2,
        update: str = "mean",
        normalize: bool = True,
    ):
        super().__init__()
        if update not in UPDATES:
            raise ValueError(f"update: unknown {update!r}. Known: {', '.join(UPDATES)}")
        self.temperature, self.momentum, self.rule, self.normalize = temperature, momentum, update, normalize
        self.register_buffer("features", features.detach().clone())

    def unit(self, feats: Tensor) -> Tensor:
        """Returns the features in the memory's precision, of unit length. (B, D) -> (B, D)."""
        feats = feats.to(self.features.dtype)  # under autocast they may have half precision
        return F.normalize(feats) if self.normalize else feats

    def logits(self, feats: Tensor) -> Tensor:
        """Returns the similarity to every row over the temperature, in the memory's precision. (B, D) -> (B, C)."""
        with torch.autocast(feats.device.type, enabled=False):
            return self.unit(feats) @ self.features.t() / self.temperature

    def forward(self, feats: Tensor, labels: Tensor) -> Tensor:
        """Returns the mean cross entropy of the logits. feats: (B, D), labels: (B,). The memory does not change."""
        return F.cross_entropy(self.logits(feats), labels)

    @torch.no_grad()
    def update(self, feats: Tensor, labels: Tensor) -> None:
        """Moves the rows of the classes in the batch; once per step and after it. feats: (B, D), labels: (B,)."""
        feats = self.unit(feats)
        if self.rule == "hard":
            chosen = farthest_of_each(feats, labels, self.features)
            feats, labels = feats[chosen], labels[chosen]
        turns = torch.from_numpy(turn_of_each(labels.cpu().numpy())).to(labels.device)
        for turn in range(int(turns.max()) + 1 if len(turns) else 0):
            now = turns == turn  # one image of each class: rows of different classes are independent
            moved = self.momentum * self.features[labels[now]] + (1 - self.momentum) * feats[now]
            self.features[labels[now]] = F.normalize(moved)


def turn_of_each(labels: np.ndarray) -> np.ndarray:
    """Returns for each label how many equal ones come before it. (B,) -> (B,)."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    starts = np.searchsorted(ordered, ordered)
    turns = np.empty(len(labels), np.int64)
    turns[order] = np.arange(len(labels)) - starts
    return turns


def farthest_of_each(feats: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """Returns for each class the index of the image least similar to its row, the first on ties.

    feats: (B, D), labels: (B,), rows: (C, D) -> (classes,).
    """
    similarity = (feats * rows[labels]).sum(1)
    order = torch.argsort(similarity, stable=True)
    first = torch.from_numpy(turn_of_each(labels[order].cpu().numpy()) == 0).to(labels.device)
    return order[first]


def class_means(feats: Tensor, labels: Tensor, count: int) -> Tensor:
    """Returns the mean feature of every class, scaled to unit length. (N, D), (N,) -> (count, D).

    Labels below 0 belong to no class.
    """
    known = labels >= 0
    sums = feats.new_zeros(count, feats.shape[1]).index_add_(0, labels[known], feats[known])
    return F.normalize(sums)
