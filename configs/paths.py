"""Paths as settings spell them: ``~`` and ``$VAR`` stand for what the shell takes them for, in every key of a path."""

from __future__ import annotations

import os
import re

VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")


class BadPath(ValueError):
    """What is wrong with a path; the caller adds the key and the place."""


def expanded(path: str) -> str:
    """Returns a path with the home folder for ``~`` and ``~user``, and environment variables for ``$VAR``, ``${VAR}``.

    Raises ``BadPath`` for a user and a variable that do not exist, an empty variable, which would make
    ``$DATA/market1501`` a folder of the root, and for what no file system can store.
    """
    if "\0" in path:
        raise BadPath("no path holds the character NUL")
    try:
        os.fsencode(path)  # a file name that is not UTF-8 has surrogates, too, and can be encoded
    except UnicodeEncodeError:
        raise BadPath("no path holds half of a character (a lone surrogate)") from None
    home = os.path.expanduser(path)
    if path.startswith("~") and home == path:
        raise BadPath(f"no user {path[1:].split('/')[0]!r} has a home folder here; './~...' is a file of that name")
    for name in (first or second for first, second in VARIABLE.findall(home)):
        if not os.environ.get(name):
            raise BadPath(f"the environment variable ${name} is {'empty' if name in os.environ else 'not set'}")
    return VARIABLE.sub(lambda match: os.environ[match[1] or match[2]], home)
