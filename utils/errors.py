"""The exception for a user's mistake, and the sentences that several modules need for one."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable

LONGEST_WORD = 200
"""Letters of a word of a message, such as a path; what is longer hides the sentence around it."""
LONGEST_LINE = 1500
"""Letters of a message; the longest of ours, which list what is known, have half of it."""
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]{0,59}")
"""What a name that a message repeats from a file looks like; anything else may be content that nobody else may see."""


class UserError(ValueError):
    """A mistake that the user can correct: one line that says what is wrong, where, and what to do.

    The commands print the line to standard error and exit with code 2. Whatever the message repeats is shown by
    ``one_line``: no control characters, no lines of thousands of letters.
    """

    def __init__(self, message: object = ""):
        super().__init__(one_line(message))


def one_line(text: object) -> str:
    """Returns a text as one printable line: control characters, line ends and lone surrogates as escapes, and words
    above ``LONGEST_WORD`` and lines above ``LONGEST_LINE`` letters cut in the middle."""
    line = str(text)
    if not line.isprintable():
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    if len(line) > LONGEST_WORD:
        line = re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda word: cut(word[0], LONGEST_WORD), line)
    return cut(line, LONGEST_LINE)


def cut(text: str, longest: int) -> str:
    """Returns a text of at most ``longest`` letters: a longer one without its middle."""
    if len(text) <= longest:
        return text
    head = longest // 2
    return f"{text[:head]}...{text[len(text) - (longest - head - 3) :]}"


def reason_of(error: BaseException) -> str:
    """Returns what another library's error says, on one line and cut; its type if it says nothing."""
    return cut(one_line(" ".join(str(error).split())), LONGEST_WORD) or type(error).__name__


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
