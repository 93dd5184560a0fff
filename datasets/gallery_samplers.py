"""An anchor image and others of its identity: the samplers of the class-memory methods."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from torch.utils.data import Sampler


def multiple_gallery_nocam(
    pids: np.ndarray, batch_size: int, num_instances: int, rng: np.random.Generator
) -> list[np.ndarray]:
    """One pass over the identities in random order: an image of each and K - 1 of its others, whatever their cameras.

    The others are drawn without replacement where there are at least K of them and with it otherwise, as published
    (K - 1 would do). An identity with a single image gives it once, and the groups behind it no longer line up with the
    batches. Returns the rows in batches; an incomplete last one is dropped.
    """
    order = np.argsort(pids, kind="stable")
    groups = np.split(order, np.unique(pids[order], return_index=True)[1][1:])
    rows = []
    for i in rng.permutation(len(groups)):
        own = groups[i]
        place = rng.integers(len(own))
        others = np.delete(own, place)
        rows.append(own[place : place + 1])
        if len(others):
            rows.append(rng.choice(others, num_instances - 1, replace=len(others) < num_instances))
    rows = np.concatenate(rows)
    return [rows[i : i + batch_size] for i in range(0, len(rows) - batch_size + 1, batch_size)]


class MultipleGalleryNoCamera(Sampler):
    """Epochs of a fixed number of batches of (row, seed); passes follow one another until there are enough.

    pids: (N,). batch_size: of all processes together, each of which takes its slice of every batch, so that a run sees
    the same batches whatever their number. seed, stream: two samplers that differ in ``stream`` draw apart. An epoch's
    batches depend on these and its number alone. ``len`` is 0 where the images do not fill a batch.
    """

    def __init__(
        self, pids: np.ndarray, batch_size: int, num_instances: int, seed: int, iterations: int, stream: int = 0,
        rank: int = 0, world: int = 1,
    ):  # fmt: skip
        super().__init__()
        self.pids, self.batch_size, self.num_instances = pids, batch_size, num_instances
        self.seed, self.stream, self.iterations = seed, stream, iterations
        share = batch_size // world
        self.share = slice(rank * share, (rank + 1) * share)
        self.set_epoch(1)

    def set_epoch(self, epoch: int) -> None:
        """Draws the epoch's batches; epochs count from 1."""
        rng = np.random.default_rng([self.seed, self.stream, epoch])
        batches: list[np.ndarray] = []
        while len(batches) < self.iterations:
            found = multiple_gallery_nocam(self.pids, self.batch_size, self.num_instances, rng)
            if not found:
                break
            batches += found
        batches = batches[: self.iterations]
        seeds = rng.integers(2**62, size=(len(batches), self.batch_size))
        self.batches = [
            list(zip(b[self.share].tolist(), s[self.share].tolist(), strict=True))
            for b, s in zip(batches, seeds, strict=True)
        ]

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        return iter(self.batches)
