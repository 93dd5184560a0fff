"""Whether runs differ: ``python -m tools.compare RUN_A RUN_B [RUN ...]``, the answer to "is +0.4 mAP real?".

A run is the OUTPUT_DIR of a finished training or test; all must have been tested on the same queries. Queries are
drawn anew, the same for both sides (paired bootstrap), to tell the difference, its 95 % interval, and p, the chance of
one as large if the sides were equally good. Runs whose settings differ in the seed alone are one side, and their seeds
are drawn anew too; if all runs are of one setting, or with ``--each``, every run is a side. The first side is what the
others are compared with. ``--out`` is a page with the queries that changed most.
"""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from datasets.storage.files import own_name
from processor.finished import Queries, Ranked, file_name
from processor.run import FREE_KEYS
from tools.pages.page import with_pixels, write_page
from tools.report import gallery_shots, query_shot
from utils.bootstrap import Difference, paired_difference
from utils.commands import make_parser, run_command
from utils.errors import UserError
from utils.trees import flat

log = logging.getLogger("lineup")

CHANGED, KEPT = 8, 8
"""Queries shown for each direction of change, and images of each list that are not junk."""

SAME_SETTING = (*FREE_KEYS, "SOLVER.SEED", "TEST.REPORT")
"""Keys in which runs of one setting may differ: the seed, and what changes no weight and no figure."""


@dataclass(frozen=True)
class Run:
    """One run on one test set. settings: of its YAML, less SAME_SETTING; empty where there is no YAML."""

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
    runs: list[Run]

    def shares(self, figure: str) -> np.ndarray:
        """(R, Q): each query's share in a figure, by run."""
        return np.stack([run.queries.scores(run.metrics)[figure] for run in self.runs])

    def quality(self) -> np.ndarray:
        """(Q,): the mean over runs of what queries are ordered by."""
        return np.mean([run.queries.quality for run in self.runs], 0)


def settings_of(folder: Path, tested: bool) -> tuple[dict[str, Any], int | None]:
    """A run's settings and seed. tested: its last evaluation was a test, whose keys under TEST then count.

    What was only tested is told by its checkpoint as well: how that was trained is not known.
    """
    trees = []
    for name in ("config.yml", "test_config.yml")[: 1 + tested]:
        try:
            trees.append(flat(yaml.safe_load((folder / name).read_text())))
        except (OSError, yaml.YAMLError, AttributeError):
            trees.append({})
    trained, test = (trees + [{}])[:2]
    tree = trained | {k: v for k, v in test.items() if k.startswith("TEST.")} if trained else test
    dropped = (*SAME_SETTING, "TEST.WEIGHT") if trained else SAME_SETTING
    return {k: v for k, v in tree.items() if k not in dropped}, trained.get("SOLVER.SEED")


def runs_of(folder: Path) -> dict[str, Run]:
    """Name of each test set -> the run on it. Raises ``UserError`` where the folder holds no finished evaluation."""
    try:
        metrics = json.loads((folder / "metrics.json").read_text())
        results = dict(metrics["results"])
    except (OSError, ValueError, KeyError, TypeError):
        raise UserError(f"{folder}: no metrics.json of a finished training or test") from None
    settings, seed = settings_of(folder, "weight" in metrics)
    found = {}
    for name, row in results.items():
        queries = Queries.load(folder / file_name("per_query.csv", name, len(results) > 1))
        path = folder / file_name("ranked.npz", name, len(results) > 1)
        found[name] = Run(folder, row, queries, Ranked.load(path) if path.exists() else None, settings, seed)
    return found


def same_queries(runs: list[Run], name: str) -> None:
    """Raises ``UserError`` unless all runs have the same queries in the same order, by name, identity and camera."""
    first = runs[0].queries
    names = [Path(own_name(path)).name for path in first.paths]
    for run in runs[1:]:
        other = run.queries
        where = f"{run.folder} and {runs[0].folder} were not tested on the same queries of {name}"
        if len(other.paths) != len(first.paths):
            raise UserError(f"{where}: {len(other.paths)} and {len(first.paths)}")
        for i, path in enumerate(other.paths):
            told = Path(own_name(path)).name, other.pids[i], other.valid[i]
            if told != (names[i], first.pids[i], first.valid[i]):
                raise UserError(f"{where}: row {i + 1} is {path} and {first.paths[i]}")


def sides_of(runs: list[Run], each: bool) -> list[Side]:
    """Runs of one setting together, in the order of their first; every run by itself with ``each`` or if all are one.

    Runs of one setting and one seed are the same thing twice, so they are not put together either.
    """
    groups: list[list[Run]] = []
    for run in runs:
        like = (g for g in groups if run.settings and not each and run.settings == g[0].settings)
        mine = next((g for g in like if run.seed not in [other.seed for other in g]), None)
        if mine is None:
            groups.append([run])
        else:
            mine.append(run)
    if len(groups) == 1:
        groups = [[run] for run in runs]
    return [Side(named(group), group) for group in groups]


def named(runs: list[Run]) -> str:
    if len(runs) == 1:
        return str(runs[0].folder)
    return f"{runs[0].folder} and {len(runs) - 1} more (seeds {', '.join(str(run.seed) for run in runs)})"


def differing(first: Side, other: Side) -> str:
    """The settings in which two sides differ, in words; '' where none is known."""
    one, two = first.runs[0].settings, other.runs[0].settings
    keys = [k for k in sorted({*one, *two}) if one.get(k) != two.get(k)] if one and two else []
    told = [f"{k} {one.get(k)} -> {two.get(k)}" for k in keys[:6]]
    return "; ".join(told) + (f"; and {len(keys) - 6} more keys" if len(keys) > 6 else "")


def compared(sides: list[Side], seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Figure -> a row for each side: name, runs, mean, deviation between runs, and the ``Difference`` from the first.

    Only figures that are means over queries in all runs; queries that count in none are left out.
    """
    common = [run.queries.scores(run.metrics) for side in sides for run in side.runs]
    figures = [name for name in common[0] if all(name in other for other in common)]
    if not figures:
        raise UserError("the runs have no figure in common that is a mean over queries, so none can be compared")
    out = {}
    for name in figures:
        shares = [side.shares(name) for side in sides]
        counted = ~np.isnan(shares[0][0])
        shares = [part[:, counted] for part in shares]
        out[name] = [
            {
                "name": side.name, "runs": len(part), "mean": float(part.mean()),
                "deviation": float(part.mean(1).std(ddof=1)) if len(part) > 1 else None,
                "difference": paired_difference(shares[0], part, seed=seed) if i else None,
            }
            for i, (side, part) in enumerate(zip(sides, shares, strict=True))
        ]  # fmt: skip
    return out


def verdict(name: str, difference: Difference) -> str:
    if not difference.significant:
        return f"{name}: no significant difference (p {difference.p:.2g})"
    return f"{name}: {'better' if difference.value > 0 else 'worse'}, significant (p {difference.p:.2g})"


def lines(test: str, sides: list[Side], table: dict[str, list[dict[str, Any]]]) -> list[str]:
    """What is printed of one test set, in percent."""
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
        out.append(f"{side.name} beside {sides[0].name}: {verdict(first, table[first][i]['difference'])}")
        if told := differing(sides[0], side):
            out.append(f"  differs in {told}")
    if all(len(side.runs) == 1 for side in sides):
        out.append("one run a side: the interval tells the luck of the queries, not that of the training seed")
    return out


def changed(first: Side, other: Side) -> dict[str, list[dict[str, Any]]]:
    """Rows of a page for the queries that changed most: ``gained`` and ``lost``, with both sides' rankings."""
    before, after = first.quality(), other.quality()
    gap = np.where(np.isnan(after - before), 0, after - before)
    order = np.argsort(gap, kind="stable")
    lost, gained = [i for i in order[:CHANGED] if gap[i] < 0], [i for i in order[::-1][:CHANGED] if gap[i] > 0]
    shown = [next((run for run in side.runs if run.ranked is not None), None) for side in (first, other)]
    queries = first.runs[0].queries
    rows = {}
    for name, chosen in (("gained", gained), ("lost", lost)):
        rows[name] = [
            {
                "title": f"{100 * before[i]:.1f} → {100 * after[i]:.1f} ({100 * gap[i]:+.1f}), identity "
                         f"{queries.pids[i]}, camera {queries.camids[i]}, {Path(queries.paths[i]).name}",
                "query": query_shot(queries, shown[0] and shown[0].ranked, i),
                "lists": [
                    {"name": f"{side.name}: ranked gallery", "shots": gallery_shots(run.ranked, i, KEPT) if run else []}
                    for side, run in zip((first, other), shown, strict=True)
                ],
            }
            for i in chosen
        ]  # fmt: skip
    failed = with_pixels([row for part in rows.values() for row in part])
    if failed:
        log.warning("%d images could not be read; their places on the page say so", failed)
    return rows


def section(name: str, sides: list[Side], table: dict[str, list[dict[str, Any]]]) -> dict[str, Any]:
    """What the page shows of one test set."""
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


def main(argv: list[str] | None = None) -> None:
    """The command."""
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
        raise UserError(f"{folders[0]}: one run only; name two or more to compare")
    found = [runs_of(folder) for folder in folders]
    tests = [name for name in found[0] if all(name in other for other in found)]
    if not tests:
        raise UserError(f"the runs were tested on different sets: {'; '.join(', '.join(other) for other in found)}")
    sections = []
    for name in tests:
        runs = [other[name] for other in found]
        same_queries(runs, name)
        sides = sides_of(runs, args.each)
        table = compared(sides)
        print("\n".join(lines(name, sides, table)))
        if args.out:
            sections.append(section(name, sides, table))
    if args.out:
        write_page(args.out, "compare.html", title="Comparison of runs", tests=sections)
        print(args.out)


if __name__ == "__main__":
    run_command(main)
