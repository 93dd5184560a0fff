"""The exception for a user's mistake, and the sentences that several modules need for one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(ValueError):
    """A mistake that the user can correct: one line that says what is wrong, where, and what to do.

    The commands print the line to standard error and exit with code 2.
    """


def nearest(word: str, known: Iterable[str], cutoff: float = 0.6) -> str:
    """Returns ``", did you mean 'x'?"`` for the known word closest to ``word``, or ``"."`` when none is close.

    Case is ignored. cutoff: the least similarity, 0 to 1, of a word that is suggested.
    """
    folded = {str(name).lower(): str(name) for name in known}
    close = difflib.get_close_matches(str(word).lower(), folded, n=1, cutoff=cutoff)
    return f", did you mean {folded[close[0]]!r}?" if close else "."


def conflict(first: str, second: str, why: str) -> UserError:
    """Returns the error for two settings that exclude each other.

    first, second: the keys with their values, such as ``"MODEL.JPM"`` or ``"DATALOADER.SAMPLER 'id'"``. why: the
    reason and, where there is one, the way out.
    """
    return UserError(f"{first} and {second} cannot go together: {why}")
