"""Training without labels by cluster contrast (Dai et al., ACCV 2022, arXiv:2103.11568; with ViTs: arXiv:2111.12084).

Without supervision (USL) it starts from pre-trained weights, in domain adaptation (UDA) from a source-trained
checkpoint; nothing else differs.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from loss.cluster_memory import ClusterMemory, class_means
from processor.methods.pseudo_labels import Clustering
from processor.stage import Stage
from solver import make_solver
from utils.distributed import gather_rows, world_size
from utils.errors import UserError


class ClusterContrast(Stage):
    """In every epoch: features, clusters of them, a memory of the clusters' means, and contrast with it.

    loader: training batches, drawn by the clusters that ``clusters`` finds in its list; an image in none sits the epoch
    out. temperature, momentum, update: of the ``ClusterMemory``, which lives for one epoch.
    """

    name = "cluster"

    def __init__(
        self,
        model: nn.Module,
        loader,
        clusters: Clustering,
        epochs: int,
        make_solver,
        temperature: float = 0.05,
        momentum: float = 0.2,
        update: str = "mean",
    ):
        super().__init__(model, epochs)
        self.loader, self.clusters, self.make_solver = loader, clusters, make_solver
        self.temperature, self.momentum, self.update = temperature, momentum, update
        self.seen: list[tuple[Tensor, Tensor]] = []

    @classmethod
    def from_cfg(cls, cfg, data, model: nn.Module) -> ClusterContrast:
        if cfg.CLUSTER.TEMP <= 0:
            raise UserError(f"CLUSTER.TEMP: {cfg.CLUSTER.TEMP} is not above 0")
        clusters = Clustering.from_cfg(cfg, data.plain, cfg.SOLVER.IMS_PER_BATCH // world_size())
        rule = "hard" if cfg.CLUSTER.USE_HARD else "mean"
        keys = cfg.CLUSTER
        solver, epochs = partial(make_solver, cfg), cfg.SOLVER.MAX_EPOCHS
        stage = cls(model, data.train, clusters, epochs, solver, keys.TEMP, keys.MOMENTUM, rule)
        stage.eval_period, stage.checkpoint_period = cfg.SOLVER.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD
        stage.log_period = cfg.SOLVER.LOG_PERIOD
        return stage

    def begin(self) -> None:
        optimizer, self.scheduler = self.make_solver(self.model)
        self.optimizers = [optimizer]

    def batches(self, epoch: int):
        feats = self.clusters.features(self.model)
        labels = self.clusters.labels_of(feats)
        self.remember(feats, torch.from_numpy(labels), next(self.model.parameters()).device)
        self.loader.relabel(labels)
        return self.loader.epoch(epoch)

    def remember(self, feats: Tensor, labels: Tensor, device: torch.device) -> None:
        """A new memory from the clusters' means. feats: (N, D), labels: (N,), -1 for an image in no cluster."""
        means = class_means(feats, labels, int(labels.max()) + 1)
        self.memory = ClusterMemory(means, self.temperature, self.momentum, self.update).to(device)
        self.labels = labels.to(device)

    def losses(self, batch) -> dict[str, Tensor]:
        labels = self.labels[batch.rows]
        (feats,) = self.net(batch.images, cam_label=batch.cam_labels, view_label=batch.view_labels).feats
        self.seen.append((feats.detach(), labels))
        return {"contrast": self.memory(feats, labels)}

    def after_step(self, batches: list) -> None:
        """The memory takes in the step's features, of all processes, so that every process's stays the same."""
        feats, labels = (gather_rows(torch.cat(column)) for column in zip(*self.seen, strict=True))
        self.memory.update(feats, labels)
        self.seen.clear()

    def state_dict(self) -> dict:
        return self.clusters.state_dict()

    def load_state_dict(self, state: dict) -> None:
        self.clusters.load_state_dict(state)


def cluster(cfg, data, model: nn.Module) -> list[Stage]:
    """The stages of ``PROCESSOR.NAME: cluster``."""
    return [ClusterContrast.from_cfg(cfg, data, model)]
