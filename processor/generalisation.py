"""The report of domain generalisation: how well a network does on data sets that it was not trained on."""

from __future__ import annotations

import logging
from typing import Any

from processor.evaluate import means

log = logging.getLogger("lineup")

SHOWN = ("mAP", "Rank-1")


def generalisation(sources: list[str], results: dict[str, dict[str, float]]) -> dict[str, Any]:
    """Per target mAP and Rank-1, and their mean, told in one line of the log.

    sources: names of what was trained on. results: metrics by the target's name, as ``evaluate`` gives them; a target
    of another protocol shows what it has of the two.
    """
    targets = {name: {k: row[k] for k in SHOWN if k in row} for name, row in results.items()}
    report = {"sources": sources, "targets": targets, "mean": means(targets)}
    rows = {**targets, **({"mean": report["mean"]} if len(targets) > 1 else {})}
    shown = "; ".join(f"{name} {told(row)}" for name, row in rows.items())
    log.info("generalisation from %s: %s", " + ".join(sources), shown)
    return report


def told(row: dict[str, float]) -> str:
    return " ".join(f"{name} {100 * value:.1f}" for name, value in row.items())
