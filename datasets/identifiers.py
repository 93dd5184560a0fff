"""What an id is: the one way from a text in a table or a name to an identity, a camera, a view or a sequence."""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

from utils.errors import UserError

JUNK = "-1"
"""The identity that is nobody."""
LONGEST = 200
"""Letters of an id: lists hold every id with as much room as the longest needs."""

MISSING = frozenset(
    ("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
     "NULL", "NaN", "None", "n/a", "nan", "null")
)  # fmt: skip
"""What pandas reads as a missing value, and writes for one when asked to."""
MISSING_IN_ANY_CASE = frozenset(
    ("nan", "nat", "none", "null", "n/a", "#n/a", "<na>", "inf", "+inf", "-inf", "infinity", "+infinity", "-infinity")
)
"""Infinities, which JSON spells too, come from a division by zero and number nobody."""

WHOLE = re.compile(r"(-?(?:0|[1-9][0-9]*))(?:\.0+)?")
AROUND = "\u200b\u200c\u200d\u2060\ufeff"
"""Characters without width, which spreadsheets and web pages leave beside a text; ``str.strip`` keeps them."""


@lru_cache(maxsize=1 << 16)
def canonical(text: str) -> str:
    """Returns the id that a text spells; '' for a missing one.

    ``1.0`` is ``1``, as pandas writes a column of whole numbers with a gap in it, and ``-1.00`` is ``-1``, nobody.
    White space around the text goes, and accents are composed (NFC). ``01``, ``1.50`` and words stay as they are.

    Raises ``UserError`` for a text that no list can hold.
    """
    trimmed = text.strip().strip(AROUND).strip()
    if trimmed in MISSING or trimmed.lower() in MISSING_IN_ANY_CASE:
        return ""
    whole = WHOLE.fullmatch(trimmed.replace("\u2212", "-", 1))  # the sign that word processors put for a minus
    if whole:
        return "0" if whole[1] == "-0" else whole[1]
    if len(trimmed) > LONGEST:
        raise UserError(f"an id of {len(trimmed):,} letters is longer than {LONGEST}")
    if any(unicodedata.category(letter) in ("Cc", "Cs") for letter in trimmed):
        raise UserError(f"the id {trimmed!r} holds control characters or half of a surrogate pair")
    return unicodedata.normalize("NFC", trimmed)
