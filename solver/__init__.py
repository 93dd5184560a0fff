"""Optimizers, parameter groups, schedules and averages of weights."""

from solver.average import WeightAverage, average_weights, make_average, reestimate_batch_norm
from solver.optimizer import make_optimizer
from solver.schedule import make_scheduler

__all__ = [
    "WeightAverage",
    "average_weights",
    "make_average",
    "make_optimizer",
    "make_scheduler",
    "reestimate_batch_norm",
]
