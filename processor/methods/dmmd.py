"""D-MMD: adapting a source-trained network to an unlabelled target (Mekhazni et al., ECCV 2020, arXiv:2007.13890)."""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

import loss
from loss.dmmd import SIGMAS
from processor.methods.domains import Pairs, Zipped, load_start, target_groups
from processor.methods.pseudo_labels import Clustering
from processor.stage import Stage
from solver import make_solver
from utils.distributed import gather_rows, world_size
from utils.errors import UserError


class DMMD(Stage):
    """A labelled source batch and a target batch per step; the target's distances are moved onto the source's.

    source, target: training loaders of P x K batches, identity after identity. loss_function: (output, labels) -> the
    source's terms. warmup: epochs with the source's terms only; only: without them from the first epoch. weights: of
    within, between and overall. clusters: makes the target's groups anew in every epoch, None where they are fixed.
    """

    name = "dmmd"

    def __init__(
        self,
        model: nn.Module,
        source,
        target,
        loss_function,
        epochs: int,
        make_solver,
        num_instances: int,
        warmup: int = 25,
        only: bool = False,
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        sigmas: tuple[float, ...] = SIGMAS,
        gather: bool = False,
        clusters: Clustering | None = None,
    ):
        super().__init__(model, epochs)
        self.source, self.target, self.loss_function, self.make_solver = source, target, loss_function, make_solver
        self.num_instances, self.warmup, self.only, self.weights = num_instances, warmup, only, weights
        self.sigmas, self.gather, self.clusters, self.epoch = sigmas, gather, clusters, 0

    @classmethod
    def from_cfg(cls, cfg, data, model: nn.Module) -> DMMD:
        if len(data.targets) != 1:
            raise UserError(
                f"DATASETS.TARGETS: D-MMD adapts to one target, not {len(data.targets)}; DMMD.BLEND True makes one of "
                "several"
            )
        load_start(model, "DMMD.SOURCE_WEIGHT", cfg.DMMD.SOURCE_WEIGHT)
        target = data.targets[0]
        clusters = None
        if cfg.DMMD.GROUPS == "pseudo":
            share = cfg.SOLVER.IMS_PER_BATCH // world_size()
            clusters = Clustering.from_cfg(cfg, data.plain_targets[0], share)
        else:
            target.relabel(target_groups(target.records, cfg.DMMD.GROUPS, cfg.DATALOADER.NUM_INSTANCE))

        stage = cls(
            model,
            data.train,
            target,
            loss.make_loss(cfg, data.num_classes),
            cfg.SOLVER.MAX_EPOCHS,
            partial(make_solver, cfg),
            cfg.DATALOADER.NUM_INSTANCE,
            cfg.DMMD.WARMUP_EPOCHS,
            cfg.DMMD.ONLY,
            tuple(cfg.DMMD.LOSS_WEIGHTS),
            tuple(cfg.DMMD.SIGMAS),
            cfg.SOLVER.GATHER,
            clusters,
        )
        stage.eval_period, stage.checkpoint_period = cfg.SOLVER.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD
        stage.log_period = cfg.SOLVER.LOG_PERIOD
        return stage

    def begin(self) -> None:
        optimizer, self.scheduler = self.make_solver(self.model)
        self.optimizers = [optimizer]

    def batches(self, epoch: int) -> Zipped:
        self.epoch = epoch
        if self.clusters is not None:
            self.target.relabel(self.clusters.labels(self.model))
        return Zipped([self.source.epoch(epoch), self.target.epoch(epoch)])

    def losses(self, batch: Pairs) -> dict[str, Tensor]:
        source, target = batch.parts
        ours, theirs = self.net(source.images, label=source.pids), self.net(target.images)
        terms = {} if self.only else self.loss_function(ours, source.pids)
        if self.only or self.epoch > self.warmup:
            terms |= dmmd_terms(
                ours.feats[0], theirs.feats[0], self.num_instances, self.weights, self.sigmas, self.gather
            )
        else:
            terms["id"] = terms["id"] + 0 * theirs.feats[0].sum()  # every process's gradients must be whole
        return terms


def dmmd_terms(
    source: Tensor,
    target: Tensor,
    num_instances: int,
    weights: tuple[float, float, float],
    sigmas: tuple[float, ...] = SIGMAS,
    gather: bool = False,
) -> dict[str, Tensor]:
    """The three terms by name, weighted. source, target: (P * K, D). gather: over the rows of all processes."""
    if gather:
        source, target = gather_rows(source), gather_rows(target)
    values = loss.dmmd(source, target, num_instances, sigmas)
    return {name: w * v for name, w, v in zip(("within", "between", "overall"), weights, values, strict=True) if w}


def dmmd(cfg, data, model: nn.Module) -> list[Stage]:
    """The stages of ``PROCESSOR.NAME: dmmd``."""
    return [DMMD.from_cfg(cfg, data, model)]
