"""Scalars in ``OUTPUT_DIR/scalars.csv``: a row for each value, which any table program and pandas read."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from utils.files import write_csv

NAME = "scalars.csv"
COLUMNS = ("step", "stage", "name", "value")
LONGEST_ROW = 1000
"""Letters; a stage and the name of a value are a few words."""


class CsvFile:
    """Appends to the table. What a killed run wrote after its last save is written again, and replaced."""

    def __init__(self, folder: Path, settings: dict[str, Any], resumed: bool):
        self.path = folder / NAME
        self.begun = False
        if not resumed:
            write_csv(self.path, COLUMNS, [])

    def write(self, stage: str, values: dict[str, float], step: int) -> None:
        if not self.begun:
            write_csv(self.path, COLUMNS, rows_before(self.path, step))
            self.begun = True
        with open(self.path, "a", newline="", encoding="utf-8") as handle:
            rows = [(step, stage, name, repr(float(value))) for name, value in values.items()]
            csv.writer(handle, lineterminator="\n").writerows(rows)

    def flush(self) -> None:
        """Does nothing: each ``write`` closes the file."""

    def close(self, finished: bool) -> None:
        """Does nothing: each ``write`` closes the file."""


def rows_before(path: Path, step: int) -> Iterator[list[str]]:
    """Yields the rows of a table of scalars that stand before a step; half a row that a kill left is left out."""
    if not path.is_file():
        return
    with open(path, newline="", encoding="utf-8", errors="replace") as handle:
        for line in iter(lambda: handle.readline(LONGEST_ROW), ""):
            row = fields(line)
            if len(row) == len(COLUMNS) and re.fullmatch("[0-9]{1,18}", row[0]) and int(row[0]) < step:
                yield row


def fields(line: str) -> list[str]:
    """Returns the fields of a whole line of a table; none of half a line or of what is no text."""
    try:
        return next(csv.reader([line])) if line.endswith("\n") else []
    except (csv.Error, StopIteration):
        return []
