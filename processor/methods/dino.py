"""DINO pre-training without labels, at ReID's aspect ratio (arXiv:2104.14294; TransReID-SSL, arXiv:2111.12084)."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers import DropPath
from torch import Tensor, nn
from torch.optim import Optimizer

from datasets.images import Batch
from loss import DINOLoss
from loss.dino import GLOBAL_CROPS
from processor.stage import Stage
from solver.optimizer import build_optimizer, matrices_and_vectors
from solver.schedule import cosine_at
from utils.checkpoint import backbone_state
from utils.errors import UserError


@dataclass(frozen=True)
class Ranges:
    """First (or highest) and last value of what a cosine moves at every update. warmup: of the rate, in epochs."""

    rate: tuple[float, float]
    decay: tuple[float, float]
    momentum: float
    warmup: int = 0


class DINO(Stage):
    """The student learns from all crops what the teacher, its moving average, says of the two global ones.

    model, teacher: networks of backbone and head, alike but for stochastic depth. loader: batches with the first
    global crop as images and the others as views. ranges: of the schedules. clip: largest norm of each parameter's
    gradient, 0 for none. frozen: first epochs in which the prototypes do not move.
    """

    name = "dino"

    def __init__(
        self,
        model: nn.Module,
        teacher: nn.Module,
        loader: Any,
        loss_function: DINOLoss,
        epochs: int,
        make_optimizer: Callable[[list[dict]], Optimizer],
        ranges: Ranges,
        clip: float = 3.0,
        frozen: int = 1,
    ):
        super().__init__(model, epochs)
        refuse_mismatch(model, teacher)
        self.teacher, self.loader, self.loss_function = teacher.requires_grad_(False), loader, loss_function
        self.make_optimizer, self.ranges, self.clip, self.frozen = make_optimizer, ranges, clip, frozen
        self.epoch, self.momentum = 1, ranges.momentum

    @classmethod
    def from_cfg(cls, cfg, data, model: nn.Module) -> DINO:
        if cfg.SOLVER.EMA.RATIO < 1 or cfg.SOLVER.EMA.MODE == "exponential":
            raise UserError("SOLVER.EMA and PROCESSOR.NAME 'dino' cannot go together: its teacher is the average")
        batch = cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATION
        ranges = Ranges(
            rate=(cfg.SOLVER.BASE_LR * batch / 256, cfg.DINO.MIN_LR),
            decay=(cfg.SOLVER.WEIGHT_DECAY, cfg.DINO.WEIGHT_DECAY_END),
            momentum=cfg.DINO.MOMENTUM_TEACHER,
            warmup=cfg.SOLVER.WARMUP_EPOCHS,
        )
        cosine_at(0, *ranges.rate, cfg.SOLVER.MAX_EPOCHS, 1, ranges.warmup)  # refuses a warm-up that leaves nothing
        loss_function = DINOLoss(
            cfg.DINO.OUT_DIM,
            GLOBAL_CROPS + cfg.DINO.LOCAL_CROPS_NUMBER,
            cfg.DINO.WARMUP_TEACHER_TEMP,
            cfg.DINO.TEACHER_TEMP,
            cfg.DINO.WARMUP_TEACHER_TEMP_EPOCHS,
            cfg.SOLVER.MAX_EPOCHS,
        )

        def make_optimizer(groups: list[dict]) -> Optimizer:
            solver = cfg.SOLVER
            betas = tuple(solver.ADAM_BETAS)
            return build_optimizer(solver.OPTIMIZER_NAME, groups, 0.0, solver.MOMENTUM, solver.NESTEROV, betas)

        stage = cls(
            model,
            make_teacher(model),
            data.train,
            loss_function,
            cfg.SOLVER.MAX_EPOCHS,
            make_optimizer,
            ranges,
            cfg.DINO.CLIP_GRAD,
            cfg.DINO.FREEZE_LAST_LAYER,
        )
        stage.eval_period, stage.checkpoint_period = cfg.SOLVER.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD
        stage.log_period = cfg.SOLVER.LOG_PERIOD
        return stage

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model, "teacher": self.teacher, "loss": self.loss_function}

    def evaluated(self) -> nn.Module:
        return self.teacher

    def saved_states(self) -> dict[str, dict[str, Any]]:
        """Student and teacher as DINO's own files have them, and the teacher's backbone as a pre-trained file."""
        both = {"student": self.model.state_dict(), "teacher": self.teacher.state_dict(), "epoch": self.epoch}
        return {"": both, "_backbone": backbone_state(both)}

    def begin(self) -> None:
        self.optimizers = [self.make_optimizer(matrices_and_vectors(self.model, self.ranges.decay[0]))]

    def batches(self, epoch: int) -> Iterable[Batch]:
        self.epoch = epoch
        self.teacher.train()  # as published: its batch norms use the batch's statistics
        return self.loader.epoch(epoch)

    def set_rates(self, epoch: int, step: int, steps: int) -> None:
        now = (epoch - 1) * steps + step
        for group in self.optimizers[0].param_groups:
            group["lr"] = cosine_at(now, *self.ranges.rate, self.epochs, steps, self.ranges.warmup)
        self.optimizers[0].param_groups[0]["weight_decay"] = cosine_at(now, *self.ranges.decay, self.epochs, steps)
        self.momentum = cosine_at(now, self.ranges.momentum, 1.0, self.epochs, steps)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        crops = [batch.images, *batch.views]
        with torch.no_grad():
            wanted = self.teacher(crops[:GLOBAL_CROPS])
        return {"dino": self.loss_function(self.net(crops), wanted, self.epoch - 1)}

    def logs(self) -> dict[str, float]:
        return {"decay": self.optimizers[0].param_groups[0]["weight_decay"], "momentum": self.momentum}

    def before_step(self) -> None:
        if self.clip:
            clip_each(self.model.parameters(), self.clip)
        if self.epoch <= self.frozen:
            freeze_prototypes(self.model)

    def after_step(self, batches: list) -> None:
        follow(self.teacher, self.model, self.momentum)


def clip_each(parameters: Iterable[nn.Parameter], largest: float) -> list[Tensor]:
    """Scales every gradient whose own norm is above ``largest`` down to it. Returns the norms from before."""
    return [nn.utils.clip_grad_norm_([p], largest) for p in parameters if p.grad is not None]


def freeze_prototypes(model: nn.Module) -> None:
    """Takes the gradients of the last layer away: the optimizer passes over it, without decay or momentum."""
    for name, parameter in model.named_parameters():
        if "last_layer" in name:
            parameter.grad = None


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """``teacher = momentum * teacher + (1 - momentum) * student`` for every parameter; buffers are left alone."""
    for theirs, ours in zip(teacher.parameters(), student.parameters(), strict=True):
        theirs.mul_(momentum).add_(ours, alpha=1 - momentum)


def make_teacher(student: nn.Module) -> nn.Module:
    """A copy of the student, buffers included, that drops nothing."""
    teacher = copy.deepcopy(student)
    for module in teacher.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return teacher


def refuse_mismatch(student: nn.Module, teacher: nn.Module) -> None:
    """Raises ``UserError`` unless both networks have the same parameters."""
    ours, theirs = ({n: tuple(p.shape) for n, p in m.named_parameters()} for m in (student, teacher))
    other = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    if other:
        raise UserError(
            f"DINO: student and teacher are different networks: {other[0]} is {ours.get(other[0], 'absent')} in the "
            f"student and {theirs.get(other[0], 'absent')} in the teacher"
        )


def dino(cfg, data, model: nn.Module) -> list[Stage]:
    """The stages of ``PROCESSOR.NAME: dino``."""
    return [DINO.from_cfg(cfg, data, model)]
