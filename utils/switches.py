"""Reads the key tree's 'on' / 'off' / 'yes' / 'no' words ('no' is true in Python); nothing else does."""

from __future__ import annotations

from utils.errors import UserError

WORDS = {"on": True, "yes": True, "true": True, "off": False, "no": False, "false": False}


def switch(key: str, value: object) -> bool:
    """Returns the value of a switch. key: its dotted name, for messages. Raises ``UserError`` for an unknown word."""
    if isinstance(value, bool):
        return value
    word = str(value).strip().lower()
    if word not in WORDS:
        raise UserError(f"{key}: {value!r} is not a switch; use 'on' or 'off' ('yes' and 'no' work too)")
    return WORDS[word]
