"""Optimizers, parameter groups, schedules and averages of weights."""

from typing import Any

from torch import nn
from torch.optim import Optimizer

from solver.average import WeightAverage, average_weights, make_average, reestimate_batch_norm
from solver.optimizer import make_optimizer
from solver.schedule import make_scheduler


def make_solver(cfg, module: nn.Module) -> tuple[Optimizer, Any]:
    """(optimizer, scheduler) by the SOLVER keys; a stage makes them when it begins, with its weights in place."""
    optimizer = make_optimizer(cfg, module)
    return optimizer, make_scheduler(cfg, optimizer)


__all__ = [
    "WeightAverage",
    "average_weights",
    "make_average",
    "make_optimizer",
    "make_scheduler",
    "make_solver",
    "reestimate_batch_norm",
]
