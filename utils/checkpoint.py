"""How files of weights, ours and published ones, fit a network: names, shapes, and a report of what became of them."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from utils.errors import UserError, one_line
from utils.side_tables import WITHOUT_SIDES, is_side_table, side_settings, with_new_rows
from utils.weight_families import other_family
from utils.weight_files import read_state
from utils.wrappers import open_wrappers, without_prefix

log = logging.getLogger("lineup")

WeightSource = str | Path | Mapping[str, Any]
"""A checkpoint file, or what it holds."""

COMPUTED = (".relative_position_index", ".attn_mask")
"""Ends of the names of buffers that Swin's files hold and every model computes itself."""


class WeightRules:
    """How files of weights fit a module. Networks and backbones inherit these defaults and override what differs.

    ``rules_of`` gives the defaults to every other module (a library's, a user's own): its names are those of the file
    and none of its tensors is optional.
    """

    optional_keys: tuple[str, ...] = ()
    """Prefixes of the parameters that retrieval does without, such as classifiers."""

    needed_of_pretrained: tuple[str, ...] = ()
    """Prefixes of the parameters that a pre-trained file must bring."""

    keeps_backbone_prefix: bool = False
    """Whether the module's own names start with ``backbone.``, so that a file's do not lose it."""

    def published_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the state of a published file under the module's names."""
        return state

    def pretrained_state(self, state: dict[str, Tensor]) -> dict[str, Tensor]:
        """Returns the state of a pre-trained backbone under the names of ``pretrained_part``."""
        return state

    def pretrained_part(self) -> nn.Module | None:
        """Returns the sub-module that takes pre-trained weights; None for the whole module."""
        return None

    def position_grids(self) -> dict[str, tuple[int, int]]:
        """Returns the (rows, columns) of every position embedding over patches, by its name in this module.

        Sub-modules answer for themselves.
        """
        return {}

    def settings_for(self, state: dict[str, Tensor]) -> str:
        """Returns the keys and values that would make the model fit a file, as on a command line; '' if unknown."""
        return ""

    def sync_copies(self) -> None:
        """Sets what starts from other weights of the module (copied stages, margins); called after pre-training."""


def rules_of(module: nn.Module) -> WeightRules:
    """Returns the module's own rules, or the defaults for a module that has none."""
    return module if isinstance(module, WeightRules) else WeightRules()


@dataclass
class LoadReport:
    """What became of every key of a checkpoint and of every parameter of the model.

    settings: keys and values with which the model would fit the file, where that is known and it does not. optional:
    prefixes of the parameters that retrieval does without. family: what the file is, if it is another network's.
    """

    loaded: list[str] = field(default_factory=list)
    resized: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)
    mismatched: list[str] = field(default_factory=list)
    source: str = "the state dict"
    settings: str = ""
    optional: tuple[str, ...] = ()
    family: str = ""

    def __str__(self) -> str:
        misshaped = {text.split(" ")[0] for text in self.mismatched}
        missing = [key for key in self.missing if key not in misshaped]
        words = [f"{len(self.loaded)} tensors loaded from {self.source}"]
        for name, keys in (
            ("resized to this model's grid of patches", self.resized),
            ("mismatched, as expected with other identities: a test does without", self._without(self.mismatched)),
            ("mismatched", self._needed(self.mismatched)),
            ("missing, which retrieval does without", self._without(missing)),
            ("missing", self._needed(missing)),
            ("unexpected", self.unexpected),
        ):
            if keys:
                words.append(f"{len(keys)} {name} ({', '.join(keys[:4])}{', ...' if len(keys) > 4 else ''})")
        return one_line("; ".join(words))

    def _without(self, keys: list[str]) -> list[str]:
        return [key for key in keys if key.startswith(self.optional)]

    def _needed(self, keys: list[str]) -> list[str]:
        return [key for key in keys if not key.startswith(self.optional)]

    def refusal(self) -> str:
        """Returns how a line on an unfit file ends: what it is, and what to set if that is known."""
        hint = self.family or (f"set {self.settings}" if self.settings else "")
        return "this checkpoint is of another model or setting" + (f": {hint}" if hint else "")


# ---------------------------------------------------------------- names and shapes


def unwrap(
    state: Mapping[str, Any], whole: bool = False, key: str = "", name: str = "the state dict"
) -> dict[str, Tensor]:
    """Returns the named tensors inside a published file, without wrappers, ``module.`` and ``backbone.``.

    If some names start with ``backbone.``, the others (DINO's head) are left out, unless ``whole``: then all keep
    their names. key, name: see ``open_wrappers``.
    """
    inner = open_wrappers(state, key, name)
    tensors = {str(k): v for k, v in inner.items() if isinstance(v, Tensor)}
    for prefix in ("module.", "_orig_mod."):
        tensors = {k.removeprefix(prefix): v for k, v in tensors.items()}
    backbone = _below("backbone.", tensors)
    return tensors if whole else backbone or tensors


def as_tensors(source: WeightSource, whole: bool = False, key: str = "") -> tuple[dict[str, Tensor], str]:
    """Returns the named tensors of a path or a state dict (which may hold NumPy arrays), and its name for messages.

    whole, key: see ``unwrap``.
    """
    if isinstance(source, str | Path):
        return unwrap(read_state(source), whole, key, str(source)), str(source)
    state = {k: torch.as_tensor(v) if isinstance(v, np.ndarray) else v for k, v in source.items()}
    return unwrap(state, whole, key), "the state dict"


def backbone_state(source: WeightSource) -> dict[str, Tensor]:
    """Returns the backbone of a DINO checkpoint's teacher under bare names, as the published pre-trained files hold it.

    source: a path, a checkpoint, or the state of a network of backbone and head. Raises ``UserError`` if none of its
    tensors is a backbone's.
    """
    state, name = as_tensors(source, whole=True)
    backbone = _below("backbone.", state)
    if not backbone:
        raise UserError(f"{name}: no tensor's name starts with 'backbone.' (it has {', '.join(list(state)[:3])}, ...)")
    return backbone


def _below(prefix: str, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the entries whose name starts with ``prefix``, without it."""
    return {key.removeprefix(prefix): value for key, value in state.items() if key.startswith(prefix)}


def resize_positions(old: Tensor, grid: tuple[int, int], hw_ratio: int = 1, prefix: int = 1) -> Tensor:
    """Returns position embeddings resized to another grid: bilinear, corners not aligned, no antialiasing.

    (1, prefix + n, D) -> (1, prefix + N, D). The first ``prefix`` tokens are kept. The old grid has
    ``int(sqrt(n * hw_ratio))`` rows; equal lengths are left alone even if the grids differ in shape, as published.
    """
    new_length = grid[0] * grid[1]
    if old.shape[1] == prefix + new_length:
        return old
    count = old.shape[1] - prefix
    rows, columns = _grid(count, hw_ratio)
    if rows * columns != count:
        raise UserError(
            f"it has position embeddings for {count} patches, and this model {new_length} ({grid[0]} x {grid[1]}): set "
            "MODEL.STRIDE_SIZE, INPUT.SIZE_TRAIN and INPUT.SIZE_TEST to those of its training; to have them resized "
            f"instead, set MODEL.PRETRAIN_HW_RATIO to the height over width of its grid ({count} patches form none at "
            f"MODEL.PRETRAIN_HW_RATIO {hw_ratio})"
        )
    patches = old[:, prefix:].reshape(1, rows, columns, -1).permute(0, 3, 1, 2).float()
    patches = F.interpolate(patches, size=grid, mode="bilinear", align_corners=False)
    return torch.cat([old[:, :prefix], patches.flatten(2).transpose(1, 2).to(old.dtype)], dim=1)


def drop_distillation_token(state: dict[str, Tensor], target: nn.Module, hw_ratio: int = 1) -> dict[str, Tensor]:
    """Returns the state without the second token that DeiT's distilled files have before the grid.

    It is known by ``dist_token``, or by a count of n + 2 tokens, if they form no grid without it: neither the target's
    nor one of ``hw_ratio``.
    """
    out, target_state = dict(state), target.state_dict()
    named = any(key.endswith("dist_token") for key in state.keys() - target_state.keys())
    for key, value in state.items():
        if key.rpartition(".")[2] != "pos_embed" or value.dim() != 3:
            continue
        if f"{key.removesuffix('pos_embed')}cls_pos" in state:  # PASS's: patches alone
            continue
        count = value.shape[1] - 1
        same_shape = key in target_state and value.shape == target_state[key].shape
        fits = same_shape or math.prod(_grid(count, hw_ratio)) == count
        if named or (not fits and math.isqrt(count - 1) ** 2 == count - 1):
            out[key] = torch.cat([value[:, :1], value[:, 2:]], dim=1)
    return out


def _grid(count: int, hw_ratio: int) -> tuple[int, int]:
    """Returns rows and columns of ``count`` patches of images ``hw_ratio`` times as high as wide."""
    rows = int((count * hw_ratio) ** 0.5)
    return rows, rows // hw_ratio


def position_grids(module: nn.Module, target: nn.Module) -> dict[str, tuple[int, int]]:
    """Returns the patch grids of all position embeddings in ``module``, by their names in its sub-module ``target``."""
    paths = {submodule: path for path, submodule in module.named_modules()}
    grids = {
        f"{path}.{name}".removeprefix("."): grid
        for submodule, path in paths.items()
        if isinstance(submodule, WeightRules)
        for name, grid in submodule.position_grids().items()
    }
    start = f"{paths[target]}." if paths[target] else ""
    return {name.removeprefix(start): grid for name, grid in grids.items() if name.startswith(start)}


def _shaped(value: Tensor, shape: torch.Size, grid: tuple[int, int] | None, hw_ratio: int) -> Tensor:
    """Returns a tensor of a file, reshaped or resized where that makes it fit ``shape``."""
    if value.numel() == math.prod(shape) and value.dim() == 2 and len(shape) == 4:
        return value.reshape(shape)  # old exports hold patch weights flattened
    if grid is None or value.dim() != len(shape):
        return value
    prefix = shape[-2] - grid[0] * grid[1]  # tokens without a place in the grid: mostly the class token
    value_rows = value if value.dim() == 3 else value[None]  # CLIP's have no leading 1
    rows = resize_positions(value_rows, grid, hw_ratio, prefix)
    return rows if value.dim() == 3 else rows[0]


# ---------------------------------------------------------------- loading


def _copy(
    target: nn.Module,
    state: dict[str, Tensor],
    report: LoadReport,
    grids: Mapping[str, tuple[int, int]],
    hw_ratio: int,
    names_in_file: Mapping[int, str],
    settings: Callable[[str, Tensor], str] = lambda key, value: "",
) -> None:
    """Copies what fits ``target``'s names and shapes and fills the report with the rest.

    grids: see ``position_grids``. names_in_file: of tensors, by their ``id``. settings: (name, tensor) -> the report's
    field of that name if a shape is refused; those of ``report.optional`` may be another.
    """
    target_state = target.state_dict()
    fitting: dict[str, Tensor] = {}
    for key, value in state.items():
        if key not in target_state:
            if not key.endswith(COMPUTED):
                report.unexpected.append(names_in_file.get(id(value), key))
            continue
        shape = target_state[key].shape
        if value.shape != shape:
            resized = key in grids and value.dim() == len(shape)
            try:
                value = _shaped(value, shape, grids.get(key), hw_ratio)
            except UserError as error:
                raise UserError(f"{report.source}: {report.family or error}") from None
            report.resized += [key] if resized else []
        if value.shape != shape:
            report.mismatched.append(f"{key} {tuple(value.shape)} for {tuple(shape)}")
            if not key.startswith(report.optional):
                report.settings = settings(key, value)
                raise UserError(
                    f"{report.source}: {key} has shape {tuple(value.shape)}, the model's is {tuple(shape)}: "
                    f"{report.refusal()}"
                )
            continue
        fitting[key] = value
    report.loaded = list(fitting)
    report.missing = [k for k in target_state if k not in fitting and not k.endswith("num_batches_tracked")]
    if not fitting:
        names = f"it has {', '.join([names_in_file.get(id(v), k) for k, v in state.items()][:3])}, ..."
        names = names if state else "it has none"
        family = f"; {report.family}" if report.family else ""
        raise UserError(f"{report.source}: no tensor fits the model ({names}){family}")
    target.load_state_dict(fitting, strict=False)


def load_weights(
    module: nn.Module, source: WeightSource, hw_ratio: int = 1, *, key: str = "", new_rows: bool = False
) -> LoadReport:
    """Loads a whole ReID model, ours or a published one, and returns what became of every tensor.

    source: a path or a state dict. The module's ``WeightRules`` map published names to ours and say which parameters
    (classifiers, for another number of identities) may differ or be missing. hw_ratio: height over width of the
    images that position embeddings were trained on. key: see ``open_wrappers``. new_rows: see ``with_new_rows``. Raises
    ``UserError`` if the file cannot be read, nothing fits, or a parameter that retrieval needs has another shape.
    """
    rules, target = rules_of(module), module.state_dict()
    original, name = as_tensors(source, rules.keeps_backbone_prefix, key)
    inner = without_prefix(original, lambda state: bool(rules.published_state(state).keys() & target.keys()))
    state, report = rules.published_state(inner), LoadReport(source=name, optional=rules.optional_keys)
    report.family = other_family(state, target)
    if new_rows:
        state = with_new_rows(state, target)
    _copy(
        module,
        drop_distillation_token(state, module, hw_ratio),
        report,
        position_grids(module, module),
        hw_ratio,
        {id(value): key for key, value in original.items()},
        settings=lambda key, value: side_settings(module, key, value) or rules.settings_for(state),
    )
    refuse_adapters(report)
    kept = {id(value) for value in state.values()}  # under our names
    report.unexpected += sorted(key for key, value in original.items() if id(value) not in kept)
    needed = needed_and_missing(module, report)
    if needed:
        sides = all(map(is_side_table, needed))
        report.settings = WITHOUT_SIDES if sides else rules.settings_for(state)
    return report


def refuse_adapters(report: LoadReport) -> None:
    """Raises ``UserError`` if the file has low-rank adapters and the model none, or the other way round.

    Without them the model would compute other features, and nothing else would tell.
    """
    if any(key.endswith("lora_up") for key in report.unexpected):
        raise UserError(f"{report.source}: it holds low-rank adapters: set MODEL.LORA.RANK and TARGETS as it had them")
    if any(key.endswith("lora_up") for key in report.missing):
        raise UserError(f"{report.source}: it has no low-rank adapters: set MODEL.LORA.RANK 0")


def needed_and_missing(module: nn.Module, report: LoadReport) -> list[str]:
    """Returns the names of the parameters that retrieval needs and the file does not have."""
    optional = rules_of(module).optional_keys
    return [key for key in report.missing if not key.startswith(optional)]


def require_complete(module: nn.Module, report: LoadReport) -> None:
    """Raises ``UserError`` if a parameter that retrieval needs was not in the file."""
    needed = needed_and_missing(module, report)
    if needed:
        raise UserError(
            f"{report.source}: {len(needed)} of the model's tensors are not in it ({', '.join(needed[:3])}, ...): "
            f"{report.refusal()}"
        )


def load_pretrained(
    module: nn.Module, path: WeightSource, hw_ratio: int = 1, *, key: str = "", new_rows: bool = False
) -> LoadReport:
    """Loads backbone weights from elsewhere (ImageNet, DINO, a LUPerson file) into the module's ``pretrained_part``.

    A whole ReID model serves as a backbone file too. Heads of the source are skipped; position embeddings are resized
    (``resize_positions``). hw_ratio: height over width of the images that the weights were trained on. A distillation
    token is dropped. The module's ``WeightRules`` map foreign names to ours and say what must be there. key, new_rows:
    as in ``load_weights``. Raises ``UserError`` as that does.
    """
    original, name = as_tensors(path, key=key)
    rules = rules_of(module)
    target = rules.pretrained_part() or module
    target_state = target.state_dict()

    def under_our_names(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return rules.pretrained_state(_below("base.", state) or state)

    def fits(state: dict[str, Tensor]) -> bool:
        try:
            return bool(under_our_names(state).keys() & target_state.keys())
        except UserError:  # the names are the network's, and something else about the file is wrong
            return True

    try:
        state = under_our_names(without_prefix(original, fits))
    except UserError as error:
        raise UserError(f"{name}: {error}") from None
    if family := other_family(state, target_state):
        raise UserError(f"{name}: {family}")
    state = drop_distillation_token(with_new_rows(state, target_state) if new_rows else state, target, hw_ratio)
    report = LoadReport(source=name)
    skipped = [k for k in state if k not in target_state and _is_head(k)]
    if len(skipped) == len(state):
        raise UserError(f"{name}: holds no backbone ({', '.join(skipped[:3]) or 'no tensor'}, ...)")
    backbone = {k: v for k, v in state.items() if k not in skipped}
    names = {id(value): key for key, value in original.items()}
    _copy(
        target,
        backbone,
        report,
        position_grids(module, target),
        hw_ratio,
        names,
        settings=lambda key, value: side_settings(module, key, value),
    )
    report.unexpected += [names.get(id(state[key]), key) for key in skipped]
    lacking = [key for key in report.missing if key.startswith(rules.needed_of_pretrained)]
    if lacking:
        raise UserError(
            f"{name}: {len(lacking)} of the backbone's tensors are not in it ({', '.join(lacking[:3])}, ...): this "
            "file is of another network"
        )
    rules.sync_copies()
    return report


def _is_head(key: str) -> bool:
    return any(word in key for word in ("head", "pre_logits", "dist_token")) or key.startswith("fc.")


def load_complete(
    module: nn.Module,
    source: WeightSource,
    hw_ratio: int = 1,
    load: Callable[..., LoadReport] = load_weights,
    key: str = "",
) -> LoadReport:
    """Loads weights, logs the report and returns it.

    load: ``load_weights`` or ``load_pretrained``. key: see ``open_wrappers``. Raises ``UserError`` as that does, and if
    a parameter that retrieval needs was not in the file.
    """
    report = load(module, source, hw_ratio, key=key)
    log.info("%s", report)
    require_complete(module, report)
    return report
