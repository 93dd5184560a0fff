"""Finds the 8-bit file of a layout that loses little enough."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from model.layouts import LAYOUTS
from model.recipes import Feed
from tools.exporting.files import FileWriter
from tools.exporting.judging import Judge, Scores, refuse_loss
from tools.exporting.search import Trial, fastest, mean_change, try_recipes
from utils.errors import UserError

ALONE = 32
"""Calibration images by which the sensitivity of layers is measured, at most."""


def refuse_missing_quantiser(layout: str) -> None:
    """Raises ``UserError`` if a package that quantises files of the layout is not installed."""
    try:
        if LAYOUTS[layout].ending == "xml":
            import nncf  # noqa: F401
            import openvino  # noqa: F401
        else:
            import onnxruntime.quantization  # noqa: F401
    except ImportError as error:
        name = str(error.name or error).partition(".")[0]
        raise UserError(f"--precision int8 needs {name}: pip install -r requirements-extra.txt") from None


def write_int8(
    writer: FileWriter, judge: Judge, feeds: Sequence[Feed], path: Path, max_loss: float, before: Scores
) -> list[Trial]:
    """Writes the fastest 8-bit file that loses at most ``max_loss`` points on every test set; returns what was tried.

    feeds: calibration images in batches. before: the network's scores. Raises ``UserError`` with the best recipe's loss
    if all lose more.
    """
    quantiser, scratch = writer.quantiser(list(feeds)), writer.scratch
    few, count = [], 0
    for feed in feeds:
        few.append(feed)
        count += len(feed["images"])
        if count >= ALONE:
            break
    float_network = writer.open(writer.network)

    def judged(network: Path) -> tuple[dict[str, float], float]:
        whole = scratch / f"tried.{network.stem}.{writer.ending}"
        writer.finish(network, whole)
        runtime = writer.open(whole)
        return judge.losses(judge.results(runtime)), judge.speed(runtime)

    def sensitivity(layers: Sequence[str]) -> float:
        alone = scratch / f"alone.{quantiser.ending}"
        quantiser.write(quantiser.starts[0], alone, layers)
        return mean_change(float_network, writer.open(alone), few)

    trials = try_recipes(quantiser, judged, sensitivity, scratch, max_loss)
    chosen = fastest(trials, max_loss)
    if chosen is None:
        best = min(trials, key=lambda trial: trial.worst)
        refuse_loss(f"the best of {len(trials)} int8 recipes ({best.recipe})", best.losses, before, max_loss)
        raise AssertionError("unreachable: a recipe that is not refused is chosen")
    writer.finish(chosen.network, path)
    return sorted(trials, key=lambda trial: trial is not chosen)
