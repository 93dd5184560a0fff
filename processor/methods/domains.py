"""What the adaptation methods share: batches of several domains side by side, and how target images are grouped."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from datasets.images import Batch
from datasets.records import Records
from utils.checkpoint import load_complete
from utils.errors import UserError


@dataclass
class Pairs:
    """One batch of each domain; their lengths add up."""

    parts: list[Batch]

    def __len__(self) -> int:
        return sum(len(part) for part in self.parts)

    def to(self, device: torch.device) -> Pairs:
        return Pairs([part.to(device) for part in self.parts])


class Zipped:
    """Epochs of several loaders side by side: ``length`` batches of each, by default as many as the shortest has.

    epochs: iterables with a length, each giving the same batches whenever it is iterated; a shorter one starts again.
    """

    def __init__(self, epochs: list, length: int | None = None):
        self.epochs, self.length = epochs, min(len(epoch) for epoch in epochs) if length is None else length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Pairs]:
        streams = [repeated(epoch) for epoch in self.epochs]
        for _ in range(self.length):
            yield Pairs([next(stream) for stream in streams])


def repeated(epoch) -> Iterator[Batch]:
    """The batches over and over."""
    while True:
        yield from epoch


def target_groups(records: Records, how: str, num_instances: int) -> np.ndarray:
    """The group of every target image, -1 for none. (N,) int64.

    how: ``tracklet`` (an identity under one camera, as a tracker gives them; those with fewer than K = num_instances
    images are left out) or ``identity`` (true labels: what adaptation is not supposed to have).
    """
    if how == "identity":
        return records.pids
    pairs = records.pids * (records.camids.max(initial=0) + 1) + records.camids
    _, groups, counts = np.unique(pairs, return_inverse=True, return_counts=True)
    large = counts >= num_instances
    if large.sum() < 2:
        raise UserError(
            f"DMMD.GROUPS: {int(large.sum())} tracklets have DATALOADER.NUM_INSTANCE {num_instances} images, of "
            f"{len(counts)}; a batch needs at least 2"
        )
    dense = np.where(large, np.cumsum(large) - 1, -1)
    return dense[groups]


def load_start(model: nn.Module, key: str, path: str) -> None:
    """Loads the checkpoint that a method starts from, where ``key`` names one."""
    if not path:
        return
    if not Path(path).is_file():
        raise UserError(f"{key}: {path}: no such file")
    load_complete(model, path)
