"""Cluster contrast: a memory of one unit vector per class that takes a classifier's place.

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
    momentum: share of the old row that stays. update: ``mean`` lets every image of a class move its row, one after the
    other in the batch's order; ``hard`` only the one farthest from it. normalize: scale the features to unit length
    first, with gradient through it; off where they come so.
    """

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
            raise ValueError(f"update: {update!r} is none of {', '.join(UPDATES)}")
        self.temperature, self.momentum, self.rule, self.normalize = temperature, momentum, update, normalize
        self.register_buffer("features", features.detach().clone())

    def unit(self, feats: Tensor) -> Tensor:
        feats = feats.to(self.features.dtype)  # under autocast they may come in half
        return F.normalize(feats) if self.normalize else feats

    def logits(self, feats: Tensor) -> Tensor:
        """Similarity to every row over the temperature, in the memory's precision. (B, D) -> (B, C)."""
        with torch.autocast(feats.device.type, enabled=False):
            return self.unit(feats) @ self.features.t() / self.temperature

    def forward(self, feats: Tensor, labels: Tensor) -> Tensor:
        """Cross entropy of the logits, mean over the batch. feats: (B, D), labels: (B,). The memory stays as it is."""
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
            now = turns == turn  # classes do not touch each other: one image of each moves its row at a time
            moved = self.momentum * self.features[labels[now]] + (1 - self.momentum) * feats[now]
            self.features[labels[now]] = F.normalize(moved)


def turn_of_each(labels: np.ndarray) -> np.ndarray:
    """How many equal labels stand before each. (B,) -> (B,)."""
    order = np.argsort(labels, kind="stable")
    ordered = labels[order]
    starts = np.searchsorted(ordered, ordered)
    turns = np.empty(len(labels), np.int64)
    turns[order] = np.arange(len(labels)) - starts
    return turns


def farthest_of_each(feats: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
    """The index of the image least like its class's row, per class; the first on ties. (B, D), (B,) -> (classes,)."""
    likeness = (feats * rows[labels]).sum(1)
    order = torch.argsort(likeness, stable=True)
    first = torch.from_numpy(turn_of_each(labels[order].cpu().numpy()) == 0).to(labels.device)
    return order[first]


def class_means(feats: Tensor, labels: Tensor, count: int) -> Tensor:
    """Mean feature of every class, scaled to unit length; labels below 0 belong to none. (N, D), (N,) -> (count, D)."""
    known = labels >= 0
    sums = feats.new_zeros(count, feats.shape[1]).index_add_(0, labels[known], feats[known])
    return F.normalize(sums)
