"""Optimizers, parameter groups, schedules and averages of weights."""

from torch import nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from solver.average import WeightAverage, average_weights, make_average, reestimate_batch_norm
from solver.optimizer import make_optimizer
from solver.schedule import Schedule, make_scheduler


def make_solver(cfg: CfgNode, module: nn.Module) -> tuple[Optimizer, Schedule]:
    """Returns (optimizer, schedule) by the SOLVER keys; a stage makes them when it begins, after weights are loaded."""
    optimizer = make_optimizer(cfg, module)
    return optimizer, make_scheduler(cfg, optimizer)


__all__ = [
    "Schedule",
    "WeightAverage",
    "average_weights",
    "make_average",
    "make_optimizer",
    "make_scheduler",
    "make_solver",
    "reestimate_batch_norm",
]
