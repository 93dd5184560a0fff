"""Writes the page of a run, RUN/report.html, from the files that its evaluation left: ``python -m tools.report RUN``.

Figures with intervals, curves, mAP from camera to camera, the best and worst queries with their ranked galleries, the
course of training, pictures, settings. One file: no network is needed to view it. ``TEST.REPORT True`` writes it at the
end of training and testing; rankings are shown only if the evaluation ran with it.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Sequence
from contextlib import nullcontext
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup
from PIL import Image

from datasets.storage.pixels import PixelRules
from processor.finished import FinishedRun
from processor.metrics_files import COUNTS
from processor.query_files import Queries, Ranked
from tools.pages.charts import Series, histogram, line_chart, scatter
from tools.pages.page import embedded, write_page
from tools.pages.shots import gallery_shots, load_thumbnails, query_shot
from utils.bootstrap import bootstrap_means, interval
from utils.commands import make_parser, run_command
from utils.errors import UserError, cut, reason_of
from utils.folder_lock import sole_user

log = logging.getLogger("lineup")

NAME = "report.html"
PICTURES, PICTURE_INDEX = "pictures", "index.json"
PICTURE_FIELDS = ("kind", "file", "title", "caption", "alt")
WORST, BEST, KEPT = 16, 8, 10
"""Queries on the page, and images of each list that are not junk."""
IDENTITIES = 30
"""Rows of the table of the hardest identities."""
CURVES = ("loss", "acc", "lr")
"""Scalars of training that are drawn, beside the figures of its evaluations."""


def figures(metrics: dict[str, float], queries: Queries | None) -> list[dict[str, Any]]:
    """Returns the rows of the table: name, value and ends of the interval in percent, None without an interval."""
    rows: dict[str, dict[str, Any]] = {
        name: {"name": name, "value": 100 * value, "low": None, "high": None}
        for name, value in metrics.items() if name not in COUNTS
    }  # fmt: skip
    scores = queries.scores(metrics) if queries else {}
    for counted in {
        np.isnan(share).tobytes() for share in scores.values()
    }:  # one sample for figures of the same queries
        names = [name for name, share in scores.items() if np.isnan(share).tobytes() == counted]
        values = np.stack([scores[name] for name in names], 1)
        low, high = interval(bootstrap_means(values[~np.isnan(values[:, 0])]))
        for name, a, b in zip(names, low, high, strict=True):
            rows[name] |= {"low": 100 * a, "high": 100 * b}
    return list(rows.values())


def one_each(order: np.ndarray, pids: np.ndarray, count: int) -> list[int]:
    """Returns the first ``count`` rows of an order with different identities."""
    _, first = np.unique(pids[order], return_index=True)
    return order[np.sort(first)[:count]].tolist()


def query_row(queries: Queries, ranked: Ranked, row: int) -> dict[str, Any]:
    """Returns what the page shows of one query."""
    name = Path(queries.paths[row]).name
    score = f"AP {100 * queries.ap[row]:.1f}" if not np.isnan(queries.ap[row]) else ""
    title = [
        f"Identity {queries.pids[row]}, camera {queries.camids[row]}", score,
        f"first match at rank {queries.first[row]}", name,
    ]  # fmt: skip
    rankings = [{"name": f"Ranked gallery of query {name}, nearest first", "shots": gallery_shots(ranked, row, KEPT)}]
    return {"title": ", ".join(filter(None, title)), "query": query_shot(queries, ranked, row), "lists": rankings}


def camera_table(ranked: Ranked) -> dict[str, Any] | None:
    """Returns the table of mAP from camera to camera, None without one."""
    if not np.isfinite(ranked.camera_map).any():
        return None
    rows = [
        {"name": f"camera {camera}", "cells": [
            {"value": None if np.isnan(v) else 100 * v, "share": 0 if np.isnan(v) else v, "count": int(n)}
            for v, n in zip(values, counts, strict=True)
        ]} for camera, values, counts in zip(ranked.q_cameras, ranked.camera_map, ranked.camera_count, strict=True)
    ]  # fmt: skip
    return {"columns": [f"camera {c}" for c in ranked.g_cameras], "rows": rows}


def grouped(queries: Queries, ids: np.ndarray, word: str, most: int | None = None) -> list[list]:
    """Returns [name, queries, mean score, share matched at rank 1] of each group of valid queries, worst first."""
    rows = []
    for group in np.unique(ids[queries.valid]):
        members = queries.valid & (ids == group)
        score = 100 * float(queries.quality[members].mean())
        rows.append([f"{word} {group}", int(members.sum()), score, 100 * float((queries.first[members] == 1).mean())])
    return sorted(rows, key=lambda row: row[2])[:most]


def charts_of(queries: Queries, ranked: Ranked | None) -> list[dict[str, Any]]:
    """Returns the charts of one test set, each with a caption."""
    charts = []
    if ranked is not None and len(ranked.cmc):
        ranks = np.arange(1, len(ranked.cmc) + 1)
        svg = line_chart({"CMC": (ranks, 100 * ranked.cmc)}, "CMC curve", "rank", "queries with a match, %", (0, 100))
        charts.append({"svg": svg, "caption": "CMC: share of queries with a match up to each rank."})
    if ranked is not None and ranked.open_curve.shape[1] > 2:
        charts.append(open_set_chart(ranked.open_curve))
    if not np.isnan(queries.ap).all():
        ap = queries.ap[~np.isnan(queries.ap)]
        svg = histogram(100 * ap, np.linspace(0, 100, 21), "Distribution of AP", "average precision, %", "queries")
        caption = f"Median {100 * np.median(ap):.1f}; {100 * np.mean(ap < 0.1):.1f} % of the queries are below 10."
        charts.append({"svg": svg, "caption": f"Average precision of single queries. {caption}"})
    if ranked is not None and len(ranked.map_xy):
        _, group = np.unique(ranked.map_pids, return_inverse=True)
        titles = [
            f"identity {cut(str(p), 60)}, camera {cut(str(c), 60)}, {'query' if q else 'gallery'}"
            for p, c, q in zip(ranked.map_pids, ranked.map_camids, ranked.map_query, strict=True)
        ]
        svg = scatter(ranked.map_xy, group, ranked.map_query, titles, "Map of features")
        caption = (
            "t-SNE of some identities' features: a colour and shape each, queries filled, gallery images as rings."
        )
        charts.append({"svg": svg, "caption": caption})
    return [{**chart, "svg": Markup(chart["svg"])} for chart in charts]


def open_set_chart(curve: np.ndarray) -> dict[str, str]:
    """Returns the chart of detection and identification against false positive identification, (2, P) rates."""
    (fpir, rate), shown = curve, curve[0] > 0
    svg = line_chart(
        {"rank 1, and near enough": (np.log10(fpir[shown]), 100 * rate[shown])}, "Open-set curve", "log10 of FPIR",
        "DIR, %", (0, 100),
    )  # fmt: skip
    caption = (
        "Open set: share of the queries in the gallery that are found (DIR), by the share of absent ones that are "
        "answered with a name (FPIR)."
    )
    return {"svg": svg, "caption": caption}


def report_section(run: FinishedRun, name: str) -> dict[str, Any]:
    """Returns what the page shows of one test set."""
    metrics, queries, ranked = run.evaluation.results[name], run.queries(name), run.ranked(name)
    total, valid = len(queries.paths), int(queries.valid.sum())
    caption = f"{total:,} queries" + (f", {total - valid:,} of them without a match" if valid < total else "")
    out = {
        "name": name, "id": "set-" + re.sub(r"\W+", "-", name), "caption": caption,
        "figures": figures(metrics, queries), "charts": charts_of(queries, ranked),
        "cameras": ranked and camera_table(ranked), "by_camera": None, "by_identity": None, "worst": [], "best": [],
    }  # fmt: skip
    if valid:
        heads = ["queries", "mAP" if not np.isnan(queries.ap).all() else "mean 1 / first rank", "match at rank 1, %"]
        camera, pids = grouped(queries, queries.camids, "camera"), grouped(queries, queries.pids, "id", IDENTITIES)
        out["by_camera"] = {"caption": "Queries by camera", "heads": ["camera", *heads], "rows": camera}
        out["by_identity"] = {"caption": "The hardest identities", "heads": ["identity", *heads], "rows": pids}
    if ranked is not None and valid:
        order = np.argsort(queries.quality, kind="stable")[:valid]  # NaN comes last
        ends = one_each(order, queries.pids, WORST), one_each(order[::-1], queries.pids, BEST)
        out["worst"], out["best"] = ([query_row(queries, ranked, i) for i in rows] for rows in ends)
    return out


def curves(folder: Path, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Returns charts of training: the figures of its evaluations by epoch, and TensorBoard's scalars by step."""
    charts = []
    for stage in dict.fromkeys(entry["stage"] for entry in history):
        entries = [entry for entry in history if entry["stage"] == stage]
        names = [n for n in ("mAP", "Rank-1", "Recall@1", "NMI", "Top-1") if all(n in e for e in entries)]
        epochs = [entry["epoch"] for entry in entries]
        if len(entries) > 1 and names:
            series: Series = {name: (epochs, [100 * e[name] for e in entries]) for name in names}
            svg = line_chart(series, f"Evaluations in stage {stage}", "epoch", "percent", (0, 100))
            charts.append({"svg": svg, "caption": f"{' and '.join(names)} by epoch, stage {stage}."})
    for name, (steps, values) in scalars(folder / "tensorboard").items():
        svg = line_chart({name: (steps, values)}, name, "step", name.rsplit("/", 1)[-1])
        charts.append({"svg": svg, "caption": f"{name} by step."})
    return [{**chart, "svg": Markup(chart["svg"])} for chart in charts]


def scalars(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Returns stage/name -> (steps, values) of CURVES; of a step that a restart wrote again, the later value."""
    if not folder.is_dir():
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    try:
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    except Exception as error:  # noqa: BLE001 - of protobuf, crc32c and others, for damaged files
        log.warning("%s: damaged (%s); the page has no curves of it", folder, reason_of(error))
        return {}
    curves = {}
    for tag in sorted(events.Tags()["scalars"], key=lambda t: (t.rsplit("/", 1)[0], t)):
        if tag.rsplit("/", 1)[-1] in CURVES:
            points = {event.step: event.value for event in events.Scalars(tag) if math.isfinite(event.value)}
            steps = np.array(sorted(points))
            if len(steps) > 1:
                curves[tag] = steps, np.array([points[step] for step in steps])
    return curves


def pictures_of(folder: Path) -> list[dict[str, str]]:
    """Returns what ``tools.pictures`` has left in the run's folder, ready for the page."""
    index = folder / PICTURES / PICTURE_INDEX
    if not index.exists():
        return []
    try:
        entries = [{name: text_of(entry, name) for name in PICTURE_FIELDS} for entry in json.loads(index.read_text())]
        pictures = [entry for entry in entries if entry["kind"] != "map"]  # the page has its own
        return [{**entry, "data": embedded(inside(index.parent, entry["file"]))} for entry in pictures]
    except (OSError, ValueError, TypeError, KeyError, RecursionError, Image.DecompressionBombError):
        raise UserError(f"{index}: damaged; remove {index.parent}, or run python -m tools.pictures again") from None


def text_of(entry: dict[str, Any], name: str) -> str:
    """Returns a text of an entry. Raises ``TypeError`` for another kind of value."""
    if not isinstance(entry[name], str):
        raise TypeError(f"{name} is not a text")
    return entry[name]


def inside(folder: Path, name: str) -> Path:
    """Returns the path of a file in a folder. Raises ``ValueError`` for a name that leads out of it, links included."""
    path = (folder / name).resolve()
    if path.parent != folder.resolve():
        raise ValueError(f"{name} is not in {folder}")
    return path


def facts_of(run: FinishedRun) -> list[tuple[str, str]]:
    """Returns the rows of the table of the run and the machine."""
    evaluation, training = run.evaluation, run.training
    facts: dict[str, Any] = {"weights": evaluation.weight}
    if training is not None:
        facts |= {"method": training.method, "seed": training.seed, "trained on": training.machine}
        if training.seconds is not None:
            facts["trained for"] = f"{training.seconds / 60:.1f} minutes"
    facts |= {"config file": evaluation.config_file, "commit": evaluation.commit, **evaluation.environment}
    return [(name, str(value)) for name, value in facts.items() if value not in (None, "")]


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Writes the page of a run and returns its path. out: where, None for ``report.html`` in the run's folder.

    Raises ``UserError`` if no evaluation has finished in the folder, a file is damaged, or the page cannot be written.
    """
    run = FinishedRun.load(folder)
    out = out or run.folder / NAME
    tests = [report_section(run, name) for name in run.evaluation.results]
    rules = PixelRules.of_run(run.settings)
    failed = load_thumbnails([row for test in tests for row in [*test["worst"], *test["best"]]], rules)
    if failed:
        log.warning("report: %d images could not be read; the page says so in their places", failed)
    yaml_name, yaml = run.config_text()
    size = write_page(
        out, "report.html",
        title=f"Report of {run.folder.resolve().name}",
        lead=f"Written {datetime.now():%Y-%m-%d %H:%M}. Test sets: {', '.join(run.evaluation.results)}.",
        tests=tests,
        curves=curves(run.folder, run.training.history if run.training else []),
        pictures=pictures_of(run.folder),
        facts=facts_of(run),
        yaml=yaml,
        yaml_name=yaml_name,
    )  # fmt: skip
    log.info("report: %s (%.1f MB)", out, size / 1e6)
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = make_parser("python -m tools.report", __doc__, "runs/quickstart", "runs/quickstart --out page.html")
    parser.add_argument("run", type=Path, help="OUTPUT_DIR of a finished training or test")
    parser.add_argument("--out", type=Path, help="the page to write (default: RUN/report.html)")
    args = parser.parse_args(argv)
    FinishedRun.load(args.run)  # a folder without a run is refused and not made
    with nullcontext() if args.out else sole_user(args.run):
        print(write_report(args.run, args.out))


if __name__ == "__main__":
    run_command(main)
