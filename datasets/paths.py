"""A list of file names in two arrays and a block of bytes: a sequence of text without an object per name."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, overload

import numpy as np

CHUNK = 1 << 18


class Paths(Sequence[str]):
    """Behaves like a list of paths.

    blob: the names, one after another; starts, lengths: (N,) into it. roots: the beginnings that names share, root:
    (N,) which of them a name has. Taking rows shares the block of bytes.
    """

    def __init__(
        self,
        blob: bytes,
        starts: np.ndarray,
        lengths: np.ndarray,
        roots: Sequence[str] = ("",),
        root: np.ndarray | None = None,
    ):
        self.blob, self.starts, self.lengths, self.roots = blob, starts, lengths, tuple(roots)
        self.root = np.zeros(len(starts), np.uint8) if root is None else root

    @classmethod
    def of(cls, paths: Iterable[str], root: str = "") -> Paths:
        """Packs paths; a packed list is returned as it is. root: a beginning that most of them share."""
        if isinstance(paths, Paths):
            return paths
        paths = list(paths)
        below = np.fromiter((path.startswith(root) for path in paths), bool, len(paths))
        names = [os.fsencode(path[len(root) :] if cut else path) for path, cut in zip(paths, below, strict=True)]
        lengths = np.fromiter(map(len, names), np.int32, len(names))
        return cls(b"".join(names), ends(lengths) - lengths, lengths, ("", root), below.astype(np.uint8))

    @classmethod
    def of_names(cls, names: np.ndarray, root: str) -> Paths:
        """Packs an array of bytes (``S`` of any width), all below the folder ``root``."""
        lengths, blocks, width = np.empty(len(names), np.int32), [], names.dtype.itemsize
        for i in range(0, len(names), CHUNK):
            chunk = np.ascontiguousarray(names[i : i + CHUNK])
            lengths[i : i + CHUNK] = np.char.str_len(chunk)
            letters = chunk.view(np.uint8).reshape(-1, width)
            blocks.append(letters[np.arange(width) < lengths[i : i + CHUNK, None]].tobytes())
        return cls(b"".join(blocks), ends(lengths) - lengths, lengths, (os.path.join(root, ""),))

    def __len__(self) -> int:
        return len(self.starts)

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> Paths: ...
    def __getitem__(self, i: int | slice) -> str | Paths:
        if isinstance(i, slice):
            return self.take(i)
        start = int(self.starts[i])
        return self.roots[self.root[i]] + os.fsdecode(self.blob[start : start + int(self.lengths[i])])

    def __iter__(self) -> Iterator[str]:
        for start, length, root in zip(self.starts.tolist(), self.lengths.tolist(), self.root.tolist(), strict=True):
            yield self.roots[root] + os.fsdecode(self.blob[start : start + length])

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Sequence) or isinstance(other, str):
            return NotImplemented
        return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # pyright: ignore[reportAssignmentType]  (how Python spells that lists have no hash)

    def __repr__(self) -> str:
        shown = ", ".join(repr(self[i]) for i in range(min(3, len(self))))
        return f"Paths({len(self)}: {shown}{', ...' if len(self) > 3 else ''})"

    @property
    def nbytes(self) -> int:
        """The memory that the list takes, in bytes."""
        return len(self.blob) + self.starts.nbytes + self.lengths.nbytes + self.root.nbytes

    def take(self, rows: Any) -> Paths:
        """Returns the names that an index array, a slice or a mask picks."""
        return Paths(self.blob, self.starts[rows], self.lengths[rows], self.roots, self.root[rows])


def ends(lengths: np.ndarray) -> np.ndarray:
    """Returns where each of some consecutive names ends, (N,)."""
    return np.cumsum(lengths, dtype=np.int64)


def chain(lists: Iterable[Paths]) -> Paths:
    """Returns one list after another. Lists cut from one block of bytes keep sharing it."""
    lists = list(lists)
    roots = list(dict.fromkeys(root for paths in lists for root in paths.roots))
    blobs: dict[int, bytes] = {id(paths.blob): paths.blob for paths in lists}
    shift, offsets = 0, {}
    for key, blob in blobs.items():
        offsets[key], shift = shift, shift + len(blob)
    numbers, kind = {root: i for i, root in enumerate(roots)}, np.min_scalar_type(len(roots))
    return Paths(
        next(iter(blobs.values())) if len(blobs) == 1 else b"".join(blobs.values()),
        np.concatenate([paths.starts + offsets[id(paths.blob)] for paths in lists]),
        np.concatenate([paths.lengths for paths in lists]),
        roots,
        np.concatenate([np.array([numbers[r] for r in paths.roots], kind)[paths.root] for paths in lists]),
    )
