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
from utils.layered import Layers, layers_of

PROMPTS, LANGUAGE_HEAD = ("prompt_learner.",), ("text_mlp.",)
TEXT_SIDE = ("text_encoder.", *PROMPTS, *LANGUAGE_HEAD)
"""Prefixes of the parameters that the second stage of the prompt method does not train."""

UNFIT = ("Optimizer", "LBFGS", "SparseAdam")
"""Classes of ``torch.optim`` that cannot be chosen: not one step per gradient, or not for dense gradients."""


def parameter_groups(
    module: nn.Module,
    base_lr: float,
    weight_decay: float,
    bias_lr_factor: float = 1.0,
    weight_decay_bias: float | None = None,
    large_fc_lr: bool = False,
    is_trained: Callable[[str], bool] = lambda name: True,
    decay_vectors: bool = True,
    layers: Layers | None = None,
    layer_decay: float = 1.0,
) -> list[dict[str, Any]]:
    """Returns groups of trainable parameters with one rate and decay each, by the rules of the TransReID family.

    Names with ``bias`` learn at ``base_lr * bias_lr_factor`` and decay by ``weight_decay_bias`` (None: by
    ``weight_decay``); with ``large_fc_lr`` names with ``classifier`` or ``arcface`` learn at twice ``base_lr``.
    Position embeddings, tokens and norms decay; decay_vectors False spares all one-dimensional parameters, as ImageNet
    training does. is_trained: name of a parameter -> whether the stage trains it.

    layers: of the network, from the image on. Each learns at ``layer_decay`` times the rate of the one behind it; what
    is in no layer (the last norm, necks, classifiers) at the whole rate.
    """
    layers = layers or []
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in module.named_parameters():
        if not (parameter.requires_grad and is_trained(name)):
            continue
        lr, decay = base_lr, weight_decay
        if "bias" in name:
            lr = base_lr * bias_lr_factor
            decay = weight_decay if weight_decay_bias is None else weight_decay_bias
        if parameter.dim() <= 1 and not decay_vectors:
            decay = 0.0
        if large_fc_lr and ("classifier" in name or "arcface" in name):
            lr = 2 * base_lr
        lr *= next((layer_decay ** (len(layers) - i) for i, own in enumerate(layers) if name.startswith(own)), 1.0)
        groups.setdefault((lr, decay), []).append(parameter)
    return [{"params": params, "lr": lr, "weight_decay": decay} for (lr, decay), params in groups.items()]


def matrices_and_vectors(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Returns two groups of trainable parameters: those that decay, and biases and other one-dimensional tensors.

    Tokens and position embeddings decay.
    """
    groups: tuple[list[nn.Parameter], list[nn.Parameter]] = [], []
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            groups[parameter.dim() == 1 or name.endswith(".bias")].append(parameter)
    return [{"params": groups[0], "weight_decay": weight_decay}, {"params": groups[1], "weight_decay": 0.0}]


def build_optimizer(
    name: str,
    groups: list[dict[str, Any]],
    lr: float,
    momentum: float = 0.9,
    nesterov: bool = False,
    betas: tuple[float, float] = (0.9, 0.999),
    key: str = "SOLVER.OPTIMIZER_NAME",
) -> Optimizer:
    """Returns the optimizer of ``torch.optim`` called ``name``, or LARS, with its own defaults.

    momentum, nesterov: for SGD. betas: for Adam and AdamW. key: the key of the choice, for messages. Raises
    ``UserError`` for an unknown name and for settings that the optimizer refuses.
    """
    kinds: dict[str, Callable[..., Optimizer]] = {
        word: kind
        for word, kind in {**vars(torch.optim), "LARS": LARS}.items()
        if isinstance(kind, type) and issubclass(kind, Optimizer) and word not in UNFIT
    }
    if name not in kinds:
        raise UserError(f"{key}: unknown {name!r}, expected an optimizer of torch.optim{nearest(name, kinds)}")
    options: dict[str, Any] = {}
    if name == "SGD":
        options = {"momentum": momentum, "nesterov": nesterov}
    elif name in ("Adam", "AdamW"):
        options = {"betas": tuple(betas)}
    try:
        return kinds[name](groups, lr=lr, **options)
    except ValueError as error:
        raise UserError(f"{key}: {name} refuses its settings: {error}") from None


def decaying_layers(cfg: CfgNode, module: nn.Module) -> Layers:
    """Returns the layers over which ``SOLVER.LAYER_DECAY`` lets rates decay; none at 1.

    Raises ``UserError`` for a network that does not know its layers.
    """
    if cfg.SOLVER.LAYER_DECAY == 1:
        return []
    layers = layers_of(module)
    if not layers:
        raise UserError(
            f"SOLVER.LAYER_DECAY {cfg.SOLVER.LAYER_DECAY}: MODEL.NAME {cfg.MODEL.NAME!r} has no known order of layers; "
            "it is for ViTs, Swins, ResNets, timm:NAME and CLIP's ViTs; set it to 1"
        )
    return layers


def make_optimizer(cfg: CfgNode, module: nn.Module, stage: int | None = None) -> Optimizer:
    """Returns the optimizer over ``module``'s trainable parameters.

    stage: of the prompt method, None for methods with one stage. Stage 1 trains the prompts alone (and the language
    head with ``SOLVER.STAGE1.TRAIN_HEAD``), stage 2 everything but the text side.
    """
    section = {None: cfg.SOLVER, 1: cfg.SOLVER.STAGE1, 2: cfg.SOLVER.STAGE2}[stage]
    if stage == 1:
        first = cfg.SOLVER.STAGE1
        prefixes = PROMPTS + (LANGUAGE_HEAD if first.TRAIN_HEAD else ())
        groups = parameter_groups(
            module, first.BASE_LR, first.WEIGHT_DECAY, is_trained=lambda name: name.startswith(prefixes)
        )
    else:
        whole = cfg.SOLVER.STAGE2 if stage == 2 else cfg.SOLVER
        groups = parameter_groups(
            module,
            whole.BASE_LR,
            whole.WEIGHT_DECAY,
            bias_lr_factor=whole.BIAS_LR_FACTOR,
            weight_decay_bias=whole.WEIGHT_DECAY_BIAS,
            large_fc_lr=whole.LARGE_FC_LR,
            is_trained=lambda name: stage is None or not name.startswith(TEXT_SIDE),
            decay_vectors=cfg.SOLVER.DECAY_VECTORS,
            layers=decaying_layers(cfg, module),
            layer_decay=cfg.SOLVER.LAYER_DECAY,
        )
    return build_optimizer(
        section.OPTIMIZER_NAME,
        groups,
        section.BASE_LR,
        momentum=section.MOMENTUM,
        nesterov=cfg.SOLVER.NESTEROV,
        betas=cfg.SOLVER.ADAM_BETAS,
        key="SOLVER.OPTIMIZER_NAME" if stage is None else f"SOLVER.STAGE{stage}.OPTIMIZER_NAME",
    )
