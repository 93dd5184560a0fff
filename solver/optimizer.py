"""Optimizers and their parameter groups."""

from __future__ import annotations

import torch
from torch import nn
from torch.optim import Optimizer

from utils.errors import UserError, nearest


def parameter_groups(
    module: nn.Module,
    base_lr: float,
    weight_decay: float,
    bias_lr_factor: float = 1.0,
    weight_decay_bias: float | None = None,
    large_fc_lr: bool = False,
    decay_vectors: bool = True,
) -> list[dict]:
    """Groups of trainable parameters with one rate and decay each, by the rules of the TransReID family.

    Names with ``bias`` learn at ``base_lr * bias_lr_factor`` and decay by ``weight_decay_bias``; with ``large_fc_lr``
    names with ``classifier`` or ``arcface`` learn at twice ``base_lr``. Position embeddings, tokens and norms decay;
    decay_vectors False spares all one-dimensional parameters, as ImageNet training does.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
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


def build_optimizer(
    name: str, groups: list[dict], lr: float, momentum: float = 0.9, nesterov: bool = False
) -> Optimizer:
    """The optimizer of ``torch.optim`` that ``name`` says, by its own defaults; SGD takes momentum."""
    kinds = {n: v for n, v in vars(torch.optim).items() if isinstance(v, type) and issubclass(v, Optimizer)}
    for unfit in ("Optimizer", "LBFGS", "SparseAdam"):  # not one step per gradient, not for dense gradients
        del kinds[unfit]
    if name not in kinds:
        raise UserError(f"SOLVER.OPTIMIZER_NAME: no {name!r} of torch.optim can be used{nearest(name, kinds)}")
    options = {"momentum": momentum, "nesterov": nesterov} if name == "SGD" else {}
    try:
        return kinds[name](groups, lr=lr, **options)
    except ValueError as error:
        raise UserError(f"SOLVER.OPTIMIZER_NAME: {name} refuses its settings: {error}") from None


def make_optimizer(cfg, module: nn.Module, stage: int | None = None) -> Optimizer:
    """The optimizer over ``module``'s trainable parameters. stage: None for single-stage methods."""
    if stage is not None:
        raise UserError(f"SOLVER.STAGE{stage}: stages of the prompt method are not part of this version")
    groups = parameter_groups(
        module,
        cfg.SOLVER.BASE_LR,
        cfg.SOLVER.WEIGHT_DECAY,
        cfg.SOLVER.BIAS_LR_FACTOR,
        cfg.SOLVER.WEIGHT_DECAY_BIAS,
        cfg.SOLVER.LARGE_FC_LR,
        cfg.SOLVER.DECAY_VECTORS,
    )
    return build_optimizer(
        cfg.SOLVER.OPTIMIZER_NAME, groups, cfg.SOLVER.BASE_LR, cfg.SOLVER.MOMENTUM, cfg.SOLVER.NESTEROV
    )
