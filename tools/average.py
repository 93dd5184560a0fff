"""Prints the mean and standard deviation over runs of one setting: ``python -m tools.average RUN [RUN ...]``.

For protocols that are a mean over splits (CUHK03's 20, PRID's 10) and for several seeds. A run is the OUTPUT_DIR of a
finished training or test; each has a row above the mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from processor.finished import FinishedRun
from processor.metrics_files import COUNTS, Results
from utils.commands import make_parser, run_command
from utils.errors import UserError


def split_of(run: FinishedRun) -> str:
    """Returns the split and seed that the run's YAML names; '' without the YAML of a training."""
    if "DATASETS.SPLIT_ID" not in run.config:
        return ""
    return f"split {run.config['DATASETS.SPLIT_ID'] or 0}, seed {run.seed}"


def averages(runs: list[Results]) -> dict[str, dict[str, tuple[float, float]]]:
    """Returns (mean, sample standard deviation over the runs) by the test set's name and the figure.

    Raises ``UserError`` unless all runs were tested on the same sets and have the same figures.
    """
    first = runs[0]
    for other in runs[1:]:
        if {name: set(row) for name, row in other.items()} != {name: set(row) for name, row in first.items()}:
            raise UserError(f"the runs have no common values: {figures_of(first)} and {figures_of(other)}")
    out = {}
    for name, row in first.items():
        table = {figure: np.array([run[name][figure] for run in runs]) for figure in row}
        out[name] = {
            figure: (float(values.mean()), float(values.std(ddof=1)) if len(values) > 1 else 0.0)
            for figure, values in table.items()
        }
    return out


def figures_of(run: Results) -> str:
    """Returns the names of a run's figures and test sets, in words."""
    return "; ".join(f"{', '.join(sorted(row))} on {name}" for name, row in run.items())


def average_lines(names: list[str], runs: list[Results]) -> list[str]:
    """Returns the lines of a table for each test set, in percent."""
    out = []
    for test, row in averages(runs).items():
        figures = [figure for figure in row if figure not in COUNTS]
        width = max(map(len, (*names, test)))
        out.append(f"{test:{width}s} " + " ".join(f"{figure:>10s}" for figure in figures))
        for name, run in zip(names, runs, strict=True):
            out.append(f"{name:{width}s} " + " ".join(f"{100 * run[test][figure]:10.1f}" for figure in figures))
        for title, column in (("mean", 0), ("deviation", 1)):
            out.append(f"{title:{width}s} " + " ".join(f"{100 * row[figure][column]:10.1f}" for figure in figures))
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = make_parser("python -m tools.average", __doc__, "runs/prid_split0 runs/prid_split1")
    parser.add_argument("runs", nargs="+", type=Path, help="OUTPUT_DIR of finished runs")
    folders = list(dict.fromkeys(path.resolve() for path in parser.parse_args(argv).runs))
    runs = [FinishedRun.load(folder) for folder in folders]
    splits = [split_of(run) for run in runs]
    repeated = next((split for split in splits if split and splits.count(split) > 1), "")
    if repeated:
        same = [folder.name for folder, split in zip(folders, splits, strict=True) if split == repeated]
        raise UserError(f"{', '.join(same)}: all of {repeated}; name one of them")
    names = [
        f"{folder.name} ({split})" if split else folder.name for folder, split in zip(folders, splits, strict=True)
    ]
    print("\n".join(average_lines(names, [run.evaluation.results for run in runs])))


if __name__ == "__main__":
    run_command(main)
