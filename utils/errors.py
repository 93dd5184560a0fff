"""A user's mistake and how it is told: one line that says what is wrong, where, and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """Something the user can mend. ``train.py`` and ``test.py`` print it as one line and exit with code 2."""


def nearest(word: str, known: Iterable[str]) -> str:
    """How a line on an unknown word goes on: ``", did you mean 'x'?"``, or ``"."`` when no known word is close."""
    known = list(known)
    folded = {str(name).lower(): str(name) for name in known}
    close = difflib.get_close_matches(str(word).lower(), folded, n=1, cutoff=0.6)
    return f", did you mean {folded[close[0]]!r}?" if close else "."
