"""What an exported file keeps of the network, and how fast it is: scores, first matches, features, speed and size."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from datasets.loaders import TestSet
from model import RetrievalModel
from processor.evaluate import Scored, Settings, extract_features, score
from utils.bootstrap import paired_difference
from utils.features import to_unit_length
from utils.processor_flags import lacks_int8
from utils.provenance import machine
from utils.scoring.matching import Matching

EAGER = "PyTorch"


@dataclass(frozen=True)
class Result:
    """Features of a test set's list, (N, D), their scores, and each query's nearest gallery image, (Q,)."""

    features: Tensor
    scored: Scored
    nearest: np.ndarray


@dataclass(frozen=True)
class Figure:
    """A figure of a file beside the network's, shares of 1. low, high: 95 % interval of the difference over queries."""

    value: float
    before: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """A file on one test set beside the network.

    same_first: share of the queries whose first match is the same image. mean_cosine, least_cosine: of unit features.
    """

    figures: dict[str, Figure]
    same_first: float
    mean_cosine: float
    least_cosine: float


@dataclass(frozen=True)
class Row:
    """One file in one runtime. speed: images per second by number of threads. tests: by name, none for the network
    itself. trouble: why the runtime cannot read the file; then nothing else was measured."""

    precision: str
    runtime: str
    megabytes: float
    speed: dict[int, float] = field(default_factory=dict)
    tests: dict[str, Comparison] = field(default_factory=dict)
    trouble: str = ""

    @property
    def fastest(self) -> float:
        """Images per second with all threads."""
        return self.speed[max(self.speed)] if self.speed else 0.0


def eager_results(model: RetrievalModel, tests: Sequence[TestSet], settings: Settings) -> dict[str, Result]:
    """Returns the network's own features and scores, by test set."""
    results = {}
    counted = [test.name for test in tests if test.in_mean]
    for test in tests:
        model.use_domain(counted.index(test.name) if test.in_mean else 0)
        feats = extract_features(model, test.loader, torch.device("cpu"), settings.flip)
        results[test.name] = result_of(test, feats, settings)
    return results


def result_of(test: TestSet, feats: Tensor, settings: Settings) -> Result:
    """Returns the features with what follows from them."""
    return Result(feats, score(test, feats, settings), first_images(test, feats, settings))


def main_figure(metrics: dict[str, float]) -> str:
    """Returns the figure whose loss decides: mAP, or the first one of a protocol without it."""
    return "mAP" if "mAP" in metrics else next(iter(metrics))


def loss(before: dict[str, float], after: dict[str, float]) -> float:
    """Returns the points that are lost in the main figure, below 0 for a gain."""
    figure = main_figure(before)
    return 100 * (before[figure] - after[figure])


def compared(before: Result, after: Result, seed: int = 0) -> Comparison:
    """Returns a file's results beside the network's."""
    first, second = shares(before.scored), shares(after.scored)
    figures = {}
    for name in first:
        difference = paired_difference(first[name], second[name], draws=2000, seed=seed)
        after_value, before_value = (float(result.scored.metrics[name]) for result in (after, before))
        figures[name] = Figure(after_value, before_value, difference.low, difference.high)
    cosines = nn.functional.cosine_similarity(before.features.double(), after.features.double()).numpy()
    same = float((before.nearest == after.nearest).mean())
    return Comparison(figures, same, float(cosines.mean()), float(cosines.min()))


def shares(scored: Scored) -> dict[str, np.ndarray]:
    """Returns each query's share in mAP, if there is one, and in Rank-1 (or Recall@1), (Q,) each."""
    first, metrics = scored.per_query["first_match_rank"], scored.metrics
    valid, out = first > 0, {}
    if "AP" in scored.per_query and "mAP" in metrics:
        out["mAP"] = scored.per_query["AP"][valid]
    if "Rank-1" in metrics:
        out["Rank-1"] = (first == 1)[valid].astype(float)
    elif "Recall@1" in metrics:
        out["Recall@1"] = (first == 1).astype(float)
    return out


def first_images(test: TestSet, feats: Tensor, settings: Settings, block: int = 512) -> np.ndarray:
    """Returns the row of each query's nearest gallery image that is not junk, (Q,), before any re-ranking."""
    count = len(test.query)
    feats = to_unit_length(feats) if settings.normalize or settings.metric == "cosine" else feats
    qf, gf = feats[:count], feats if test.same_list else feats[count:]
    labels: tuple = (test.query.pids, test.gallery.pids)
    if test.protocol in ("market1501", "cuhk03"):
        labels += (test.query.camids, test.gallery.camids)
    matching = Matching(*labels, same_list=test.same_list, need_valid=False)
    nearest = np.empty(count, np.int64)
    for start in range(0, count, block):
        distances = torch.cdist(qf[start : start + block], gf)
        pairs = matching.pairs(start, start + len(distances))
        junk = [torch.from_numpy(rows[~pairs.positive]) for rows in (pairs.query, pairs.gallery)]
        distances[junk[0], junk[1]] = torch.inf
        nearest[start : start + len(distances)] = distances.argmin(1).numpy()
    return nearest


@dataclass(frozen=True)
class Verdict:
    """What is printed, written to ``model.json`` and shown on the page.

    precision, runtime: of the file that is written, in its own runtime. rows: the network first. max_loss: points.
    recipes: 8-bit recipes that were tried, the one that was taken first. flags: the processor's.
    """

    precision: str
    runtime: str
    rows: list[Row]
    max_loss: float
    recipes: list[dict[str, Any]]
    flags: frozenset[str] = frozenset()

    @property
    def chosen(self) -> Row:
        """The row of the file that is written."""
        return self._row(self.precision)

    def _row(self, precision: str) -> Row:
        return next(row for row in self.rows if (row.precision, row.runtime) == (precision, self.runtime))

    def sentences(self) -> list[str]:
        """Returns the verdict in sentences: speed and size beside fp32, warnings, and what is fastest."""
        lines = []
        if self.precision != "fp32":
            chosen, plain = self.chosen, self._row("fp32")
            ratio, size = chosen.fastest / plain.fastest, chosen.megabytes / plain.megabytes
            lines.append(
                f"{self.precision} in {self.runtime}: {ratio:.2f} times as fast as fp32 ({chosen.fastest:.0f} against "
                f"{plain.fastest:.0f} images/s), {100 * size:.0f} % of its size"
            )
            if self.precision == "int8" and lacks_int8(self.flags):
                lines.append(
                    "warning: this processor has no instructions for 8-bit products (VNNI): int8 runs at "
                    f"{chosen.fastest:.0f} images/s here"
                )
            if ratio <= 1:
                gain = "only saves space" if size < 1 else "is larger too: it gains nothing on this machine"
                lines.append(f"warning: fp32 is faster here than {self.precision}, which {gain}")
        best = max(self.rows, key=lambda row: row.fastest)
        lines.append(f"fastest here: {best.precision} in {best.runtime}, {best.fastest:.0f} images/s")
        return lines

    @property
    def threads(self) -> list[int]:
        """Numbers of threads that were measured."""
        return list(self.rows[0].speed)

    @property
    def tests(self) -> list[str]:
        """Names of the test sets."""
        return list(self.chosen.tests)

    def lines(self) -> list[str]:
        """Returns what is printed."""
        width = max(len(row.runtime) for row in self.rows)
        heads = [f"{count} thread{'s' if count > 1 else ''}" for count in self.threads]
        lines = [f"{'file':4s}  {'runtime':{width}s}  {'MB':>7s}  " + "  ".join(f"{head:>9s}" for head in heads)]
        lines[0] += "  (images/s)"
        for row in self.rows:
            speeds = "  ".join(f"{row.speed[count]:9.1f}" for count in self.threads) if row.speed else row.trouble
            lines.append(f"{row.precision:4s}  {row.runtime:{width}s}  {row.megabytes:7.2f}  {speeds}")
        for test in self.tests:
            lines.append(f"{test}, beside PyTorch, with the 95 % interval of the difference over queries:")
            lines += [
                f"{row.precision:4s}  {row.runtime:{width}s}  {words_of(row.tests[test])}"
                for row in self.rows if test in row.tests
            ]  # fmt: skip
        if self.recipes:
            lines.append("int8 recipes, points of mAP lost and images/s; the first is taken:")
        for recipe in self.recipes:
            losses = ", ".join(f"{name} {value:+.2f}" for name, value in recipe["loss"].items())
            lines.append(f"{recipe['recipe']}: {losses}; {recipe['images_per_second']:.1f}")
        return [*lines, *self.sentences()]

    def content(self) -> dict[str, Any]:
        """Returns the entry in ``model.json``."""
        return {
            "sentences": self.sentences(), "max_loss": self.max_loss, "rows": [asdict(row) for row in self.rows],
            "recipes": self.recipes, "machine": machine(torch.device("cpu")),
        }  # fmt: skip

    def shown(self) -> dict[str, Any]:
        """Returns what the page is made of."""
        return {"verdict": self, "where": machine(torch.device("cpu"))}


def words_of(found: Comparison) -> str:
    """Returns a comparison on one line, in percent."""
    words = [
        f"{name} {100 * f.value:.2f} ({100 * (f.value - f.before):+.2f}, {100 * f.low:+.2f} to {100 * f.high:+.2f})"
        for name, f in found.figures.items()
    ]
    words += [f"same first match {100 * found.same_first:.1f}"]
    return ", ".join([*words, f"cosine {found.mean_cosine:.5f}, least {found.least_cosine:.5f}"])


def eager_megabytes(model: nn.Module) -> float:
    """Returns the size of a network's weights and buffers in 10^6 bytes."""
    return sum(value.nbytes for value in model.state_dict().values()) / 1e6
