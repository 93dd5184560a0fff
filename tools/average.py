"""The mean over runs of one setting: ``python -m tools.average RUN [RUN ...]``.

For protocols that are a mean over splits (CUHK03's 20, PRID's 10) and for several seeds. A run is the OUTPUT_DIR of a
finished training or test. Prints a row for each, then mean and standard deviation of every value.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import yaml

from utils.commands import make_parser, run_command
from utils.errors import UserError

Row = dict[str, float]


def results_of(run: Path) -> dict[str, Row]:
    """Name of each test set -> its values; ``UserError`` when the folder holds no finished run."""
    try:
        results = json.loads((run / "metrics.json").read_text())["results"]
        return {name: {k: float(v) for k, v in row.items()} for name, row in results.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        raise UserError(f"{run}: no metrics.json of a finished run") from None


def split_of(run: Path) -> str:
    """The split and seed that the run's YAML names; '' where there is no YAML, as after a test."""
    try:
        tree = yaml.safe_load((run / "config.yml").read_text())
        return f"split {tree['DATASETS']['SPLIT_ID'] or 0}, seed {tree['SOLVER']['SEED']}"
    except (OSError, yaml.YAMLError, KeyError, TypeError):
        return ""


def averages(runs: list[dict[str, Row]]) -> dict[str, dict[str, tuple[float, float]]]:
    """Name of each test set -> value -> (mean, standard deviation over the runs, as of a sample).

    Raises ``UserError`` unless all runs were tested on the same sets and have the same values.
    """
    first = runs[0]
    for other in runs[1:]:
        if {name: set(row) for name, row in other.items()} != {name: set(row) for name, row in first.items()}:
            raise UserError(f"the runs have no common values: {told(first)} and {told(other)}")
    out = {}
    for name, row in first.items():
        table = {value: np.array([run[name][value] for run in runs]) for value in row}
        out[name] = {
            value: (float(c.mean()), float(c.std(ddof=1)) if len(c) > 1 else 0.0) for value, c in table.items()
        }
    return out


def told(run: dict[str, Row]) -> str:
    return "; ".join(f"{', '.join(sorted(row))} on {name}" for name, row in run.items())


def lines(names: list[str], runs: list[dict[str, Row]]) -> list[str]:
    """A table for each test set, in percent; counts such as ``queries`` as they are."""
    out = []
    for test, row in averages(runs).items():
        values = [value for value in row if not value.endswith("queries")]
        width = max(map(len, (*names, test)))
        out.append(f"{test:{width}s} " + " ".join(f"{value:>10s}" for value in values))
        for name, run in zip(names, runs, strict=True):
            out.append(f"{name:{width}s} " + " ".join(f"{100 * run[test][value]:10.1f}" for value in values))
        for title, part in (("mean", 0), ("deviation", 1)):
            out.append(f"{title:{width}s} " + " ".join(f"{100 * row[value][part]:10.1f}" for value in values))
    return out


def main(argv: list[str] | None = None) -> None:
    """The command."""
    parser = make_parser("python -m tools.average", __doc__, "runs/prid_split0 runs/prid_split1")
    parser.add_argument("runs", nargs="+", type=Path, help="OUTPUT_DIR of finished runs")
    runs = list(dict.fromkeys(path.resolve() for path in parser.parse_args(argv).runs))
    splits = [split_of(run) for run in runs]
    twice = next((split for split in splits if split and splits.count(split) > 1), "")
    if twice:
        same = [run.name for run, split in zip(runs, splits, strict=True) if split == twice]
        raise UserError(f"{', '.join(same)}: all of {twice}; one of them is enough")
    names = [f"{run.name} ({split})" if split else run.name for run, split in zip(runs, splits, strict=True)]
    print("\n".join(lines(names, [results_of(run) for run in runs])))


if __name__ == "__main__":
    run_command(main)
