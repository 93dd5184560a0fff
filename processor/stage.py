"""What a method supplies to the trainer: a stage is data, modules and one step. Methods subclass ``Stage``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from model import ReIDOutput, RetrievalModel
from solver import WeightAverage
from solver.schedule import Schedule

MakeSolver = Callable[[nn.Module], tuple[Optimizer, Schedule | None]]
"""Makes the optimizer of a module, and the schedule of its rates or None."""


LossFunction = Callable[[ReIDOutput, Tensor], dict[str, Tensor]]
"""(output, labels (B,) or shares of classes (B, C)) -> named, weighted terms, as ``loss.make_loss`` returns it."""


class TrainingBatch(Protocol):
    """What the trainer needs of a batch: its number of images, and a copy of it on a device."""

    def __len__(self) -> int: ...

    def to(self, device: torch.device) -> TrainingBatch: ...


class TrainingBatches(Protocol):
    """The batches of one epoch. They have a length and may be iterated again (``SOLVER.EMA`` does)."""

    def __len__(self) -> int: ...

    def __iter__(self) -> Iterator[Any]: ...


@runtime_checkable
class SkippingBatches(TrainingBatches, Protocol):
    """Batches that can start later without loading what comes before."""

    def after(self, count: int) -> Iterator[Any]:
        """Yields the batches that follow the first ``count``."""
        ...


def batches_after(batches: TrainingBatches, count: int) -> Iterator[Any]:
    """Returns the batches that follow the first ``count``; the latter are loaded only if there is no other way."""
    if count and isinstance(batches, SkippingBatches):
        return batches.after(count)
    return islice(batches, count, None)


@dataclass(frozen=True)
class Periods:
    """How often a stage is evaluated, saved and logged.

    eval, checkpoint: in epochs; with 0 the last epoch alone. log: in steps.
    """

    eval: int = 0
    checkpoint: int = 0
    log: int = 50

    @classmethod
    def from_cfg(cls, cfg: CfgNode, stage: int | None = None) -> Periods:
        """Reads the periods of ``SOLVER``, or of a stage of the prompt method (1 or 2); stage 1 evaluates nothing."""
        if stage == 1:
            first = cfg.SOLVER.STAGE1
            return cls(eval=0, checkpoint=first.CHECKPOINT_PERIOD, log=max(first.LOG_PERIOD, 1))
        section = cfg.SOLVER.STAGE2 if stage == 2 else cfg.SOLVER
        return cls(
            eval=section.EVAL_PERIOD, checkpoint=section.CHECKPOINT_PERIOD, log=max(section.LOG_PERIOD, 1)
        )


DEFAULT_PERIODS = Periods()


class Stage:
    """One stage of a method. The trainer owns the loop, the stage what happens in it; it never calls ``backward``.

    model: the network that is trained and evaluated. epochs: how many. make_solver: called by ``begin``. periods: when
    the stage is evaluated, saved and logged.

    Attributes: ``net`` is the model, or what ``stepped`` returns, as the trainer wraps it for several processes;
    ``losses`` calls it. ``suffix`` goes into the names of the saved files. ``average`` collects the model's weights
    during training and replaces them at the end. The last epoch is always saved and, if ``evaluates``, evaluated.
    """

    name: str = "stage"
    suffix: str = ""
    evaluates: bool = True

    def __init__(
        self, model: RetrievalModel, epochs: int, *, make_solver: MakeSolver, periods: Periods = DEFAULT_PERIODS
    ):
        self.model, self.epochs, self.make_solver, self.periods = model, epochs, make_solver, periods
        self.net: nn.Module = model
        self.optimizers: list[Optimizer] = []
        self.scheduler: Schedule | None = None
        self.average: WeightAverage | None = None

    @property
    def device(self) -> torch.device:
        """The device of the model."""
        return next(self.model.parameters()).device

    def modules(self) -> Mapping[str, nn.Module]:
        """Returns every module with weights that a restart needs, by name."""
        return {"model": self.model}

    def evaluated(self) -> RetrievalModel:
        """Returns the network to evaluate: the model, or another that follows it."""
        return self.model

    def saved_states(self) -> dict[str, dict[str, Any]]:
        """Returns the content of each checkpoint file by what follows the model's name in its name, ``''`` or more."""
        return {"": self.model.state_dict()}

    def stepped(self) -> nn.Module:
        """Returns what ``losses`` calls as ``net``: the model, or the part of it that this stage trains."""
        return self.model

    def begin(self) -> None:
        """Makes the optimizers and the schedule. Called once, before the first epoch or after a restart.

        An override may also compute what is needed once. The modules hold the weights of the restart by then, and the
        precision is that of training.
        """
        optimizer, self.scheduler = self.make_solver(self.model)
        self.optimizers = [optimizer]

    def batches(self, epoch: int) -> TrainingBatches:
        """Returns the batches of an epoch, counted from 1. May first extract features, cluster or relabel."""
        raise NotImplementedError(f"{type(self).__name__} supplies no batches")

    def epoch_state(self) -> dict[str, Any] | None:
        """Returns what continuing inside an epoch needs beside ``state_dict``, in tensors and plain values.

        None: the stage cannot continue there, and an interrupted epoch is trained again.
        """
        return None

    def resume_epoch(self, epoch: int, state: dict[str, Any]) -> TrainingBatches:
        """Returns the batches that ``batches`` returned before the interruption. state: from ``epoch_state``."""
        return self.batches(epoch)

    def set_rates(self, epoch: int, step: int, steps: int) -> None:
        """Sets learning rates and whatever else is scheduled, before each step (from 0); by default once per epoch."""
        if self.scheduler is None:
            return
        if self.scheduler.per_step:
            self.scheduler.step(epoch + step / steps)
        elif step == 0:
            self.scheduler.step(epoch)

    def losses(self, batch: Any) -> dict[str, Tensor]:
        """Returns named, weighted terms; their sum is minimised."""
        raise NotImplementedError(f"{type(self).__name__} supplies no losses")

    def forward(self, batch: Any) -> object:
        """Returns the network's output for a batch of ``batches``, alone: no loss, and nothing of the stage changes.

        Batch-norm re-estimation (``SOLVER.EMA``) calls it, so it passes the images that ``losses`` passes.
        """
        raise NotImplementedError(f"{type(self).__name__} supplies no forward, which SOLVER.EMA needs")

    def logs(self) -> dict[str, float]:
        """Returns values of the last batch that are only logged."""
        return {}

    def before_step(self) -> None:
        """Cancels, scales or shares gradients, once they are computed and unscaled."""

    def after_step(self, batches: list) -> None:
        """Moves what follows an update: a moving-average teacher, a memory. batches: the step's micro-batches."""

    def state_dict(self) -> dict[str, Any]:
        """Returns what else must survive a restart, in tensors and plain values."""
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what ``state_dict`` returned."""
