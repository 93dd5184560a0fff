"""Reads matrices of numbers from MATLAB files of version 5 to 7, and nothing else that such files may hold.

SciPy's reader of these files ends the process on some damaged ones; here every size is compared with what is there.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

LARGEST = 64 * 2**20
"""Bytes of a file and of what it unpacks to."""
MATRIX, COMPRESSED = 14, 15
TYPES = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
"""Numbers of the types of stored data."""
NUMERIC = range(6, 16)
"""Classes of arrays that are matrices of numbers."""
COMPLEX = 0x0800


def read_matrix(raw: bytes, name: str) -> np.ndarray | None:
    """Returns a real matrix of a file's bytes, None if the file does not have it. Raises ``ValueError`` for damage."""
    if len(raw) < 128 or raw[126:128] not in (b"IM", b"MI"):
        raise ValueError("no header of version 5")
    order = "<" if raw[126:128] == b"IM" else ">"
    for kind, data in elements(raw[128:], order):
        if kind == COMPRESSED:
            unpacker = zlib.decompressobj()
            data = unpacker.decompress(data, LARGEST)
            if unpacker.unconsumed_tail:
                raise ValueError(f"unpacks to more than {LARGEST >> 20} MB")
            kind, data = next(elements(data, order), (0, b""))
        if kind == MATRIX:
            found = matrix_of(data, order, name)
            if found is not None:
                return found
    return None


def elements(raw: bytes, order: str) -> Iterator[tuple[int, bytes]]:
    """Yields the type and the data of each element. Raises ``ValueError`` for one that ends behind the end."""
    place = 0
    while place + 8 <= len(raw):
        kind, size = struct.unpack(f"{order}II", raw[place : place + 8])
        if kind >> 16:  # a small one: type and size share a word, and up to four bytes of data follow
            kind, size, start, following = kind & 0xFFFF, kind >> 16, place + 4, place + 8
        else:
            start = place + 8
            following = start + size + (-size % 8 if kind != COMPRESSED else 0)
        if start + size > len(raw) or (following == place + 8 and size > 4):
            raise ValueError(f"an element of {size:,} bytes is cut off")
        yield kind, raw[start : start + size]
        place = following


def matrix_of(data: bytes, order: str, name: str) -> np.ndarray | None:
    """Returns the matrix in an element, None if it has another name or holds no real numbers."""
    parts = list(elements(data, order))
    if len(parts) < 4 or len(parts[0][1]) < 8 or len(parts[1][1]) % 4:
        return None
    (flags,) = struct.unpack(f"{order}I", parts[0][1][:4])
    if parts[2][1].rstrip(b"\0") != name.encode() or flags & 0xFF not in NUMERIC or flags & COMPLEX:
        return None
    shape = np.frombuffer(parts[1][1], f"{order}i4")
    kind, values = parts[3]
    if kind not in TYPES:
        raise ValueError(f"values of the unknown type {kind}")
    width = int(TYPES[kind][1])
    if len(shape) != 2 or (shape < 0).any() or int(shape[0]) * int(shape[1]) * width != len(values):
        raise ValueError(f"{len(values):,} bytes of values are no matrix of {' x '.join(map(str, shape.tolist()[:4]))}")
    return np.frombuffer(values, order + TYPES[kind]).reshape(tuple(shape.tolist()), order="F")
