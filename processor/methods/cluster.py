"""Training without labels by cluster contrast (Dai et al., ACCV 2022, arXiv:2103.11568; with ViTs: arXiv:2111.12084).

Without supervision (USL) it starts from pre-trained weights, in domain adaptation (UDA) from a source-trained
checkpoint; nothing else differs.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from yacs.config import CfgNode

from datasets.batches import TrainLoader
from datasets.images import Batch
from datasets.loaders import Data
from loss.cluster_memory import ClusterMemory, class_means
from model import RetrievalModel
from processor.methods.pseudo_labels import Clustering
from processor.stage import DEFAULT_PERIODS, MakeSolver, Periods, Stage, TrainingBatches
from solver import make_solver
from utils.distributed import gather_rows, world_size
from utils.errors import UserError
from utils.methods import builds


class ClusterContrast(Stage):
    """In every epoch extracts features, clusters them, and contrasts images with a memory of the clusters' means.

    loader: training batches, drawn by the clusters that ``clusters`` finds; an image in none is left out of the epoch.
    temperature, momentum, update: of the ``ClusterMemory``, which lives for one epoch.
    """

    name = "cluster"

    def __init__(
        self,
        model: RetrievalModel,
        epochs: int,
        *,
        loader: TrainLoader,
        clusters: Clustering,
        make_solver: MakeSolver,
        temperature: float = 0.05,
        momentum: float = 0.2,
        update: str = "mean",
        periods: Periods = DEFAULT_PERIODS,
    ):
        super().__init__(model, epochs, make_solver=make_solver, periods=periods)
        self.loader, self.clusters = loader, clusters
        self.temperature, self.momentum, self.update = temperature, momentum, update
        self.memory: ClusterMemory | None = None
        self.labels = torch.empty(0, dtype=torch.int64)
        self.step_features: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def from_cfg(cls, cfg: CfgNode, data: Data, model: RetrievalModel) -> ClusterContrast:
        if cfg.CLUSTER.TEMP <= 0:
            raise UserError(f"CLUSTER.TEMP: {cfg.CLUSTER.TEMP} must be above 0")
        assert data.train is not None and data.plain is not None, "the method asks for both"
        return cls(
            model,
            cfg.SOLVER.MAX_EPOCHS,
            loader=data.train,
            clusters=Clustering.from_cfg(cfg, data.plain, cfg.SOLVER.IMS_PER_BATCH // world_size()),
            make_solver=partial(make_solver, cfg),
            temperature=cfg.CLUSTER.TEMP,
            momentum=cfg.CLUSTER.MOMENTUM,
            update="hard" if cfg.CLUSTER.USE_HARD else "mean",
            periods=Periods.from_cfg(cfg),
        )

    def batches(self, epoch: int) -> TrainingBatches:
        feats = self.clusters.features(self.model)
        labels = self.clusters.labels_of(feats)
        self.remember(feats, torch.from_numpy(labels), self.device)
        self.loader.relabel(labels)
        return self.loader.epoch(epoch)

    def epoch_state(self) -> dict:
        assert self.memory is not None, "an epoch has begun"
        return {"memory": self.memory.features, "temperature": self.temperature, "momentum": self.momentum}

    def resume_epoch(self, epoch: int, state: dict) -> TrainingBatches:
        labels = self.clusters.last
        assert labels is not None, "load_state_dict"
        self.temperature, self.momentum = state["temperature"], state["momentum"]
        self.memory = ClusterMemory(state["memory"], self.temperature, self.momentum, self.update).to(self.device)
        self.labels = torch.from_numpy(labels).to(self.device)
        self.loader.relabel(labels)
        return self.loader.epoch(epoch)

    def remember(self, feats: Tensor, labels: Tensor, device: torch.device) -> None:
        """Makes a new memory from the clusters' means. feats: (N, D), labels: (N,), -1 for an image in no cluster."""
        means = class_means(feats, labels, int(labels.max()) + 1)
        self.memory = ClusterMemory(means, self.temperature, self.momentum, self.update).to(device)
        self.labels = labels.to(device)

    def forward(self, batch: Batch) -> Tensor:
        """Returns the features, (B, D)."""
        (feats,) = self.net(batch.images, cam_label=batch.cam_labels, view_label=batch.view_labels).feats
        return feats

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        assert self.memory is not None, "batches() makes the memory"
        labels, feats = self.labels[batch.rows], self.forward(batch)
        self.step_features.append((feats.detach(), labels))
        return {"contrast": self.memory(feats, labels)}

    def after_step(self, batches: list[Batch]) -> None:
        """Moves the memory by the step's features of all processes, so that it is the same on every rank."""
        assert self.memory is not None, "batches() makes the memory"
        feats, labels = (gather_rows(torch.cat(column)) for column in zip(*self.step_features, strict=True))
        self.memory.update(feats, labels)
        self.step_features.clear()

    def state_dict(self) -> dict:
        return self.clusters.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.clusters.load_state_dict(state)


@builds("cluster")
def cluster_stages(cfg: CfgNode, data: Data, model: RetrievalModel) -> list[Stage]:
    """Returns the stages of ``PROCESSOR.NAME: cluster``."""
    return [ClusterContrast.from_cfg(cfg, data, model)]
