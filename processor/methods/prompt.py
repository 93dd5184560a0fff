"""CLIP-ReID (Li et al., AAAI 2023) and SVLL-ReID: prompts first, then the image side against their text features.

Stage 1 learns a prompt per identity from features of the training images that are taken once. Stage 2 freezes what
the prompts say and trains the image side. Self-supervision of each stage is SVLL-ReID's; without both it is CLIP-ReID.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import loss
from model import ReIDOutput
from model.layers.prompt_augment import draw
from processor.evaluate import fits
from processor.methods.supervised import Supervised
from processor.stage import Stage
from solver import make_optimizer, make_scheduler
from solver.optimizer import TEXT_SIDE
from utils.distributed import gather_rows, share_of, world_size

log = logging.getLogger("lineup")

TEXTS_AT_ONCE = 256
"""Identities whose text features are computed together."""

Augmentation = Callable[[Tensor], Tensor]


class TextSide(nn.Module):
    """Prompts of identities and what is read from them: the part of the model that stage 1 trains."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.prompt_learner, self.text_encoder = model.prompt_learner, model.text_encoder

    def forward(self, labels: Tensor, augmentations: tuple[Augmentation, ...], share: slice) -> Tensor:
        """Features of the prompts and of augmented copies of them, one after the other; of these rows, ``share``.

        labels: (U,). Returns (rows of the share, P), of (1 + augmentations) * U rows.
        """
        prompts = self.prompt_learner(labels)
        prompts = torch.cat([prompts, *(augment(prompts) for augment in augmentations)])
        return self.text_encoder(prompts[share], self.prompt_learner.end)


def text_of(net: nn.Module, labels: Tensor, augmentations: tuple[Augmentation, ...] = ()) -> list[Tensor]:
    """Text features of labels and of each augmentation, (U, P) each; the processes share the work. net: a TextSide."""
    count = (1 + len(augmentations)) * len(labels)
    share, counts = share_of(count)
    return list(gather_rows(net(labels, augmentations, share), counts).split(len(labels)))


@dataclass
class FeatureBatch:
    """Stage 1's batch, the same on all processes. features: (B, P) of images. labels: (B,)."""

    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels) // world_size()

    def to(self, device: torch.device) -> FeatureBatch:
        return FeatureBatch(self.features.to(device), self.labels.to(device))


class FeatureBatches:
    """One epoch over the kept features: every image once, in an order drawn from (seed, epoch); the rest is a batch."""

    def __init__(self, features: Tensor, labels: Tensor, batch_size: int, seed: int, epoch: int):
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(labels)))
        self.features, self.labels, self.rows = features, labels, order.to(features.device).split(batch_size)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[FeatureBatch]:
        return (FeatureBatch(self.features[rows], self.labels[rows]) for rows in self.rows)


@torch.no_grad()
def image_features(model: nn.Module, loader, side: bool = False) -> Tensor:
    """Projected features (N, P) of a ``TestLoader``'s images in its order, alike on all processes.

    In evaluation mode; side: with side information, which stage 1 leaves out. On the model's device where they fit
    beside training, else in host memory, in the precision that autocast gives.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    share, counts = share_of(len(loader.records))
    kept, done = None, 0
    for batch in loader:
        batch = batch.to(device)
        found = model.embed(batch.images, *((batch.cam_labels, batch.view_labels) if side else ()))
        kept = torch.empty(share.stop - share.start, found.shape[1], dtype=found.dtype) if kept is None else kept
        kept[done : done + len(found)] = found
        done += len(found)
    model.train(training)
    features = gather_rows(kept.to(device), counts) if world_size() > 1 else kept
    return features.to(device) if fits(features, device) else features.cpu()


def prompt_terms(
    net: nn.Module,
    features: Tensor,
    labels: Tensor,
    augmentations: tuple[Augmentation, ...] = (),
    head: nn.Module | None = None,
    ssl_weight: float = 0.0,
) -> tuple[dict[str, Tensor], Tensor]:
    """Stage 1's weighted terms, and the share of images whose own prompt is the nearest in the batch.

    Image to text and text to image by supervised contrast (CLIP-ReID, eq. 5 and 6); with two augmentations of the
    batch's distinct prompts, SimCLR on what ``head`` makes of them (SVLL-ReID). A prompt that several images share is
    encoded once. features: (B, P). labels: (B,).
    """
    distinct, place = labels.unique(return_inverse=True)
    texts, *copies = text_of(net, distinct, augmentations)
    repeated = texts[place]
    contrast = partial(loss.supervised_contrastive, anchor_labels=labels, contrast_labels=labels)
    terms = {"i2t": contrast(features, repeated), "t2i": contrast(repeated, features)}
    if copies:
        terms["ssl"] = ssl_weight * loss.simclr(*(head(copy) for copy in copies))  # batch norm sees one copy at a time
    with torch.no_grad():
        nearest = (features.float() @ texts.float().t()).argmax(1)
    return terms, (nearest == place).float().mean()


@dataclass(frozen=True)
class LanguageSupervision:
    """SVLL-ReID's term of stage 1. weight: of the term. method, scale: of ``prompt_augment.draw``."""

    weight: float
    method: str
    scale: float


class LearnPrompts(Stage):
    """Stage 1: both encoders frozen, a prompt per identity learnt from kept features; nothing is evaluated.

    loader: of the training images, untouched and in order. labels: (N,) identities of that order. supervision: None
    for CLIP-ReID.
    """

    name = "prompts"
    suffix = "_stage1"
    evaluates = False

    def __init__(
        self,
        model: nn.Module,
        loader,
        labels: np.ndarray,
        epochs: int,
        batch_size: int,
        make_solver,
        seed: int = 0,
        supervision: LanguageSupervision | None = None,
    ):
        super().__init__(model, epochs)
        self.loader, self.labels, self.batch_size, self.seed = loader, torch.as_tensor(labels), batch_size, seed
        self.make_solver, self.supervision = make_solver, supervision
        self.text_side = TextSide(model)
        self.features: Tensor | None = None
        self.accuracy = 0.0

    @classmethod
    def from_cfg(cls, cfg, data, model: nn.Module) -> LearnPrompts:
        first = cfg.SOLVER.STAGE1
        supervision = None
        if model.text_mlp is not None:
            supervision = LanguageSupervision(first.SSL_LOSS_WEIGHT, first.PROMPT_AUG_METHOD, first.PROMPT_AUG_SCALE)
        stage = cls(
            model, data.plain, data.plain.records.pids, first.MAX_EPOCHS, first.IMS_PER_BATCH, solver_of(cfg, 1),
            cfg.SOLVER.SEED, supervision,
        )  # fmt: skip
        stage.checkpoint_period = first.CHECKPOINT_PERIOD
        stage.log_period = first.LOG_PERIOD
        return stage

    def stepped(self) -> nn.Module:
        return self.text_side

    def begin(self) -> None:
        optimizer, self.scheduler = self.make_solver(self.model)
        self.optimizers = [optimizer]
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        self.features = image_features(self.model, self.loader)
        self.labels = self.labels.to(self.features.device)
        size = self.features.nbytes / 1e9
        log.info("%d image features kept, %.3f GB in %s", len(self.labels), size, self.features.dtype)

    def batches(self, epoch: int) -> FeatureBatches:
        self.draws = torch.Generator(next(self.model.parameters()).device).manual_seed(self.seed * 1_000_003 + epoch)
        return FeatureBatches(self.features, self.labels, self.batch_size, self.seed, epoch)

    def augmentations(self, labels: Tensor) -> tuple[Augmentation, ...]:
        """Two draws for the prompts of the distinct ``labels``; none for a single prompt: nothing to tell it from."""
        learner, count = self.model.prompt_learner, len(labels.unique())
        if self.supervision is None or count == 1:
            return ()
        shape = (count, learner.tokens.shape[1], learner.cls_ctx.shape[2])
        return tuple(draw(self.supervision.method, shape, self.supervision.scale, self.draws) for _ in range(2))

    def losses(self, batch: FeatureBatch) -> dict[str, Tensor]:
        weight = self.supervision.weight if self.supervision else 0.0
        terms, self.accuracy = prompt_terms(
            self.net, batch.features, batch.labels, self.augmentations(batch.labels), self.model.text_mlp, weight
        )
        return terms

    def logs(self) -> dict[str, float]:
        return {"acc": float(self.accuracy)}


class TuneEncoder(Supervised):
    """Stage 2: the image side learns from identities, hard pairs, frozen text features and, in SVLL-ReID, two views."""

    name = "encoder"

    def __init__(self, model: nn.Module, *given):
        super().__init__(model, *given)
        self.trained = {  # to be restored: stage 1 freezes for itself
            name for name, p in model.named_parameters() if p.requires_grad and not name.startswith(TEXT_SIDE)
        }
        self.texts: Tensor | None = None

    @classmethod
    def from_cfg(cls, cfg, data, model: nn.Module) -> TuneEncoder:
        second = cfg.SOLVER.STAGE2
        terms = loss.make_loss(cfg, data.num_classes)
        stage = cls(model, data.train, terms, second.MAX_EPOCHS, solver_of(cfg, 2))
        stage.eval_period = second.EVAL_PERIOD
        stage.checkpoint_period = second.CHECKPOINT_PERIOD
        stage.log_period = second.LOG_PERIOD
        return stage

    def begin(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.trained)
        super().begin()
        self.texts = text_features(self.model)

    def outputs(self, batch) -> ReIDOutput:
        out = self.net(
            batch.images, label=batch.pids, cam_label=batch.cam_labels, view_label=batch.view_labels, views=batch.views
        )
        with torch.autocast(self.texts.device.type, enabled=False):
            out.i2t_logits = out.feats[2].float() @ self.texts.float().t()
        return out


@torch.no_grad()
def text_features(model: nn.Module) -> Tensor:
    """The text features of all identities, (C, P)."""
    labels = torch.arange(len(model.prompt_learner.cls_ctx), device=model.prompt_learner.cls_ctx.device)
    return torch.cat([model.text_features(some) for some in labels.split(TEXTS_AT_ONCE)])


def solver_of(cfg, stage: int):
    """A function from the model to the optimizer and schedule of a stage."""

    def make(model: nn.Module):
        optimizer = make_optimizer(cfg, model, stage)
        return optimizer, make_scheduler(cfg, optimizer, stage)

    return make


def prompt(cfg, data, model: nn.Module) -> list[Stage]:
    """The stages of ``PROCESSOR.NAME: prompt``; with ``SOLVER.STAGE1.WEIGHT`` the second alone."""
    second = TuneEncoder.from_cfg(cfg, data, model)
    return [second] if cfg.SOLVER.STAGE1.WEIGHT else [LearnPrompts.from_cfg(cfg, data, model), second]
