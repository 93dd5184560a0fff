"""Writes a finished run into ``results/``: ``python -m tools.record runs/NAME``; ``--tables`` fills the pages.

One CSV per method holds method, YAML, data, seed, commit, numbers, time and machine. Tables in README and docs stand
between ``<!-- results METHOD -->`` and ``<!-- end -->`` and are made from the CSV.
"""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path

from utils.commands import make_parser, run_command
from utils.errors import UserError
from utils.files import write_atomically

COLUMNS = (
    "method", "config", "data", "seed", "mAP_untrained", "mAP", "Rank-1", "Rank-5", "Rank-10", "minutes", "commit",
    "machine",
)  # fmt: skip
ROOT = Path(__file__).resolve().parents[1]
MARKS = re.compile(r"(<!-- results (?P<method>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)


def rows_of(run: Path, data: str = "") -> list[dict[str, str]]:
    """A row for each test set of a finished run; ``UserError`` when the folder holds none.

    data: what to call the test set, its own name when empty.
    """
    try:
        metrics = json.loads((run / "metrics.json").read_text())
        metrics = metrics.get("training", metrics)  # a test in the same folder came after
        rows, method = metrics["results"], metrics["method"]
    except (OSError, ValueError, KeyError):
        raise UserError(f"{run}: no metrics.json of a finished training run") from None
    shared = {
        "method": method,
        "config": Path(metrics["config_file"]).as_posix(),
        "seed": str(metrics["seed"]),
        "minutes": f"{metrics['seconds'] / 60:.1f}",
        "commit": metrics["commit"][:10],
        "machine": metrics["machine"],
    }
    before = [entry for entry in metrics["history"] if entry["epoch"] == 0]
    start = f"{100 * before[0]['mAP']:.1f}" if before and "mAP" in before[0] and len(rows) == 1 else ""
    values = ("mAP", "Rank-1", "Rank-5", "Rank-10")
    found = []
    for name, row in rows.items():
        numbers = {v: f"{100 * row[v]:.1f}" for v in values if v in row}
        found.append({**shared, "data": data or name, "mAP_untrained": start} | numbers)
    return found


def append(rows: list[dict[str, str]], folder: Path) -> None:
    """Adds rows to their method's CSV; a row of the same config, data and seed is replaced."""
    for row in rows:
        path = folder / f"{row['method']}.csv"
        kept = [r for r in read(path) if any(r[k] != row[k] for k in ("config", "data", "seed"))]
        text = io.StringIO()
        writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows([*kept, row])
        write_atomically(path, lambda handle, text=text: handle.write(text.getvalue().encode()))


def read(path: Path) -> list[dict[str, str]]:
    if not path.exists():
        return []
    with open(path, newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


def table(rows: list[dict[str, str]]) -> str:
    """A Markdown table of a method's rows."""
    head = ("config", "data", "seed", "mAP untrained", "mAP", "Rank-1", "minutes", "machine", "commit")
    keys = ("config", "data", "seed", "mAP_untrained", "mAP", "Rank-1", "minutes", "machine", "commit")
    lines = ["| " + " | ".join(head) + " |", "| " + " | ".join("---" for _ in head) + " |"]
    lines += ["| " + " | ".join(f"`{r[k]}`" if k in ("config", "commit") else r[k] for k in keys) + " |" for r in rows]
    return "\n".join(lines) + "\n"


def fill_tables(results: Path, pages: list[Path]) -> None:
    """Replaces what stands between the marks of each page."""
    for page in pages:
        text = page.read_text(encoding="utf-8")
        new = MARKS.sub(lambda m: m[1] + table(read(results / f"{m['method']}.csv")) + m[3], text)
        if new != text:
            write_atomically(page, lambda handle, new=new: handle.write(new.encode()))


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = make_parser("python -m tools.record", __doc__, "runs/quickstart", "--tables")
    parser.add_argument("runs", nargs="*", type=Path, help="OUTPUT_DIR of finished training runs")
    parser.add_argument("--data", default="", help="what to call the data in the table, where its name would mislead")
    parser.add_argument("--tables", action="store_true", help="make the tables of README.md and docs/ from results/")
    args = parser.parse_args(argv)
    for run in args.runs:
        append(rows_of(run, args.data), ROOT / "results")
    if args.tables:
        fill_tables(ROOT / "results", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])


if __name__ == "__main__":
    run_command(main)
