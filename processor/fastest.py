"""Chooses what computes features: the fastest runtime that is installed and gives those of torch."""

from __future__ import annotations

import logging
import time

import numpy as np
from torch import Tensor

from processor.extractor import Extractor
from processor.runtime_network import exported_network, open_network
from processor.runtimes import RUNTIMES, TORCH
from utils.errors import UserError
from utils.features import to_unit_length

log = logging.getLogger("lineup")

LARGEST_DIFFERENCE = 1e-3
"""Of a unit feature's entry from torch's."""
REPEATS = 3
CLEARLY = 1.05
"""Times torch's speed from which on another runtime is taken; less is chance, and torch is what training used."""

Inputs = tuple[Tensor, Tensor | None, Tensor | None]
"""Images and the labels of their cameras and views, as the extractor takes them."""


def in_fastest_runtime(
    extractor: Extractor, images: Tensor, cam_labels: Tensor | None = None, view_labels: Tensor | None = None
) -> Extractor:
    """Returns the extractor in the runtime that is fastest on a batch, torch included, and logs what was measured.

    extractor: in torch. images: (B, 3, H, W), transformed. A runtime is left out if it is not installed, cannot run the
    network, its unit features differ from torch's by more than ``LARGEST_DIFFERENCE``, or it is not ``CLEARLY`` faster.
    On a GPU nothing is tried: the other runtimes compute on the CPU.
    """
    if extractor.device.type != "cpu":
        log.info("--runtime auto: torch, which computes on %s; the others use the CPU", extractor.device)
        return extractor
    batch = images, cam_labels, view_labels
    reference = to_unit_length(extractor.features(*batch)).numpy()
    tried, differences, left_out = {TORCH: extractor}, {TORCH: 0.0}, []
    try:
        with exported_network(extractor.model, extractor.size, extractor.sides) as path:
            for name in RUNTIMES:
                try:
                    network = open_network(path, name, extractor.size, extractor.sides)
                except UserError as error:
                    left_out.append(str(error))
                    continue
                other = extractor.with_network(network)
                difference = float(np.abs(to_unit_length(other.features(*batch)).numpy() - reference).max())
                if difference > LARGEST_DIFFERENCE or np.isnan(difference):
                    left_out.append(f"{name}: a unit feature differs by {difference:.1e} from torch's")
                else:
                    tried[name], differences[name] = other, difference
    except UserError as error:  # the network cannot be exported, or not here
        left_out.append(str(error))
    speeds = speeds_of(tried, batch)
    chosen = max(speeds, key=lambda name: speeds[name] * (CLEARLY if name == TORCH else 1))
    shown = ", ".join(f"{name} {speed:.1f}" for name, speed in speeds.items())
    reasons = f"; left out: {'; '.join(left_out)}" if left_out else ""
    log.info(
        "--runtime auto: %s, by images/s on the first %d images: %s; its unit features differ by %.1e at most from "
        "torch's%s", chosen, len(images), shown, differences[chosen], reasons,
    )  # fmt: skip
    return tried[chosen]


def speeds_of(tried: dict[str, Extractor], batch: Inputs) -> dict[str, float]:
    """Returns the images per second of each, the best of some runs in turns, so that other load falls on all."""
    best = dict.fromkeys(tried, np.inf)
    for _ in range(REPEATS):
        for name, extractor in tried.items():
            began = time.perf_counter()
            extractor.features(*batch)
            best[name] = min(best[name], time.perf_counter() - began)
    return {name: len(batch[0]) / max(seconds, 1e-9) for name, seconds in best.items()}
