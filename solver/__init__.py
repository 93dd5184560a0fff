"""Optimizers, parameter groups and schedules."""

from solver.optimizer import make_optimizer
from solver.schedule import make_scheduler

__all__ = ["make_optimizer", "make_scheduler"]
