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
    """Returns a shard as a file that stays open: on a network folder, opening costs more than reading an image."""
    return open(shard, "rb", buffering=0)


def read_bytes(path: str) -> bytes:
    """Returns the whole image file. Raises ``OSError`` if it does not exist or a shard ends before it."""
    match = IN_SHARD.fullmatch(path)
    if not match:
        with open(path, "rb") as handle:
            return handle.read()
    length, shard = int(match[3]), opened(match[1])  # named here: another thread may push it out of the cache
    raw = os.pread(shard.fileno(), length, int(match[2]))
    if len(raw) != length:
        raise OSError(None, f"the shard ends before byte {int(match[2]) + length}", match[1])
    return raw


def own_name(path: str) -> str:
    """Returns the path without its place in a shard: the name that a file of its own would have."""
    match = IN_SHARD.fullmatch(path)
    return match[4] if match else path
