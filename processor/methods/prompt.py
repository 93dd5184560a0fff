"""CLIP-ReID (Li et al., AAAI 2023) and SVLL-ReID: prompts first, then the image side against their text features.

Stage 1 learns a prompt per identity from features of the training images, which are extracted once. Stage 2 freezes
the prompts' text features and trains the image side. The self-supervision of each stage is SVLL-ReID's; without both it
is CLIP-ReID.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from yacs.config import CfgNode

import loss
from datasets.images import Batch
from datasets.loaders import Data, TestLoader, TrainLoader
from model import ReIDOutput, RetrievalModel
from model.layers.prompt_augment import draw
from model.networks.clip_reid import PromptReID
from processor.evaluate import fits
from processor.methods.supervised import Supervised
from processor.stage import DEFAULT_PERIODS, LossFunction, MakeSolver, Periods, Stage
from solver import make_optimizer, make_scheduler
from solver.optimizer import TEXT_SIDE
from solver.schedule import Schedule
from utils.distributed import gather_rows, share_of, world_size
from utils.methods import builds

log = logging.getLogger("lineup")

TEXTS_AT_ONCE = 256
"""Number of identities whose text features are computed in one pass."""

Augmentation = Callable[[Tensor], Tensor]


class TextSide(nn.Module):
    """The prompts of identities and the text encoder: the part of the model that stage 1 trains."""

    def __init__(self, model: PromptReID):
        super().__init__()
        self.prompt_learner, self.text_encoder = model.prompt_learner, model.text_encoder

    def forward(self, labels: Tensor, augmentations: tuple[Augmentation, ...], share: slice) -> Tensor:
        """Returns the ``share`` of the text features of the prompts, followed by those of each augmented copy of them.

        labels: (U,). Returns (rows of the share, P), of (1 + augmentations) * U rows.
        """
        prompts = self.prompt_learner(labels)
        prompts = torch.cat([prompts, *(augment(prompts) for augment in augmentations)])
        return self.text_encoder(prompts[share], self.prompt_learner.end)


def text_of(net: nn.Module, labels: Tensor, augmentations: tuple[Augmentation, ...] = ()) -> list[Tensor]:
    """Returns the text features of labels and of each augmentation, (U, P) each; every process computes a share.

    net: a ``TextSide``, maybe wrapped for several processes.
    """
    count = (1 + len(augmentations)) * len(labels)
    share, counts = share_of(count)
    return list(gather_rows(net(labels, augmentations, share), counts).split(len(labels)))


@dataclass
class FeatureBatch:
    """Stage 1's batch, the same on every rank. features: (B, P) of images. labels: (B,).

    Its length is one process's share, so that the ranks' lengths add up to the batch.
    """

    features: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels) // world_size()

    def to(self, device: torch.device) -> FeatureBatch:
        return FeatureBatch(self.features.to(device), self.labels.to(device))


class FeatureBatches:
    """Runs over the kept features once, in an order drawn from (seed, epoch); the last batch may be smaller."""

    def __init__(self, features: Tensor, labels: Tensor, batch_size: int, seed: int, epoch: int):
        order = torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(len(labels)))
        self.features, self.labels, self.rows = features, labels, order.to(features.device).split(batch_size)

    def __len__(self) -> int:
        return len(self.rows)

    def __iter__(self) -> Iterator[FeatureBatch]:
        return self.after(0)

    def after(self, count: int) -> Iterator[FeatureBatch]:
        """Yields the batches that follow the first ``count``."""
        return (FeatureBatch(self.features[rows], self.labels[rows]) for rows in self.rows[count:])


@torch.no_grad()
def image_features(model: PromptReID, loader: TestLoader, side: bool = False) -> Tensor:
    """Returns the projected features (N, P) of a list's images in its order, the same on every rank.

    The model runs in evaluation mode. side: use side information, which stage 1 leaves out. The features are in the
    precision that autocast gives, on the model's device if they fit beside training, else in host memory.
    """
    training, device = model.training, next(model.parameters()).device
    model.eval()
    share, counts = share_of(len(loader.records))
    kept, done = torch.empty(0), 0
    for batch in loader:
        batch = batch.to(device)
        feats = model.embed(batch.images, *((batch.cam_labels, batch.view_labels) if side else ()))
        if not done:
            kept = torch.empty(share.stop - share.start, feats.shape[1], dtype=feats.dtype)
        kept[done : done + len(feats)] = feats
        done += len(feats)
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
    """Returns stage 1's weighted terms, and the share of images whose identity's prompt is the nearest in the batch.

    Image to text and text to image by supervised contrast (CLIP-ReID, eq. 5 and 6); with two augmentations of the
    batch's distinct prompts, SimCLR on the output of ``head`` for them (SVLL-ReID). A prompt that several images share
    is encoded once. features: (B, P). labels: (B,).
    """
    distinct, row = labels.unique(return_inverse=True)
    texts, *copies = text_of(net, distinct, augmentations)
    repeated = texts[row]
    contrast = partial(loss.supervised_contrastive, anchor_labels=labels, contrast_labels=labels)
    terms = {"i2t": contrast(features, repeated), "t2i": contrast(repeated, features)}
    if copies:
        assert head is not None, "SVLL-ReID's models have one"
        terms["ssl"] = ssl_weight * loss.simclr(*(head(copy) for copy in copies))  # batch norm sees one copy at a time
    with torch.no_grad():
        nearest = (features.float() @ texts.float().t()).argmax(1)
    return terms, (nearest == row).float().mean()


@dataclass(frozen=True)
class LanguageSupervision:
    """Settings of SVLL-ReID's term of stage 1. weight: of the term. method, scale: of ``prompt_augment.draw``."""

    weight: float
    method: str
    scale: float


class LearnPrompts(Stage):
    """Stage 1 learns a prompt per identity from kept features, with both encoders frozen; it is not evaluated.

    loader: of the training images in order, not augmented. labels: (N,) identities in that order. supervision: None
    for CLIP-ReID.
    """

    name = "prompts"
    suffix = "_stage1"
    evaluates = False

    def __init__(
        self,
        model: PromptReID,
        epochs: int,
        *,
        loader: TestLoader,
        labels: np.ndarray,
        batch_size: int,
        make_solver: MakeSolver,
        seed: int = 0,
        supervision: LanguageSupervision | None = None,
        periods: Periods = DEFAULT_PERIODS,
    ):
        super().__init__(model, epochs, make_solver=make_solver, periods=periods)
        self.network, self.loader, self.labels = model, loader, torch.as_tensor(labels)
        self.batch_size, self.seed, self.supervision = batch_size, seed, supervision
        self.text_side = TextSide(model)
        self.features, self.draws = torch.empty(0), torch.Generator()
        self.accuracy = torch.zeros(())

    @classmethod
    def from_cfg(cls, cfg: CfgNode, data: Data, model: PromptReID) -> LearnPrompts:
        first = cfg.SOLVER.STAGE1
        assert data.plain is not None, "the method asks for it"
        supervision = None
        if model.text_mlp is not None:
            supervision = LanguageSupervision(first.SSL_LOSS_WEIGHT, first.PROMPT_AUG_METHOD, first.PROMPT_AUG_SCALE)
        return cls(
            model,
            first.MAX_EPOCHS,
            loader=data.plain,
            labels=data.plain.records.pids,
            batch_size=first.IMS_PER_BATCH,
            make_solver=solver_of(cfg, 1),
            seed=cfg.SOLVER.SEED,
            supervision=supervision,
            periods=Periods.from_cfg(cfg, 1),
        )

    def stepped(self) -> nn.Module:
        return self.text_side

    def begin(self) -> None:
        super().begin()
        trained = {id(p) for group in self.optimizers[0].param_groups for p in group["params"]}
        for parameter in self.model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
        self.features = image_features(self.network, self.loader)
        self.labels = self.labels.to(self.features.device)
        size = self.features.nbytes / 1e9
        log.info("%d image features kept, %.3f GB in %s", len(self.labels), size, self.features.dtype)

    def batches(self, epoch: int) -> FeatureBatches:
        self.draws = torch.Generator(self.device).manual_seed(self.seed * 1_000_003 + epoch)
        return FeatureBatches(self.features, self.labels, self.batch_size, self.seed, epoch)

    def epoch_state(self) -> dict:
        return {"draws": self.draws.get_state()}

    def resume_epoch(self, epoch: int, state: dict) -> FeatureBatches:
        batches = self.batches(epoch)
        self.draws.set_state(state["draws"])
        return batches

    def augmentations(self, labels: Tensor) -> tuple[Augmentation, ...]:
        """Returns two draws for the prompts of the distinct ``labels``; none for one prompt, which has no negative."""
        learner, count = self.network.prompt_learner, len(labels.unique())
        if self.supervision is None or count == 1:
            return ()
        shape = (count, learner.tokens.shape[1], learner.cls_ctx.shape[2])
        return tuple(draw(self.supervision.method, shape, self.supervision.scale, self.draws) for _ in range(2))

    def forward(self, batch: FeatureBatch) -> Tensor:
        """Returns the text features of the batch's distinct identities."""
        return text_of(self.net, batch.labels.unique())[0]

    def losses(self, batch: FeatureBatch) -> dict[str, Tensor]:
        weight = self.supervision.weight if self.supervision else 0.0
        terms, self.accuracy = prompt_terms(
            self.net, batch.features, batch.labels, self.augmentations(batch.labels), self.network.text_mlp, weight
        )
        return terms

    def logs(self) -> dict[str, float]:
        return {"acc": float(self.accuracy)}


class TuneEncoder(Supervised):
    """Stage 2 trains the image side with identities, hard pairs, frozen text features and, in SVLL-ReID, two views."""

    name = "encoder"

    def __init__(
        self,
        model: PromptReID,
        epochs: int,
        *,
        loader: TrainLoader,
        loss_function: LossFunction,
        make_solver: MakeSolver,
        periods: Periods = DEFAULT_PERIODS,
    ):
        super().__init__(
            model, epochs, loader=loader, loss_function=loss_function, make_solver=make_solver, periods=periods
        )
        self.network = model
        self.trained = {  # restored by ``begin``: stage 1 freezes these
            name for name, p in model.named_parameters() if p.requires_grad and not name.startswith(TEXT_SIDE)
        }
        self.texts = torch.empty(0)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, data: Data, model: PromptReID) -> TuneEncoder:
        assert data.train is not None, "the method asks for it"
        return cls(
            model,
            cfg.SOLVER.STAGE2.MAX_EPOCHS,
            loader=data.train,
            loss_function=loss.make_loss(cfg, data.num_classes),
            make_solver=solver_of(cfg, 2),
            periods=Periods.from_cfg(cfg, 2),
        )

    def begin(self) -> None:
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self.trained)
        super().begin()
        self.texts = text_features(self.network)

    def outputs(self, batch: Batch) -> ReIDOutput:
        out = self.net(
            batch.images, label=batch.pids, cam_label=batch.cam_labels, view_label=batch.view_labels, views=batch.views
        )
        with torch.autocast(self.texts.device.type, enabled=False):
            out.i2t_logits = out.feats[2].float() @ self.texts.float().t()
        return out


@torch.no_grad()
def text_features(model: PromptReID) -> Tensor:
    """Returns the text features of all identities, (C, P)."""
    labels = torch.arange(len(model.prompt_learner.cls_ctx), device=model.prompt_learner.cls_ctx.device)
    return torch.cat([model.text_features(rows) for rows in labels.split(TEXTS_AT_ONCE)])


def solver_of(cfg: CfgNode, stage: int) -> MakeSolver:
    """Returns the function that makes the optimizer and schedule of a stage, 1 or 2."""

    def make(model: nn.Module) -> tuple[Optimizer, Schedule]:
        optimizer = make_optimizer(cfg, model, stage)
        return optimizer, make_scheduler(cfg, optimizer, stage)

    return make


@builds("prompt")
def prompt_stages(cfg: CfgNode, data: Data, model: RetrievalModel) -> list[Stage]:
    """Returns the stages of ``PROCESSOR.NAME: prompt``; with ``SOLVER.STAGE1.WEIGHT`` the second alone."""
    assert isinstance(model, PromptReID), "the method's network"
    second = TuneEncoder.from_cfg(cfg, data, model)
    return [second] if cfg.SOLVER.STAGE1.WEIGHT else [LearnPrompts.from_cfg(cfg, data, model), second]
