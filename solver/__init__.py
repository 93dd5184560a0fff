"""Optimizers, parameter groups, schedules and averages of weights."""

from torch import nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from solver.average import WeightAverage, average_weights, make_average, reestimate_batch_norm
from solver.optimizer import make_optimizer
from solver.schedule import Schedule, make_scheduler


def make_solver(cfg: CfgNode, module: nn.Module) -> tuple[Optimizer, Schedule]:
    """Returns optimizer and schedule by the SOLVER keys; a stage calls it when it begins, with its weights loaded."""
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
