"""Reads a table with a header (.csv, .tsv) or JSON lines (.jsonl) as text, and says which column means what."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from datasets.identifiers import AROUND
from datasets.storage.files import read_regular
from utils.errors import NAME, UserError

BOX = ("x1", "y1", "x2", "y2")
ORDER = ("frame", "time")
"""Where an image is in its tracklet (``seq``): number of the frame, and seconds."""
COLUMNS = ("path", "pid", "camid", "viewid", "split", "seq", *ORDER, *BOX, "is_query", "is_gallery")
IDS = ("pid", "camid", "viewid", "seq")
OTHER_NAMES = {
    "view": "viewid", "label": "pid", "camera": "camid", "camera_id": "camid", "sequence": "seq",
    "x_1": "x1", "y_1": "y1", "x_2": "x2", "y_2": "y2",
}  # fmt: skip
"""Names of columns that mean one of ours; most are open-metric-learning's."""

MOST_COLUMNS = 1000
MOST_GB = 0.5
"""Size of a table unless DATASETS.MAX_TABLE_GB says otherwise: its rows take some twenty times as much memory."""
SEPARATORS = {",": "commas", "\t": "tabs", ";": "semicolons", "|": "vertical bars"}

Lines = list[tuple[int, dict[str, str]]]
"""The rows of a table: line number in the file, and column -> text."""


def read_lines_of(path: Path, most_gb: float = MOST_GB) -> tuple[list[str], Lines, list[str]]:
    """Returns the names of the columns, the rows, and lines for the log. Raises ``UserError`` for what is no table.

    Every value is text without white space around it. Columns have our names; see ``columns_of``.
    """
    text = text_of(path, most_gb)
    return json_lines(path, text) if path.suffix == ".jsonl" else csv_lines(path, text)


def text_of(path: Path, most_gb: float = MOST_GB) -> str:
    """Returns a text file's content; the size is checked before memory is taken."""
    try:
        text = read_regular(str(path), int(most_gb * 1e9)).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"{path}: not a table in UTF-8 (byte {error.start:,} does not fit)") from None
    except OverflowError as error:
        remedy = "raise DATASETS.MAX_TABLE_GB if it is a table and the memory suffices"
        raise UserError(f"{path}: {error}; {remedy}") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None
    nul = text.find("\0")
    if nul >= 0:
        raise UserError(f"{path}, line {text.count(chr(10), 0, nul) + 1}: not a table, it holds NUL bytes")
    return text


def columns_of(path: Path, names: Iterable[str]) -> tuple[list[str], list[str]]:
    """Returns the name that each column has here, and lines for the log.

    A column of our name wins over one of another name with the same meaning, which is kept under its own name and read
    by nothing. Raises ``UserError`` where two columns mean the same and neither or both have our name.
    """
    names = [name.strip().strip(AROUND).strip() for name in names]
    if len(names) > MOST_COLUMNS:
        raise UserError(f"{path}: {len(names):,} columns are more than the {MOST_COLUMNS:,} that a table may have")
    meanings = [meaning_of(name) for name in names]
    notes = []
    for meaning in dict.fromkeys(m for m in meanings if meanings.count(m) > 1 and m in COLUMNS):
        places = [i for i, other in enumerate(meanings) if other == meaning]
        exact = [i for i in places if names[i] == meaning]
        spelled = ", ".join(repr(names[i]) for i in places)
        if len(exact) != 1:
            raise UserError(f"{path}: the columns {spelled} mean the same ({meaning}); keep one of them")
        others = [i for i in places if i != exact[0]]
        notes.append(f"{path}: of the columns {spelled}, {meaning!r} counts")
        for i in others:
            meanings[i] = names[i]
    return meanings, notes


def meaning_of(name: str) -> str:
    """Returns the name that a column has here, whatever its case."""
    lower = name.lower()
    return lower if lower in COLUMNS else OTHER_NAMES.get(lower, name)


def require_columns(path: Path, header: list[str], needed: Iterable[str]) -> None:
    """Raises ``UserError`` if a column is missing. What else was found is named only if the file looks like a table."""
    missing = [name for name in needed if name not in header]
    if not missing:
        return
    sound = [name for name in header if NAME.fullmatch(name)]
    known = [name for name in sound if name in COLUMNS]
    found = f"found: {', '.join(sound)}" if known else f"found {len(header):,} others" if header else "found: nothing"
    raise UserError(f"{path}: no column {missing[0]!r} ({found}); a header line is needed")


def refuse_other_separator(path: Path, first: str, used: str) -> None:
    """Raises ``UserError`` if the header's columns are separated by something else. first: the header line."""
    for separator, word in SEPARATORS.items():
        words = [meaning_of(name.strip(' "')) for name in first.split(separator)]
        if separator != used and len({*words} & {*COLUMNS}) >= 2:
            remedy = {"\t": "call it .tsv", ",": "call it .csv"}.get(separator, "save it with commas")
            raise UserError(f"{path}: its columns are separated by {word}, not {SEPARATORS[used]}; {remedy}")


def csv_lines(path: Path, text: str) -> tuple[list[str], Lines, list[str]]:
    """Returns columns, rows and log lines of a .csv or .tsv file's text."""
    separator = "\t" if path.suffix == ".tsv" else ","
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=separator)
    try:
        names = next(reader, [])
        header, notes = columns_of(path, names)
        if not {*header} & {"path", "pid", "split"}:
            refuse_other_separator(path, text.partition("\n")[0], separator)
        lines: Lines = []
        if "path" not in header:  # no table of images: the caller says so
            return [name for name in header if name], lines, notes
        for row in reader:
            if not row:
                continue
            if len(row) > len(header) and any(row[len(header) :]):
                raise UserError(
                    f"{path}, line {reader.line_num}: {len(row)} cells, and {len(header)} columns; a text with "
                    f"{SEPARATORS[separator]} in it needs quotes"
                )
            cells = [cell.strip() for cell in row[: len(header)]] + [""] * (len(header) - len(row))
            lines.append((reader.line_num, {k: v for k, v in zip(header, cells, strict=True) if k}))
    except csv.Error as error:
        raise UserError(f"{path}, line {reader.line_num}: not a row of a table ({error})") from None
    return [name for name in header if name], lines, notes


def json_lines(path: Path, text: str) -> tuple[list[str], Lines, list[str]]:
    """Returns columns, rows and log lines of a text with an object per line. null is empty, 1.0 is 1."""
    header: dict[str, None] = {}
    found: list[tuple[int, Mapping[str, Any]]] = []
    for number, line in enumerate(text.split("\n"), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            row = json.loads(line, object_pairs_hook=once_each)
        except UserError as error:
            raise UserError(f"{where}: {error}") from None
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise UserError(f'{where}: expected an object such as {{"path": ...}}')
        header |= dict.fromkeys(row)
        if len(header) > MOST_COLUMNS:
            raise UserError(f"{where}: more than {MOST_COLUMNS:,} names; a table has that many columns at most")
        found.append((number, {name: text_of_value(value, name, where) for name, value in row.items()}))
    columns, notes = columns_of(path, header)
    names = dict(zip(header, columns, strict=True))
    blank = dict.fromkeys(columns, "")
    return columns, [(number, blank | {names[k]: v for k, v in row.items()}) for number, row in found], notes


def once_each(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Returns an object's entries. Raises ``UserError`` for a name that stands twice."""
    entries = dict(pairs)
    if len(entries) < len(pairs):
        raise UserError("a name stands twice in the object")
    return entries


def text_of_value(value: Any, name: str, where: str) -> str:
    """Returns a JSON value as a table would have it. Raises ``UserError`` for what is no single text or number."""
    if value is None:
        return ""
    if isinstance(value, (list, dict)) or (isinstance(value, bool) and meaning_of(name) in IDS):
        kind = {list: "a list", dict: "an object", bool: "true or false"}[type(value)]
        raise UserError(f"{where}: {name} must be a text or a number, not {kind}")
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    text = str(value).strip()
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UserError(f"{where}: {name} holds half of a surrogate pair, which no file name and no id can") from None
    return text
