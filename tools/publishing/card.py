"""The model card: what a model was trained on, what it reaches, and what it is for, as the page of its repository."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import yaml

from processor.finished import FinishedRun
from tools.pages.markdown import cell, table
from tools.report import figures
from utils.calibration import Calibration
from utils.errors import UserError, one_line

MAIN_FIGURES = ("mAP", "Rank-1", "Recall@1", "Top-1")
"""Figures that the index of the hub lists."""

USE = """## Use

```python
from lineup import Extractor

extract = Extractor.load("{address}")
features = extract(["a.jpg", "b.jpg"])  # {width} numbers an image{unit}
```

`pip install lineup-reid` installs it. The files are weights (safetensors) and settings (YAML): nothing of them is
executed. The commit that is read is printed; `hf://OWNER/NAME@COMMIT` reads the same again.
"""

LIMITS = """## Intended use and limits

Made to compare crops of {kind}: for research, evaluation, and systems whose operators measure its errors on their own
data first. The figures above hold for those test sets. Other cameras, places, seasons and resolutions give lower ones,
and nobody has shown that errors are spread evenly over people. A near feature proves nothing: a query that is not in
the gallery has nearest images, too. Not made for faces, for naming people, or for decisions about anyone on the
strength of a match.
"""

RESPONSIBLE = """## Responsible use

Re-identification finds the same person, or the same car, again. Ask, or have a right to: where someone can be singled
out, images and features are personal data, with a purpose, a time limit and a right to be deleted. People who could
object need to know that cameras are searched this way and who answers for it. Do not follow or sort people in public
places without their knowledge, do not link their images to names, and do not let a match decide about anyone. Read the
terms of the data that it was trained on: most allow research only.
"""


@dataclass(frozen=True)
class Published:
    """What the card is made of. run: its figures and settings. description: of ``model.json``. address: how it is
    loaded. licence: as its owner named it. verdict: of ``tools.export``; None without."""

    run: FinishedRun
    description: dict[str, Any]
    address: str
    licence: str
    calibration: Calibration | None = None
    verdict: dict[str, Any] | None = None


def model_card(model: Published) -> str:
    """Returns the text of ``README.md``: metadata for the hub, then what a reader needs."""
    about = model.description
    metadata = yaml.safe_dump(metadata_of(model), sort_keys=False, allow_unicode=True)
    use = USE.format(
        address=model.address, width=about["width"], unit=", of unit length" if about["unit_length"] else ""
    )
    parts = [
        f"---\n{metadata}---\n",
        f"# {title(model)}\n",
        f"A model for re-identification: of a crop of {kind_of(model)} it gives a feature, and crops of the same one "
        f"have near features. Licence: {cell(model.licence)}.\n",
        use, figures_of(model), training_of(model), decisions_of(model), runtimes_of(model),
        LIMITS.format(kind=kind_of(model)), RESPONSIBLE,
    ]  # fmt: skip
    return "\n".join(part for part in parts if part)


def title(model: Published) -> str:
    """Returns the name of the model: of its repository or folder."""
    return one_line(model.address.rpartition("/")[2])


def kind_of(model: Published) -> str:
    """Returns what the images show, in a word for the text."""
    return f"a {model.description['kind'] or 'person or object'}"


def metadata_of(model: Published) -> dict[str, Any]:
    """Returns the metadata by which the hub lists a model."""
    results = [
        {
            "task": {"type": "image-feature-extraction", "name": "Re-identification"},
            "dataset": {"type": one_line(name), "name": one_line(name)},
            "metrics": [
                {"type": figure, "name": figure, "value": round(100 * float(row[figure]), 2)}
                for figure in MAIN_FIGURES if figure in row
            ],
        }
        for name, row in model.run.evaluation.results.items()
    ]  # fmt: skip
    return {
        "license": model.licence, "library_name": "lineup", "pipeline_tag": "image-feature-extraction",
        "tags": ["re-identification", "reid", "lineup", one_line(model.description["method"])],
        "model-index": [{"name": title(model), "results": results}],
    }  # fmt: skip


def figures_of(model: Published) -> str:
    """Returns the section of figures, with intervals over queries where the run has them."""
    run, parts = model.run, ["## Figures\n"]
    for name, metrics in run.evaluation.results.items():
        try:
            queries = run.queries(name)
        except UserError:  # the folder has lost them; figures need none
            queries = None
        rows = [[cell(row["name"]), f"{row['value']:.1f}", interval_of(row)] for row in figures(metrics, queries)]
        total = f", {len(queries.paths):,} queries" if queries is not None else ""
        parts += [f"{cell(name)}{total}:\n", table(["figure", "%", "95 % interval"], rows)]
    seeds = f"one run, seed {run.seed}" if run.seed is not None else "one run, whose seed is not known"
    parts.append(f"Intervals are over queries (bootstrap); they do not show how seeds differ: this is {seeds}.\n")
    return "\n".join(parts)


def interval_of(row: dict[str, Any]) -> str:
    """Returns the 95 % interval of a figure, in percent; '' without one."""
    return "" if row["low"] is None else f"{row['low']:.1f} to {row['high']:.1f}"


def training_of(model: Published) -> str:
    """Returns the section on how the model came about."""
    run, about = model.run, model.description
    facts: list[tuple[str, object]] = [
        ("method", about["method"]), ("network", about["network"]), ("trained on", ", ".join(about["trained_on"])),
        ("tested on", ", ".join(run.evaluation.results)), ("started from", about["started_from"]),
        ("image size", "{} x {}".format(*about["size"])), ("seed", run.seed), ("commit", about["commit"]),
    ]  # fmt: skip
    if run.training is not None:
        facts.append(("machine", run.training.machine))
        if run.training.seconds is not None:
            facts.append(("trained for", f"{run.training.seconds / 60:.1f} minutes"))
    rows = [[name, cell(value)] for name, value in facts if value not in (None, "")]
    return "\n".join(["## Training\n", table(["", ""], rows), "`config.yml` has every setting.\n"])


def decisions_of(model: Published) -> str:
    """Returns the section of thresholds; '' without a calibration."""
    if model.calibration is None:
        return ""
    rows = [
        [f"{row.far:g}", f"{row.distance:.4f}", f"{row.low:.4f} to {row.high:.4f}", f"{100 * row.tar:.1f}"]
        for row in model.calibration.thresholds
    ]
    data = cell(model.calibration.dataset)
    return "\n".join([
        "## Decisions\n",
        f"Thresholds fitted on {model.calibration.identities:,} identities of {data}; a distance at or below one is "
        f"taken for the same identity (`Extractor.same`, `Extractor.identify`). They hold for images like those.\n",
        table(["false accept rate", "distance", "95 % interval", "true accepts, %"], rows),
    ])  # fmt: skip


def runtimes_of(model: Published) -> str:
    """Returns the section on exported files; '' without a verdict."""
    if model.verdict is None:
        return ""
    rows = verdict_rows(model.verdict["rows"])
    heads = ["file", "runtime", "MB", "images/s", "test set", "mAP or first figure", "difference"]
    return "\n".join([
        "## In other runtimes\n",
        f"As `tools.export` measured it on {cell(model.verdict['machine'])}, differences with their 95 % interval:\n",
        table(heads, rows),
    ])  # fmt: skip


def verdict_rows(rows: Sequence[dict[str, Any]]) -> list[list[str]]:
    """Returns the cells of a verdict's rows, one line for each test set."""
    lines = []
    for row in rows:
        speed = f"{max(row['speed'].values()):.0f}" if row["speed"] else cell(row["trouble"])
        shared = [cell(row["precision"]), cell(row["runtime"]), f"{row['megabytes']:.2f}", speed]
        for name, test in (row["tests"] or {"": None}).items():
            if test is None:
                lines.append([*shared, "", "", ""])
                continue
            figure, value = next(iter(test["figures"].items()))
            change = [100 * number for number in (value["value"] - value["before"], value["low"], value["high"])]
            difference = "{:+.2f} ({:+.2f} to {:+.2f})".format(*change)
            lines.append([*shared, cell(name), f"{cell(figure)} {100 * value['value']:.2f}", difference])
    return lines
