"""Heads of self-supervision: SimCLR's projection and SimSiam's predictor, with the names of SVLL-ReID's files."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class ProjectionHead(nn.Module):
    """Two hidden layers with batch norm (SimCLR, Chen et al., ICML 2020). (B, width) -> (B, out)."""

    def __init__(self, width: int, hidden: int = 4096, out: int = 256):
        super().__init__()
        self.layer1, self.bn1 = nn.Linear(width, hidden), nn.BatchNorm1d(hidden)
        self.layer2, self.bn2 = nn.Linear(hidden, hidden), nn.BatchNorm1d(hidden)
        self.layer3 = nn.Linear(hidden, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer3(F.relu(self.bn2(self.layer2(F.relu(self.bn1(self.layer1(x)))))))

    def initialise_as_published(self) -> ProjectionHead:
        """Draws the image head's first weights: Kaiming's, and batch norms uniformly from [0, 1). Returns the head."""
        for module in self.children():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            elif isinstance(module, nn.BatchNorm1d):
                nn.init.uniform_(module.weight)
                nn.init.uniform_(module.bias)
        return self


class Predictor(nn.Module):
    """SimSiam's predictor (Chen and He, CVPR 2021), directly on the feature. (B, width) -> (B, width)."""

    def __init__(self, width: int, hidden: int = 512):
        super().__init__()
        self.linear1, self.bn1, self.layer2 = nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.Linear(hidden, width)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer2(F.relu(self.bn1(self.linear1(x))))
