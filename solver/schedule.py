"""Learning-rate schedules of the published systems, as functions of the epoch alone, so that they have no state."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from functools import partial

from torch.optim import Optimizer
from yacs.config import CfgNode

from solver.average import first_averaged
from utils.errors import UserError

RateRule = Callable[[float, float], float]
"""(base rate of a group, time t) -> rate."""


def published_cosine(base: float, t: float, *, base_lr: float, warmup: int, epochs: int) -> float:
    """Returns the rate of a linear warm-up from 1 % and a cosine to 0.2 % of ``base_lr``.

    The cosine counts from epoch 0 and not from the end of the warm-up, as published. t below 0 counts as 0.
    """
    t = max(t, 0)
    start, floor = 0.01 * base_lr, 0.002 * base_lr
    if t < warmup:
        return start + t * (base - start) / warmup
    if t < epochs:
        return floor + 0.5 * (base - floor) * (1 + math.cos(math.pi * t / epochs))
    return floor


def prompt_cosine(base: float, t: float, *, warmup: int, epochs: int, init: float, floor: float) -> float:
    """Returns the rate of CLIP-ReID's stage 1: linear from ``init``, then a cosine from epoch 0 to ``floor``."""
    if t < warmup:
        return init + t * (base - init) / warmup
    if t < epochs:
        return floor + 0.5 * (base - floor) * (1 + math.cos(math.pi * t / epochs))
    return floor


def multistep(
    base: float, t: float, *, steps: tuple[int, ...], gamma: float, warmup: int, factor: float, method: str
) -> float:
    """Returns ``base`` times ``gamma`` to the number of steps passed, and less during the warm-up.

    method: ``constant``, or ``linear`` from ``factor`` to 1.
    """
    weight = 1.0
    if t < warmup:
        weight = factor if method == "constant" else factor * (1 - t / warmup) + t / warmup
    return base * weight * gamma ** bisect_right(steps, t)


def stepwise(base: float, t: float, *, size: int, gamma: float) -> float:
    """Returns ``base`` times ``gamma`` for every ``size`` epochs passed."""
    return base * gamma ** (t // size)


def constant_tail(base: float, t: float, *, warmup: int, epochs: int, last: int, factor: float) -> float:
    """Returns MSViT's rate: linear from ``factor``, a cosine towards 0 at ``epochs``, constant from ``last`` on."""
    if t <= warmup:
        return base * (factor + (1 - factor) * t / warmup) if warmup else base
    return base / 2 * (1 + math.cos(math.pi * (min(t, last) - warmup) / (epochs - warmup)))


def cosine_per_step(base: float, t: float, *, warmup: int, epochs: int, floor: float) -> float:
    """Returns the rate of a linear warm-up from 0 over ``warmup`` epochs and a cosine from its end to ``floor``.

    t: epochs with a fraction, so that the rate changes at each step.
    """
    if t < warmup:
        return base * t / warmup
    share = min((t - warmup) / max(epochs - warmup, 1), 1.0)
    return floor + 0.5 * (base - floor) * (1 + math.cos(math.pi * share))


def cosine_at(step: int, base: float, final: float, epochs: int, steps: int, warmup: int = 0) -> float:
    """Returns the value at an update, counted from 0 over ``epochs`` of ``steps`` updates each (DINO's schedules).

    From 0 to ``base``, both included, over ``warmup`` epochs, then by a cosine towards ``final``, which it never
    reaches. Raises ``UserError`` if the warm-up takes all epochs.
    """
    rising, falling = warmup * steps, (epochs - warmup) * steps
    if falling <= 0:
        raise UserError(f"SOLVER.WARMUP_EPOCHS: {warmup} epochs of warm-up leave nothing of {epochs} epochs")
    if step < rising:
        return base * step / max(rising - 1, 1)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * (step - rising) / falling))


class Schedule:
    """Sets every group's rate by ``step(epoch)`` before each epoch, counted from 1, at the time t = epoch - 1 + start.

    per_step: ``step`` is called before each step instead, with a fraction of the epoch (``Stage.set_rates``).
    """

    def __init__(self, optimizer: Optimizer, rule: RateRule, start: int = 0, per_step: bool = False):
        self.optimizer, self.rule, self.start, self.per_step = optimizer, rule, start, per_step
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.step(1 - start)

    def step(self, epoch: float) -> None:
        """Sets the rates of an epoch."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.rule(group["initial_lr"], epoch - 1 + self.start)


def make_scheduler(cfg: CfgNode, optimizer: Optimizer, stage: int | None = None) -> Schedule:
    """Returns the schedule that SOLVER.SCHEDULER names, or that of a stage of the prompt method (1 or 2).

    Raises ``UserError`` if the rate of MSViT's schedule would jump.
    """
    if stage == 1:
        first = cfg.SOLVER.STAGE1
        rule = partial(
            prompt_cosine, warmup=first.WARMUP_EPOCHS, epochs=first.MAX_EPOCHS, init=first.WARMUP_LR_INIT,
            floor=first.LR_MIN,
        )  # fmt: skip
        return Schedule(optimizer, rule, start=1)
    if stage == 2:
        return Schedule(optimizer, multistep_rule(cfg, 2, cfg.SOLVER.STAGE2.WARMUP_ITERS), start=1)
    name = cfg.SOLVER.SCHEDULER
    return Schedule(optimizer, SCHEDULES[name](cfg), int(cfg.SOLVER.SCHEDULER_START), name == "cosine_per_step")


def multistep_rule(cfg: CfgNode, stage: int | None, warmup: int) -> RateRule:
    """Returns ``multistep`` by the keys of SOLVER, or of SOLVER.STAGE2 for stage 2. warmup: epochs."""
    section = cfg.SOLVER.STAGE2 if stage == 2 else cfg.SOLVER
    return partial(
        multistep,
        steps=tuple(sorted(section.STEPS)),
        gamma=section.GAMMA,
        warmup=warmup,
        factor=section.WARMUP_FACTOR,
        method=section.WARMUP_METHOD,
    )


def tail_rule(cfg: CfgNode) -> RateRule:
    """Returns ``constant_tail``; raises ``UserError`` if the tail would begin before the warm-up ends."""
    solver = cfg.SOLVER
    warmup, epochs, last = solver.WARMUP_EPOCHS, solver.MAX_EPOCHS, first_averaged(solver.EMA.RATIO, solver.MAX_EPOCHS)
    if last < warmup or epochs <= warmup:
        raise UserError(
            f"SOLVER.WARMUP_EPOCHS: {warmup} epochs of warm-up end after the rate has settled at epoch {last} "
            f"(SOLVER.MAX_EPOCHS {epochs} times SOLVER.EMA.RATIO); shorten the warm-up"
        )
    return partial(constant_tail, warmup=warmup, epochs=epochs, last=last, factor=solver.WARMUP_FACTOR)


SCHEDULES: dict[str, Callable[[CfgNode], RateRule]] = {
    "cosine": lambda cfg: partial(
        published_cosine, base_lr=cfg.SOLVER.BASE_LR, warmup=cfg.SOLVER.WARMUP_EPOCHS, epochs=cfg.SOLVER.MAX_EPOCHS
    ),
    "multistep": lambda cfg: multistep_rule(cfg, None, cfg.SOLVER.WARMUP_ITERS or cfg.SOLVER.WARMUP_EPOCHS),
    "step": lambda cfg: partial(stepwise, size=cfg.SOLVER.STEP_SIZE, gamma=cfg.SOLVER.GAMMA),
    "msvit": tail_rule,
    "cosine_per_step": lambda cfg: partial(
        cosine_per_step, warmup=cfg.SOLVER.WARMUP_EPOCHS, epochs=cfg.SOLVER.MAX_EPOCHS, floor=cfg.SOLVER.COSINE_FLOOR
    ),
}
"""SOLVER.SCHEDULER -> function of the configuration that gives the rule."""
