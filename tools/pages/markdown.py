"""Tables in Markdown whose cells hold only text."""

from __future__ import annotations

import html
from collections.abc import Sequence

from utils.errors import one_line


def cell(text: object, code: bool = False) -> str:
    """Returns a text as a cell of a Markdown table: one line, without HTML, in which nothing ends the cell."""
    line = one_line(text).replace("|", "\\|")
    if code and line:
        return f"`{line.replace('`', '')}`"
    return html.escape(line, quote=False).replace("`", "\\`")


def table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Returns a Markdown table. rows: of cells as ``cell`` gives them."""
    lines = [f"| {' | '.join(row)} |" for row in (heads, ["---"] * len(heads), *rows)]
    return "\n".join(lines) + "\n"
