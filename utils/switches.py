"""The one reader of the key tree's 'on' / 'off' / 'yes' / 'no' words ('no' is true in Python)."""

from __future__ import annotations

from utils.errors import UserError

WORDS = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}


def switch(key: str, value: object) -> bool:
    """The truth of a switch. ``key`` is its dotted name, for the message; an unknown word raises ``UserError``."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word not in WORDS:
        raise UserError(f"{key}: {value!r} is not a switch; use 'on' or 'off' ('yes' and 'no' work too)")
    return WORDS[word]
