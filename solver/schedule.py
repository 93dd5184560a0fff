"""Learning-rate schedules of the published systems, as functions of the epoch alone: they have no state to save."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from functools import partial

from torch.optim import Optimizer
from yacs.config import CfgNode

from solver.average import first_averaged
from utils.errors import UserError, nearest

Rule = Callable[[float, float], float]
"""(base rate of a group, time t) -> rate."""


def warmup_cosine(base: float, t: float, *, base_lr: float, warmup: int, epochs: int) -> float:
    """Returns the rate of a linear warm-up from 1 % and a cosine to 0.2 % of ``base_lr``.

    The cosine runs from t = 0, also during the warm-up, as published. t below 0 counts as 0.
    """
    t = max(t, 0)
    start, floor = 0.01 * base_lr, 0.002 * base_lr
    if t < warmup:
        return start + t * (base - start) / warmup
    if t < epochs:
        return floor + 0.5 * (base - floor) * (1 + math.cos(math.pi * t / epochs))
    return floor


def prompt_cosine(base: float, t: float, *, warmup: int, epochs: int, init: float, floor: float) -> float:
    """Returns the rate of CLIP-ReID's stage 1: linear warm-up from ``init``, and a cosine to ``floor`` from epoch 0."""
    if t < warmup:
        return init + t * (base - init) / warmup
    if t < epochs:
        return floor + 0.5 * (base - floor) * (1 + math.cos(math.pi * t / epochs))
    return floor


def multistep(
    base: float, t: float, *, steps: tuple[int, ...], gamma: float, warmup: int, factor: float, method: str
) -> float:
    """Returns the rate times ``gamma`` for every step passed, with a constant or linear warm-up from ``factor``."""
    weight = 1.0
    if t < warmup:
        weight = factor if method == "constant" else factor * (1 - t / warmup) + t / warmup
    return base * weight * gamma ** bisect_right(steps, t)


def step_decay(base: float, t: float, *, size: int, gamma: float) -> float:
    """Returns the rate times ``gamma`` for every ``size`` epochs passed."""
    return base * gamma ** (t // size)


def constant_tail(base: float, t: float, *, warmup: int, epochs: int, last: int, factor: float) -> float:
    """Returns MSViT's rate: linear warm-up from ``factor``, cosine towards 0 at ``epochs``, constant from ``last``."""
    if t <= warmup:
        return base * (factor + (1 - factor) * t / warmup) if warmup else base
    return base / 2 * (1 + math.cos(math.pi * (min(t, last) - warmup) / (epochs - warmup)))


def cosine_per_step(base: float, t: float, *, warmup: int, epochs: int, floor: float) -> float:
    """Returns the rate of a linear warm-up from 0 over ``warmup`` epochs and a cosine to ``floor``; t has fractions."""
    if t < warmup:
        return base * t / warmup
    share = min((t - warmup) / max(epochs - warmup, 1), 1.0)
    return floor + 0.5 * (base - floor) * (1 + math.cos(math.pi * share))


def cosine_at(step: int, base: float, final: float, epochs: int, steps: int, warmup: int = 0) -> float:
    """Returns the value at an update, counted from 0 over ``epochs`` of ``steps`` updates each (DINO's schedules).

    From 0 to ``base``, both included, over ``warmup`` epochs, then a cosine towards ``final``, which is not reached.
    Raises ``UserError`` if the warm-up takes all epochs.
    """
    rising, falling = warmup * steps, (epochs - warmup) * steps
    if falling <= 0:
        raise UserError(f"SOLVER.WARMUP_EPOCHS: {warmup} epochs of warm-up leave nothing of {epochs} epochs")
    if step < rising:
        return base * step / max(rising - 1, 1)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * (step - rising) / falling))


class Schedule:
    """Sets every group's rate: ``step(epoch)`` is called before each epoch, counted from 1; t is epoch - 1 + start.

    per_step: whether it is called before each step, with a fraction of an epoch (``Stage.set_rates``).
    """

    def __init__(self, optimizer: Optimizer, rule: Rule, start: int = 0, per_step: bool = False):
        self.optimizer, self.rule, self.start, self.per_step = optimizer, rule, start, per_step
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.step(1 - start)

    def step(self, epoch: float) -> None:
        """Sets the rates of an epoch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rule(group["initial_lr"], epoch - 1 + self.start)


def make_scheduler(cfg: CfgNode, optimizer: Optimizer, stage: int | None = None) -> Schedule:
    """Returns the schedule that SOLVER.SCHEDULER names, or that of stage 1 or 2 of the prompt method."""
    if stage == 1:
        return Schedule(optimizer, stage1_rule(cfg.SOLVER.STAGE1), start=1)
    if stage == 2:
        second = cfg.SOLVER.STAGE2
        return Schedule(optimizer, multistep_rule(second, second.WARMUP_ITERS), start=1)
    rules, name = single_stage_rules(cfg), cfg.SOLVER.SCHEDULER
    if name not in rules:
        raise UserError(f"SOLVER.SCHEDULER: unknown {name!r}{nearest(name, rules)} Known: auto, {', '.join(rules)}")
    if name == "msvit":
        refuse_early_tail(rules[name].keywords)
    return Schedule(optimizer, rules[name], int(cfg.SOLVER.SCHEDULER_START), per_step=name == "cosine_per_step")


def stage1_rule(keys: CfgNode) -> partial[float]:
    """Returns the schedule of the prompt method's stage 1. keys: SOLVER.STAGE1."""
    return partial(
        prompt_cosine,
        warmup=keys.WARMUP_EPOCHS,
        epochs=keys.MAX_EPOCHS,
        init=keys.WARMUP_LR_INIT,
        floor=keys.LR_MIN,
    )


def multistep_rule(keys: CfgNode, warmup: int) -> partial[float]:
    """Returns the schedule by steps. keys: SOLVER or SOLVER.STAGE2. warmup: its length in epochs."""
    return partial(
        multistep,
        steps=tuple(sorted(keys.STEPS)),
        gamma=keys.GAMMA,
        warmup=warmup,
        factor=keys.WARMUP_FACTOR,
        method=keys.WARMUP_METHOD,
    )


def single_stage_rules(cfg: CfgNode) -> dict[str, partial[float]]:
    """Returns the rule of every word of SOLVER.SCHEDULER."""
    keys = cfg.SOLVER
    warmup, epochs = keys.WARMUP_EPOCHS, keys.MAX_EPOCHS
    last = first_averaged(keys.EMA.RATIO, epochs)
    return {
        "cosine": partial(warmup_cosine, base_lr=keys.BASE_LR, warmup=warmup, epochs=epochs),
        "multistep": multistep_rule(keys, keys.WARMUP_ITERS or warmup),
        "step": partial(step_decay, size=keys.STEP_SIZE, gamma=keys.GAMMA),
        "msvit": partial(constant_tail, warmup=warmup, epochs=epochs, last=last, factor=keys.WARMUP_FACTOR),
        "cosine_per_step": partial(cosine_per_step, warmup=warmup, epochs=epochs, floor=keys.COSINE_FLOOR),
    }


def refuse_early_tail(rule: dict[str, float]) -> None:
    """Raises ``UserError`` if the constant tail would begin before the warm-up ends, with a jump in the rate."""
    if rule["last"] < rule["warmup"] or rule["epochs"] <= rule["warmup"]:
        raise UserError(
            f"SOLVER.WARMUP_EPOCHS: {rule['warmup']} epochs of warm-up end after the rate has settled at epoch "
            f"{rule['last']} (SOLVER.MAX_EPOCHS {rule['epochs']} times SOLVER.EMA.RATIO); shorten the warm-up"
        )
