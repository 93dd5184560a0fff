"""Files of weights: read without running code from them, compared with their checksums, written whole or not at all."""

from __future__ import annotations

import argparse
import hashlib
import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from utils.errors import UserError, reason_of
from utils.files import write_atomically
from utils.safe_pickle import UnsafePickle, load_restricted
from utils.safe_zip import check_archive, is_archive
from utils.torch_pickle import LARGEST_PICKLE, check_archive_pickle, check_legacy_pickles, is_legacy
from utils.torchscript import is_torchscript, read_torchscript

DIGEST = "sha256"
"""Name of the checksum in the metadata of our safetensors, whose format has none. Zip archives bring their own."""


def read_state(path: str | Path) -> dict[str, Any]:
    """Returns the mapping that a checkpoint file holds, on the CPU, without running code from the file.

    Reads ``torch.save`` files (weights only, with the NumPy scalars of torchreid's files), TorchScript archives (their
    state) and safetensors. Raises ``UserError`` for a missing, damaged or unsafe file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    if path.suffix == ".safetensors":
        return dict(read_tensors(path))
    check_archive(path)
    if is_torchscript(path):
        return dict(read_torchscript(path))
    refuse_unsafe(path)
    try:
        with torch.serialization.safe_globals(_allowed_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own about a pickle's protocol, before it refuses the file
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch and zipfile raise many kinds for a damaged file
        raise unreadable(path, type(error).__name__) from None
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: not a checkpoint: it holds a {type(state).__name__}, not named tensors")
    return dict(state)


def refuse_unsafe(path: Path) -> None:
    """Raises ``UserError`` for a file that ``torch.save`` did not write, or whose pickle is not a checkpoint's."""
    try:
        if is_archive(path):
            check_archive_pickle(path)
        elif is_legacy(path):
            check_legacy_pickles(path)
        else:
            raise foreign(path)
    except UnsafePickle as error:
        if error.asked:
            raise runs_code(path, error.asked) from None
        raise unreadable(path, str(error)) from None


def foreign(path: Path) -> UserError:
    """Returns the error for a file that is neither an archive nor of torch's older format."""
    with open(path, "rb") as handle:
        if handle.read(1) != pickle.PROTO:
            return unreadable(path)
        handle.seek(0)
        raw = handle.read(min(path.stat().st_size, LARGEST_PICKLE))
    try:
        load_restricted(raw, {})
    except UnsafePickle as error:
        return runs_code(path, error.asked) if error.asked else unreadable(path)
    return runs_code(path, "a bare pickle")


def runs_code(path: Path, what: str) -> UserError:
    return UserError(f"{path}: refused: the file may ask to run code ({what}); only tensors and plain values are read")


def unreadable(path: Path, reason: str = "") -> UserError:
    why = f" ({reason})" if reason else ""
    return UserError(f"{path}: not a readable checkpoint: damaged, or not written by torch.save or safetensors{why}")


def _allowed_globals() -> list:
    """Returns what published files hold beside weights: NumPy scalars (torchreid's epoch, rank1), DINO's arguments."""
    scalar = np.float64(0).__reduce__()[0]  # its module has another name in NumPy 1 and 2
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return [(scalar, "numpy.core.multiarray.scalar"), scalar, np.dtype, *kinds, argparse.Namespace]


# ---------------------------------------------------------------- safetensors


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Returns the tensors of a safetensors file, compared with their digest if the file has one."""
    from safetensors import safe_open

    try:
        with safe_open(path, framework="pt") as file:
            expected = (file.metadata() or {}).get(DIGEST)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except Exception as error:  # noqa: BLE001 - the library raises many kinds for a damaged file
        raise unreadable(path, f"{type(error).__name__}: {reason_of(error)}") from None
    if expected is not None and expected != digest_of(tensors):
        raise UserError(f"{path}: damaged: the checksum of its tensors differs; copy it again")
    return tensors


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Writes a safetensors file with a digest, the whole file or nothing."""
    from safetensors.torch import save

    whole = {name: value.detach().cpu().contiguous() for name, value in tensors.items()}
    raw = save(whole, metadata={"format": "pt", DIGEST: digest_of(whole)})
    write_atomically(path, lambda handle: handle.write(raw))


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Returns the SHA-256 of names, types, shapes and numbers, in the order of the names."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = tensors[name]
        total.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
        total.update(value.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()


# ---------------------------------------------------------------- writing


def save_atomically(value: Any, path: str | Path) -> None:
    """Writes ``value`` by ``torch.save``, the whole file or nothing. Raises ``UserError`` if the disk refuses."""
    write_atomically(path, lambda handle: torch.save(value, handle))
