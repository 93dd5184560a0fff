"""Draws accuracy against speed and size over finished runs: ``python -m tools.frontier RUN [RUN ...] --out page.html``.

mAP with its 95 % interval (bootstrap over queries) over milliseconds per image, in each runtime that the run has been
measured in, and a table with parameters and megabytes; the table is printed in Markdown too. Runs that no other beats
in both are joined: the frontier. A run without ``speed.json`` is measured first, in a process of its own
(``tools.speed``). The page needs no network. ``--record NAME`` keeps the table as ``results/frontier_NAME.csv``, from
which ``tools.record --tables`` fills README and docs.
"""

from __future__ import annotations

import json
import logging
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from processor.finished import FinishedRun
from processor.metrics_files import is_finite
from tools.compare import EvaluatedRun, refuse_other_queries, runs_of
from tools.pages.charts import Point, interval_chart
from tools.pages.page import write_page
from tools.record import METHOD, ROOT
from tools.report import figures
from utils.commands import make_parser, run_command
from utils.errors import UserError, one_line, reason_of
from utils.files import write_csv, write_text

log = logging.getLogger("lineup")

SPEED = "speed.json"
"""What ``tools.speed`` writes into a run's folder."""

FIGURE, TIME = "mAP", "milliseconds per image"
WORDS = "Numbers are those of the table; the dashed line joins what nothing else beats in both."
RUNTIMES = {"torch": "PyTorch", "onnxruntime": "onnxruntime"}


@dataclass(frozen=True)
class Speed:
    """What was measured of a run. milliseconds: per image, by runtime. batch: images per pass. size: (H, W)."""

    milliseconds: dict[str, float]
    parameters: int
    megabytes: float
    batch: int
    size: tuple[int, int]
    where: str

    @classmethod
    def read(cls, path: Path) -> Speed:
        """Reads ``speed.json``. Raises ``UserError`` if it is damaged."""
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            times = {str(name): float(value) for name, value in content["milliseconds"].items() if name in RUNTIMES}
            height, width = map(int, content["size"])
            speed = cls(
                times, int(content["parameters"]), float(content["megabytes"]), int(content["batch"]), (height, width),
                one_line(f"{content['machine']}, threads: {content['threads']}, torch {content['torch']}"),
            )  # fmt: skip
            numbers = [*times.values(), speed.parameters, speed.megabytes, speed.batch, height, width]
            if not times or not all(is_finite(number) and number > 0 for number in numbers):
                raise ValueError("a number is not above 0")
        except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
            raise UserError(f"{path}: damaged ({reason_of(error)}); remove it to have it measured again") from None
        return speed

    def sizes(self) -> tuple[str, str]:
        """Returns millions of parameters and megabytes in words, of small networks with two digits."""
        millions = self.parameters / 1e6
        return (
            f"{millions:.1f}" if millions >= 1 else f"{millions:.2g}",
            f"{self.megabytes:.0f}" if self.megabytes >= 1 else f"{self.megabytes:.2g}",
        )


def speed_of(folder: Path, again: bool = False) -> Speed:
    """Returns what was measured of a run, measuring it first if it was not or ``again`` is set.

    Raises ``UserError`` if that fails.
    """
    if again or not (folder / SPEED).is_file():
        FinishedRun.load(folder)
        log.info("measuring %s", folder)
        done = subprocess.run(
            [sys.executable, "-m", "tools.speed", str(folder)], capture_output=True, text=True, errors="replace"
        )
        if done.returncode:
            last = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"{folder}: could not be measured: {last.removeprefix('error: ')}")
    return Speed.read(folder / SPEED)


@dataclass(frozen=True)
class Row:
    """A run on one test set. value, low, high: its mAP and the ends of the interval, in percent."""

    name: str
    network: str
    value: float
    low: float
    high: float
    speed: Speed


def row_of(run: EvaluatedRun, speed: Speed) -> Row:
    """Returns the row of a run. Raises ``UserError`` if its evaluation has no mAP over queries."""
    rows = {row["name"]: row for row in figures(run.metrics, run.queries)}
    if FIGURE not in rows or rows[FIGURE]["low"] is None:
        raise UserError(f"{run.folder}: its evaluation has no {FIGURE} over queries to draw")
    found = rows[FIGURE]
    kind = run.settings.get("MODEL.NAME", "")
    kind = run.settings.get("MODEL.TRANSFORMER_TYPE", "") if kind == "transformer" else kind
    return Row(str(run.folder), str(kind), found["value"], found["low"], found["high"], speed)


def on_frontier(points: Sequence[tuple[float, float]]) -> list[bool]:
    """Returns of points (cost, value) whether no other costs at most as much and has at least the value, and is better
    in one of them."""
    return [
        not any((c <= cost and v >= value) and (c < cost or v > value) for c, v in points) for cost, value in points
    ]


def table_of(rows: list[Row]) -> list[list[str]]:
    """Returns the table of runs: the names of its columns, then a line per run, best mAP first."""
    runtimes = [runtime for runtime in RUNTIMES if any(runtime in row.speed.milliseconds for row in rows)]
    times = [f"ms in {RUNTIMES[runtime]}" for runtime in runtimes]
    lines = [["run", "network", "size", "mAP", "95 % interval", *times, "M parameters", "MB"]]
    for row in sorted(rows, key=lambda row: -row.value):
        measured = (row.speed.milliseconds.get(runtime) for runtime in runtimes)
        lines.append([
            row.name, row.network, "x".join(map(str, row.speed.size)), f"{row.value:.1f}",
            f"{row.low:.1f} to {row.high:.1f}", *("" if t is None else f"{t:.1f}" for t in measured),
            *row.speed.sizes(),
        ])  # fmt: skip
    return lines


def markdown(rows: list[Row]) -> str:
    """Returns the table of runs in Markdown."""
    heads, *lines = table_of(rows)
    lines = [[f"`{plain(name)}`", *map(plain, cells)] for name, *cells in lines]
    return "".join(f"| {' | '.join(line)} |\n" for line in [heads, ["---"] * len(heads), *lines])


def record(rows: list[Row], data: str, name: str, folder: Path) -> Path:
    """Writes the table into ``folder`` as ``frontier_NAME.csv`` with each run's YAML and test set; returns its path.

    Raises ``UserError`` for a name that is not one of a file, or a run without its YAML's name.
    """
    if not METHOD.fullmatch(name):  # it names the file
        raise UserError(f"--record: {name!r} is not a name of letters, digits, '_' and '-'")
    configs = {row.name: config_of(Path(row.name)) for row in rows}
    heads, *lines = table_of(rows)
    path = folder / f"frontier_{name}.csv"
    write_csv(path, ["config", "data", *heads[1:]], [[configs[run], data, *cells] for run, *cells in lines])
    return path


def config_of(folder: Path) -> str:
    """Returns the YAML of a finished training run. Raises ``UserError`` if there is none."""
    training = FinishedRun.load(folder).training
    if training is None or not training.config_file:
        raise UserError(f"{folder}: not a training run with a YAML, which a recorded table names")
    return Path(training.config_file).as_posix()


def plain(text: str) -> str:
    """Returns a text that ends no cell of a Markdown table."""
    return one_line(text).replace("|", "\\|").replace("`", "").replace("<", "&lt;")


def section(name: str, rows: list[Row]) -> dict[str, Any]:
    """Returns what the page shows of one test set."""
    runtimes = [runtime for runtime in RUNTIMES if any(runtime in row.speed.milliseconds for row in rows)]
    ordered = sorted(rows, key=lambda row: -row.value)
    costs = {
        TIME: [
            (i, row, k, row.speed.milliseconds[runtime])
            for i, row in enumerate(ordered, 1) for k, runtime in enumerate(runtimes)
            if runtime in row.speed.milliseconds
        ],
        "million parameters": [(i, row, 0, row.speed.parameters / 1e6) for i, row in enumerate(ordered, 1)],
    }  # fmt: skip
    charts = []
    for label, entries in costs.items():
        best = on_frontier([(cost, row.value) for _, row, _, cost in entries])
        points = [
            Point(cost, row.value, row.low, row.high, str(i), k, front, f"{i}: {row.name}")
            for (i, row, k, cost), front in zip(entries, best, strict=True)
        ]
        legend = [RUNTIMES[runtime] for runtime in runtimes] if label == TIME and len(runtimes) > 1 else []
        svg = interval_chart(points, f"mAP over {label}", label, "mAP, %", legend)
        charts.append({"svg": Markup(svg), "caption": f"mAP over {label}, with 95 % intervals. {WORDS}"})
    table = [
        {
            "number": i, "row": row, "times": [row.speed.milliseconds.get(runtime) for runtime in runtimes],
            "size": " x ".join(map(str, row.speed.size)),
        }
        for i, row in enumerate(ordered, 1)
    ]  # fmt: skip
    return {"name": name, "charts": charts, "table": table, "runtimes": [RUNTIMES[r] for r in runtimes]}


def shared_sets(runs: list[dict[str, EvaluatedRun]]) -> list[str]:
    """Returns the names of the sets that all runs were tested on.

    Raises ``UserError`` if there is none, or its queries are not the same.
    """
    shared = [name for name in runs[0] if all(name in other for other in runs)]
    if not shared:
        raise UserError(f"the runs were tested on different sets: {'; '.join(', '.join(sets) for sets in runs)}")
    for name in shared:
        refuse_other_queries([sets[name] for sets in runs], name)
    return shared


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = make_parser("python -m tools.frontier", __doc__, "runs/small runs/large --out frontier.html")
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN", help="OUTPUT_DIR of finished runs")
    parser.add_argument("--again", action="store_true", help="measure all runs, those with a speed.json too")
    parser.add_argument("--out", type=Path, metavar="PAGE", help="write a page with charts")
    parser.add_argument("--table", type=Path, metavar="FILE", help="write the Markdown table there too")
    parser.add_argument("--record", default="", metavar="NAME", help="keep the table as results/frontier_NAME.csv")
    parser.add_argument("--data", default="", help="name of the test set in that file, if its own would mislead")
    args = parser.parse_args(argv)
    folders = list({path.resolve(): path for path in args.runs}.values())
    runs = [runs_of(folder) for folder in folders]
    shared = shared_sets(runs)
    speeds = [speed_of(folder, args.again) for folder in folders]
    rows = {name: [row_of(sets[name], speed) for sets, speed in zip(runs, speeds, strict=True)] for name in shared}
    where = sorted({f"{row.speed.where}, batch {row.speed.batch}" for some in rows.values() for row in some})
    text = ""
    for name, some in rows.items():
        text += (f"{name}\n\n" if len(rows) > 1 else "") + markdown(some) + "\n"
    print(text, end="")
    print(f"measured on {'; '.join(where)}")
    if len(where) > 1:
        print("the times were measured under different conditions and cannot be compared; --again measures all here")
    if args.table:
        write_text(args.table, text.rstrip("\n") + "\n")
    if args.record:
        if len(rows) > 1:
            raise UserError(f"--record keeps the table of one test set, and these runs share {', '.join(rows)}")
        ((name, some),) = rows.items()
        print(record(some, args.data or name, args.record, ROOT / "results"))
    if args.out:
        tests = [section(name, some) for name, some in rows.items()]
        write_page(args.out, "frontier.html", title="Accuracy, speed and size", tests=tests, where=where)
        print(args.out)


if __name__ == "__main__":
    run_command(main)
