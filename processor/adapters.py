"""Checkpoints that hold adapters, necks and heads alone, beside the file that the frozen backbone came from."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from utils.checkpoint import load_pretrained, rules_of
from utils.errors import UserError, conflict
from utils.files import sha256_of

BASE = "lora_base_sha256"
"""Name of the entry of such a checkpoint that identifies the backbone's file: its SHA-256, uint8 (32,)."""

Slim = Callable[[dict[str, Any]], dict[str, Any]]
"""From the state that a checkpoint would hold to the one that it does."""


def base_file(cfg: CfgNode) -> Path:
    """Returns the file that the frozen backbone comes from. Raises ``UserError`` if the keys name none."""
    key, path = "MODEL.LORA.SAVE 'adapters'", Path(cfg.MODEL.PRETRAIN_PATH)
    if not cfg.MODEL.LORA.RANK:
        raise conflict(key, "MODEL.LORA.RANK 0", "without adapters there is nothing to save")
    if cfg.MODEL.PRETRAIN_CHOICE != "imagenet" or not path.is_file():
        raise UserError(
            f"{key}: the frozen backbone is read from a file again, so MODEL.PRETRAIN_CHOICE 'imagenet' and "
            f"MODEL.PRETRAIN_PATH must name one; got {cfg.MODEL.PRETRAIN_CHOICE!r} and {cfg.MODEL.PRETRAIN_PATH!r}"
        )
    return path


def digest_of(path: Path) -> Tensor:
    """Returns a file's SHA-256, uint8 (32,)."""
    return torch.tensor(list(sha256_of(path)), dtype=torch.uint8)


def load_base(cfg: CfgNode, model: nn.Module) -> set[str]:
    """Loads the backbone's file and returns the names of the frozen parameters that are as the file has them."""
    path, keys = base_file(cfg), cfg.MODEL
    report = load_pretrained(model, str(path), keys.PRETRAIN_HW_RATIO, key=keys.WEIGHT_KEY, new_rows=keys.SIE_NEW_ROWS)
    target, loaded = rules_of(model).pretrained_part() or model, set(report.loaded)
    same = {id(p) for name, p in target.named_parameters() if name in loaded and not p.requires_grad}
    return {name for name, p in model.named_parameters() if id(p) in same}


def slim_checkpoints(cfg: CfgNode, model: nn.Module) -> Slim | None:
    """Returns what takes the frozen backbone out of a run's checkpoints, None unless MODEL.LORA.SAVE asks for it."""
    if cfg.MODEL.LORA.SAVE != "adapters":
        return None
    left_out, digest = load_base(cfg, model), digest_of(base_file(cfg))
    names = model.state_dict().keys()

    def slim(state: dict[str, Any]) -> dict[str, Any]:
        if state.keys() != names:  # of another network of the method
            return state
        return {name: value for name, value in state.items() if name not in left_out} | {BASE: digest}

    return slim


def with_base(cfg: CfgNode, model: nn.Module, state: dict[str, Tensor], source: str) -> dict[str, Tensor]:
    """Returns the whole state of a checkpoint of adapters, from the backbone's file and what it holds itself.

    source: its name in messages. Raises ``UserError`` if the configuration names no such file, or another one.
    """
    if not torch.equal(state[BASE], digest_of(base_file(cfg))):
        raise UserError(
            f"{source}: its adapters were trained beside another file than MODEL.PRETRAIN_PATH "
            f"{cfg.MODEL.PRETRAIN_PATH!r} (their SHA-256 differ); name the one that the training read"
        )
    load_base(cfg, model)
    return {**model.state_dict(), **{name: value for name, value in state.items() if name != BASE}}
