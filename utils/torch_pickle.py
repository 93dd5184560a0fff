"""What ``torch.load`` is about to build from a file, looked over before it builds anything.

``torch.load(weights_only=True)`` knows few names, but believes their arguments: a storage that is longer than its bytes
is read beyond them, a tensor beyond its storage enlarges it by whatever the memory holds, ``bytearray(2**40)`` takes a
terabyte. Here the same pickle is run with stand-ins that only check these numbers.
"""

from __future__ import annotations

import math
import mmap
import re
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from utils.safe_pickle import UnsafePickle, end_of_pickle, load_restricted
from utils.safe_zip import open_archive

STORAGES: dict[str, torch.dtype] = {
    "FloatStorage": torch.float32, "DoubleStorage": torch.float64, "HalfStorage": torch.float16,
    "BFloat16Storage": torch.bfloat16, "LongStorage": torch.int64, "IntStorage": torch.int32,
    "ShortStorage": torch.int16, "CharStorage": torch.int8, "ByteStorage": torch.uint8, "BoolStorage": torch.bool,
    "ComplexFloatStorage": torch.complex64, "ComplexDoubleStorage": torch.complex128, "UntypedStorage": torch.uint8,
}  # fmt: skip
LARGEST_PICKLE = 64 * 2**20
"""Bytes of ``data.pkl``: names and shapes; that of a model with a million modules is smaller."""
LARGEST_EXPANDED = 2**24
"""Most numbers of a tensor that has more than its storage (stride 0): an expanded mask or a row of positions."""
NUMBER_TYPE = re.compile(r"[?bBhHiIlLqQefdg]|[<>|=]?[biuf][0-9]{1,2}")
"""NumPy's codes of whole numbers, fractions and truth values."""
LEGACY_MAGIC = b"\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19."
"""How the first pickle of a file of torch before 1.6 ends, after two bytes for the protocol."""


class Closed:
    """What a pickle may hand on, and not fill: torch would point a tensor at other bytes."""

    def __setstate__(self, state: Any) -> None:
        raise UnsafePickle("a tensor is changed after it was built")


@dataclass(frozen=True)
class Marker(Closed):
    """A name of a pickle that is only handed on, or what its call gives."""

    name: str


@dataclass(frozen=True)
class Storage(Closed):
    """A storage that a pickle refers to; an untyped one counts bytes."""

    numel: int
    dtype: torch.dtype

    @property
    def nbytes(self) -> int:
        return self.numel * self.dtype.itemsize


class Dtype:
    """The dtype of a NumPy scalar; one of bytes or text may be of any size."""

    def __init__(self, code: Any, *args: Any):
        if not (
            isinstance(code, str) and NUMBER_TYPE.fullmatch(code) and all(isinstance(arg, (bool, int)) for arg in args)
        ):
            raise UnsafePickle("a NumPy scalar is not a number")

    def __setstate__(self, state: Any) -> None:
        if not (isinstance(state, tuple) and all(isinstance(s, (str, int, type(None))) for s in state)):
            raise UnsafePickle("a NumPy dtype is not described by plain values")


def rebuild_scalar(dtype: Any, raw: Any) -> None:
    if not isinstance(dtype, Dtype) or not isinstance(raw, (str, bytes)):
        raise UnsafePickle("a NumPy scalar is not described by its type and bytes")


class Namespace:
    """The arguments of a command, as DINO's files hold them."""

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise UnsafePickle("the arguments of a command are not named values")


def check_bounds(numel: int, offset: Any, shape: Any, stride: Any) -> None:
    """Raises ``UnsafePickle`` where a tensor does not lie within a storage of ``numel`` numbers."""
    lists = isinstance(shape, (tuple, list)) and isinstance(stride, (tuple, list)) and len(shape) == len(stride)
    if not lists or not all(type(n) is int and n >= 0 for n in (offset, *shape, *stride)):
        raise UnsafePickle("a tensor is not described by whole numbers")
    count = math.prod(shape)
    last = offset + sum((n - 1) * step for n, step in zip(shape, stride, strict=True)) if count else offset - 1
    if last >= numel or count > max(numel, LARGEST_EXPANDED):
        raise UnsafePickle(f"a tensor of shape {tuple(shape)} does not fit its storage of {numel}")


def check_archive_pickle(path: Path) -> None:
    """Raises ``UnsafePickle`` where the pickle of a ``torch.save`` archive asks for what is not read, or declares sizes
    that the archive does not have."""
    with open_archive(path) as archive:
        sizes = {info.filename: info.file_size for info in archive.infolist()}
        pickled = next((name for name in sizes if name.count("/") == 1 and name.endswith("/data.pkl")), "")
        if not pickled:
            raise UnsafePickle("it has no data.pkl")
        if sizes[pickled] > LARGEST_PICKLE:
            raise UnsafePickle(f"its pickle has more than {LARGEST_PICKLE:,} bytes")
        load_restricted(archive.read(pickled), names_of_torch(), zip_storages(f"{pickled[:-8]}data/", sizes))


def zip_storages(folder: str, sizes: Mapping[str, int]) -> Callable[[Any], Storage]:
    """Returns what a persistent id stands for: the storage, if its entry has as many bytes as it declares."""

    def storage_of(pid: Any) -> Storage:
        storage, key = declared_storage(pid)
        if sizes.get(f"{folder}{key}", -1) < storage.nbytes:
            raise UnsafePickle(f"a storage of {storage.numel} numbers is missing or shorter than declared")
        return storage

    return storage_of


def declared_storage(pid: Any) -> tuple[Storage, str]:
    """Returns the storage that a persistent id describes, and its key."""
    if not (isinstance(pid, tuple) and len(pid) >= 5 and pid[0] in ("storage", b"storage")):
        raise UnsafePickle("it refers to data outside itself")
    kind, key, numel = pid[1], pid[2], pid[4]
    if not isinstance(kind, torch.dtype) or not str(key).isalnum() or type(numel) is not int or numel < 0:
        raise UnsafePickle("a storage is not described by a type, a key and a size")
    return Storage(numel, kind), str(key)


def is_legacy(path: Path) -> bool:
    """Returns whether a file begins as those of torch before 1.6 do."""
    with open(path, "rb") as handle:
        return handle.read(2 + len(LEGACY_MAGIC))[2:] == LEGACY_MAGIC


def check_legacy_pickles(path: Path) -> None:
    """Does the same for a file of torch before 1.6: magic number, protocol, system, object and keys, then storages."""
    with open(path, "rb") as handle, mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ) as raw:
        start = end = 0
        for _ in range(4):
            start, end = end, end_of_pickle(raw, end)
            if end - start > LARGEST_PICKLE:
                raise UnsafePickle(f"its pickle has more than {LARGEST_PICKLE:,} bytes")
        load_restricted(raw[start:end], names_of_torch(), legacy_storages(len(raw) - end))


def legacy_storages(room: int) -> Callable[[Any], Storage]:
    """Returns what a persistent id stands for; all storages together have at most ``room`` bytes."""
    sizes: dict[str, int] = {}

    def storage_of(pid: Any) -> Storage:
        storage, key = declared_storage(pid)
        sizes[key] = max(storage.nbytes, sizes.get(key, 0))
        if sum(sizes.values()) > room:
            raise UnsafePickle("its storages are longer than the file")
        view = pid[5] if len(pid) > 5 else None
        if view is None:
            return storage
        if not (isinstance(view, tuple) and len(view) == 3):
            raise UnsafePickle("a part of a storage is not described by a key, an offset and a size")
        check_bounds(storage.numel, view[1], [view[2]], [1])
        return Storage(view[2], storage.dtype)

    return storage_of


# ---------------------------------------------------------------- the stand-ins


def rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *more: Any) -> Marker:
    if not isinstance(storage, Storage):
        raise UnsafePickle("a tensor has no storage")
    check_bounds(storage.numel, offset, shape, stride)
    return Marker("tensor")


def rebuild_tensor_of_type(
    storage: Any, offset: Any, shape: Any, stride: Any, grad: Any, hooks: Any, dtype: Any, *more: Any
) -> Marker:
    """As ``rebuild_tensor``, with the type beside a storage of bytes (``_rebuild_tensor_v3``)."""
    if not isinstance(storage, Storage) or not isinstance(dtype, torch.dtype):
        raise UnsafePickle("a tensor has no storage")
    check_bounds(storage.nbytes // dtype.itemsize, offset, shape, stride)
    return Marker("tensor")


def rebuild_parameter(tensor: Any, *more: Any) -> Any:
    if not isinstance(tensor, Marker):
        raise UnsafePickle("a parameter is not a tensor")
    return tensor


def rebuild_from_type(rebuild: Any, kind: Any, args: Any, state: Any) -> Any:
    if rebuild not in (rebuild_tensor, rebuild_tensor_of_type, rebuild_parameter) or not isinstance(args, tuple):
        raise UnsafePickle("a tensor is described by something else")
    return rebuild(*args)


def plain_bytes(*args: Any) -> bytes:
    """``bytearray`` and ``_codecs.encode`` of what is there; the first takes a number for a size, and gives zeros."""
    if not all(isinstance(arg, (str, bytes)) for arg in args):
        raise UnsafePickle("bytes are not described by a text")
    return b""


def plain_set(values: Any = ()) -> set:
    if not isinstance(values, (list, tuple)):
        raise UnsafePickle("a set is not described by a list")
    return set(values)


def plain_size(values: Any = ()) -> tuple:
    if not isinstance(values, (list, tuple)):
        raise UnsafePickle("a size is not described by a list")
    return tuple(values)


def plain_device(*args: Any) -> Marker:
    if not all(isinstance(arg, (str, int)) for arg in args):
        raise UnsafePickle("a device is not described by its name")
    return Marker("device")


class Names(dict):
    """The names that ``torch.load`` reads, with their stand-ins."""

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or self._dtype(key) is not None

    def __missing__(self, key: tuple[str, str]) -> Any:
        return self._dtype(key)

    @staticmethod
    def _dtype(key: Any) -> Any:
        module, name = key
        if module == "torch" and re.fullmatch(r"[a-z0-9_]+", name):
            dtype = getattr(torch, name, None)
            return dtype if isinstance(dtype, torch.dtype) else None
        if module == "numpy.dtypes" and re.fullmatch(r"[A-Za-z0-9]+DType", name):
            return Dtype
        return None


def names_of_torch() -> Names:
    """Returns the table of names: those of torch.load that files of weights use, and NumPy's scalars."""
    names = Names({("torch", kind): dtype for kind, dtype in STORAGES.items()})
    names[("torch.storage", "UntypedStorage")] = torch.uint8
    names |= {("torch._utils", name): rebuild_tensor for name in ("_rebuild_tensor", "_rebuild_tensor_v2")}
    names |= {("torch._utils", f"_rebuild_parameter{end}"): rebuild_parameter for end in ("", "_with_state")}
    names |= {(f"numpy.{core}.multiarray", "scalar"): rebuild_scalar for core in ("core", "_core")}
    for builtins in ("builtins", "__builtin__"):
        names |= {(builtins, "bytearray"): plain_bytes, (builtins, "set"): plain_set, (builtins, "complex"): complex}
    names |= {
        ("torch._utils", "_rebuild_tensor_v3"): rebuild_tensor_of_type,
        ("torch._tensor", "_rebuild_from_type_v2"): rebuild_from_type,
        ("torch.nn.parameter", "Parameter"): Marker("Parameter"),
        ("torch", "Tensor"): Marker("Tensor"),
        ("torch", "Size"): plain_size,
        ("torch", "device"): plain_device,
        ("collections", "OrderedDict"): OrderedDict,
        ("collections", "Counter"): Counter,
        ("_codecs", "encode"): plain_bytes,
        ("numpy", "dtype"): Dtype,
        ("argparse", "Namespace"): Namespace,
    }
    return names
