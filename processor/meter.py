"""Running means of an epoch's terms, and its speed."""

from __future__ import annotations

import time

from processor.last import BegunEpoch


class Meter:
    """Keeps running means of named values of an epoch, and its speed. begun: go on counting from there."""

    def __init__(self, begun: BegunEpoch | None = None) -> None:
        self.sums: dict[str, float] = dict(begun.sums) if begun else {}
        self.counts: dict[str, int] = dict(begun.counts) if begun else {}
        self.images = begun.images if begun else 0
        self.began = time.monotonic() - (begun.seconds if begun else 0.0)

    def add(self, values: dict[str, float], images: int) -> None:
        """Counts the values and the images of one step."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value)
            self.counts[name] = self.counts.get(name, 0) + 1
        self.images += images

    @property
    def seconds(self) -> float:
        """Time since the epoch began, interruptions left out."""
        return time.monotonic() - self.began

    @property
    def speed(self) -> float:
        """Images per second."""
        return self.images / max(self.seconds, 1e-9)

    def means(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    def __str__(self) -> str:
        return " ".join(f"{name} {value:.3f}" for name, value in self.means().items())
