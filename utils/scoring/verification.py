"""Verification, whether two images show one identity: the true accept rate at given false accept rates."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError
from utils.scoring.blocks import each_block
from utils.scoring.matching import Matching
from utils.scoring.ranking import at_pairs


def roc_blocks(
    rows: Callable[[int, int], Tensor],
    matching: Matching,
    fars: Sequence[float],
    block_size: int | None = None,
    strip: int | None = None,
    threads: bool = False,
    max_memory: int | None = None,
) -> dict[float, float]:
    """Returns the true accept rate at each false accept rate, from ``rows(start, stop) -> (stop - start, G)``.

    block_size, strip, threads, max_memory: as for ``each_block``.

    The largest share of genuine pairs accepted at a threshold that accepts at most a share ``far`` of the impostor
    pairs; nothing is interpolated. Of the impostor distances at most twice the smallest share max(fars) is in memory.
    """
    for far in fars:
        if not 0 <= far <= 1:
            raise UserError(f"fars: expected shares between 0 and 1, got {far!r}")
    num_q, num_g = len(matching.q_pids), len(matching.g_pids)
    num_impostors = num_q * num_g - int(matching.count.sum())
    if num_impostors == 0:
        raise UserError("no impostor pairs: query and gallery hold one identity only")
    allowed = [_most(far, num_impostors) for far in fars]
    keep = max(allowed, default=0) + 1
    genuine: list[np.ndarray] = []
    nearest = [np.empty(0, np.float32)]  # impostors; the smallest ``keep`` of all so far are among them
    lock = threading.Lock()

    def work(start: int, stop: int) -> None:
        block, pairs = rows(start, stop), matching.pairs(start, stop)
        same = at_pairs(block, pairs.query, pairs.gallery)
        smallest = nearest[0]  # once it has been cut, it holds the smallest so far
        accepted = block < smallest.max() if len(smallest) == keep else torch.ones_like(block, dtype=torch.bool)
        at = [torch.from_numpy(index).to(block.device) for index in (pairs.query, pairs.gallery)]
        accepted[at[0], at[1]] = False
        impostors = block[accepted].cpu().numpy()
        with lock:
            nearest.append(impostors)
            if sum(map(len, nearest)) > 2 * keep:
                nearest[:] = [np.partition(np.concatenate(nearest), keep - 1)[:keep]]
            genuine.append(same[pairs.positive])

    each_block(num_q, num_g, block_size, work, "verification", strip=strip, threads=threads, max_memory=max_memory)
    impostors, accepted = np.sort(np.concatenate(nearest)), np.concatenate(genuine)
    tars = {}
    for far, count in zip(fars, allowed, strict=True):  # impostors[count] is the first that must be refused
        tars[far] = float((accepted < impostors[count]).mean()) if count < num_impostors else 1.0
    return tars


def _most(far: float, num: int) -> int:
    """Returns the largest m with m / num <= far, as that quotient rounds."""
    most = int(far * num)
    most += most < num and (most + 1) / num <= far
    return most - (most / num > far)
