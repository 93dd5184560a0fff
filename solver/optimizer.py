"""Optimizers and their parameter groups."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from solver.lars import LARS
from utils.errors import UserError, nearest

PROMPTS, LANGUAGE_HEAD = ("prompt_learner.",), ("text_mlp.",)
TEXT_SIDE = ("text_encoder.", *PROMPTS, *LANGUAGE_HEAD)
"""Prefixes of the parameters that the second stage of the prompt method does not train."""


def parameter_groups(
    module: nn.Module,
    base_lr: float,
    weight_decay: float,
    bias_lr_factor: float = 1.0,
    weight_decay_bias: float | None = None,
    large_fc_lr: bool = False,
    trained: Callable[[str], bool] = lambda name: True,
    decay_vectors: bool = True,
) -> list[dict]:
    """Returns groups of trainable parameters with one rate and decay each, by the rules of the TransReID family.

    Names with ``bias`` learn at ``base_lr * bias_lr_factor`` and decay by ``weight_decay_bias``; with ``large_fc_lr``
    names with ``classifier`` or ``arcface`` learn at twice ``base_lr``. Position embeddings, tokens and norms decay;
    decay_vectors: False exempts all one-dimensional parameters, as in ImageNet training. trained: whether a parameter
    is trained, by its name.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not (parameter.requires_grad and trained(name)):
            continue
        lr, decay = base_lr, weight_decay
        if "bias" in name:
            lr = base_lr * bias_lr_factor
            decay = weight_decay if weight_decay_bias is None else weight_decay_bias
        if parameter.dim() <= 1 and not decay_vectors:
            decay = 0.0
        if large_fc_lr and ("classifier" in name or "arcface" in name):
            lr = 2 * base_lr
        groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def matrices_and_vectors(module: nn.Module, weight_decay: float) -> list[dict]:
    """Returns two groups of trainable parameters: those that decay, and biases and other vectors, which do not.

    Tokens and position embeddings are in the first.
    """
    groups: tuple[list, list] = [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups[parameter.dim() == 1 or name.endswith(".bias")].append(parameter)
    return [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]


def build_optimizer(
    name: str,
    groups: list[dict],
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    key: str = "SOLVER.OPTIMIZER_NAME",
) -> Optimizer:
    """Returns the optimizer of ``torch.optim`` with this name, or LARS, by its own defaults.

    momentum, nesterov: for SGD. betas: for Adam and AdamW. key: names the choice in messages.
    """
    kinds: dict[str, Callable[..., Optimizer]] = {
        n: v for n, v in vars(torch.optim).items() if isinstance(v, type) and issubclass(v, Optimizer)
    }
    kinds["LARS"] = LARS
    for unfit in ("Optimizer", "LBFGS", "SparseAdam"):  # not one step per gradient, not for dense gradients
        del kinds[unfit]
    if name not in kinds:
        raise UserError(f"{key}: unknown {name!r}{nearest(name, kinds)} Known: the optimizers of torch.optim, and LARS")
    options: dict[str, Any] = {"momentum": momentum, "nesterov": nesterov} if name == "SGD" else {}
    if name in ("Adam", "AdamW"):
        options = {"betas": tuple(betas)}
    try:
        return kinds[name](groups, lr=lr, **options)
    except ValueError as error:
        raise UserError(f"{key}: {name} refuses its settings: {error}") from None


def make_optimizer(cfg: CfgNode, module: nn.Module, stage: int | None = None) -> Optimizer:
    """Returns the optimizer of ``module``'s trainable parameters.

    stage: 1 or 2 of the prompt method, None for others. Stage 1 trains the prompts alone (and the language head with
    ``SOLVER.STAGE1.TRAIN_HEAD``), stage 2 all but the text side.
    """
    nesterov, betas = cfg.SOLVER.NESTEROV, cfg.SOLVER.ADAM_BETAS
    first, solver = cfg.SOLVER.STAGE1, cfg.SOLVER.STAGE2 if stage == 2 else cfg.SOLVER
    if stage == 1:
        prefixes = PROMPTS + (LANGUAGE_HEAD if first.TRAIN_HEAD else ())
        groups = parameter_groups(
            module, first.BASE_LR, first.WEIGHT_DECAY, trained=lambda name: name.startswith(prefixes)
        )
        key = "SOLVER.STAGE1.OPTIMIZER_NAME"
        return build_optimizer(first.OPTIMIZER_NAME, groups, first.BASE_LR, first.MOMENTUM, nesterov, betas, key)
    groups = parameter_groups(
        module,
        solver.BASE_LR,
        solver.WEIGHT_DECAY,
        solver.BIAS_LR_FACTOR,
        solver.WEIGHT_DECAY_BIAS,
        solver.LARGE_FC_LR,
        trained=lambda name: stage is None or not name.startswith(TEXT_SIDE),
        decay_vectors=cfg.SOLVER.DECAY_VECTORS,
    )
    key = f"SOLVER.{'STAGE2.' if stage else ''}OPTIMIZER_NAME"
    return build_optimizer(solver.OPTIMIZER_NAME, groups, solver.BASE_LR, solver.MOMENTUM, nesterov, betas, key)
