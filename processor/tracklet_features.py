"""One feature a tracklet: the mean of its images' features, summed while they are extracted."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from utils.distributed import gather_objects
from utils.features import to_unit_length


class TrackletSums:
    """Sums of features by tracklet, in float64 and in bounded memory: no image's feature is kept.

    of_image: (N,) the tracklet of each image, 0 to count - 1. unit: features are scaled to unit length first.
    """

    def __init__(self, of_image: np.ndarray, count: int, unit: bool = True):
        self.of_image, self.count, self.unit = torch.from_numpy(of_image), count, unit
        self.sums: Tensor | None = None
        self.weights = torch.zeros(count, dtype=torch.float64)

    def add(self, rows: Tensor, feats: Tensor, weights: Tensor | None = None) -> None:
        """Adds features (B, D) of images (B,). weights: (B,) of the images, above 0; None: 1 each."""
        if self.sums is None:
            self.sums = torch.zeros(self.count, feats.shape[1], dtype=torch.float64)
        values = (to_unit_length(feats) if self.unit else feats).double()
        shares = torch.ones(len(rows), dtype=torch.float64) if weights is None else weights.double()
        owners = self.of_image[rows]
        self.sums.index_add_(0, owners, values * shares[:, None])
        self.weights.index_add_(0, owners, shares)

    def features(self) -> Tensor:
        """Returns the weighted means (T, D) float32, the same on every rank, not scaled to unit length."""
        parts = [part for part in gather_objects((self.sums, self.weights)) if part[0] is not None]
        sums, weights = (torch.stack([part[i] for part in parts]).sum(0) for i in (0, 1))
        return (sums / weights.clamp(min=1e-12)[:, None]).float()
