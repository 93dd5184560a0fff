"""Camera-aware scores: takes out of features or distances what their cameras do to them, measured without labels.

Many networks put different identities under one camera closer together than one identity under two. ``mean`` subtracts
each camera's mean feature: the centring of Song et al., "Exploring the Camera Bias of Person Re-identification", ICLR
2025; they divide by each camera's deviations too, which few images of a camera estimate badly. ``pair`` measures a
distance in deviations from the mean distance of its two cameras: the H-norm of speaker verification, zero normalisation
by handset (Heck and Weintraub, ICASSP 1997; Auckenthaler et al., Digital Signal Processing 10, 2000), with cameras for
handsets. There the mean is over impostors; here it is over all pairs of different images, since without labels almost
all of them are impostors. It is the same in both directions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError
from utils.scoring.distances import Distances, as_features, unit_length

KINDS = ("off", "mean", "pair")
LEAST = 10
"""Images of a camera, at least: a mean of fewer is noise."""
MOST = 500
"""Images of a camera that are drawn, at most: their mean is within a twentieth of a deviation."""


def drawn_of_each(camids: np.ndarray, seed: int, most: int = MOST) -> np.ndarray:
    """Returns rows, ascending: up to ``most`` of each camera, drawn at random."""
    order = np.random.default_rng(seed).permutation(len(camids))
    order = order[np.argsort(camids[order], kind="stable")]
    _, first, count = np.unique(camids[order], return_index=True, return_counts=True)
    return np.sort(np.concatenate([order[at : at + min(n, most)] for at, n in zip(first, count, strict=True)]))


@dataclass(frozen=True)
class CameraMeans:
    """The mean feature of each camera. cameras: (C,) ascending. means: (C, D) float32, on the CPU."""

    cameras: np.ndarray
    means: Tensor

    @classmethod
    def fit(cls, feats: Tensor, camids: np.ndarray) -> CameraMeans:
        """Averages features (N, D) by camera (N,)."""
        cameras, of = np.unique(camids, return_inverse=True)
        rows = feats.cpu().double().numpy()
        means = np.stack([rows[of == camera].mean(0) for camera in range(len(cameras))])
        return cls(cameras, torch.from_numpy(means).float())

    def __call__(self, feats: Tensor, camids: object) -> Tensor:
        """Returns features (N, D) minus the mean of each one's camera (N,)."""
        codes = torch.from_numpy(camera_codes(self.cameras, camids))
        return torch.cat([
            some - self.means[of].to(some) for some, of in zip(feats.split(4096), codes.split(4096), strict=True)
        ])  # fmt: skip


@dataclass(frozen=True)
class CameraPairs:
    """Mean and deviation of the distances between each two cameras. cameras: (C,) ascending. mean, deviation: (C, C),
    symmetric."""

    cameras: np.ndarray
    mean: np.ndarray
    deviation: np.ndarray

    @classmethod
    def fit(cls, feats: Tensor, camids: np.ndarray, metric: str) -> CameraPairs:
        """Measures the distances between all pairs of different images of features (N, D) with cameras (N,)."""
        cameras, of = np.unique(camids, return_inverse=True)
        mean, deviation = np.zeros((2, len(cameras), len(cameras)))
        lists = [feats[torch.from_numpy(np.flatnonzero(of == camera))] for camera in range(len(cameras))]
        for i, one in enumerate(lists):
            for j, other in enumerate(lists[: i + 1]):
                values = Distances(one, other, metric).rows(0, len(one)).double().cpu().numpy()
                values = values[np.tril_indices(len(one), -1)] if i == j else values
                mean[i, j] = mean[j, i] = values.mean()
                deviation[i, j] = deviation[j, i] = max(values.std(), 1e-6)  # equal features, of a dead network
        return cls(cameras, mean, deviation)

    def between(self, q_camids: object, g_camids: object) -> PairScale:
        """Returns what normalises the distances from queries (Q,) to gallery images (G,), by their cameras."""
        return PairScale(self, camera_codes(self.cameras, q_camids), camera_codes(self.cameras, g_camids))


@dataclass(frozen=True)
class PairScale:
    """``CameraPairs`` for two lists, whose cameras are the rows ``of_query`` (Q,) and ``of_gallery`` (G,)."""

    pairs: CameraPairs
    of_query: np.ndarray
    of_gallery: np.ndarray

    def __call__(self, block: Tensor, start: int) -> Tensor:
        """Normalises distances (B, G) of the queries from ``start`` on in place, and returns them."""
        codes = self.of_query[start : start + len(block)]
        for camera in np.unique(codes):
            tables = (self.pairs.mean[camera], self.pairs.deviation[camera])
            mean, deviation = (torch.from_numpy(table[self.of_gallery]).to(block) for table in tables)
            for row in np.flatnonzero(codes == camera).tolist():
                block[row].sub_(mean).div_(deviation)
        return block

    def take(self, queries: np.ndarray, images: np.ndarray) -> PairScale:
        """Returns the same for some queries and gallery images by row."""
        return PairScale(self.pairs, self.of_query[queries], self.of_gallery[images])


@dataclass(frozen=True)
class CameraReference:
    """Images without labels that a norm is fitted on: features (N, D) as the network gives them, cameras (N,).

    kind: ``mean`` or ``pair``. Raises ``UserError`` for few images of a camera.
    """

    kind: str
    feats: Tensor
    camids: np.ndarray

    def centred(self, feats: Tensor, camids: object, normalize: bool) -> Tensor:
        """Returns features (N, D) of images with cameras (N,), for ``mean`` without their cameras' means.

        normalize: scale them to unit length first, as the evaluation does again afterwards.
        """
        if self.kind != "mean":
            return feats
        feats, reference = (scaled(rows, normalize) for rows in (feats, self.feats))
        return CameraMeans.fit(reference, self.camids)(feats, camids)

    def pairs(self, metric: str, normalize: bool) -> CameraPairs | None:
        """Returns what normalises distances, None for ``mean``."""
        if self.kind != "pair":
            return None
        return CameraPairs.fit(scaled(self.feats, normalize or metric == "cosine"), self.camids, metric)


def scaled(feats: object, normalize: bool) -> Tensor:
    """Returns features as float32, with ``normalize`` of unit length."""
    rows = as_features(feats, "camera norm")
    return unit_length(rows) if normalize else rows


def camera_codes(cameras: np.ndarray, camids: object) -> np.ndarray:
    """Returns the row in ``cameras`` (C,) of each image's camera, (N,). Raises ``UserError`` for an unknown one."""
    numbers = np.asarray(camids)
    codes = np.searchsorted(cameras, numbers).clip(max=len(cameras) - 1)
    unknown = np.unique(numbers[cameras[codes] != numbers])
    if len(unknown):
        raise UserError(f"TEST.CAMERA_NORM: nothing was fitted for camera {unknown[0]}; known: {cameras.tolist()}")
    return codes
