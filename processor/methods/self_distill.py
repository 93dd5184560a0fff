"""SSDViT: class memories, two views and self distillation on one or several labelled sources (ICASSP 2025)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from yacs.config import CfgNode

from datasets.images import Batch
from datasets.loaders import Data, Source
from loss.cluster_memory import ClusterMemory, class_means
from loss.self_distillation import entry_distillation, identity_distillation, soft_share
from loss.triplet import triplet
from model import ReIDOutput, RetrievalModel
from model.networks.ssdvit import SSDViT
from processor.evaluate import extract_features
from processor.methods.domains import DomainBatches, ZippedEpochs
from processor.stage import DEFAULT_PERIODS, MakeSolver, Periods, Stage
from solver import make_solver
from utils.distributed import gather_rows
from utils.methods import builds


@dataclass(frozen=True)
class Recipe:
    """The terms that are minimised for one source; fields are the keys of the same names under ``SSD``.

    margin: of the triplet terms. gather: mine the hardest pairs over the batches of all processes.
    """

    mode: str = "released"
    temperature: float = 3.0
    weight: float = 0.7
    alpha: float = 0.8
    triplet_weights: tuple[float, float] = (0.8, 0.2)
    loss_weights: tuple[float, float, float, float] = (1.0, 1.0, 1.0, 1.0)
    paired_views: bool = False
    margin: float = 0.3
    gather: bool = False

    @classmethod
    def from_cfg(cls, cfg: CfgNode) -> Recipe:
        return cls(
            mode=cfg.SSD.MODE,
            temperature=cfg.SSD.TEMPERATURE,
            weight=cfg.SSD.WEIGHT,
            alpha=cfg.SSD.ALPHA,
            triplet_weights=tuple(cfg.SSD.TRIPLET_WEIGHTS),
            loss_weights=tuple(cfg.SSD.LOSS_WEIGHTS),
            paired_views=cfg.SSD.PAIRED_VIEWS,
            margin=cfg.SOLVER.MARGIN,
            gather=cfg.SOLVER.GATHER,
        )

    @property
    def siamese(self) -> bool:
        """Whether the strong view has a term; without one it only moves the memory."""
        return self.mode != "off"

    @property
    def reuses_features(self) -> bool:
        """Whether the memory moves by the step's features; else by those of a pass after it, as published."""
        return self.mode == "logits"

    def triplets(self, tri: Tensor, rb: Tensor, labels: Tensor) -> Tensor:
        """Returns the published pair of triplet terms as a scalar, or the last block's alone without distillation."""
        if self.gather:
            tri, rb, labels = gather_rows(tri), gather_rows(rb), gather_rows(labels)
        last = triplet(tri, labels, self.margin)
        if self.mode == "off":
            return last
        on_last, on_random = self.triplet_weights
        return on_last * last + on_random * triplet(rb, labels, self.margin)

    def terms(
        self,
        memory: ClusterMemory,
        weak: Sequence[Tensor],
        labels: Tensor,
        strong: Tensor | None,
        strong_labels: Tensor,
        epoch: int,
        epochs: int,
    ) -> dict[str, Tensor]:
        """Returns named, weighted terms of one source, whose sum is its total.

        weak: ``[tri, rb, bn_x, bn_x_rb]`` of the weak view, (B, D) each. strong: ``bn_x`` of the strong view, None
        unless ``siamese``. labels, strong_labels: (B,). epoch: from 1.
        """
        tri, rb, feats, feats_random = weak
        on_memory, on_triplet, on_block, on_view = self.loss_weights
        terms = {"memory": memory(feats, labels), "triplet": on_triplet * self.triplets(tri, rb, labels)}
        if self.siamese:
            assert strong is not None, "siamese"
            terms["memory"] = 0.5 * terms["memory"] + 0.5 * memory(strong, strong_labels)
        terms["memory"] = on_memory * terms["memory"]
        options = {
            "alpha": soft_share(epoch, epochs, self.alpha), "temperature": self.temperature, "weight": self.weight,
        }  # fmt: skip
        if self.mode == "released":
            assert strong is not None, "siamese"
            by_block, by_view = entry_distillation(feats, feats_random, strong, labels, strong_labels, **options)
            terms |= {"block": on_block * by_block, "view": on_view * by_view}
        if self.mode == "logits":
            assert strong is not None, "siamese"
            logits = memory.logits(feats)
            terms["block"] = on_block * identity_distillation(logits, memory.logits(feats_random), labels, **options)
            if self.paired_views:
                terms["view"] = on_view * identity_distillation(logits, memory.logits(strong), labels, **options)
        return terms


class SelfDistillation(Stage):
    """Trains with a batch of each view of each source per step, and one memory per source that moves after it.

    sources: with the loaders of their views. recipe: what is minimised. iterations: steps of an epoch. temperature,
    momentum: of the memories, which hold the untrained network's features before the first epoch.
    """

    name = "self_distill"

    def __init__(
        self,
        model: SSDViT,
        epochs: int,
        *,
        sources: Sequence[Source],
        recipe: Recipe,
        make_solver: MakeSolver,
        iterations: int,
        temperature: float = 0.05,
        momentum: float = 0.2,
        periods: Periods = DEFAULT_PERIODS,
    ):
        super().__init__(model, epochs, make_solver=make_solver, periods=periods)
        self.network, self.sources, self.recipe, self.iterations = model, sources, recipe, iterations
        self.last_epoch, self.epoch, self.accuracy = epochs, 0, torch.zeros(())
        self.memory_of = [
            ClusterMemory(torch.zeros(source.num_classes, model.width), temperature, momentum, normalize=False)
            for source in sources
        ]
        self.memories = nn.ModuleList(self.memory_of)
        self.step_features: list[list[tuple[Tensor, Tensor]]] = []

    @classmethod
    def from_cfg(cls, cfg: CfgNode, data: Data, model: SSDViT) -> SelfDistillation:
        return cls(
            model,
            cfg.SOLVER.MAX_EPOCHS,
            sources=data.sources,
            recipe=Recipe.from_cfg(cfg),
            make_solver=partial(make_solver, cfg),
            iterations=cfg.SSD.ITERS,
            temperature=cfg.SSD.MEMORY_TEMPERATURE,
            momentum=cfg.SSD.MEMORY_MOMENTUM,
            periods=Periods.from_cfg(cfg),
        )

    def modules(self) -> Mapping[str, nn.Module]:
        return {"model": self.model, "memories": self.memories}

    def fill_memories(self) -> None:
        """Sets every row to its identity's mean feature under the test transform."""
        for memory, source in zip(self.memory_of, self.sources, strict=True):
            feats = extract_features(self.network, source.plain, self.device, call=self.network.class_feature)
            labels = torch.from_numpy(source.plain.records.pids)
            memory.features.copy_(class_means(feats, labels, source.num_classes))

    def batches(self, epoch: int) -> ZippedEpochs:
        if epoch == 1:  # later epochs have them from the epoch before or from the restart
            self.fill_memories()
        return self.resume_epoch(epoch, {})

    def epoch_state(self) -> dict:
        return {}  # the memories are modules

    def resume_epoch(self, epoch: int, state: dict) -> ZippedEpochs:
        self.epoch = epoch
        return ZippedEpochs([view.epoch(epoch) for source in self.sources for view in source.views], self.iterations)

    def views(self, batch: DomainBatches) -> list[tuple[Batch, Batch]]:
        """Returns the weak and the strong batch of each source."""
        if self.recipe.paired_views:
            return [(both, replace(both, images=both.views[0], views=())) for both in batch.batches]
        return list(zip(batch.batches[::2], batch.batches[1::2], strict=True))

    def forward(self, batch: DomainBatches) -> list[tuple[ReIDOutput, ReIDOutput | None]]:
        """Returns the outputs for the weak and, if ``siamese``, the strong view of each source."""
        outputs = []
        for weak, strong in self.views(batch):
            of_weak = self.net(weak.images, label=weak.pids)
            outputs.append((of_weak, self.net(strong.images, label=strong.pids) if self.recipe.siamese else None))
        return outputs

    def losses(self, batch: DomainBatches) -> dict[str, Tensor]:
        totals: dict[str, Tensor] = {}
        views, strong_features, accuracies = self.views(batch), [], []
        for memory, (weak, strong), (of_weak, of_strong) in zip(
            self.memory_of, views, self.forward(batch), strict=True
        ):
            feats = None if of_strong is None else of_strong.feats[2]
            terms = self.recipe.terms(memory, of_weak.feats, weak.pids, feats, strong.pids, self.epoch, self.last_epoch)
            for name, term in terms.items():
                totals[name] = totals[name] + term / len(views) if name in totals else term / len(views)
            accuracies.append((memory.logits(of_weak.feats[2].detach()).argmax(1) == weak.pids).float().mean())
            if self.recipe.reuses_features:
                assert feats is not None, "siamese"
                strong_features.append((feats.detach(), strong.pids))
        self.accuracy = torch.stack(accuracies).mean()
        if strong_features:
            self.step_features.append(strong_features)
        return totals

    def logs(self) -> dict[str, float]:
        return {"acc": float(self.accuracy)}

    @torch.no_grad()
    def after_step(self, batches: list[DomainBatches]) -> None:
        """Moves the memories by every process's strong views in rank order, so that they are the same on every rank."""
        if not self.recipe.reuses_features:
            strong = [[view for _, view in self.views(batch)] for batch in batches]
            self.step_features = [
                [(self.network(view.images).feats[2], view.pids) for view in views] for views in strong
            ]
        for strong_features in self.step_features:
            for memory, (feats, labels) in zip(self.memory_of, strong_features, strict=True):
                memory.update(gather_rows(feats), gather_rows(labels))
        self.step_features = []


@builds("self_distill")
def self_distill_stages(cfg: CfgNode, data: Data, model: RetrievalModel) -> list[Stage]:
    """Returns the stages of ``PROCESSOR.NAME: self_distill``."""
    assert isinstance(model, SSDViT), "the method's network"
    return [SelfDistillation.from_cfg(cfg, data, model)]
