"""How well numbers follow people: IDF1, HOTA, identity switches, and who keeps a number after being away.

The first three are TrackEval's, which is optional, over boxes that are matched with ground truth at half their union.
Within cameras they are computed for each camera by itself; across cameras the sequences of all cameras stand one behind
the other and a person's number must be the same in all.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.optimize import linear_sum_assignment

from utils.errors import UserError

OVERLAP = 0.5
"""Intersection over union of a box and the true one that it counts for."""

Boxes = Mapping[int, Sequence[tuple[Hashable, tuple[float, ...]]]]
"""frame -> (number, (left, top, right, bottom)) of each box."""


@dataclass(frozen=True)
class CameraBoxes:
    """The boxes of one camera. truth: numbered by person. found: by identity.

    clock: seconds per frame, and the time of frame 0.
    """

    name: str
    truth: Boxes
    found: Boxes
    clock: tuple[float, float] = (1.0, 0.0)


def overlaps(truth: Sequence[tuple[float, ...]], found: Sequence[tuple[float, ...]]) -> np.ndarray:
    """Returns intersection over union of boxes (a, 4) and (b, 4), (a, b)."""
    a, b = (np.asarray(boxes, float).reshape(-1, 4) for boxes in (truth, found))
    corners = np.minimum(a[:, None, 2:], b[None, :, 2:]) - np.maximum(a[:, None, :2], b[None, :, :2])
    shared = np.maximum(corners, 0).prod(2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(1) for boxes in (a, b)]
    return shared / np.maximum(areas[0][:, None] + areas[1][None] - shared, 1e-9)


def refuse_without_trackeval() -> None:
    """Raises ``UserError`` where TrackEval is not installed."""
    try:
        import trackeval  # noqa: F401
    except ImportError:
        raise UserError(
            "--truth: scores need trackeval, which is not installed: pip install -r requirements-extra.txt"
        ) from None


def sequence(cameras: Sequence[CameraBoxes]) -> dict[str, Any]:
    """Returns what TrackEval's metrics take, the cameras' frames one behind the other."""
    people, numbers = {}, {}
    data: dict[str, Any] = {"gt_ids": [], "tracker_ids": [], "similarity_scores": []}
    for camera in cameras:
        for frame in sorted({*camera.truth, *camera.found}):
            truth, found = camera.truth.get(frame, ()), camera.found.get(frame, ())
            data["gt_ids"].append(np.array([people.setdefault(n, len(people)) for n, _ in truth], int))
            data["tracker_ids"].append(np.array([numbers.setdefault(n, len(numbers)) for n, _ in found], int))
            data["similarity_scores"].append(overlaps([box for _, box in truth], [box for _, box in found]))
    return data | {
        "num_timesteps": len(data["gt_ids"]), "num_gt_ids": len(people), "num_tracker_ids": len(numbers),
        "num_gt_dets": sum(map(len, data["gt_ids"])), "num_tracker_dets": sum(map(len, data["tracker_ids"])),
    }  # fmt: skip


def tracking_scores(cameras: Sequence[CameraBoxes]) -> dict[str, float]:
    """Returns IDF1 and HOTA across cameras and within them, and the identity switches within; shares of 1 but these.

    Figures within are of all cameras together: counts are summed before they are divided.
    """
    from trackeval.metrics import CLEAR, HOTA, Identity

    quiet = {"PRINT_CONFIG": False}
    whole = sequence(cameras)
    apart = {camera.name: sequence([camera]) for camera in cameras}
    identity, hota, clear = Identity(quiet), HOTA(), CLEAR(quiet)
    within = {name: identity.eval_sequence(data) for name, data in apart.items()}
    hotas = {name: hota.eval_sequence(data) for name, data in apart.items()}
    switches = sum(int(clear.eval_sequence(data)["IDSW"]) for data in apart.values())
    return {
        "IDF1": float(identity.eval_sequence(whole)["IDF1"]),
        "HOTA": float(np.mean(hota.eval_sequence(whole)["HOTA"])),
        "IDF1 within": float(identity.combine_sequences(within)["IDF1"]),
        "HOTA within": float(np.mean(hota.combine_sequences(hotas)["HOTA"])),
        "switches within": switches,
    }


def matched(camera: CameraBoxes) -> list[tuple[float, Hashable, Hashable]]:
    """Returns (seconds, person, number) of each true box that a found one counts for."""
    out, (pace, begin) = [], camera.clock
    for frame in sorted(camera.truth):
        truth, found = camera.truth[frame], camera.found.get(frame, ())
        shares = overlaps([box for _, box in truth], [box for _, box in found])
        for i, j in zip(*linear_sum_assignment(-shares), strict=True):
            if shares[i, j] >= OVERLAP:
                out.append((begin + pace * frame, truth[i][0], found[j][0]))
    return out


def kept_numbers(cameras: Sequence[CameraBoxes], away: float) -> dict[str, float]:
    """Returns how often people who come back have the number that they had.

    away: seconds after which an appearance counts as coming back; another camera always does. Returns the share of
    returns with the same number (``re-associated``) and their count (``returns``), to the same camera and to another.
    """
    seen: dict[Hashable, list[tuple[float, str, Hashable]]] = defaultdict(list)
    for camera in cameras:
        for time, person, number in matched(camera):
            seen[person].append((time, camera.name, number))
    counts = {"same camera": [0, 0], "other camera": [0, 0]}
    for moments in seen.values():
        moments.sort(key=lambda moment: moment[:2])
        for (before, first, number), (after, second, again) in zip(moments, moments[1:], strict=False):
            if first != second or after - before >= away:
                entry = counts["same camera" if first == second else "other camera"]
                entry[0] += number == again
                entry[1] += 1
    out: dict[str, float] = {}
    for name, (kept, count) in counts.items():
        out[f"returns to the {name}"] = count
        if count:
            out[f"re-associated, {name}"] = kept / count
    return out
