"""The page of a run: ``python -m tools.report RUN`` writes RUN/report.html from what an evaluation has left there.

Figures with intervals, curves, mAP from camera to camera, the best and worst queries with their ranked galleries, how
training went, pictures, settings. One file: no network is needed to view it. ``TEST.REPORT True`` writes it at the end
of training and testing; rankings are shown only where the evaluation ran with it.
"""

from __future__ import annotations

import json
import logging
import re
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from processor.finished import Queries, Ranked, file_name, kept_places
from tools.pages.charts import histogram, line_chart, scatter
from tools.pages.page import embedded, shot, with_pixels, write_page
from utils.bootstrap import bootstrap_means, interval
from utils.commands import make_parser, run_command
from utils.errors import UserError
from utils.scoring.watching import JUNK

log = logging.getLogger("lineup")

NAME = "report.html"
PICTURES = "pictures"
WORST, BEST, KEPT = 16, 8, 10
"""Queries shown, and images of each list that are not junk."""
IDENTITIES = 30
"""Rows of the table of the hardest identities."""
CURVES = ("loss", "acc", "lr")
"""Scalars of training that are drawn, beside the figures of its evaluations."""


def figures(metrics: dict[str, float], queries: Queries | None) -> list[dict[str, Any]]:
    """Rows of the table: name, value and ends of the interval in percent, None where no interval can be told."""
    rows = {n: {"name": n, "value": 100 * v, "low": None, "high": None} for n, v in metrics.items() if "quer" not in n}
    scores = queries.scores(metrics) if queries else {}
    for counted in {np.isnan(share).tobytes() for share in scores.values()}:  # one sample of queries for all who count
        names = [name for name, share in scores.items() if np.isnan(share).tobytes() == counted]
        values = np.stack([scores[name] for name in names], 1)
        low, high = interval(bootstrap_means(values[~np.isnan(values[:, 0])]))
        for name, a, b in zip(names, low, high, strict=True):
            rows[name] |= {"low": 100 * a, "high": 100 * b}
    return list(rows.values())


def one_each(order: np.ndarray, pids: np.ndarray, count: int) -> list[int]:
    """The first ``count`` rows of an order with different identities."""
    _, first = np.unique(pids[order], return_index=True)
    return order[np.sort(first)[:count]].tolist()


def gallery_shots(ranked: Ranked, row: int, kept: int = KEPT) -> list[dict[str, Any]]:
    """A query's list up to its ``kept``-th image that is not junk, which has no rank."""
    shots, rank = [], 0
    for place in range(kept_places(ranked.judged[row], kept)):
        image, judged = ranked.lists[row, place], int(ranked.judged[row, place])
        rank += judged != JUNK
        where = f"rank {rank}" if judged != JUNK else "no rank"
        told = f"{where}: identity {ranked.pids[image]}, camera {ranked.camids[image]}"
        label = f"{rank} · id {ranked.pids[image]}" if judged != JUNK else "junk"
        told += f", distance {ranked.distances[row, place]:.3f}"
        shots.append(shot(ranked.paths[image], judged, label, told, ranked.boxes[image]))
    return shots


def query_shot(queries: Queries, ranked: Ranked | None, row: int) -> dict[str, Any]:
    told = f"identity {queries.pids[row]}, camera {queries.camids[row]}"
    box = None if ranked is None else ranked.q_boxes[row]
    return shot(queries.paths[row], 2, f"id {queries.pids[row]}", told, box)


def ranking(queries: Queries, ranked: Ranked, row: int) -> dict[str, Any]:
    """What a page shows of one query."""
    score = f"AP {100 * queries.ap[row]:.1f}" if not np.isnan(queries.ap[row]) else ""
    title = ", ".join(filter(None, [
        f"Identity {queries.pids[row]}, camera {queries.camids[row]}", score,
        f"first match at rank {queries.first[row]}",
        Path(queries.paths[row]).name,
    ]))  # fmt: skip
    shots = gallery_shots(ranked, row)
    name = f"Ranked gallery of query {Path(queries.paths[row]).name}, nearest first"
    return {"title": title, "query": query_shot(queries, ranked, row), "lists": [{"name": name, "shots": shots}]}


def camera_table(ranked: Ranked) -> dict[str, Any] | None:
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
    """(name, queries, mean score, share found first) of each group of queries that have a match, worst first."""
    rows = []
    for one in np.unique(ids[queries.valid]):
        own = queries.valid & (ids == one)
        score = 100 * float(queries.quality[own].mean())
        rows.append([f"{word} {one}", int(own.sum()), score, 100 * float((queries.first[own] == 1).mean())])
    return sorted(rows, key=lambda row: row[2])[:most]


def charts_of(queries: Queries, ranked: Ranked | None) -> list[dict[str, Any]]:
    charts = []
    if ranked is not None and len(ranked.cmc):
        ranks = np.arange(1, len(ranked.cmc) + 1)
        svg = line_chart({"CMC": (ranks, 100 * ranked.cmc)}, "CMC curve", "rank", "queries with a match, %", (0, 100))
        charts.append({"svg": svg, "caption": "CMC: share of queries with a match up to each rank."})
    if not np.isnan(queries.ap).all():
        ap = queries.ap[~np.isnan(queries.ap)]
        svg = histogram(100 * ap, np.linspace(0, 100, 21), "Distribution of AP", "average precision, %", "queries")
        told = f"Median {100 * np.median(ap):.1f}; {100 * np.mean(ap < 0.1):.1f} % of the queries lie below 10."
        charts.append({"svg": svg, "caption": f"Average precision of single queries. {told}"})
    if ranked is not None and len(ranked.map_xy):
        _, group = np.unique(ranked.map_pids, return_inverse=True)
        titles = [
            f"identity {p}, camera {c}, {'query' if q else 'gallery'}"
            for p, c, q in zip(ranked.map_pids, ranked.map_camids, ranked.map_query, strict=True)
        ]
        svg = scatter(ranked.map_xy, group, ranked.map_query, titles, "Map of features")
        told = "t-SNE of some identities' features: one colour and shape each, queries filled, gallery images as rings."
        charts.append({"svg": svg, "caption": told})
    return [{**chart, "svg": Markup(chart["svg"])} for chart in charts]


def section(folder: Path, name: str, metrics: dict[str, float], several: bool) -> dict[str, Any]:
    """What the page shows of one test set."""
    queries = Queries.load(folder / file_name("per_query.csv", name, several))
    path = folder / file_name("ranked.npz", name, several)
    ranked = Ranked.load(path) if path.exists() else None
    if ranked is not None and len(ranked.lists) != len(queries.paths):
        raise UserError(f"{path}: of {len(ranked.lists)} queries, {folder} has {len(queries.paths)}; test again")
    total, valid = len(queries.paths), int(queries.valid.sum())
    caption = f"{total:,} queries" + (f", {total - valid:,} of them without a match" if valid < total else "")
    out = {
        "name": name, "id": "set-" + re.sub(r"\W+", "-", name), "caption": caption,
        "figures": figures(metrics, queries), "charts": charts_of(queries, ranked),
        "cameras": ranked and camera_table(ranked), "by_camera": None, "by_identity": None, "worst": [], "best": [],
    }  # fmt: skip
    if valid:
        heads = ["queries", "mAP" if not np.isnan(queries.ap).all() else "mean 1 / first rank", "found first, %"]
        camera, pids = grouped(queries, queries.camids, "camera"), grouped(queries, queries.pids, "id", IDENTITIES)
        out["by_camera"] = {"caption": "Queries by camera", "heads": ["camera", *heads], "rows": camera}
        out["by_identity"] = {"caption": "The hardest identities", "heads": ["identity", *heads], "rows": pids}
    if ranked is not None and valid:
        order = np.argsort(queries.quality, kind="stable")[:valid]  # NaN comes last
        ends = one_each(order, queries.pids, WORST), one_each(order[::-1], queries.pids, BEST)
        out["worst"], out["best"] = ([ranking(queries, ranked, i) for i in rows] for rows in ends)
    return out


def curves(folder: Path, history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Charts of training: the figures of its evaluations by epoch, and what TensorBoard's files hold by step."""
    charts = []
    for stage in dict.fromkeys(entry["stage"] for entry in history):
        entries = [entry for entry in history if entry["stage"] == stage]
        names = [n for n in ("mAP", "Rank-1", "Recall@1", "NMI", "Top-1") if all(n in e for e in entries)]
        epochs = [entry["epoch"] for entry in entries]
        if len(entries) > 1 and names:
            series = {name: (epochs, [100 * e[name] for e in entries]) for name in names}
            svg = line_chart(series, f"Evaluations in stage {stage}", "epoch", "percent", (0, 100))
            charts.append({"svg": svg, "caption": f"{' and '.join(names)} by epoch, stage {stage}."})
    for name, (steps, values) in scalars(folder / "tensorboard").items():
        svg = line_chart({name: (steps, values)}, name, "step", name.rsplit("/", 1)[-1])
        charts.append({"svg": svg, "caption": f"{name} by step."})
    return [{**chart, "svg": Markup(chart["svg"])} for chart in charts]


def scalars(folder: Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """stage/name -> (steps, values) of CURVES; of a step written twice, after a restart, the later value."""
    if not folder.is_dir():
        return {}
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    found = {}
    for tag in sorted(events.Tags()["scalars"], key=lambda t: (t.rsplit("/", 1)[0], t)):
        if tag.rsplit("/", 1)[-1] in CURVES:
            points = {event.step: event.value for event in events.Scalars(tag)}
            steps = np.array(sorted(points))
            if len(steps) > 1:
                found[tag] = steps, np.array([points[step] for step in steps])
    return found


def pictures_of(folder: Path) -> list[dict[str, str]]:
    """What ``tools.pictures`` has left in the run's folder, ready for the page."""
    index = folder / PICTURES / "index.json"
    if not index.exists():
        return []
    try:
        listed = json.loads(index.read_text())
        shown = [one for one in listed if one["kind"] != "map"]  # the page draws its own
        return [{**one, "data": embedded(index.parent / one["file"])} for one in shown]
    except (OSError, ValueError, TypeError, KeyError):
        raise UserError(f"{index}: damaged; remove {index.parent} or have the pictures drawn anew") from None


def facts_of(metrics: dict[str, Any]) -> list[tuple[str, str]]:
    trained = metrics.get("training", metrics)
    named = {
        "weights": metrics.get("weight"), "method": trained.get("method"), "config file": metrics.get("config_file"),
        "seed": trained.get("seed"), "commit": metrics.get("commit"),
        "trained for": f"{trained['seconds'] / 60:.1f} minutes" if "seconds" in trained else None,
        "trained on": trained.get("machine"), **metrics.get("environment", {}),
    }  # fmt: skip
    return [(name, str(value)) for name, value in named.items() if value not in (None, "")]


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Writes the page of a run. out: where, None for ``report.html`` in its folder. Returns the path.

    Raises ``UserError`` where the folder holds no finished evaluation, or a damaged one, or cannot be written to.
    """
    folder, out = Path(folder), out or Path(folder) / NAME
    try:
        metrics = json.loads((folder / "metrics.json").read_text())
        results = metrics["results"]
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(
            f"{folder}: no metrics.json of a finished training or test; train or test there first"
        ) from None
    tests = [section(folder, name, row, len(results) > 1) for name, row in results.items()]
    failed = with_pixels([row for test in tests for row in [*test["worst"], *test["best"]]])
    if failed:
        log.warning("report: %d images could not be read; their places say so", failed)
    yaml = folder / ("test_config.yml" if "weight" in metrics else "config.yml")
    size = write_page(
        out, "report.html",
        title=f"Report of {folder.resolve().name}",
        lead=f"Written {datetime.now():%Y-%m-%d %H:%M}. Test sets: {', '.join(results)}.",
        tests=tests,
        curves=curves(folder, metrics.get("training", metrics).get("history", [])),
        pictures=pictures_of(folder),
        facts=facts_of(metrics),
        yaml=yaml.read_text() if yaml.exists() else "",
        yaml_name=yaml.name,
    )  # fmt: skip
    log.info("report: %s (%.1f MB)", out, size / 1e6)
    return out


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = make_parser("python -m tools.report", __doc__, "runs/quickstart", "runs/quickstart --out page.html")
    parser.add_argument("run", type=Path, help="OUTPUT_DIR of a finished training or test")
    parser.add_argument("--out", type=Path, help="the page to write (RUN/report.html)")
    args = parser.parse_args(argv)
    print(write_report(args.run, args.out))


if __name__ == "__main__":
    run_command(main)
