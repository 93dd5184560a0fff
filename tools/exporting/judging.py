"""Judges exported files by the configuration's test sets: limits in full precision, the loss of mAP in others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from datasets.loaders import TestSet
from model.deployed import Deployed, Preprocess
from processor.evaluate import Settings
from processor.runtimes import Runtime
from tools.exporting.differences import feature_difference, pixel_difference
from tools.exporting.feeding import Feed, exported_features
from tools.exporting.files import megabytes
from tools.exporting.speed import drawn_inputs, eager_speed, images_per_second, thread_counts, threads
from tools.exporting.verdict import EAGER, Result, Row, compared, loss, main_figure, result_of
from utils.errors import UserError, reason_of

Scores = dict[str, dict[str, float]]
"""Shares of 1 by figure, by test set."""


@dataclass(frozen=True)
class Candidate:
    """A file in the runtimes that read it. openers: the runtime's name -> what opens the file in it."""

    precision: str
    path: Path
    openers: dict[str, Callable[[], Runtime]]


@dataclass(frozen=True)
class Judge:
    """Compares files with the network on test sets.

    deployed: the network with the file's preprocessing. feed: makes the file's input of an image. eager: the network's
    own results by test set.
    """

    deployed: Deployed
    tests: Sequence[TestSet]
    settings: Settings
    feed: Feed
    eager: dict[str, Result]

    def results(self, runtime: Runtime, feed: Feed | None = None) -> dict[str, Result]:
        """Returns a file's features and scores by test set. feed: another one than its own."""
        feed, sides = feed or self.feed, self.deployed.sides
        features = ((test, exported_features(runtime, test, sides, feed)) for test in self.tests)
        return {test.name: result_of(test, feats, self.settings) for test, feats in features}

    def losses(self, results: dict[str, Result]) -> dict[str, float]:
        """Returns the points of mAP that a file loses, by test set."""
        return {name: loss(self.eager[name].scored.metrics, found.scored.metrics) for name, found in results.items()}

    def differences(
        self, original: Deployed, runtime: Runtime, resizer: Runtime | None, resize: str
    ) -> dict[str, float]:
        """Returns the largest differences of features and of resized pixels on some photographs.

        original: the network that takes whole images. resizer: the file's resize alone; None for a file without one.
        resize: evaluation's, a word of INPUT.RESIZE.
        """
        tests, pixels, pre = list(self.tests), 0.0, self.deployed.preprocess
        if resizer is not None and isinstance(pre, Preprocess):
            pixels = pixel_difference(pre, resizer, tests)
        features = feature_difference(original, runtime, self.feed, tests, resize)
        return {"feature_difference": features, "pixel_difference": pixels}

    def speed(self, runtime: Runtime) -> float:
        """Returns images per second of a file that has been opened."""
        inputs = drawn_inputs(self.deployed)
        return images_per_second(lambda: runtime(**inputs))

    def rows(
        self, candidates: Sequence[Candidate], known: dict[tuple[str, str], dict[str, Result]], eager_megabytes: float
    ) -> list[Row]:
        """Returns the verdict's rows: the network, then every file in every runtime that is installed.

        known: results that need not be computed again, by precision and runtime.
        """
        speed = {}
        for count in thread_counts():
            with threads(count):
                speed[count] = eager_speed(self.deployed)
        rows = [Row("fp32", EAGER, eager_megabytes, speed)]
        for candidate in candidates:
            for name, opener in candidate.openers.items():
                try:
                    rows.append(self._row(candidate, name, opener, known.get((candidate.precision, name))))
                except (UserError, RuntimeError) as error:
                    rows.append(Row(candidate.precision, name, megabytes(candidate.path), trouble=reason_of(error)))
        return rows

    def _row(
        self, candidate: Candidate, name: str, opener: Callable[[], Runtime], results: dict[str, Result] | None
    ) -> Row:
        results = results or self.results(opener())
        speed = {}
        for count in thread_counts():
            with threads(count):
                speed[count] = self.speed(opener())
        tests = {test: compared(self.eager[test], found) for test, found in results.items()}
        return Row(candidate.precision, name, megabytes(candidate.path), speed, tests)


def scores(results: dict[str, Result]) -> Scores:
    """Returns the scores alone."""
    return {name: result.scored.metrics for name, result in results.items()}


def refuse_changed_ranks(before: Scores, after: Scores) -> None:
    """Raises ``UserError`` if Rank-1 of a test set changes."""
    for name in after:
        one, two = (found[name].get("Rank-1") for found in (before, after))
        if one is not None and two is not None and one != two:
            raise UserError(f"not exported: Rank-1 of {name} changes from {one:.4f} to {two:.4f}")


def refuse_loss(what: str, losses: dict[str, float], before: Scores, max_loss: float) -> None:
    """Raises ``UserError`` if a file loses more than ``max_loss`` points on a test set. what: the file, in words."""
    name, worst = max(losses.items(), key=lambda entry: entry[1])
    if worst > max_loss:
        raise UserError(
            f"not exported: {what} loses {worst:.2f} points of {main_figure(before[name])} on {name}, --max-loss is "
            f"{max_loss:g}"
        )
