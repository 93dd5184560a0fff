"""Supervised training with identity and metric losses: TransReID and the ResNet baseline."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

import loss
from datasets.transforms.imagenet import make_mixup
from model import ReIDOutput
from processor.stage import Stage
from solver import make_solver
from utils.distributed import is_distributed, world_size
from utils.errors import UserError


class Centers(nn.Module):
    """The centers of the center loss, one row per identity, and their own plain SGD.

    weight: of the center term. The term's weight acts on the features only: the centers' gradient is divided by it
    again (Wen et al., ECCV 2016, as the strong baseline has it).
    """

    def __init__(self, num_class: int, width: int, weight: float, lr: float):
        super().__init__()
        if weight <= 0:
            raise UserError(f"SOLVER.CENTER_LOSS_WEIGHT: {weight} must be above 0 for a center loss")
        self.weight, self.lr = weight, lr
        self.centers = nn.Parameter(torch.randn(num_class, width))

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def forward(self, feats: Tensor, labels: Tensor) -> Tensor:
        return self.weight * loss.center(feats, labels, self.centers)

    def rescale_gradient(self) -> None:
        grad = self.centers.grad
        grad.div_(self.weight)
        if is_distributed():
            torch.distributed.all_reduce(grad)
            grad.div_(world_size())


class Supervised(Stage):
    """Identity and metric terms over one or several parts.

    freeze_epochs: first epochs in which only the classifiers learn and everything else is in evaluation mode. mixup:
    (images, labels) -> mixed images, (B, C) targets.
    """

    name = "supervised"

    def __init__(
        self,
        model: nn.Module,
        loader,
        loss_function,
        epochs: int,
        make_solver,
        centers: Centers | None = None,
        freeze_epochs: int = 0,
        mixup=None,
    ):
        super().__init__(model, epochs)
        self.freeze_epochs, self.frozen = freeze_epochs, False
        self.loader, self.loss_function, self.make_solver, self.centers = loader, loss_function, make_solver, centers
        self.mixup = mixup
        self.accuracy = 0.0

    @classmethod
    def from_cfg(cls, cfg, data, model: nn.Module) -> Supervised:
        centers = None
        if "center" in cfg.MODEL.METRIC_LOSS_TYPE:
            centers = Centers(data.num_classes, model.width, cfg.SOLVER.CENTER_LOSS_WEIGHT, cfg.SOLVER.CENTER_LR)
        loss_function = loss.make_loss(cfg, data.num_classes)
        mixup = make_mixup(cfg, data.num_classes)
        frozen = cfg.SOLVER.FREEZE_EPOCHS
        solver, epochs = partial(make_solver, cfg), cfg.SOLVER.MAX_EPOCHS
        stage = cls(model, data.train, loss_function, epochs, solver, centers, frozen, mixup)
        stage.eval_period, stage.checkpoint_period = cfg.SOLVER.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD
        stage.log_period = cfg.SOLVER.LOG_PERIOD
        return stage

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model} | ({"centers": self.centers} if self.centers else {})

    def begin(self) -> None:
        optimizer, self.scheduler = self.make_solver(self.model)
        self.optimizers = [optimizer] + ([self.centers.optimizer()] if self.centers else [])

    def batches(self, epoch: int):
        return self.loader.epoch(epoch)

    def set_rates(self, epoch: int, step: int, steps: int) -> None:
        super().set_rates(epoch, step, steps)
        self.frozen = epoch <= self.freeze_epochs
        if self.frozen and step == 0:
            for name, child in self.model.named_children():
                child.train(name.startswith("classifier"))

    def outputs(self, batch) -> ReIDOutput:
        """What the losses are computed from."""
        return self.net(batch.images, label=batch.pids, cam_label=batch.cam_labels, view_label=batch.view_labels)

    def losses(self, batch) -> dict[str, Tensor]:
        targets = batch.pids
        if self.mixup:
            images, targets = self.mixup(batch.images, batch.pids)
            batch = replace(batch, images=images)
        out = self.outputs(batch)
        shown = out.scores[0] if out.i2t_logits is None else out.i2t_logits
        self.accuracy = (shown.detach().argmax(1) == batch.pids).float().mean()
        terms = self.loss_function(out, targets)
        if self.centers:
            terms["center"] = self.centers(out.feats[0], batch.pids)
        return terms

    def logs(self) -> dict[str, float]:
        return {"acc": float(self.accuracy)}

    def before_step(self) -> None:
        if self.frozen:
            for name, parameter in self.model.named_parameters():
                if not name.startswith("classifier"):
                    parameter.grad = None  # the optimizer passes over it: no decay, no momentum
        if self.centers:
            self.centers.rescale_gradient()


def supervised(cfg, data, model: nn.Module) -> list[Stage]:
    """The stages of ``PROCESSOR.NAME: supervised``."""
    return [Supervised.from_cfg(cfg, data, model)]
