"""Supervised training with identity and metric losses: TransReID and the ResNet baseline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, Self

import torch
import torch.distributed as dist
from torch import Tensor, nn
from yacs.config import CfgNode

import loss
from datasets.batches import TrainLoader
from datasets.images import Batch
from datasets.loaders import Data
from datasets.transforms.imagenet import make_mixup
from model import ReIDOutput, RetrievalModel
from processor.stage import DEFAULT_PERIODS, LossFunction, MakeSolver, Periods, Stage, TrainingBatches
from solver import make_solver
from utils.distributed import is_distributed, world_size
from utils.errors import UserError
from utils.methods import builds

Mixup = Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]
"""(images, labels (B,)) -> mixed images, and the share of each class in them (B, C)."""


class Centers(nn.Module):
    """The centers of the center loss, one row per identity, trained by a plain SGD of their own.

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
        """Returns the centers' optimizer."""
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def forward(self, feats: Tensor, labels: Tensor) -> Tensor:
        return self.weight * loss.center(feats, labels, self.centers)

    def rescale_gradient(self) -> None:
        """Divides the gradient by the term's weight and averages it over the processes."""
        grad = self.centers.grad
        assert grad is not None, "called after backward"
        grad.div_(self.weight)
        if is_distributed():
            dist.all_reduce(grad)
            grad.div_(world_size())


class Supervised(Stage):
    """Trains with identity and metric terms over one or several parts.

    loss_function: of the terms. centers: of the center loss, None without it. freeze_epochs: first epochs in which only
    the classifiers learn and everything else is in evaluation mode. mixup: mixes the images of a batch, None without.
    frames: of a clip, consecutive in a batch, which the model pools to one feature; 1: images are by themselves.
    """

    name = "supervised"

    def __init__(
        self,
        model: RetrievalModel,
        epochs: int,
        *,
        loader: TrainLoader,
        loss_function: LossFunction,
        make_solver: MakeSolver,
        centers: Centers | None = None,
        freeze_epochs: int = 0,
        mixup: Mixup | None = None,
        frames: int = 1,
        periods: Periods = DEFAULT_PERIODS,
    ):
        super().__init__(model, epochs, make_solver=make_solver, periods=periods)
        self.freeze_epochs, self.frozen, self.frames = freeze_epochs, False, frames
        self.loader, self.loss_function, self.centers, self.mixup = loader, loss_function, centers, mixup
        self.accuracy = torch.zeros(())

    @classmethod
    def from_cfg(cls, cfg: CfgNode, data: Data, model: RetrievalModel, **more: Any) -> Self:
        """Makes the stage by the keys. more: further arguments of a subclass."""
        centers = None
        if "center" in cfg.MODEL.METRIC_LOSS_TYPE:
            centers = Centers(data.num_classes, model.width, cfg.SOLVER.CENTER_LOSS_WEIGHT, cfg.SOLVER.CENTER_LR)
        assert data.train is not None, "the method asks for it"
        return cls(
            model,
            cfg.SOLVER.MAX_EPOCHS,
            loader=data.train,
            loss_function=loss.make_loss(cfg, data.num_classes),
            make_solver=partial(make_solver, cfg),
            centers=centers,
            freeze_epochs=cfg.SOLVER.FREEZE_EPOCHS,
            mixup=make_mixup(cfg, data.num_classes),
            frames=cfg.DATALOADER.FRAMES,
            periods=Periods.from_cfg(cfg),
            **more,
        )

    def modules(self) -> Mapping[str, nn.Module]:
        return {"model": self.model} | ({"centers": self.centers} if self.centers else {})

    def begin(self) -> None:
        super().begin()
        if self.centers:
            self.optimizers.append(self.centers.optimizer())

    def batches(self, epoch: int) -> TrainingBatches:
        return self.loader.epoch(epoch)

    def epoch_state(self) -> dict:
        return {}

    def set_rates(self, epoch: int, step: int, steps: int) -> None:
        super().set_rates(epoch, step, steps)
        self.frozen = epoch <= self.freeze_epochs
        if self.frozen and step == 0:
            for name, child in self.model.named_children():
                child.train(name.startswith(self.model.classifier_keys))

    def mixed(self, batch: Batch) -> tuple[Batch, Tensor]:
        """Returns the batch and its targets, with mixed images where there is a mixup."""
        if not self.mixup:
            return batch, batch.pids
        images, targets = self.mixup(batch.images, batch.pids)
        return replace(batch, images=images), targets

    def outputs(self, batch: Batch) -> ReIDOutput:
        """Returns what the losses are computed from."""
        return self.net(batch.images, label=batch.pids, cam_label=batch.cam_labels, view_label=batch.view_labels)

    def forward(self, batch: Batch) -> ReIDOutput:
        return self.outputs(self.mixed(batch)[0])

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        batch, targets = self.mixed(batch)
        return self.labelled_terms(self.outputs(batch), batch.pids, targets)

    def labelled_terms(self, out: ReIDOutput, pids: Tensor, targets: Tensor) -> dict[str, Tensor]:
        """Returns the weighted terms of an output. pids: (B,). targets: the same, or shares of classes (B, C)."""
        pids, targets = pids[:: self.frames], targets[:: self.frames]  # of clips
        scores = out.scores[0] if out.i2t_logits is None else out.i2t_logits
        self.accuracy = (scores.detach().argmax(1) == pids).float().mean()
        terms = self.loss_function(out, targets)
        if self.centers:
            terms["center"] = self.centers(out.feats[0], pids)
        return terms

    def logs(self) -> dict[str, float]:
        return {"acc": float(self.accuracy)}

    def before_step(self) -> None:
        if self.frozen:
            for name, parameter in self.model.named_parameters():
                if not name.startswith(self.model.classifier_keys):
                    parameter.grad = None  # the optimizer skips it: no decay, no momentum
        if self.centers:
            self.centers.rescale_gradient()


@builds("supervised")
def supervised_stages(cfg: CfgNode, data: Data, model: RetrievalModel) -> list[Stage]:
    """Returns the stages of ``PROCESSOR.NAME: supervised``."""
    return [Supervised.from_cfg(cfg, data, model)]
