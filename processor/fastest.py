"""Chooses what computes features: the fastest runtime that is installed and gives those of torch."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass

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


@dataclass(frozen=True)
class Trial:
    """What a runtime did on a batch. speed: images per second. difference: of a unit feature's entry, the largest."""

    extractor: Extractor
    speed: float
    difference: float


def in_fastest_runtime(
    extractor: Extractor, images: Tensor, cam_labels: Tensor | None = None, view_labels: Tensor | None = None
) -> Extractor:
    """Returns the extractor in the runtime that is fastest on a batch, torch included, and logs what was measured.

    extractor: in torch. images: (B, 3, H, W), transformed. A runtime is left out if it is not installed, cannot run the
    network, or its unit features differ from torch's by more than ``LARGEST_DIFFERENCE``. On a GPU nothing is tried:
    the other runtimes compute on the CPU.
    """
    if extractor.device.type != "cpu":
        log.info("--runtime auto: torch, which computes on %s; the others use the CPU", extractor.device)
        return extractor
    batch = images, cam_labels, view_labels
    reference = to_unit_length(extractor.features(*batch)).numpy()
    trials = {TORCH: Trial(extractor, speed_of(extractor, batch), 0.0)}
    left_out = []
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
                    trials[name] = Trial(other, speed_of(other, batch), difference)
    except UserError as error:  # the network cannot be exported, or not here
        left_out.append(str(error))
    chosen = max(trials, key=lambda name: trials[name].speed)
    speeds = ", ".join(f"{name} {trial.speed:.1f}" for name, trial in trials.items())
    reasons = f"; left out: {'; '.join(left_out)}" if left_out else ""
    log.info(
        "--runtime auto: %s, by images/s on the first %d images: %s; its unit features differ by %.1e at most from "
        "torch's%s", chosen, len(images), speeds, trials[chosen].difference, reasons,
    )  # fmt: skip
    return trials[chosen].extractor


def speed_of(extractor: Extractor, batch: tuple[Tensor, Tensor | None, Tensor | None]) -> float:
    """Returns the images per second of the best of some runs; the extractor has run before."""
    seconds = []
    for _ in range(REPEATS):
        began = time.perf_counter()
        extractor.features(*batch)
        seconds.append(time.perf_counter() - began)
    return len(batch[0]) / max(min(seconds), 1e-9)
