"""Writes a finished training run into ``results/``, or fills the pages' tables: ``python -m tools.record runs/NAME``.

One CSV per method holds method, YAML, data, seed, commit, numbers, time and machine. Tables in README and docs are
between ``<!-- results METHOD -->`` and ``<!-- end -->``; ``--tables`` makes them from the CSV files, and those of
``<!-- results frontier_NAME -->`` from what ``tools.frontier --record NAME`` has kept.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from pathlib import Path

from processor.finished import FinishedRun
from processor.metrics_files import METRICS
from tools.pages.markdown import cell, table
from utils.commands import make_parser, run_command
from utils.errors import UserError
from utils.files import write_csv, write_text

COLUMNS = (
    "method", "config", "data", "seed", "mAP_untrained", "mAP", "Rank-1", "Rank-5", "Rank-10", "minutes", "commit",
    "machine",
)  # fmt: skip
SHOWN_COLUMNS = ("config", "data", "seed", "mAP_untrained", "mAP", "Rank-1", "minutes", "machine", "commit")
FIGURES = ("mAP", "Rank-1", "Rank-5", "Rank-10")
METHOD = re.compile(r"\w[\w-]{0,59}")
CHECKOUT = Path(__file__).resolve().parents[1]
ROOT = CHECKOUT if (CHECKOUT / "results").is_dir() else Path()
"""Where ``results/`` and the pages are: the checkout; of an installed package, the working directory."""
MARKS = re.compile(r"(<!-- results (?P<method>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rows_of(folder: Path, data: str = "") -> list[dict[str, str]]:
    """Returns a row for each test set of a finished training run; raises ``UserError`` for any other folder.

    data: what to call the test set, its own name when empty.
    """
    run = FinishedRun.load(folder).training
    if run is None or not run.method or run.seconds is None:
        raise UserError(f"{folder}: no {METRICS} of a finished training run")
    if not METHOD.fullmatch(run.method):  # it names the file
        raise UserError(f"{folder / METRICS}: the method {run.method!r} is not a name of letters, digits, '_' and '-'")
    shared = {
        "method": run.method, "config": Path(run.config_file).as_posix(), "seed": str(run.seed),
        "minutes": f"{run.seconds / 60:.1f}", "commit": run.commit[:10], "machine": run.machine,
    }  # fmt: skip
    untrained = [entry["mAP"] for entry in run.history if entry["epoch"] == 0 and "mAP" in entry]
    start = f"{100 * untrained[0]:.1f}" if untrained and len(run.results) == 1 else ""
    rows = []
    for name, row in run.results.items():
        numbers = {figure: f"{100 * row[figure]:.1f}" for figure in FIGURES if figure in row}
        rows.append({**shared, "data": data or name, "mAP_untrained": start} | numbers)
    return rows


def append(rows: list[dict[str, str]], folder: Path) -> None:
    """Adds rows to their method's CSV; a row of the same config, data and seed is replaced."""
    for row in rows:
        path = folder / f"{row['method']}.csv"
        kept = [r for r in read(path) if any(r[k] != row[k] for k in ("config", "data", "seed"))]
        write_csv(path, COLUMNS, [[r.get(column, "") for column in COLUMNS] for r in [*kept, row]])


def read(path: Path) -> list[dict[str, str]]:
    """Returns the rows of a method's CSV; none if there is no such file."""
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def markdown_table(rows: list[dict[str, str]]) -> str:
    """Returns a Markdown table of a method's rows, or of all columns of a table that ``tools.frontier`` has kept."""
    columns = list(rows[0]) if rows and "method" not in rows[0] else list(SHOWN_COLUMNS)
    cells = [[cell(row.get(name) or "", name in ("config", "commit")) for name in columns] for row in rows]
    return table([cell(name.replace("_", " ")) for name in columns], cells)


def fill_tables(results: Path, pages: list[Path]) -> None:
    """Replaces the tables between the marks of each page."""
    for page in pages:
        text = page.read_text(encoding="utf-8")
        new = MARKS.sub(lambda m: m[1] + markdown_table(read(results / f"{m['method']}.csv")) + m[3], text)
        if new != text:
            write_text(page, new)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = make_parser("python -m tools.record", __doc__, "runs/quickstart", "--tables")
    parser.add_argument("runs", nargs="*", type=Path, help="OUTPUT_DIR of finished training runs")
    parser.add_argument("--data", default="", help="name of the data in the table, if its own would mislead")
    parser.add_argument("--tables", action="store_true", help="fill the tables of README.md and docs/ from results/")
    args = parser.parse_args(argv)
    for run in args.runs:
        append(rows_of(run, args.data), ROOT / "results")
    if args.tables:
        fill_tables(ROOT / "results", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])


if __name__ == "__main__":
    run_command(main)
