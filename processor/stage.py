"""What a method supplies to the trainer: a stage is data, modules and one step. Methods subclass ``Stage``."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from solver import WeightAverage


class Stage:
    """One stage of a method. The trainer owns the loop, the stage what happens in it; it never calls ``backward``.

    model: what is trained and evaluated. net: the same, or what ``stepped`` gives, as the trainer wraps it for several
    processes; call it in ``losses``. epochs: how many. Periods are in epochs, ``log_period`` in steps; 0 means never
    (the last epoch is always saved and, with ``evaluates``, evaluated). suffix: goes into the names of saved files.
    average: collects the model's weights along the way and takes their place at the end.
    """

    name: str = "stage"
    suffix: str = ""
    evaluates: bool = True
    eval_period: int = 0
    checkpoint_period: int = 0
    log_period: int = 50

    def __init__(self, model: nn.Module, epochs: int):
        self.model, self.net, self.epochs = model, model, epochs
        self.optimizers: list[Optimizer] = []
        self.scheduler: Any = None
        self.average: WeightAverage | None = None

    def modules(self) -> dict[str, nn.Module]:
        """Everything with weights that a restart needs, by name."""
        return {"model": self.model}

    def evaluated(self) -> nn.Module:
        """What is evaluated: the model, or another that follows it."""
        return self.model

    def saved_states(self) -> dict[str, dict[str, Any]]:
        """What the checkpoint files hold, by what follows the model's name in theirs: ``''`` for the main one."""
        return {"": self.model.state_dict()}

    def stepped(self) -> nn.Module:
        """What ``losses`` calls as ``net``: the model, or the part of it that this stage trains."""
        return self.model

    def begin(self) -> None:
        """Once, before the first epoch or after a restart: make ``optimizers`` and ``scheduler``, cache what is fixed.

        The modules' weights are those of the restart already; it runs in the precision of training.
        """

    def batches(self, epoch: int) -> Iterable:
        """The epoch's batches, with a length; epochs count from 1. May first extract, cluster or relabel."""
        raise NotImplementedError(f"{type(self).__name__} supplies no batches")

    def set_rates(self, epoch: int, step: int, steps: int) -> None:
        """Before each step (from 0): learning rates and whatever else is scheduled. By default once per epoch."""
        if self.scheduler is None:
            return
        if getattr(self.scheduler, "per_step", False):
            self.scheduler.step(epoch + step / steps)
        elif step == 0:
            self.scheduler.step(epoch)

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Named, weighted terms; their sum is minimised."""
        raise NotImplementedError(f"{type(self).__name__} supplies no losses")

    def logs(self) -> dict[str, float]:
        """Values of the last batch that are only shown."""
        return {}

    def before_step(self) -> None:
        """After the gradients are there and unscaled: cancel, scale or share some."""

    def after_step(self, batches: list) -> None:
        """After the update: moving-average teacher, memory. batches: the micro-batches of this step."""

    def state_dict(self) -> dict[str, Any]:
        """What else must survive a restart, in tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Takes back what ``state_dict`` gave."""
