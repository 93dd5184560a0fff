"""SSDViT: class memories, two views and self distillation on one or several labelled sources (ICASSP 2025)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from datasets.images import Batch
from datasets.loaders import Source
from loss.cluster_memory import ClusterMemory, class_means
from loss.self_distillation import entry_distillation, identity_distillation, soft_share
from loss.triplet import triplet
from model import ReIDOutput
from processor.evaluate import extract_features
from processor.methods.domains import Pairs, Zipped
from processor.stage import Stage
from solver import make_solver
from utils.distributed import gather_rows


@dataclass(frozen=True)
class Recipe:
    """What is minimised for one source; fields are the keys of the same names under ``SSD``.

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
    def from_cfg(cls, cfg) -> Recipe:
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
        """Whether the strong view has a term of its own; without one it only moves the memory."""
        return self.mode != "off"

    @property
    def reuses_features(self) -> bool:
        """Whether the memory moves by the features of the step; else by those of a pass after it, as published."""
        return self.mode == "logits"

    def triplets(self, tri: Tensor, rb: Tensor, labels: Tensor) -> Tensor:
        """The published pair of triplet terms, or the last block's alone without distillation. -> scalar."""
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
        """Named, weighted terms of one source, whose sum is its total.

        weak: ``[tri, rb, bn_x, bn_x_rb]`` of the weak view, (B, D) each. strong: ``bn_x`` of the strong view, None
        where it is not ``siamese``. labels, strong_labels: (B,). epoch: from 1.
        """
        tri, rb, feats, feats_random = weak
        on_memory, on_triplet, on_block, on_view = self.loss_weights
        terms = {"memory": memory(feats, labels), "triplet": on_triplet * self.triplets(tri, rb, labels)}
        if self.siamese:
            terms["memory"] = 0.5 * terms["memory"] + 0.5 * memory(strong, strong_labels)
        terms["memory"] = on_memory * terms["memory"]
        options = {
            "alpha": soft_share(epoch, epochs, self.alpha), "temperature": self.temperature, "weight": self.weight,
        }  # fmt: skip
        if self.mode == "released":
            by_block, by_view = entry_distillation(feats, feats_random, strong, labels, strong_labels, **options)
            terms |= {"block": on_block * by_block, "view": on_view * by_view}
        if self.mode == "logits":
            own = memory.logits(feats)
            terms["block"] = on_block * identity_distillation(own, memory.logits(feats_random), labels, **options)
            if self.paired_views:
                terms["view"] = on_view * identity_distillation(own, memory.logits(strong), labels, **options)
        return terms


class SelfDistillation(Stage):
    """A batch of each view of each source per step; one memory per source, moved after it.

    sources: with the loaders of their views. recipe: what is minimised. iterations: steps of an epoch. temperature,
    momentum: of the memories, which are filled with the untrained network's features before the first epoch.
    """

    name = "self_distill"

    def __init__(
        self,
        model: nn.Module,
        sources: Sequence[Source],
        recipe: Recipe,
        epochs: int,
        make_solver,
        iterations: int,
        temperature: float = 0.05,
        momentum: float = 0.2,
    ):
        super().__init__(model, epochs)
        self.sources, self.recipe, self.make_solver, self.iterations = sources, recipe, make_solver, iterations
        self.last_epoch, self.epoch, self.accuracy = epochs, 0, 0.0
        self.memories = nn.ModuleList(
            ClusterMemory(torch.zeros(source.num_classes, model.width), temperature, momentum, normalize=False)
            for source in sources
        )
        self.seen: list[list[tuple[Tensor, Tensor]]] = []

    @classmethod
    def from_cfg(cls, cfg, data, model: nn.Module) -> SelfDistillation:
        stage = cls(
            model,
            data.sources,
            Recipe.from_cfg(cfg),
            cfg.SOLVER.MAX_EPOCHS,
            partial(make_solver, cfg),
            cfg.SSD.ITERS,
            cfg.SSD.MEMORY_TEMPERATURE,
            cfg.SSD.MEMORY_MOMENTUM,
        )
        stage.eval_period, stage.checkpoint_period = cfg.SOLVER.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD
        stage.log_period = cfg.SOLVER.LOG_PERIOD
        return stage

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model, "memories": self.memories}

    def begin(self) -> None:
        optimizer, self.scheduler = self.make_solver(self.model)
        self.optimizers = [optimizer]

    def fill_memories(self) -> None:
        """Every row becomes its identity's mean feature, under the test transform."""
        device = next(self.model.parameters()).device
        for memory, source in zip(self.memories, self.sources, strict=True):
            feats = extract_features(self.model, source.plain, device, call=self.model.class_feature)
            labels = torch.from_numpy(source.plain.records.pids)
            memory.features.copy_(class_means(feats, labels, source.num_classes))

    def batches(self, epoch: int) -> Zipped:
        if epoch == 1:  # later ones have them from the epoch before or from the restart
            self.fill_memories()
        self.epoch = epoch
        return Zipped([view.epoch(epoch) for source in self.sources for view in source.views], self.iterations)

    def views(self, batch: Pairs) -> list[tuple[Batch, Batch]]:
        """The weak and the strong batch of each source."""
        if self.recipe.paired_views:
            return [(part, replace(part, images=part.views[0], views=())) for part in batch.parts]
        return list(zip(batch.parts[::2], batch.parts[1::2], strict=True))

    def losses(self, batch: Pairs) -> dict[str, Tensor]:
        totals: dict[str, Tensor] = {}
        views, seen, right = self.views(batch), [], []
        for memory, (weak, strong) in zip(self.memories, views, strict=True):
            ours: ReIDOutput = self.net(weak.images, label=weak.pids)
            theirs = self.net(strong.images, label=strong.pids).feats[2] if self.recipe.siamese else None
            terms = self.recipe.terms(memory, ours.feats, weak.pids, theirs, strong.pids, self.epoch, self.last_epoch)
            for name, term in terms.items():
                totals[name] = totals.get(name, 0) + term / len(views)
            right.append((memory.logits(ours.feats[2].detach()).argmax(1) == weak.pids).float().mean())
            if self.recipe.reuses_features and theirs.requires_grad:
                seen.append((theirs.detach(), strong.pids))
        self.accuracy = torch.stack(right).mean()
        if seen:
            self.seen.append(seen)
        return totals

    def logs(self) -> dict[str, float]:
        return {"acc": float(self.accuracy)}

    @torch.no_grad()
    def after_step(self, batches: list[Pairs]) -> None:
        """Moves the memories, alike on all processes: by every process's strong views in rank order."""
        if not self.recipe.reuses_features:
            strong = [[view for _, view in self.views(batch)] for batch in batches]
            self.seen = [[(self.model(view.images).feats[2], view.pids) for view in views] for views in strong]
        for seen in self.seen:
            for memory, (feats, labels) in zip(self.memories, seen, strict=True):
                memory.update(gather_rows(feats), gather_rows(labels))
        self.seen = []


def self_distill(cfg, data, model: nn.Module) -> list[Stage]:
    """The stages of ``PROCESSOR.NAME: self_distill``."""
    return [SelfDistillation.from_cfg(cfg, data, model)]
