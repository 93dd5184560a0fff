"""Says whether runs differ, the answer to "is +0.4 mAP real?": ``python -m tools.compare RUN_A RUN_B [RUN ...]``.

A run is the OUTPUT_DIR of a finished training or test; all must have been tested on the same queries. Resampling the
queries, the same for both sides (paired bootstrap), gives the difference, its 95 % interval, and p, the chance of a
difference as large if the sides were equally good. Runs whose settings differ in the seed alone are one side, and their
seeds are resampled too; if all runs are of one setting, or with ``--each``, every run is a side. The first side is what
the others are compared with. ``--out`` is a page with the queries that changed most.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from datasets.storage.files import own_name
from datasets.storage.pixels import PixelRules
from processor.finished import FREE_KEYS, FinishedRun
from processor.query_files import Queries, Ranked
from tools.pages.page import write_page
from tools.pages.shots import gallery_shots, load_thumbnails, query_shot
from utils.bootstrap import Difference, paired_difference
from utils.commands import make_parser, run_command
from utils.errors import UserError

log = logging.getLogger("lineup")

CHANGED, KEPT = 8, 8
"""Queries on the page for each direction of change, and images of each list that are not junk."""

SAME_SETTING = (*FREE_KEYS, "SOLVER.SEED", "TEST.REPORT")
"""Keys in which runs of one setting may differ: the seed, and what changes no weight and no figure."""


@dataclass(frozen=True)
class EvaluatedRun:
    """One run on one test set. settings: of its YAML, without SAME_SETTING; empty if there is no YAML."""

    folder: Path
    metrics: dict[str, float]
    queries: Queries
    ranked: Ranked | None
    settings: dict[str, Any]
    seed: int | None


@dataclass(frozen=True)
class Side:
    """Runs of one setting."""

    name: str
    runs: list[EvaluatedRun]

    def shares(self, figure: str) -> np.ndarray:
        """Returns (R, Q): each query's share in a figure, by run."""
        return np.stack([run.queries.scores(run.metrics)[figure] for run in self.runs])

    def quality(self) -> np.ndarray:
        """Returns (Q,): the mean over runs of what queries are ordered by."""
        return np.mean([run.queries.quality for run in self.runs], 0)


def runs_of(folder: Path) -> dict[str, EvaluatedRun]:
    """Returns the run on each test set by the set's name. Raises ``UserError`` if no evaluation has finished there."""
    run = FinishedRun.load(folder)
    settings = {key: value for key, value in run.settings.items() if key not in SAME_SETTING}
    return {
        name: EvaluatedRun(folder, metrics, run.queries(name), run.ranked(name), settings, run.seed)
        for name, metrics in run.evaluation.results.items()
    }


def refuse_other_queries(runs: list[EvaluatedRun], name: str) -> None:
    """Raises ``UserError`` unless all runs have the same queries in the same order, by file name and identity."""
    first = runs[0].queries
    names = [Path(own_name(path)).name for path in first.paths]
    for run in runs[1:]:
        other = run.queries
        where = f"{run.folder} and {runs[0].folder} were not tested on the same queries of {name}"
        if len(other.paths) != len(first.paths):
            raise UserError(f"{where}: {len(other.paths)} and {len(first.paths)}")
        for i, path in enumerate(other.paths):
            query = Path(own_name(path)).name, other.pids[i], other.valid[i]
            if query != (names[i], first.pids[i], first.valid[i]):
                raise UserError(f"{where}: row {i + 1} is {path} and {first.paths[i]}")


def sides_of(runs: list[EvaluatedRun], each: bool) -> list[Side]:
    """Groups runs of one setting, in the order of their first; with ``each``, or if all are of one, a group per run.

    Runs of one setting and one seed are repetitions, so they are not grouped either.
    """
    groups: list[list[EvaluatedRun]] = []
    for run in runs:
        same_setting = (g for g in groups if run.settings and not each and run.settings == g[0].settings)
        group = next((g for g in same_setting if run.seed not in [other.seed for other in g]), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    if len(groups) == 1:
        groups = [[run] for run in runs]
    return [Side(side_name(group), group) for group in groups]


def side_name(runs: list[EvaluatedRun]) -> str:
    """Returns the folder of the first run, and the seeds if there are several."""
    if len(runs) == 1:
        return str(runs[0].folder)
    return f"{runs[0].folder} and {len(runs) - 1} more (seeds {', '.join(str(run.seed) for run in runs)})"


def differing(first: Side, other: Side) -> str:
    """Returns the settings in which two sides differ, in words; '' if none is known."""
    one, two = first.runs[0].settings, other.runs[0].settings
    keys = [k for k in sorted({*one, *two}) if one.get(k) != two.get(k)] if one and two else []
    changes = [f"{k} {one.get(k)} -> {two.get(k)}" for k in keys[:6]]
    return "; ".join(changes) + (f"; and {len(keys) - 6} more keys" if len(keys) > 6 else "")


def compared(sides: list[Side], seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Returns for each figure a row per side: name, runs, mean, deviation between runs, ``Difference`` from the first.

    Only figures that are means over queries in all runs; queries that do not count are left out.
    """
    common = [run.queries.scores(run.metrics) for side in sides for run in side.runs]
    figures = [name for name in common[0] if all(name in other for other in common)]
    if not figures:
        raise UserError("the runs have no figure in common that is a mean over queries, so none can be compared")
    out = {}
    for name in figures:
        shares = [side.shares(name) for side in sides]
        counted = ~np.isnan(shares[0][0])
        shares = [of_side[:, counted] for of_side in shares]
        out[name] = [
            {
                "name": side.name, "runs": len(of_side), "mean": float(of_side.mean()),
                "deviation": float(of_side.mean(1).std(ddof=1)) if len(of_side) > 1 else None,
                "difference": paired_difference(shares[0], of_side, seed=seed) if i else None,
            }
            for i, (side, of_side) in enumerate(zip(sides, shares, strict=True))
        ]  # fmt: skip
    return out


def verdict(name: str, difference: Difference) -> str:
    """Returns what a difference means, in words."""
    if not difference.significant:
        return f"{name}: no significant difference (p {difference.p:.2g})"
    return f"{name}: {'better' if difference.value > 0 else 'worse'}, significant (p {difference.p:.2g})"


def comparison_lines(test: str, sides: list[Side], table: dict[str, list[dict[str, Any]]]) -> list[str]:
    """Returns what is printed of one test set, in percent."""
    width = max(len(test), *(len(side.name) for side in sides))
    out = [f"{test}: {len(sides[0].runs[0].queries.paths):,} queries"]
    for name, rows in table.items():
        out.append(
            f"{name:{width}s} {'runs':>4s} {'mean':>6s} {'dev.':>5s} {'diff.':>7s} {'95 % interval':>18s} {'p':>8s}"
        )
        for row in rows:
            spread = "" if row["deviation"] is None else f"{100 * row['deviation']:.2f}"
            line = f"{row['name']:{width}s} {row['runs']:4d} {100 * row['mean']:6.2f} {spread:>5s}"
            if d := row["difference"]:
                between = f"{100 * d.low:+.2f} to {100 * d.high:+.2f}"
                line += f" {100 * d.value:+7.2f} {between:>18s} {d.p:8.2g}"
            out.append(line)
    first = next(iter(table))
    for i, side in enumerate(sides[1:], 1):
        out.append(f"{side.name} compared with {sides[0].name}: {verdict(first, table[first][i]['difference'])}")
        if changes := differing(sides[0], side):
            out.append(f"  differs in {changes}")
    if all(len(side.runs) == 1 for side in sides):
        out.append("one run per side: the interval is for the choice of queries, not for that of the training seed")
    return out


def changed(first: Side, other: Side) -> dict[str, list[dict[str, Any]]]:
    """Returns the page's rows for the queries that changed most, ``gained`` and ``lost``, with both sides' rankings."""
    before, after = first.quality(), other.quality()
    gap = np.where(np.isnan(after - before), 0, after - before)
    order = np.argsort(gap, kind="stable")
    lost, gained = [i for i in order[:CHANGED] if gap[i] < 0], [i for i in order[::-1][:CHANGED] if gap[i] > 0]
    rankings = [next((run.ranked for run in side.runs if run.ranked is not None), None) for side in (first, other)]
    queries = first.runs[0].queries
    rows = {}
    for name, chosen in (("gained", gained), ("lost", lost)):
        rows[name] = [
            {
                "title": f"{100 * before[i]:.1f} → {100 * after[i]:.1f} ({100 * gap[i]:+.1f}), identity "
                         f"{queries.pids[i]}, camera {queries.camids[i]}, {Path(queries.paths[i]).name}",
                "query": query_shot(queries, rankings[0], i),
                "lists": [
                    {"name": f"{side.name}: ranked gallery", "shots": gallery_shots(ranked, i, KEPT) if ranked else []}
                    for side, ranked in zip((first, other), rankings, strict=True)
                ],
            }
            for i in chosen
        ]  # fmt: skip
    failed = load_thumbnails([*rows["gained"], *rows["lost"]], PixelRules.of_run(first.runs[0].settings))
    if failed:
        log.warning("%d images could not be read; the page says so in their places", failed)
    return rows


def comparison_section(name: str, sides: list[Side], table: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """Returns what the page shows of one test set."""
    first, figure = sides[0], next(iter(table))
    pairs = [
        {
            "name": side.name, "verdict": verdict(figure, row["difference"]), "differs": differing(first, side),
            **changed(first, side),
        }
        for side, row in zip(sides[1:], table[figure][1:], strict=True)
    ]  # fmt: skip
    has_lists = all(any(run.ranked for run in side.runs) for side in sides)
    return {"name": name, "table": table, "pairs": pairs, "first": first.name, "has_lists": has_lists}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = make_parser(
        "python -m tools.compare", __doc__, "runs/baseline runs/mine",
        "runs/baseline_1 runs/baseline_2 runs/mine_1 runs/mine_2 --out compare.html",
    )  # fmt: skip
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="OUTPUT_DIR of finished runs")
    parser.add_argument("--each", action="store_true", help="every run is a side, whatever its settings")
    parser.add_argument("--out", type=Path, metavar="PAGE", help="write a page with the queries that changed most")
    args = parser.parse_args(argv)
    folders = list({path.resolve(): path for path in args.runs}.values())
    if len(folders) < 2:
        raise UserError(f"{folders[0]}: expected two or more runs to compare, got one")
    evaluated = [runs_of(folder) for folder in folders]
    tests = [name for name in evaluated[0] if all(name in other for other in evaluated)]
    if not tests:
        raise UserError(f"the runs were tested on different sets: {'; '.join(', '.join(sets) for sets in evaluated)}")
    sections = []
    for name in tests:
        runs = [sets[name] for sets in evaluated]
        refuse_other_queries(runs, name)
        sides = sides_of(runs, args.each)
        table = compared(sides)
        print("\n".join(comparison_lines(name, sides, table)))
        if args.out:
            sections.append(comparison_section(name, sides, table))
    if args.out:
        write_page(args.out, "compare.html", title="Comparison of runs", tests=sections)
        print(args.out)


if __name__ == "__main__":
    run_command(main)
