"""Reading and writing weights: ours and published ones, without running code from a file and never half-written."""

from __future__ import annotations

import argparse
import math
import pickle
import re
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError
from utils.files import write_atomically

WRAPPERS = ("model", "state_dict", "teacher")
"""Keys under which published files hold their weights; opened one after the other."""

POSITIONS = ("pos_embed", "positional_embedding")
"""Last part of the name of a position embedding over a grid of patches."""


COMPUTED = (".relative_position_index", ".attn_mask")
"""Ends of the names of what Swin's files hold and every model computes for itself."""


@dataclass
class LoadReport:
    """What became of every key of a checkpoint and of every parameter of the model.

    settings: keys and values with which the model would fit the file, where that is known and it does not.
    """

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    source: str = "the state dict"
    settings: str = ""

    def __str__(self) -> str:
        words = [f"{len(self.loaded)} tensors loaded from {self.source}"]
        for name in ("resized", "mismatched", "missing", "unexpected"):
            keys = getattr(self, name)
            if keys:
                words.append(f"{len(keys)} {name} ({', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''})")
        return "; ".join(words)

    def refusal(self) -> str:
        """Returns how a line on an unfit file ends: what it is, and what to set if that is known."""
        return "this checkpoint is of another model or setting" + (f": set {self.settings}" if self.settings else "")


def read_state(path: str | Path) -> dict[str, Any]:
    """Whatever mapping a checkpoint file holds, on the CPU. Runs no code from the file.

    Reads ``torch.save`` files (weights only, with the NumPy scalars of torchreid's files), TorchScript archives (their
    state) and safetensors. Raises ``UserError`` for a missing, damaged or unsafe file.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such checkpoint file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        with torch.serialization.safe_globals(_allowed_globals()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own about a pickle's protocol, before it refuses the file
            state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001 - torch, zipfile and safetensors raise many kinds for a damaged file
        return _read_archive(path, error)
    if not isinstance(state, Mapping):
        raise UserError(f"{path}: not a checkpoint: it holds a {type(state).__name__}, not named tensors")
    return dict(state)


def _allowed_globals() -> list:
    """What published files hold beside their weights: NumPy scalars (torchreid's epoch, rank1), DINO's arguments."""
    scalar = np._core.multiarray.scalar if hasattr(np, "_core") else np.core.multiarray.scalar
    kinds = {type(np.dtype(code)) for code in "?bBhHiIlLqQefd"}
    return [(scalar, "numpy.core.multiarray.scalar"), scalar, np.dtype, *kinds, argparse.Namespace]


def _read_archive(path: Path, error: Exception) -> dict[str, Any]:
    """The state of a TorchScript archive; for any other file, the reason why it cannot be read."""
    with suppress(Exception), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch calls its own format deprecated
        return dict(torch.jit.load(str(path), map_location="cpu").state_dict())
    text = " ".join(str(error).split())
    unpickling = isinstance(error, pickle.UnpicklingError)
    refused = re.search(r"[Uu]nsupported (?:global: )?GLOBAL (\S+)", text)
    with open(path, "rb") as handle:
        pickled = handle.read(1) == pickle.PROTO
    if refused or (unpickling and pickled):
        what = refused[1] if refused else "a bare pickle"
        raise UserError(
            f"{path}: refused: the file may ask to run code ({what}); only tensors and plain values are read"
        ) from None
    reason = "" if unpickling else f" ({type(error).__name__}: {text[:120]})"
    raise UserError(
        f"{path}: not a readable checkpoint: damaged, or no file of torch.save or safetensors{reason}"
    ) from None


def unwrap(state: Mapping[str, Any], whole: bool = False) -> dict[str, Tensor]:
    """The named tensors inside a published file: wrappers opened, ``module.`` and ``backbone.`` taken off.

    Where some names start with ``backbone.``, the others (DINO's head) are left out, unless ``whole``: then all keep
    their names.
    """
    for _ in range(len(WRAPPERS)):
        inner = next((state[w] for w in WRAPPERS if isinstance(state.get(w), Mapping)), None)
        if inner is None:
            break
        state = inner
    tensors = {k: v for k, v in state.items() if isinstance(v, Tensor)}
    for prefix in ("module.", "_orig_mod."):
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    backbone = {k.removeprefix("backbone."): v for k, v in tensors.items() if k.startswith("backbone.")}
    return tensors if whole else backbone or tensors


def as_tensors(source: str | Path | Mapping[str, Any], whole: bool = False) -> tuple[dict[str, Tensor], str]:
    """Named tensors from a path or a state dict (NumPy arrays welcome), and what to call them in a message.

    whole: see ``unwrap``.
    """
    if isinstance(source, str | Path):
        return unwrap(read_state(source), whole), str(source)
    state = {k: torch.as_tensor(v) if isinstance(v, np.ndarray) else v for k, v in source.items()}
    return unwrap(state, whole), "the state dict"


def backbone_state(source: str | Path | Mapping[str, Any]) -> dict[str, Tensor]:
    """The teacher's backbone of a DINO checkpoint under bare names: what the published pre-trained files hold.

    source: a path, a checkpoint, or the state of a network of backbone and head. Raises ``UserError`` where none of its
    tensors is a backbone's.
    """
    state, name = as_tensors(source, whole=True)
    found = {key.removeprefix("backbone."): value for key, value in state.items() if key.startswith("backbone.")}
    if not found:
        raise UserError(f"{name}: no tensor's name starts with 'backbone.' (found {', '.join(list(state)[:3])}, ...)")
    return found


def resize_positions(old: Tensor, grid: tuple[int, int], hw_ratio: int = 1) -> Tensor:
    """Position embeddings of another grid, bilinear, corners not aligned, no antialiasing.

    (1, 1 + n, D) -> (1, 1 + N, D). The first token is kept. The old grid has ``int(sqrt(n * hw_ratio))`` rows; equal
    lengths are left alone even if the grids differ in shape, as published.
    """
    new_length = grid[0] * grid[1]
    if old.shape[1] == 1 + new_length:
        return old
    count = old.shape[1] - 1
    rows, columns = _grid(count, hw_ratio)
    if rows * columns != count:
        raise UserError(
            f"position embeddings for {count} patches are no grid at MODEL.PRETRAIN_HW_RATIO {hw_ratio} "
            f"({rows} x {columns}); set the ratio of height to width that the weights were trained at"
        )
    patches = old[:, 1:].reshape(1, rows, columns, -1).permute(0, 3, 1, 2).float()
    patches = F.interpolate(patches, size=grid, mode="bilinear", align_corners=False)
    return torch.cat([old[:, :1], patches.flatten(2).transpose(1, 2).to(old.dtype)], dim=1)


def drop_distillation_token(state: dict[str, Tensor], target: nn.Module, hw_ratio: int = 1) -> dict[str, Tensor]:
    """DeiT's distilled files have a second token before the grid: known by ``dist_token``, or by a count n + 2.

    By the count only where the tokens are no grid without it: neither the target's own nor one of ``hw_ratio``.
    """
    out, own = dict(state), target.state_dict()
    named = any(key.endswith("dist_token") for key in state.keys() - own.keys())
    for key, value in state.items():
        if key.rpartition(".")[2] != "pos_embed" or value.dim() != 3:
            continue
        count = value.shape[1] - 1
        fits = (key in own and value.shape == own[key].shape) or math.prod(_grid(count, hw_ratio)) == count
        if named or (not fits and math.isqrt(count - 1) ** 2 == count - 1):
            out[key] = torch.cat([value[:, :1], value[:, 2:]], dim=1)
    return out


def _grid(count: int, hw_ratio: int) -> tuple[int, int]:
    """Rows and columns of ``count`` patches of images ``hw_ratio`` times as high as wide."""
    rows = int((count * hw_ratio) ** 0.5)
    return rows, rows // hw_ratio


def _copy(
    target: nn.Module, state: dict[str, Tensor], report: LoadReport, hw_ratio: int, may_differ: Callable[[str], bool]
) -> None:
    """Fits ``state`` onto ``target``'s names and shapes and copies what fits, telling the report about the rest."""
    own = target.state_dict()
    fitting: dict[str, Tensor] = {}
    for key, value in state.items():
        if key not in own:
            if not key.endswith(COMPUTED):
                report.unexpected.append(key)
            continue
        wanted = own[key].shape
        if value.shape != wanted and value.numel() == own[key].numel() and value.dim() == 2 and len(wanted) == 4:
            value = value.reshape(wanted)  # old exports hold patch weights flattened
        grid = _grid_of(target, key) if value.shape != wanted and value.dim() == len(wanted) else None
        if grid is not None:
            rows = value if value.dim() == 3 else value[None]  # CLIP's have no leading 1
            rows = resize_positions(rows, grid, hw_ratio)
            value = rows if value.dim() == 3 else rows[0]
            report.resized.append(key)
        if value.shape != wanted:
            report.mismatched.append(f"{key} {tuple(value.shape)} for {tuple(wanted)}")
            if not may_differ(key):
                raise UserError(
                    f"{report.source}: {key} has shape {tuple(value.shape)}, the model's is {tuple(wanted)}: "
                    f"{report.refusal()}"
                )
            continue
        fitting[key] = value
    report.loaded = list(fitting)
    report.missing = [k for k in own if k not in fitting and not k.endswith("num_batches_tracked")]
    if not fitting:
        raise UserError(
            f"{report.source}: no tensor fits the model (found {', '.join(list(state)[:3]) or 'none'}, ...)"
        )
    target.load_state_dict(fitting, strict=False)


def _grid_of(module: nn.Module, key: str) -> tuple[int, int] | None:
    """The patch grid of the sub-module that owns the position embedding ``key``; None when it is none of a grid."""
    path, _, leaf = key.rpartition(".")
    if leaf not in POSITIONS:
        return None
    owner = module.get_submodule(path)
    grid = getattr(owner, "grid", None)  # ours; timm's have it in the patch embedding, text towers have none
    return grid if grid is not None else getattr(getattr(owner, "patch_embed", None), "grid_size", None)


def load_weights(module: nn.Module, source: str | Path | Mapping[str, Any], hw_ratio: int = 1) -> LoadReport:
    """Loads a whole ReID model, ours or a published one.

    source: a path or a state dict. The model's ``published_state`` maps published names to ours. Parameters under
    the model's ``optional_keys`` (classifiers, for another number of identities) may differ or be missing. Raises
    ``UserError`` when the file cannot be read, nothing fits, or another shape is found where it matters.
    """
    state, name = as_tensors(source, whole=hasattr(module, "backbone"))
    original = state
    if hasattr(module, "published_state"):
        state = module.published_state(state)
    report = LoadReport(source=name)
    if hasattr(module, "settings_for"):
        report.settings = module.settings_for(state)
    optional = tuple(getattr(module, "optional_keys", ()))
    _copy(
        module,
        drop_distillation_token(state, module, hw_ratio),
        report,
        hw_ratio,
        lambda key: key.startswith(optional) if optional else False,
    )
    kept = {id(value) for value in state.values()}  # under our names
    report.unexpected += sorted(key for key, value in original.items() if id(value) not in kept)
    return report


def require_complete(module: nn.Module, report: LoadReport) -> None:
    """Raises ``UserError`` when a parameter that retrieval needs was not in the file."""
    optional = tuple(getattr(module, "optional_keys", ()))
    needed = [k for k in report.missing if not (optional and k.startswith(optional))]
    if needed:
        raise UserError(
            f"{report.source}: {len(needed)} of the model's tensors are not in it ({', '.join(needed[:3])}, ...): "
            f"{report.refusal()}"
        )


def load_pretrained(module: nn.Module, path: str | Path | Mapping[str, Any], hw_ratio: int = 1) -> LoadReport:
    """Loads backbone weights from elsewhere (ImageNet, DINO, a LUPerson file) into ``module.base`` or ``.backbone``.

    Heads of the source are skipped; position embeddings are resized (``resize_positions``). hw_ratio: height over width
    of the images that the weights were trained on. A distillation token is dropped. The model's ``pretrained_state``
    maps foreign names to its own; what starts as its ``needed_of_pretrained`` must be there. Raises as
    ``load_weights``.
    """
    state, name = as_tensors(path)
    base = getattr(module, "base", None) or getattr(module, "backbone", module)
    target = getattr(base, "net", base)
    if hasattr(module, "pretrained_state"):
        try:
            state = module.pretrained_state(state)
        except UserError as error:
            raise UserError(f"{name}: {error}") from None
    if any(key.startswith("base.") for key in state):  # a whole ReID model serves as a backbone file too
        state = {key.removeprefix("base."): value for key, value in state.items() if key.startswith("base.")}
    if target is not module and hasattr(target, "pretrained_state"):
        state = target.pretrained_state(state)
    state = drop_distillation_token(state, target, hw_ratio)
    report = LoadReport(source=name)
    skipped = [k for k in state if k not in target.state_dict() and _is_head(k)]
    if len(skipped) == len(state):
        raise UserError(f"{name}: holds no backbone ({', '.join(skipped[:3]) or 'no tensor'}, ...)")
    _copy(target, {k: v for k, v in state.items() if k not in skipped}, report, hw_ratio, lambda key: False)
    report.unexpected += skipped
    lacking = [key for key in report.missing if key.startswith(getattr(module, "needed_of_pretrained", ()))]
    if lacking:
        raise UserError(
            f"{name}: {len(lacking)} of the backbone's tensors are not in it ({', '.join(lacking[:3])}, ...): this "
            "file is of another network"
        )
    if hasattr(module, "sync_copies"):
        module.sync_copies()
    return report


def _is_head(key: str) -> bool:
    return any(word in key for word in ("head", "pre_logits", "dist_token")) or key.startswith("fc.")


def save_atomically(value: Any, path: str | Path) -> None:
    """``torch.save`` that writes the whole file or nothing. Raises ``UserError`` when the disk refuses."""
    write_atomically(path, lambda handle: torch.save(value, handle))
