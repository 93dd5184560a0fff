"""DINO pre-training without labels, at ReID's aspect ratio (arXiv:2104.14294; TransReID-SSL, arXiv:2111.12084)."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from timm.layers.drop import DropPath
from torch import Tensor, nn
from torch.optim import Optimizer
from yacs.config import CfgNode

from datasets.batches import TrainLoader
from datasets.images import Batch
from datasets.loaders import Data
from loss import DINOLoss
from loss.dino import GLOBAL_CROPS
from model import RetrievalModel
from processor.stage import DEFAULT_PERIODS, MakeSolver, Periods, Stage, TrainingBatches
from solver.optimizer import build_optimizer, matrices_and_vectors
from solver.schedule import cosine_at
from utils.checkpoint import backbone_state
from utils.errors import UserError
from utils.methods import builds


@dataclass(frozen=True)
class Ranges:
    """First (or highest) and last values of what a cosine schedules at every update. warmup: of the rate, in epochs."""

    rate: tuple[float, float]
    decay: tuple[float, float]
    momentum: float
    warmup: int = 0


class DINO(Stage):
    """Trains the student to predict from all crops what the teacher, its moving average, outputs for the global two.

    model, teacher: networks of backbone and head that differ in stochastic depth only. loader: batches with the first
    global crop as images and the others as views. ranges: of the schedules. clip: largest norm of each parameter's
    gradient, 0 for no limit. frozen: first epochs in which the prototypes do not move.
    """

    name = "dino"

    def __init__(
        self,
        model: RetrievalModel,
        epochs: int,
        *,
        teacher: RetrievalModel,
        loader: TrainLoader,
        loss_function: DINOLoss,
        make_solver: MakeSolver,
        ranges: Ranges,
        clip: float = 3.0,
        frozen: int = 1,
        periods: Periods = DEFAULT_PERIODS,
    ):
        super().__init__(model, epochs, make_solver=make_solver, periods=periods)
        refuse_mismatch(model, teacher)
        self.teacher, self.loader, self.loss_function = teacher.requires_grad_(False), loader, loss_function
        self.ranges, self.clip, self.frozen = ranges, clip, frozen
        self.epoch, self.momentum = 1, ranges.momentum

    @classmethod
    def from_cfg(cls, cfg: CfgNode, data: Data, model: RetrievalModel) -> DINO:
        if cfg.SOLVER.EMA.RATIO < 1 or cfg.SOLVER.EMA.MODE == "exponential":
            raise UserError(
                "SOLVER.EMA and PROCESSOR.NAME 'dino' cannot go together: its teacher is an average already"
            )
        batch = cfg.SOLVER.IMS_PER_BATCH * cfg.SOLVER.ACCUMULATION
        ranges = Ranges(
            rate=(cfg.SOLVER.BASE_LR * batch / 256, cfg.DINO.MIN_LR),
            decay=(cfg.SOLVER.WEIGHT_DECAY, cfg.DINO.WEIGHT_DECAY_END),
            momentum=cfg.DINO.MOMENTUM_TEACHER,
            warmup=cfg.SOLVER.WARMUP_EPOCHS,
        )
        cosine_at(0, *ranges.rate, cfg.SOLVER.MAX_EPOCHS, 1, ranges.warmup)  # refuses a warm-up that leaves no epoch
        loss_function = DINOLoss(
            cfg.DINO.OUT_DIM,
            GLOBAL_CROPS + cfg.DINO.LOCAL_CROPS_NUMBER,
            cfg.DINO.WARMUP_TEACHER_TEMP,
            cfg.DINO.TEACHER_TEMP,
            cfg.DINO.WARMUP_TEACHER_TEMP_EPOCHS,
            cfg.SOLVER.MAX_EPOCHS,
        )

        def make_solver(module: nn.Module) -> tuple[Optimizer, None]:
            solver, groups = cfg.SOLVER, matrices_and_vectors(module, ranges.decay[0])
            betas = tuple(solver.ADAM_BETAS)
            return build_optimizer(solver.OPTIMIZER_NAME, groups, 0.0, solver.MOMENTUM, solver.NESTEROV, betas), None

        assert data.train is not None, "the method asks for it"
        return cls(
            model,
            cfg.SOLVER.MAX_EPOCHS,
            teacher=make_following_teacher(model),
            loader=data.train,
            loss_function=loss_function,
            make_solver=make_solver,
            ranges=ranges,
            clip=cfg.DINO.CLIP_GRAD,
            frozen=cfg.DINO.FREEZE_LAST_LAYER,
            periods=Periods.from_cfg(cfg),
        )

    def modules(self) -> Mapping[str, nn.Module]:
        return {"model": self.model, "teacher": self.teacher, "loss": self.loss_function}

    def evaluated(self) -> RetrievalModel:
        return self.teacher

    def saved_states(self) -> dict[str, dict[str, Any]]:
        """Returns student and teacher as DINO's files have them, and the teacher's backbone as a pre-trained file."""
        both = {"student": self.model.state_dict(), "teacher": self.teacher.state_dict(), "epoch": self.epoch}
        return {"": both, "_backbone": backbone_state(both)}

    def batches(self, epoch: int) -> TrainingBatches:
        self.epoch = epoch
        self.teacher.train()  # as published: its batch norms use the batch's statistics
        return self.loader.epoch(epoch)

    def epoch_state(self) -> dict:
        return {}  # the centre and the teacher are modules, and everything else depends on the step alone

    def set_rates(self, epoch: int, step: int, steps: int) -> None:
        done = (epoch - 1) * steps + step
        for group in self.optimizers[0].param_groups:
            group["lr"] = cosine_at(done, *self.ranges.rate, self.epochs, steps, self.ranges.warmup)
        self.optimizers[0].param_groups[0]["weight_decay"] = cosine_at(done, *self.ranges.decay, self.epochs, steps)
        self.momentum = cosine_at(done, self.ranges.momentum, 1.0, self.epochs, steps)

    def forward(self, batch: Batch) -> Tensor:
        """Returns the student's output for all crops."""
        return self.net([batch.images, *batch.views])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        with torch.no_grad():
            teacher_output = self.teacher([batch.images, *batch.views][:GLOBAL_CROPS])
        return {"dino": self.loss_function(self.forward(batch), teacher_output, self.epoch - 1)}

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
    """Scales each gradient with a norm above ``largest`` down to it; returns the norms before that."""
    return [nn.utils.clip_grad_norm_([p], largest) for p in parameters if p.grad is not None]


def freeze_prototypes(model: RetrievalModel) -> None:
    """Removes the gradients of the last layer, so that the optimizer skips it: no decay, no momentum."""
    for name, parameter in model.named_parameters():
        if "last_layer" in name:
            parameter.grad = None


@torch.no_grad()
def follow(teacher: nn.Module, student: nn.Module, momentum: float) -> None:
    """Sets ``teacher = momentum * teacher + (1 - momentum) * student`` for each parameter; buffers stay as they are."""
    for parameter, latest in zip(teacher.parameters(), student.parameters(), strict=True):
        parameter.mul_(momentum).add_(latest, alpha=1 - momentum)


def make_following_teacher(student: RetrievalModel) -> RetrievalModel:
    """Returns a copy of the student, buffers included, without dropout and stochastic depth."""
    teacher = copy.deepcopy(student)
    for module in teacher.modules():
        if isinstance(module, DropPath):
            module.drop_prob = 0.0
        elif isinstance(module, nn.Dropout):
            module.p = 0.0
    return teacher


def refuse_mismatch(student: nn.Module, teacher: nn.Module) -> None:
    """Raises ``UserError`` unless both networks have the same parameters."""
    of_student, of_teacher = ({n: tuple(p.shape) for n, p in m.named_parameters()} for m in (student, teacher))
    differing = [name for name in sorted({*of_student, *of_teacher}) if of_student.get(name) != of_teacher.get(name)]
    if differing:
        name = differing[0]
        raise UserError(
            f"DINO: student and teacher are different networks: {name} is {of_student.get(name, 'absent')} in the "
            f"student and {of_teacher.get(name, 'absent')} in the teacher"
        )


@builds("dino")
def dino_stages(cfg: CfgNode, data: Data, model: RetrievalModel) -> list[Stage]:
    """Returns the stages of ``PROCESSOR.NAME: dino``."""
    return [DINO.from_cfg(cfg, data, model)]
