"""The tensors of a TorchScript archive, read without the interpreter.

``torch.jit.load`` runs code that the archive brings (``__setstate__`` of its classes), so it is never used on a file of
somebody else. The tensors need none of it: ``data.pkl`` holds the tree of modules as plain attributes, ``data/N`` the
bytes of storage N.
"""

from __future__ import annotations

import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from utils.errors import UserError, reason_of
from utils.safe_pickle import UnsafePickle, load_restricted
from utils.safe_zip import open_archive
from utils.torch_pickle import LARGEST_PICKLE, STORAGES, check_bounds

MOST_NAMES = 100_000
"""Modules and tensors of a network, a shared one counted under each of its names: a few lines can share 2**40 times."""
DEEPEST = 1_000
"""Modules within modules."""


class Module:
    """An object of the archive: its attributes, none of its code."""

    attributes: dict[str, Any]

    def __new__(cls, *args: Any) -> Module:
        module = super().__new__(cls)  # a pickle may build an object without calling __init__ or giving it a state
        module.attributes = {}
        return module

    def __init__(self, *args: Any):
        """Takes whatever the archive calls its classes with."""

    def __setstate__(self, state: Any) -> None:
        self.attributes = state if isinstance(state, dict) else {}


class _Names(dict):
    """The table of names: torch's own for tensors and lists, and every class of the archive's as a ``Module``."""

    def __contains__(self, key: object) -> bool:
        return super().__contains__(key) or (isinstance(key, tuple) and str(key[0]).split(".")[0] == "__torch__")

    def __missing__(self, key: tuple[str, str]) -> type[Module]:
        return Module


def read_torchscript(path: str | Path) -> dict[str, Tensor]:
    """Returns dotted name -> tensor of all modules of an archive, on the CPU.

    Raises ``UserError`` where the file is not such an archive, is damaged, or declares sizes that it does not have.
    """
    try:
        with open_archive(path) as archive:
            return _read(archive, Path(path).stat().st_size)
    except UnsafePickle as error:
        raise UserError(f"{path}: not a readable TorchScript archive: {error}") from None
    except (OSError, zipfile.BadZipFile, KeyError, NotImplementedError, RuntimeError) as error:
        raise UserError(f"{path}: not a readable TorchScript archive ({reason_of(error)})") from None


def is_torchscript(path: str | Path) -> bool:
    """Whether a file is a zip archive with TorchScript's constants beside its data."""
    try:
        with open_archive(path) as archive:
            names = archive.namelist()
    except (OSError, zipfile.BadZipFile):
        return False
    return any(name.endswith("/constants.pkl") for name in names) and any(name.endswith("/data.pkl") for name in names)


def _read(archive: zipfile.ZipFile, size: int) -> dict[str, Tensor]:
    entries = {info.filename: info for info in archive.infolist()}
    pickles = [name for name in entries if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1 or len(entries) < len(archive.infolist()):
        raise UnsafePickle("it has no data.pkl of one module, or two entries of one name")
    pickled = pickles[0]
    if entries[pickled].file_size > LARGEST_PICKLE:
        raise UnsafePickle(f"its pickle has more than {LARGEST_PICKLE:,} bytes")
    home = pickled.rpartition("/")[0]
    read = [info for name, info in entries.items() if name == pickled or name.startswith(f"{home}/data/")]
    if sum(info.file_size for info in read) > size or any(info.compress_type for info in read):
        raise UnsafePickle("its data are compressed or larger than the file")  # torch.jit.save compresses code only
    storages: dict[str, Tensor] = {}

    def storage_of(pid: Any) -> Tensor:
        if not (isinstance(pid, tuple) and len(pid) == 5 and pid[0] == "storage" and isinstance(pid[1], torch.dtype)):
            raise UnsafePickle("it refers to data outside itself")
        key, dtype, numel = str(pid[2]), pid[1], pid[4]
        name = f"{home}/data/{key}"
        if name not in entries or not key.isalnum() or not isinstance(numel, int):
            raise UnsafePickle("it refers to a storage that it does not have")
        if key not in storages:
            raw = bytearray(archive.read(name))
            if len(raw) % dtype.itemsize or len(raw) // dtype.itemsize < numel:
                raise UnsafePickle(f"storage {key} has {len(raw)} bytes for {numel} numbers of {dtype}")
            storages[key] = torch.frombuffer(raw, dtype=dtype) if raw else torch.empty(0, dtype=dtype)
        if storages[key].dtype != dtype:
            raise UnsafePickle(f"storage {key} is of two types")
        return storages[key]

    def rebuild_tensor(storage: Any, offset: Any, shape: Any, stride: Any, *ignored: Any) -> Tensor:
        if not isinstance(storage, Tensor):
            raise UnsafePickle("a tensor has no storage")
        check_bounds(storage.numel(), offset, shape, stride)
        return storage.as_strided(shape, stride, offset)

    def first(value: Any, *ignored: Any) -> Any:
        return value

    names = _Names({("torch", kind): dtype for kind, dtype in STORAGES.items()})
    names |= {
        ("torch._utils", "_rebuild_tensor_v2"): rebuild_tensor,
        ("torch._utils", "_rebuild_parameter"): first,
        ("collections", "OrderedDict"): OrderedDict,
        ("torch.jit._pickle", "restore_type_tag"): first,
        **{("torch.jit._pickle", f"build_{kind}list"): first for kind in ("int", "double", "bool", "tensor")},
    }
    root = load_restricted(archive.read(pickled), names, storage_of)
    if not isinstance(root, Module):
        raise UnsafePickle("it holds no module")
    return tensors_of(root)


def tensors_of(root: Module) -> dict[str, Tensor]:
    """Returns dotted name -> tensor of a tree of modules. A module that is shared gives its tensors under each name."""
    tensors: dict[str, Tensor] = {}
    names, waiting = 0, [("", root, frozenset[int]())]
    while waiting:
        prefix, module, above = waiting.pop()
        if id(module) in above:
            raise UnsafePickle("a module contains itself")
        if len(above) > DEEPEST:
            raise UnsafePickle(f"it has more than {DEEPEST:,} modules within one another")
        for name, value in module.attributes.items():
            names += 1
            if names > MOST_NAMES:
                raise UnsafePickle(f"its modules and tensors have more than {MOST_NAMES:,} names")
            if not isinstance(name, str):
                raise UnsafePickle("an attribute of a module has no name")
            if isinstance(value, Tensor):
                tensors[f"{prefix}{name}"] = value
            elif isinstance(value, Module):
                waiting.append((f"{prefix}{name}.", value, above | {id(module)}))
    return tensors
