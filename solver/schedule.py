"""Learning-rate schedules of the published systems, as functions of the epoch alone, so that nothing needs saving."""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable
from functools import partial

from torch.optim import Optimizer

from solver.average import first_averaged
from utils.errors import UserError, nearest

Rule = Callable[[float, float], float]
"""(base rate of a group, time t) -> rate."""


def cosine(base: float, t: float, *, base_lr: float, warmup: int, epochs: int) -> float:
    """Linear warm-up from 1 % and cosine to 0.2 % of ``base_lr``; not restarted after the warm-up, as published.

    t below 0 counts as 0.
    """
    t = max(t, 0)
    start, floor = 0.01 * base_lr, 0.002 * base_lr
    if t < warmup:
        return start + t * (base - start) / warmup
    if t < epochs:
        return floor + 0.5 * (base - floor) * (1 + math.cos(math.pi * t / epochs))
    return floor


def prompt_cosine(base: float, t: float, *, warmup: int, epochs: int, init: float, floor: float) -> float:
    """Linear warm-up from ``init`` and cosine to ``floor``, counted from epoch 0, as CLIP-ReID's stage 1 has it."""
    if t < warmup:
        return init + t * (base - init) / warmup
    if t < epochs:
        return floor + 0.5 * (base - floor) * (1 + math.cos(math.pi * t / epochs))
    return floor


def multistep(
    base: float, t: float, *, steps: tuple[int, ...], gamma: float, warmup: int, factor: float, method: str
) -> float:
    """``gamma`` to the number of steps passed, after a constant or linear warm-up from ``factor``."""
    weight = 1.0
    if t < warmup:
        weight = factor if method == "constant" else factor * (1 - t / warmup) + t / warmup
    return base * weight * gamma ** bisect_right(steps, t)


def step(base: float, t: float, *, size: int, gamma: float) -> float:
    """``gamma`` after every ``size`` epochs."""
    return base * gamma ** (t // size)


def constant_tail(base: float, t: float, *, warmup: int, epochs: int, last: int, factor: float) -> float:
    """MSViT's: linear warm-up from ``factor`` to 1, a cosine towards 0 at ``epochs``, constant from ``last`` on."""
    if t <= warmup:
        return base * (factor + (1 - factor) * t / warmup) if warmup else base
    return base / 2 * (1 + math.cos(math.pi * (min(t, last) - warmup) / (epochs - warmup)))


def cosine_per_step(base: float, t: float, *, warmup: int, epochs: int, floor: float) -> float:
    """Linear warm-up from 0 over ``warmup`` epochs and cosine from there to ``floor``; t moves on at each step."""
    if t < warmup:
        return base * t / warmup
    share = min((t - warmup) / max(epochs - warmup, 1), 1.0)
    return floor + 0.5 * (base - floor) * (1 + math.cos(math.pi * share))


def cosine_at(step: int, base: float, final: float, epochs: int, steps: int, warmup: int = 0) -> float:
    """The value at an update, counted from 0 over ``epochs`` of ``steps`` updates each (DINO's schedules).

    From 0 to ``base``, both included, over ``warmup`` epochs, then by a cosine towards ``final``, which it never gets
    to. Raises ``UserError`` where the warm-up leaves nothing.
    """
    rising, falling = warmup * steps, (epochs - warmup) * steps
    if falling <= 0:
        raise UserError(f"SOLVER.WARMUP_EPOCHS: {warmup} epochs of warm-up leave nothing of {epochs} epochs")
    if step < rising:
        return base * step / max(rising - 1, 1)
    return final + 0.5 * (base - final) * (1 + math.cos(math.pi * (step - rising) / falling))


class Schedule:
    """Sets every group's rate: ``step(epoch)`` before each epoch, counted from 1; it runs at t = epoch - 1 + start.

    per_step: epochs come with a fraction, before each step (``Stage.set_rates``).
    """

    def __init__(self, optimizer: Optimizer, rule: Rule, start: int = 0, per_step: bool = False):
        self.optimizer, self.rule, self.start, self.per_step = optimizer, rule, start, per_step
        for group in optimizer.param_groups:
            group.setdefault("initial_lr", group["lr"])
        self.step(1 - start)

    def step(self, epoch: float) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.rule(group["initial_lr"], epoch - 1 + self.start)


def make_scheduler(cfg, optimizer: Optimizer, stage: int | None = None) -> Schedule:
    """The schedule that SOLVER.SCHEDULER names, or that of a stage of the prompt method (1 or 2), which has its own."""
    first, solver = cfg.SOLVER.STAGE1, cfg.SOLVER.STAGE2 if stage == 2 else cfg.SOLVER
    if stage == 1:
        rule = partial(
            prompt_cosine, warmup=first.WARMUP_EPOCHS, epochs=first.MAX_EPOCHS, init=first.WARMUP_LR_INIT,
            floor=first.LR_MIN,
        )  # fmt: skip
        return Schedule(optimizer, rule, start=1)
    falling = partial(
        multistep,
        steps=tuple(sorted(solver.STEPS)),
        gamma=solver.GAMMA,
        warmup=solver.WARMUP_ITERS if stage == 2 else solver.WARMUP_ITERS or cfg.SOLVER.WARMUP_EPOCHS,
        factor=solver.WARMUP_FACTOR,
        method=solver.WARMUP_METHOD,
    )
    if stage == 2:
        return Schedule(optimizer, falling, start=1)
    rules = {
        "cosine": partial(
            cosine, base_lr=cfg.SOLVER.BASE_LR, warmup=cfg.SOLVER.WARMUP_EPOCHS, epochs=cfg.SOLVER.MAX_EPOCHS
        ),
        "multistep": falling,
        "step": partial(step, size=cfg.SOLVER.STEP_SIZE, gamma=cfg.SOLVER.GAMMA),
        "msvit": partial(
            constant_tail,
            warmup=cfg.SOLVER.WARMUP_EPOCHS,
            epochs=cfg.SOLVER.MAX_EPOCHS,
            last=first_averaged(cfg.SOLVER.EMA.RATIO, cfg.SOLVER.MAX_EPOCHS),
            factor=cfg.SOLVER.WARMUP_FACTOR,
        ),
        "cosine_per_step": partial(
            cosine_per_step,
            warmup=cfg.SOLVER.WARMUP_EPOCHS,
            epochs=cfg.SOLVER.MAX_EPOCHS,
            floor=cfg.SOLVER.COSINE_FLOOR,
        ),
    }
    name = cfg.SOLVER.SCHEDULER
    if name not in rules:
        raise UserError(f"SOLVER.SCHEDULER: unknown {name!r}{nearest(name, rules)} Known: auto, {', '.join(rules)}")
    if name == "msvit":
        refuse_early_tail(rules[name].keywords)
    return Schedule(optimizer, rules[name], int(cfg.SOLVER.SCHEDULER_START), per_step=name == "cosine_per_step")


def refuse_early_tail(rule: dict) -> None:
    """Raises ``UserError`` where the constant tail would begin before the warm-up ends: the rate would jump."""
    if rule["last"] < rule["warmup"] or rule["epochs"] <= rule["warmup"]:
        raise UserError(
            f"SOLVER.WARMUP_EPOCHS: {rule['warmup']} epochs of warm-up end after the rate has settled at epoch "
            f"{rule['last']} (SOLVER.MAX_EPOCHS {rule['epochs']} times SOLVER.EMA.RATIO); shorten the warm-up"
        )
