"""What the methods of several domains share: batches of all domains side by side, and the groups of target images."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from datasets.images import Batch
from datasets.records import Records
from model import RetrievalModel
from processor.stage import TrainingBatches, batches_after
from utils.checkpoint import load_complete
from utils.errors import UserError


@dataclass
class DomainBatches:
    """Holds one batch of each domain; its length is the number of images in all of them."""

    batches: list[Batch]

    def __len__(self) -> int:
        return sum(map(len, self.batches))

    def to(self, device: torch.device) -> DomainBatches:
        return DomainBatches([batch.to(device) for batch in self.batches])


class ZippedEpochs:
    """Runs over the epochs of several loaders side by side: ``length`` batches of each.

    epochs: one per domain, each with the same batches whenever it is iterated; a shorter one starts again. length: by
    default that of the shortest.
    """

    def __init__(self, epochs: Sequence[TrainingBatches], length: int | None = None):
        self.epochs, self.length = epochs, min(map(len, epochs)) if length is None else length

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[DomainBatches]:
        return self.after(0)

    def after(self, count: int) -> Iterator[DomainBatches]:
        """Yields what follows the first ``count`` batches of each loader."""
        streams = [endless(epoch, count) for epoch in self.epochs]
        for _ in range(count, self.length):
            yield DomainBatches([next(stream) for stream in streams])


def endless(epoch: TrainingBatches, skip: int = 0) -> Iterator[Batch]:
    """Yields the batches of an epoch over and over, without the first ``skip`` of them all."""
    yield from batches_after(epoch, skip % len(epoch))
    while True:
        yield from epoch


def target_groups(records: Records, how: str, num_instances: int) -> np.ndarray:
    """Returns the group of every target image, (N,) int64, -1 for an image in none.

    how: ``tracklet`` (an identity under one camera, as a tracker delivers it; those with fewer than K = num_instances
    images are left out) or ``identity`` (the true labels, which adaptation is not supposed to have).
    """
    if how == "identity":
        return records.pids
    tracklets = records.pids * (records.camids.max(initial=0) + 1) + records.camids
    _, groups, counts = np.unique(tracklets, return_inverse=True, return_counts=True)
    large = counts >= num_instances
    if large.sum() < 2:
        raise UserError(
            f"DMMD.GROUPS: {int(large.sum())} tracklets have DATALOADER.NUM_INSTANCE {num_instances} images, of "
            f"{len(counts)}; a batch needs at least 2"
        )
    dense = np.where(large, np.cumsum(large) - 1, -1)
    return dense[groups]


def load_start(model: RetrievalModel, key: str, path: str) -> None:
    """Loads the checkpoint that a method starts from. key, path: the setting that names it; '' loads nothing."""
    if not path:
        return
    if not Path(path).is_file():
        raise UserError(f"{key}: {path}: no such file")
    load_complete(model, path)
