"""The bytes of an image: a file of its own, or a part of a tar shard that its path names (``tools/make_shards.py``).

The path of an image in a shard is ``FOLDER/000003.tar/OFFSET+LENGTH/NAME``: NAME is its path in the dataset's folder,
the rest says where its bytes are. So a path alone is enough to read it, wherever lists of images go.
"""

from __future__ import annotations

import os
import re
from functools import lru_cache
from typing import BinaryIO

IN_SHARD = re.compile(r"(.+?/\d{6}\.tar)/(\d+)\+(\d+)/(.+)", re.DOTALL)


@lru_cache(maxsize=64)
def opened(shard: str) -> BinaryIO:
    """A shard that stays open: on a network folder, opening costs more than reading an image."""
    return open(shard, "rb", buffering=0)


def read_bytes(path: str) -> bytes:
    """The whole image file. Raises ``OSError`` where it is not there or a shard ends before it."""
    found = IN_SHARD.fullmatch(path)
    if not found:
        with open(path, "rb") as handle:
            return handle.read()
    length, shard = int(found[3]), opened(found[1])  # held by name: another thread may push it out of the cache
    raw = os.pread(shard.fileno(), length, int(found[2]))
    if len(raw) != length:
        raise OSError(None, f"the shard ends before byte {int(found[2]) + length}", found[1])
    return raw


def own_name(path: str) -> str:
    """The path without its place in a shard: what a file of its own would be called."""
    found = IN_SHARD.fullmatch(path)
    return found[4] if found else path
