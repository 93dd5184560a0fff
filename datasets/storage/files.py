"""The bytes of an image: a file of its own, a part of a tar shard that its path names (``tools/make_shards.py``), or a
frame of a video (``video_frames.py``).

The path of an image in a shard is ``FOLDER/000003.tar/OFFSET+LENGTH/NAME``: NAME is its path in the dataset's folder,
the rest says where its bytes are. So a path alone is enough to read it, wherever lists of images go.
"""

from __future__ import annotations

import errno
import os
import re
import stat
from functools import lru_cache
from typing import BinaryIO

from datasets.storage.video_frames import IN_VIDEO, read_frame

LARGEST = 2 * 10**9
"""Bytes of an image file; a larger one is something else, and would take as much memory in every worker."""
NOT_WAITING = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0)
IN_SHARD = re.compile(r"(.+?/\d{6}\.tar)/(\d+)\+(\d+)/(.+)", re.DOTALL)


@lru_cache(maxsize=64)
def opened(shard: str) -> BinaryIO:
    """Returns a shard as a file that stays open: on a network folder, opening costs more than reading an image."""
    return open(shard, "rb", buffering=0)


def read_bytes(path: str) -> bytes:
    """Returns the whole image file.

    Raises ``OSError`` if it does not exist, is no file (a FIFO would wait for ever, a device never end), is larger than
    ``LARGEST``, or a shard ends before it; ``ValueError`` for a name that no file can have.
    """
    match = IN_SHARD.fullmatch(path)
    if match:
        length, shard = int(match[3]), opened(match[1])  # named here: another thread may push it out of the cache
        raw = os.pread(shard.fileno(), length, int(match[2]))
        if len(raw) != length:
            raise OSError(None, f"the shard ends before byte {int(match[2]) + length}", match[1])
        return raw
    if match := IN_VIDEO.fullmatch(path):
        return read_frame(match[1], int(match[2]))
    try:
        return read_regular(path, LARGEST)
    except OverflowError as error:
        raise OSError(None, str(error), path) from None


def read_regular(path: str, most: int) -> bytes:
    """Returns the content of a regular file, looked at before memory is taken.

    Raises ``OSError`` if it does not exist or is no file: a FIFO would wait for ever, a device never end. Raises
    ``OverflowError`` if it has more than ``most`` bytes, ``ValueError`` for a name that no file can have.
    """
    handle = os.open(path, NOT_WAITING)
    try:
        status = os.fstat(handle)
        if not stat.S_ISREG(status.st_mode):
            is_folder = stat.S_ISDIR(status.st_mode)
            raise OSError(None, os.strerror(errno.EISDIR) if is_folder else "it is not a regular file", path)
        if status.st_size > most:
            raise OverflowError(f"{status.st_size / 1e9:.2f} GB are more than the {most / 1e9:g} GB that are read")
        raw = os.read(handle, status.st_size + 1)
        if len(raw) == status.st_size:
            return raw
        blocks, size = [raw], len(raw)  # a network folder may give less at once, a file of /proc has no size
        while block := os.read(handle, 1 << 20):
            blocks.append(block)
            size += len(block)
            if size > most:
                raise OverflowError(f"it has more than the {most / 1e9:g} GB that are read")
        return b"".join(blocks)
    finally:
        os.close(handle)


def image_exists(path: str) -> bool:
    """Returns whether there is a file of this name, or a video that the path of a frame names."""
    match = IN_VIDEO.fullmatch(path)
    return os.path.exists(match[1] if match else path)


def own_name(path: str) -> str:
    """Returns the path without its place in a shard: the name that a file of its own would have."""
    match = IN_SHARD.fullmatch(path)
    return match[4] if match else path
