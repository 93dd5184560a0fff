"""Neighbour feature centralisation: each feature takes in those of its mutual nearest neighbours, without training."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from utils.scoring.blocks import in_threads, whole_number
from utils.scoring.distances import Distances, as_features, unit_length
from utils.scoring.neighbours import nearest_rows

OF_ITSELF = np.float32(1000)  # the published distance of an image to itself
GATHERED = 2**20  # numbers of gathered features per pass
ROWS = 1024  # images whose lists are compared per pass, at most


def neighbour_centralisation(
    feats: object, k1: int = 2, k2: int = 2, normalize: bool = False, max_memory: int | None = None
) -> Tensor | np.ndarray:
    """Returns features moved towards their identity by neighbour feature centralisation (Pose2ID, CVPR 2025).

    feats: (N, D), one list: queries and gallery go through it apart. Each feature becomes its sum with those images
    among its ``k1`` nearest that have it among their ``k2`` nearest too, by squared Euclidean distance; ``k2`` above
    ``k1`` counts as ``k1``. normalize: unit length before and after, as the paper's evaluation has it. max_memory:
    bytes that the distances in work may take.

    As published, an image is at distance 1000 from itself. It is therefore its own neighbour, and counts twice, among
    features so long that others are farther away, or if ``k1`` reaches N. Lists stop at N. Returns (N, D), a tensor if
    given a tensor, else an array. Raises ``ValueError`` for NaN features and ``k1`` or ``k2`` below 1.
    """
    k1, k2 = whole_number("k1", k1), whole_number("k2", k2)
    tensor = as_features(feats, "image")
    if normalize:
        tensor = unit_length(tensor)
    lists = _nearest_with_itself(Distances(tensor, tensor, max_memory=max_memory), k1)
    out = _with_mutual(tensor, lists, k2)
    if normalize:
        out = unit_length(out)
    return out if isinstance(feats, Tensor) else out.cpu().numpy()


def _nearest_with_itself(dist: Distances, k1: int) -> np.ndarray:
    """Returns the ``k1`` nearest by (distance, index), (N, k1) int32, with every image at 1000 from itself."""
    columns, values, _ = nearest_rows(dist, k1 + 1)
    own = np.arange(len(columns), dtype=columns.dtype)[:, None]
    itself = columns == own
    itself[~itself.any(1), -1] = True  # so many copies of lower index that its place is beyond the list
    columns, values = np.where(itself, own, columns), np.where(itself, OF_ITSELF, values)
    order = np.lexsort((columns, values), axis=1)[:, :k1]
    return np.take_along_axis(columns, order, 1)


def _with_mutual(feats: Tensor, lists: np.ndarray, k2: int) -> Tensor:
    """Returns each feature plus those of its mutual neighbours, added from the nearest to the farthest, (N, D)."""
    num, k1 = lists.shape
    short, out = lists[:, :k2], torch.empty_like(feats)
    step = max(min(GATHERED // max(feats.shape[1], k1 * short.shape[1]), ROWS), 1)

    def work(start: int, stop: int) -> None:
        near = lists[start:stop]
        mutual = (short[near] == np.arange(start, stop)[:, None, None]).any(2)
        total = feats[start:stop].clone()
        for place in range(k1):
            rows = np.flatnonzero(mutual[:, place])
            picked = torch.from_numpy(near[rows, place].astype(np.int64)).to(feats.device)
            total.index_add_(0, torch.from_numpy(rows).to(feats.device), feats[picked])
        out[start:stop] = total

    in_threads([(start, min(start + step, num)) for start in range(0, num, step)], work)
    return out
