"""Tries 8-bit recipes: the plain ones, then, if all lose too much, the best with its most sensitive layers in float."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from model.recipes import Feed, Quantiser, Recipe
from processor.runtimes import Runtime
from tools.exporting.differences import unit

SHARES = (0.1, 0.25, 0.5)
"""Shares of the groups of layers that stay in float."""

TIE = 0.05
"""Share by which the speed of one file differs from one timing to the next."""

Judge = Callable[[Path], tuple[dict[str, float], float]]
"""Returns a quantised network's loss on each test set, in points, and its images per second."""


@dataclass(frozen=True)
class Trial:
    """What a recipe costs. losses: by test set, in points of mAP. network: its file, without preprocessing."""

    recipe: Recipe
    losses: dict[str, float]
    images_per_second: float
    network: Path

    @property
    def worst(self) -> float:
        """The largest loss of any test set."""
        return max(self.losses.values())

    def content(self) -> dict[str, Any]:
        """Returns the entry in ``model.json``."""
        return {
            "recipe": str(self.recipe), "loss": self.losses, "images_per_second": self.images_per_second,
            "float": list(self.recipe.floats),
        }  # fmt: skip


def try_recipes(
    quantiser: Quantiser,
    judge: Judge,
    sensitivity: Callable[[Sequence[str]], float],
    folder: Path,
    max_loss: float,
) -> list[Trial]:
    """Returns the recipes that were tried, in order.

    sensitivity: how much features change if only the named layers are quantised. folder: for the networks' files.
    """
    trials: list[Trial] = []

    def attempt(recipes: Sequence[Recipe]) -> None:
        for recipe in shown(recipes, "recipes"):
            path = folder / f"recipe_{len(trials)}.{quantiser.ending}"
            quantiser.write(recipe, path)
            trials.append(Trial(recipe, *judge(path), path))

    attempt(quantiser.starts)
    best = min(trials, key=lambda trial: trial.worst)
    if best.worst > max_loss:
        changes = [sensitivity(group) for group in shown(quantiser.groups, "layers")]
        groups = [quantiser.groups[i] for i in np.argsort(changes, kind="stable")[::-1]]
        attempt([best.recipe.keeping(share, groups) for share in SHARES])
    return trials


def fastest(trials: Sequence[Trial], max_loss: float) -> Trial | None:
    """Returns the fastest trial that loses at most ``max_loss`` on every test set; None without one.

    Of those that are as fast but for timing it is the one that loses least.
    """
    good = [trial for trial in trials if trial.worst <= max_loss]
    if not good:
        return None
    limit = (1 - TIE) * max(trial.images_per_second for trial in good)
    return min((trial for trial in good if trial.images_per_second >= limit), key=lambda trial: trial.worst)


def shown(items: Sequence[Any], what: str) -> Any:
    """Returns the items with a progress bar on a terminal."""
    return tqdm(items, desc=what, leave=False, disable=not sys.stderr.isatty())


def mean_change(first: Runtime, second: Runtime, feeds: Sequence[Feed]) -> float:
    """Returns the mean over calibration images of 1 - cosine between two networks' features."""
    changes = []
    for feed in feeds:
        labels = {name: value for name, value in feed.items() if name != "images"}
        one, two = (unit(runtime(feed["images"], **labels)) for runtime in (first, second))
        changes.append(1 - (one * two).sum(1))
    return float(np.concatenate(changes).mean())
