"""D-MMD: adapting a source-trained network to an unlabelled target (Mekhazni et al., ECCV 2020, arXiv:2007.13890)."""

from __future__ import annotations

from functools import partial

from torch import Tensor
from yacs.config import CfgNode

import loss
from datasets.loaders import Data, TrainLoader
from loss.dmmd import SIGMAS
from model import ReIDOutput, RetrievalModel
from processor.methods.domains import DomainBatches, ZippedEpochs, load_start, target_groups
from processor.methods.pseudo_labels import Clustering
from processor.stage import DEFAULT_PERIODS, LossFunction, MakeSolver, Periods, Stage
from solver import make_solver
from utils.distributed import gather_rows, world_size
from utils.errors import UserError
from utils.methods import builds


class DMMD(Stage):
    """Moves the target's distances onto the source's, with a labelled source batch and a target batch per step.

    source, target: training loaders of P x K batches, identity after identity. loss_function: of the source's terms.
    num_instances: K. warmup: epochs with the source's terms only; only: without them from the first epoch. weights: of
    the within, between and overall terms. gather: compute them over the batches of all processes. clusters: finds the
    target's groups again in every epoch, None where they are fixed.
    """

    name = "dmmd"

    def __init__(
        self,
        model: RetrievalModel,
        epochs: int,
        *,
        source: TrainLoader,
        target: TrainLoader,
        loss_function: LossFunction,
        make_solver: MakeSolver,
        num_instances: int,
        warmup: int = 25,
        only: bool = False,
        weights: tuple[float, float, float] = (1.0, 1.0, 1.0),
        sigmas: tuple[float, ...] = SIGMAS,
        gather: bool = False,
        clusters: Clustering | None = None,
        periods: Periods = DEFAULT_PERIODS,
    ):
        super().__init__(model, epochs, make_solver=make_solver, periods=periods)
        self.source, self.target, self.loss_function = source, target, loss_function
        self.num_instances, self.warmup, self.only, self.weights = num_instances, warmup, only, weights
        self.sigmas, self.gather, self.clusters, self.epoch = sigmas, gather, clusters, 0

    @classmethod
    def from_cfg(cls, cfg: CfgNode, data: Data, model: RetrievalModel) -> DMMD:
        if len(data.targets) != 1:
            raise UserError(
                f"DATASETS.TARGETS: D-MMD adapts to one target, not {len(data.targets)}; DMMD.BLEND True joins several "
                "into one"
            )
        assert data.train is not None, "the method asks for it"
        load_start(model, "DMMD.SOURCE_WEIGHT", cfg.DMMD.SOURCE_WEIGHT)
        target = data.targets[0]
        clusters = None
        if cfg.DMMD.GROUPS == "pseudo":
            images = cfg.SOLVER.IMS_PER_BATCH // world_size()
            clusters = Clustering.from_cfg(cfg, data.plain_targets[0], images)
        else:
            target.relabel(target_groups(target.records, cfg.DMMD.GROUPS, cfg.DATALOADER.NUM_INSTANCE))
        return cls(
            model,
            cfg.SOLVER.MAX_EPOCHS,
            source=data.train,
            target=target,
            loss_function=loss.make_loss(cfg, data.num_classes),
            make_solver=partial(make_solver, cfg),
            num_instances=cfg.DATALOADER.NUM_INSTANCE,
            warmup=cfg.DMMD.WARMUP_EPOCHS,
            only=cfg.DMMD.ONLY,
            weights=tuple(cfg.DMMD.LOSS_WEIGHTS),
            sigmas=tuple(cfg.DMMD.SIGMAS),
            gather=cfg.SOLVER.GATHER,
            clusters=clusters,
            periods=Periods.from_cfg(cfg),
        )

    def batches(self, epoch: int) -> ZippedEpochs:
        if self.clusters is not None:
            self.clusters.labels(self.model)
        return self.resume_epoch(epoch, {})

    def epoch_state(self) -> dict:
        return {}

    def resume_epoch(self, epoch: int, state: dict) -> ZippedEpochs:
        self.epoch = epoch
        if self.clusters is not None:
            assert self.clusters.last is not None, "batches or load_state_dict"
            self.target.relabel(self.clusters.last)
        return ZippedEpochs([self.source.epoch(epoch), self.target.epoch(epoch)])

    def state_dict(self) -> dict:
        return self.clusters.state_dict() if self.clusters else {}

    def load_state_dict(self, state: dict) -> None:
        if self.clusters:
            self.clusters.load_state_dict(state)

    def forward(self, batch: DomainBatches) -> tuple[ReIDOutput, ReIDOutput]:
        """Returns the outputs for the source's and the target's images."""
        source, target = batch.batches
        return self.net(source.images, label=source.pids), self.net(target.images)

    def losses(self, batch: DomainBatches) -> dict[str, Tensor]:
        source, target = self.forward(batch)
        labels = batch.batches[0].pids
        terms = {} if self.only else self.loss_function(source, labels)
        if self.only or self.epoch > self.warmup:
            terms |= dmmd_terms(
                source.feats[0], target.feats[0], self.num_instances, self.weights, self.sigmas, self.gather
            )
        else:
            terms["id"] = terms["id"] + 0 * target.feats[0].sum()  # every process needs a gradient for every parameter
        return terms


def dmmd_terms(
    source: Tensor,
    target: Tensor,
    num_instances: int,
    weights: tuple[float, float, float],
    sigmas: tuple[float, ...] = SIGMAS,
    gather: bool = False,
) -> dict[str, Tensor]:
    """Returns the three weighted terms by name. source, target: (P * K, D). gather: use the rows of all processes."""
    if gather:
        source, target = gather_rows(source), gather_rows(target)
    values = loss.dmmd(source, target, num_instances, sigmas)
    return {name: w * v for name, w, v in zip(("within", "between", "overall"), weights, values, strict=True) if w}


@builds("dmmd")
def dmmd_stages(cfg: CfgNode, data: Data, model: RetrievalModel) -> list[Stage]:
    """Returns the stages of ``PROCESSOR.NAME: dmmd``."""
    return [DMMD.from_cfg(cfg, data, model)]
