"""The calibration of one model, as a file: thresholds and the probability that two images show one identity."""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np

from utils.errors import UserError
from utils.files import write_json
from utils.scoring.calibration import Probability, Threshold, unknown_distance
from utils.scoring.camera_norm import KINDS
from utils.scoring.drift import LEAST_PAIRS, Drift, disjoint_pairs, drift

VERSION = 2
LARGEST_FILE = 16 * 2**20
"""Bytes; a file of 4,096 knots is a hundredth of it."""


@dataclass(frozen=True)
class Calibration:
    """What was fitted on the pairs of one data set. ``Calibration.read(path)`` reads one.

    model_hash: of the extractor whose features were compared. metric, normalize, camera_norm: of the distances, as the
    keys of TEST say. pairs: which ones
    counted (``utils.scoring.pair_counts.PAIRS``). identities, genuine_pairs, impostor_pairs: how many. figures: ``ece``
    and ``brier`` at the prior, on identities that were left out of the fit. random_pairs: (R,) distances of pairs drawn
    without regard to labels, each image in one, to see whether other images still look like these. absent: (A,)
    distances of queries' nearest strangers, ascending, among ``images`` of them.
    """

    model_hash: str
    metric: str
    normalize: bool
    camera_norm: str
    dataset: str
    pairs: str
    identities: int
    genuine_pairs: int
    impostor_pairs: int
    thresholds: list[Threshold]
    probability: Probability
    figures: dict[str, float] = field(default_factory=dict)
    random_pairs: np.ndarray = field(default_factory=lambda: np.zeros(0))
    absent: np.ndarray = field(default_factory=lambda: np.zeros(0))
    images: float = 1.0
    commit: str = ""

    def threshold(self, far: float | None = None) -> Threshold:
        """Returns the threshold for a false accept rate of the file; None for the strictest one."""
        if far is None:
            return min(self.thresholds, key=lambda row: row.far)
        for row in self.thresholds:
            if math.isclose(row.far, far, rel_tol=1e-6):
                return row
        known = ", ".join(f"{row.far:g}" for row in self.thresholds)
        raise UserError(f"the calibration has no threshold for a false accept rate of {far:g}; it has {known}")

    def unknown_beyond(self, fpir: float, images: int) -> float:
        """Returns the distance beyond which a query shows nobody of a gallery of so many images.

        Of absent queries, at most a share ``fpir`` is answered with a name. Raises ``UserError`` for a rate that the
        calibration's queries do not show.
        """
        if not len(self.absent):
            raise UserError("the calibration has no queries; calibrate again with tools.calibrate")
        return unknown_distance(self.absent, fpir, self.images / max(images, 1))

    def refuse_other(self, model_hash: str, metric: str, normalize: bool, path: object = "the calibration") -> None:
        """Raises ``UserError`` unless it is of this model and of these distances between images without cameras."""
        if self.model_hash != model_hash:
            raise UserError(f"{path}: is of another model or setting; calibrate this one with tools.calibrate")
        if (self.metric, self.normalize) != (metric, normalize):
            raise UserError(
                f"{path}: is of TEST.METRIC {self.metric!r} with TEST.FEAT_NORM {self.normalize}, not of {metric!r} "
                f"with {normalize}"
            )
        if self.camera_norm != "off":
            raise UserError(
                f"{path}: is of TEST.CAMERA_NORM {self.camera_norm!r}, and here images are compared without their "
                "cameras; calibrate with 'off'"
            )

    def drift(self, feats: np.ndarray, seed: int = 0) -> Drift:
        """Compares random pairs of new images' features (N, D) with those of the calibration, without labels.

        Raises ``UserError`` where there are too few images to say anything.
        """
        now = self.random_distances(feats, seed)
        if min(len(now), len(self.random_pairs)) < LEAST_PAIRS:
            raise UserError(
                f"drift shows in {2 * LEAST_PAIRS} images at least; the calibration has {2 * len(self.random_pairs)}, "
                f"the features are of {len(feats)}"
            )
        return drift(self.random_pairs, now)

    def random_distances(self, feats: np.ndarray, seed: int = 0) -> np.ndarray:
        """Returns the distances of random pairs of features (N, D), each row in one pair at most: (R,)."""
        pairs = zip(*disjoint_pairs(len(feats), seed), strict=True)
        return np.array([self.distances(feats[[a]], feats[[b]])[0, 0] for a, b in pairs])

    def distances(self, a: np.ndarray, b: np.ndarray) -> np.ndarray:
        """Returns the distances (n, m) between features (n, D) and (m, D) that thresholds and probabilities are of."""
        a, b = (np.asarray(feats, np.float64) for feats in (a, b))
        if self.normalize or self.metric == "cosine":
            a, b = (feats / np.maximum(np.linalg.norm(feats, axis=1, keepdims=True), 1e-12) for feats in (a, b))
        if self.metric == "cosine":
            return 1 - a @ b.T
        return np.maximum((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T, 0)

    def identify(
        self, query: np.ndarray, gallery: Mapping[Hashable, np.ndarray], far: float | None = None
    ) -> tuple[Hashable | None, float]:
        """Returns the identity of the nearest image, None if it is beyond the threshold, and P(same) of that pair.

        query: one feature (D,). gallery: identity -> features (n, D). far: see ``threshold``. Raises ``UserError`` for
        an empty gallery.
        """
        nearest = {
            name: float(self.distances(query[None], feats).min()) for name, feats in gallery.items() if len(feats)
        }
        if not nearest:
            raise UserError("there is nobody in the gallery to identify a query with")
        name = min(nearest, key=lambda one: nearest[one])
        known = nearest[name] <= self.threshold(far).distance
        return (name if known else None), float(self.probability(np.array(nearest[name])))

    def write(self, path: str | Path) -> None:
        """Writes the file as JSON."""
        write_json(path, self.content())

    def content(self) -> dict[str, Any]:
        """Returns what the file holds, in JSON's types."""
        content = {f.name: getattr(self, f.name) for f in fields(self)}
        content["thresholds"] = [asdict(row) for row in self.thresholds]
        for name in ("random_pairs", "absent"):
            content[name] = [round(float(value), 6) for value in getattr(self, name)]
        odds = [None if np.isinf(odds) else float(odds) for odds in self.probability.odds]  # JSON has no infinity
        content["probability"] = {
            "prior": self.probability.prior, "distances": self.probability.distances.tolist(), "odds": odds,
        }  # fmt: skip
        return {"version": VERSION, **content}

    @classmethod
    def read(cls, path: str | Path) -> Calibration:
        """Reads a file. Raises ``UserError`` for one that is missing, damaged, of another kind or version."""
        path = Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such calibration file; tools.calibrate writes one")
        if path.stat().st_size > LARGEST_FILE:
            raise UserError(f"{path}: not a calibration file, it is too large")
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            raise UserError(f"{path}: not a calibration file, or damaged; tools.calibrate writes one") from None
        return cls.of(content, path)

    @classmethod
    def of(cls, content: Any, path: object) -> Calibration:
        """Returns what the file's content says. path: the file, in messages. Raises ``UserError`` as ``read`` does."""
        if not isinstance(content, dict) or "version" not in content:
            raise UserError(f"{path}: not a calibration file; tools.calibrate writes one")
        if content["version"] != VERSION:
            raise UserError(f"{path}: a calibration file of another version; calibrate again with tools.calibrate")
        try:
            return cls._of({name: value for name, value in content.items() if name != "version"})
        except (KeyError, TypeError, ValueError, OverflowError, AttributeError) as error:
            raise UserError(f"{path}: damaged ({error}); calibrate again with tools.calibrate") from None

    @classmethod
    def _of(cls, content: dict[str, Any]) -> Calibration:
        kinds = {"model_hash": str, "metric": str, "normalize": bool, "dataset": str, "pairs": str, "commit": str}
        kinds |= {"camera_norm": str}
        kinds |= dict.fromkeys(("identities", "genuine_pairs", "impostor_pairs"), int)
        for name, kind in kinds.items():
            if type(content[name]) is not kind:
                raise ValueError(f"{name} is not of type {kind.__name__}")
        content["thresholds"] = [Threshold(**{k: _number(v) for k, v in row.items()}) for row in content["thresholds"]]
        content["figures"] = {str(k): _number(v) for k, v in content["figures"].items()}
        for name in ("random_pairs", "absent"):
            content[name] = np.array([_number(value) for value in content[name]])
        content["images"] = _number(content["images"])
        if (np.diff(content["absent"]) < 0).any() or content["images"] <= 0:
            raise ValueError("nearest strangers are not in order, or none")
        content["probability"] = _probability(content["probability"])
        if content["camera_norm"] not in KINDS:
            raise ValueError(f"camera_norm is not one of {', '.join(KINDS)}")
        if not content["thresholds"] or not all(0 < row.far < 1 for row in content["thresholds"]):
            raise ValueError("no threshold, or a rate outside of 0 to 1")
        return cls(**content)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError("a figure is not a finite number")
    return float(value)


def _probability(content: dict[str, Any]) -> Probability:
    distances = np.array([_number(value) for value in content["distances"]])
    odds = np.array([np.inf if value is None else _number(value) for value in content["odds"]])
    prior = _number(content["prior"])
    if len(distances) < 2 or len(distances) != len(odds) or not 0 < prior < 1:
        raise ValueError("knots or prior of the probability")
    if (np.diff(distances) <= 0).any() or (odds < 0).any() or (odds[1:] > odds[:-1]).any():
        raise ValueError("the probability does not fall with the distance")
    return Probability(distances, odds, prior)
