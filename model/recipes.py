"""How a network becomes one of 8-bit integers: the recipes that are tried, and what a quantiser does with one."""

from __future__ import annotations

import contextlib
import io
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

import numpy as np

Feed = dict[str, np.ndarray]
"""Inputs of a network by name: ``images``, normalised pixels (B, 3, H, W) float32, and int64 labels (B,)."""

MOST_GROUPS = 16
"""Groups of layers whose quantisation is measured one by one, at most."""


@dataclass(frozen=True)
class Recipe:
    """What becomes 8-bit integers, and how. ranges: how the range of an activation follows from calibration images.

    per_channel: a scale for each output channel of a weight, else for the whole of it. kept: share of the groups of
    layers that stay in float, the most sensitive ones; floats: names of these layers.
    """

    ranges: str
    per_channel: bool
    kept: float = 0.0
    floats: tuple[str, ...] = ()

    def __str__(self) -> str:
        words = [self.ranges, "per channel" if self.per_channel else "per tensor"]
        return ", ".join([*words, f"{100 * self.kept:.0f} % of the layers in float"] if self.kept else words)

    def keeping(self, share: float, groups: Sequence[Sequence[str]]) -> Recipe:
        """Returns the same with a share of the groups in float. groups: the most sensitive first."""
        number = max(1, round(share * len(groups)))
        return replace(self, kept=share, floats=tuple(name for group in groups[:number] for name in group))


class Quantiser(Protocol):
    """Writes a network by a recipe.

    starts: the recipes to begin with. groups: names of successive layers. ending: of its files.
    """

    starts: tuple[Recipe, ...]
    groups: list[tuple[str, ...]]
    ending: str

    def write(self, recipe: Recipe, path: Path, only: Sequence[str] | None = None) -> None:
        """Writes the quantised network, without preprocessing. only: the layers to quantise; None: all."""
        ...


def groups_of(layers: Sequence[tuple[str, bool]], most: int = MOST_GROUPS) -> list[tuple[str, ...]]:
    """Returns names of successive layers in at most ``most`` groups of like size.

    layers: (name, whether it has weights) in order. What has no weights goes with the layer before it.
    """
    single: list[list[str]] = []
    for name, weighted in layers:
        if weighted or not single:
            single.append([])
        single[-1].append(name)
    edges = np.linspace(0, len(single), min(most, len(single)) + 1).round().astype(int)
    return [tuple(sum(single[a:b], [])) for a, b in zip(edges[:-1], edges[1:], strict=True)]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keeps a library from printing and warning, inside the context."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
