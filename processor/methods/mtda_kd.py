"""Multi-target adaptation by distillation: one student learns from one frozen teacher per target domain.

"Knowledge Distillation for Multi-Target Domain Adaptation in Real-Time Person Re-Identification".
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn
from yacs.config import CfgNode

import loss
from datasets.loaders import Data, TrainLoader
from datasets.options import names_of
from loss.distillation import margin_total
from loss.dmmd import SIGMAS
from model import ReIDOutput, RetrievalModel, make_model
from model.networks.torchreid import PREFIX, TorchreidModel, gives_stage_maps, head_of
from processor.methods.dmmd import dmmd_terms
from processor.methods.domains import DomainBatches, ZippedEpochs, load_start, target_groups
from processor.stage import DEFAULT_PERIODS, LossFunction, MakeSolver, Periods, Stage
from solver import make_solver
from utils.checkpoint import as_tensors, load_complete
from utils.distributed import gather_rows, is_distributed
from utils.errors import UserError
from utils.methods import builds

log = logging.getLogger("lineup")


def style_terms(
    style: str,
    student: Tensor,
    teacher: Tensor,
    student_maps: list[Tensor],
    teacher_maps: list[Tensor],
    batch: int,
    log_euclid: bool = False,
) -> dict[str, Tensor]:
    """Returns the terms of ``KD.STYLE`` by name. student (B, d), teacher (B, D); maps (B, n) of four stages each."""
    terms = {}
    if style != "only_feats":
        terms["outputs"] = loss.dissimilarity_distillation(student, teacher, log_euclid)
    if style != "only_outputs":
        terms["maps"] = margin_total(student_maps, teacher_maps, batch)
    return terms


@dataclass
class TargetBatch:
    """One update's images: a source batch and a batch of one target. target: the number of that target."""

    pair: DomainBatches
    target: int

    def __len__(self) -> int:
        return len(self.pair)

    def to(self, device: torch.device) -> TargetBatch:
        return TargetBatch(self.pair.to(device), self.target)


class TargetBatches:
    """The updates of one epoch: ``sweeps`` passes of ``per_sweep`` updates each.

    sweep: (number, count) yields the updates of a pass that follow the first ``count``.
    """

    def __init__(self, sweep: Callable[[int, int], Iterator[TargetBatch]], sweeps: int, per_sweep: int):
        self.sweep, self.sweeps, self.per_sweep = sweep, sweeps, per_sweep

    def __len__(self) -> int:
        return self.sweeps * self.per_sweep

    def __iter__(self) -> Iterator[TargetBatch]:
        return self.after(0)

    def after(self, count: int) -> Iterator[TargetBatch]:
        """Yields the updates that follow the first ``count``."""
        first, begun = divmod(count, self.per_sweep)
        for number in range(first, self.sweeps):
            yield from self.sweep(number, begun if number == first else 0)


class Distillation(Stage):
    """Trains a student on one target and its teacher per update.

    source, targets: training loaders. teachers: one per target, in their order; ``drifting`` runs them in training
    mode, as the released code does. num_instances: K of the batches. alternation: ``batch`` changes the target after
    every batch, ``full`` after a whole pass. order: of the targets: ``fixed``, ``random`` or ``shift`` (the nearest to
    the source first, by the overall term of D-MMD). sweeps: passes per epoch, which the schedule counts. weights: of
    the target, source and adaptation terms. gather: compute dissimilarities and D-MMD over all processes' batches.
    """

    name = "mtda_kd"

    def __init__(
        self,
        model: RetrievalModel,
        epochs: int,
        *,
        teachers: Sequence[RetrievalModel],
        source: TrainLoader,
        targets: Sequence[TrainLoader],
        loss_function: LossFunction,
        make_solver: MakeSolver,
        num_instances: int,
        seed: int = 0,
        style: str = "only_outputs",
        alternation: str = "batch",
        order: str = "random",
        sweeps: int = 1,
        weights: tuple[float, float, float] = (1.0, 0.0, 0.0),
        drifting: bool = False,
        log_euclid: bool = False,
        gather: bool = False,
        periods: Periods = DEFAULT_PERIODS,
    ):
        super().__init__(model, epochs, make_solver=make_solver, periods=periods)
        self.teacher_of = list(teachers)
        self.teachers, self.drifting = nn.ModuleList(teachers), drifting
        self.source, self.targets, self.loss_function = source, targets, loss_function
        self.num_instances, self.seed, self.style, self.log_euclid = num_instances, seed, style, log_euclid
        self.alternation, self.order, self.sweeps, self.gather = alternation, order, sweeps, gather
        self.on_target, self.on_source, self.on_shift = weights
        self.current_order: list[int] = []
        self.teachers.requires_grad_(False).train(drifting)

    @classmethod
    def from_cfg(cls, cfg: CfgNode, data: Data, model: RetrievalModel) -> Distillation:
        refuse_conflicts(cfg)
        load_start(model, "KD.STUDENT_WEIGHT", cfg.KD.STUDENT_WEIGHT)
        teachers = [make_target_teacher(cfg, path, data) for path in cfg.KD.TEACHER.WEIGHTS]
        if not cfg.KD.WEIGHT_DA:
            model.freeze_classifiers()  # no term uses them
        if cfg.KD.MULTI_HEAD:
            assert isinstance(model, TorchreidModel), "make_model refuses KD.MULTI_HEAD for others"
            model.freeze_shared_head()

        for target in data.targets:
            groups = "identity" if cfg.DMMD.GROUPS == "identity" else "tracklet"
            target.relabel(target_groups(target.records, groups, cfg.DATALOADER.NUM_INSTANCE))
        assert data.train is not None, "the method asks for it"
        return cls(
            model,
            cfg.SOLVER.MAX_EPOCHS,
            teachers=teachers,
            source=data.train,
            targets=data.targets,
            loss_function=loss.make_loss(cfg, data.num_classes),
            make_solver=partial(make_solver, cfg),
            num_instances=cfg.DATALOADER.NUM_INSTANCE,
            seed=cfg.SOLVER.SEED,
            style=cfg.KD.STYLE,
            alternation=cfg.KD.ALTERNATION,
            order=cfg.KD.ORDER,
            sweeps=len(teachers) if cfg.KD.SWEEPS == "per_teacher" else 1,
            weights=(cfg.KD.WEIGHT_TARGET, cfg.KD.WEIGHT_SOURCE, cfg.KD.WEIGHT_DA),
            drifting=cfg.KD.TEACHER.MODE == "train",
            log_euclid=cfg.KD.LOG_EUCLID,
            gather=cfg.SOLVER.GATHER,
            periods=Periods.from_cfg(cfg),
        )

    def modules(self) -> Mapping[str, nn.Module]:
        return {"model": self.model} | ({"teachers": self.teachers} if self.drifting else {})

    def begin(self) -> None:
        self.teachers.to(self.device)
        super().begin()

    # ---------------------------------------------------------------- the order of the targets

    def batches(self, epoch: int) -> TargetBatches:
        source, targets = self.source.epoch(epoch), [target.epoch(epoch) for target in self.targets]
        longest = max(map(len, targets))
        if self.alternation == "batch":
            side_by_side = ZippedEpochs([source, *targets], length=longest)
            return TargetBatches(
                partial(self.by_batch, side_by_side, epoch), self.sweeps, longest * len(targets)
            )
        pairs = [ZippedEpochs([source, target]) for target in targets]
        return TargetBatches(partial(self.one_by_one, pairs, epoch), 1, sum(map(len, pairs)))

    def epoch_state(self) -> dict:
        return {"order": self.current_order}

    def resume_epoch(self, epoch: int, state: dict) -> TargetBatches:
        self.current_order = list(state["order"])
        return self.batches(epoch)

    def by_batch(self, side_by_side: ZippedEpochs, epoch: int, sweep: int, count: int) -> Iterator[TargetBatch]:
        """Yields an update for every target before the next batches of all domains; the first ``count`` are left out.

        The order of the batches that they end in is the one that was decided then.
        """
        rng = np.random.default_rng([self.seed, epoch, sweep])
        whole, begun = divmod(count, len(self.targets))
        if self.order == "random":
            for _ in range(whole):
                rng.permutation(len(self.targets))
        for domains in side_by_side.after(whole):
            source, *targets = domains.batches
            drawn = self.current_order if begun else None
            order = self.ordered(rng, partial(self.shifts, domains), drawn)
            for i in order[begun:]:
                yield TargetBatch(DomainBatches([source, targets[i]]), i)
            begun = 0

    def one_by_one(self, pairs: list[ZippedEpochs], epoch: int, sweep: int, count: int) -> Iterator[TargetBatch]:
        """Yields all updates for one target before those for the next; the first ``count`` are left out."""
        rng = np.random.default_rng([self.seed, epoch])

        def shifts() -> list[float]:
            return [np.mean([self.shifts(batch)[0] for batch in pair]).item() for pair in pairs]

        for i in self.ordered(rng, shifts, self.current_order if count else None):
            for pair in pairs[i].after(min(count, len(pairs[i]))):
                yield TargetBatch(pair, i)
            count = max(count - len(pairs[i]), 0)

    def ordered(
        self, rng: np.random.Generator, shifts: Callable[[], list[float]], decided: list[int] | None = None
    ) -> list[int]:
        """Returns the targets' numbers in their order, which ``epoch_state`` keeps.

        shifts: computes each target's distance to the source. decided: an order that was found before a restart.
        """
        if self.order == "random":
            order = rng.permutation(len(self.targets)).tolist()
        elif self.order == "shift":
            order = decided or np.argsort(shifts(), kind="stable").tolist()
        else:
            order = [*range(len(self.targets))]
        self.current_order = order
        return order

    @torch.no_grad()
    def shifts(self, domains: DomainBatches) -> list[float]:
        """Returns the overall term of D-MMD between the student's features of the source and of each target."""
        training = self.model.training
        source, *targets = (self.model.eval()(batch.to(self.device).images) for batch in domains.batches)
        self.model.train(training)
        return [float(loss.dmmd(source, target, self.num_instances, SIGMAS)[2]) for target in targets]

    def set_rates(self, epoch: int, step: int, steps: int) -> None:
        per_sweep = max(steps // self.sweeps, 1)
        if self.scheduler is not None and step % per_sweep == 0:
            sweep = min(step // per_sweep, self.sweeps - 1)
            self.scheduler.step(self.sweeps * (epoch - 1) + sweep + 1)

    # ---------------------------------------------------------------- one update

    def forward(self, batch: TargetBatch) -> tuple[ReIDOutput | None, ReIDOutput]:
        """Returns the student's outputs for the source's images, if it sees them, and for the target's."""
        source, target = batch.pair.batches
        self.model.use_domain(batch.target)
        of_source = self.net(source.images, label=source.pids) if self.sees_source() else None
        return of_source, self.net(target.images)

    def losses(self, batch: TargetBatch) -> dict[str, Tensor]:
        source, target = batch.pair.batches
        teacher = self.teacher_of[batch.target]
        of_source, of_target = self.forward(batch)
        distilled = self.distil(of_target, teacher, target.images)
        terms = {f"target_{name}": self.on_target * term for name, term in distilled.items()}
        if self.on_source:
            assert of_source is not None, "sees_source"
            distilled = self.distil(of_source, teacher, source.images)
            terms |= {f"source_{name}": self.on_source * term for name, term in distilled.items()}
        elif self.drifting:
            teacher_output(teacher, source.images)  # its running statistics follow the source too, as released
        if self.on_shift:
            assert of_source is not None, "sees_source"
            adapted = self.loss_function(of_source, source.pids)
            feats = of_source.feats[0], of_target.feats[0]
            adapted |= dmmd_terms(*feats, self.num_instances, (1.0, 1.0, 1.0), SIGMAS, self.gather)
            terms |= {f"da_{name}": self.on_shift / 100 * term for name, term in adapted.items()}
        return terms

    def sees_source(self) -> bool:
        """Returns whether source images pass through the student.

        Released runs do that for its running statistics even if no term needs it.
        """
        return bool(self.on_source or self.on_shift or self.drifting)

    def distil(self, student: ReIDOutput, teacher: RetrievalModel, images: Tensor) -> dict[str, Tensor]:
        """Returns the distillation terms of the student's output for some images."""
        target = teacher_output(teacher, images)
        feats = student.feats[0], target.feats[0]
        if self.gather:
            feats = gather_rows(feats[0]), gather_rows(feats[1])
        return style_terms(self.style, *feats, student.maps, target.maps, len(images), self.log_euclid)

@torch.no_grad()
def teacher_output(teacher: RetrievalModel, images: Tensor) -> ReIDOutput:
    """Returns a teacher's feature (of retrieval, unless it is in training mode) and stage maps if it has any."""
    return teacher.outputs(images)


def refuse_conflicts(cfg: CfgNode) -> None:
    """Raises ``UserError`` if teachers and targets do not match, or a network has no stage maps to distil."""
    if cfg.KD.MULTI_HEAD and is_distributed():
        raise UserError("KD.MULTI_HEAD trains one head per update and runs as one process; start it without torchrun")
    weights, targets = cfg.KD.TEACHER.WEIGHTS, names_of(cfg.DATASETS.TARGETS)
    if len(weights) != len(targets):
        raise UserError(
            f"KD.TEACHER.WEIGHTS: {len(weights)} files for {len(targets)} DATASETS.TARGETS; name one teacher per "
            "target, in their order"
        )
    if cfg.KD.STYLE == "only_outputs":
        return
    for key, name in (("KD.TEACHER.NAME", cfg.KD.TEACHER.NAME), ("MODEL.NAME", cfg.MODEL.NAME)):
        if not gives_stage_maps(name):
            raise UserError(
                f"KD.STYLE {cfg.KD.STYLE!r} and {key} {name!r} cannot go together: only the torchreid ResNets have "
                "matching stages; KD.STYLE 'only_outputs' works with every network"
            )
    if cfg.MODEL.MAPS != "student":
        raise UserError(f"KD.STYLE {cfg.KD.STYLE!r} needs MODEL.MAPS 'student', not {cfg.MODEL.MAPS!r}")


def make_target_teacher(cfg: CfgNode, path: str, data: Data) -> RetrievalModel:
    """Makes a teacher of the architecture ``KD.TEACHER.NAME`` with the weights and the kind of head of a file.

    SPCL files have one batch norm per domain (``BN_S``, ``BN_T``), of which the target's is taken. Raises ``UserError``
    for a file of another architecture.
    """
    state, _ = as_tensors(path)
    if any(".BN_T." in key for key in state):
        log.info("%s has a batch norm per domain (BN_S, BN_T); the target's is used", path)
    teacher = cfg.clone()
    teacher.defrost()
    teacher.MODEL.NAME, teacher.KD.MULTI_HEAD = cfg.KD.TEACHER.NAME, False
    teacher.MODEL.MAPS = "none" if cfg.KD.STYLE == "only_outputs" else "teacher"
    if teacher.MODEL.NAME.startswith(PREFIX):
        teacher.MODEL.FC_HEAD, teacher.MODEL.FC_DIM = head_of(state, cfg.MODEL.FC_DIM)
    try:
        model = make_model(teacher, data.num_classes, data.num_cameras, data.num_views)
    except UserError as error:
        raise UserError(f"KD.TEACHER.NAME: {str(error).removeprefix('MODEL.NAME: ')}") from None
    try:
        load_complete(model, path)
    except UserError as error:
        raise UserError(f"KD.TEACHER.WEIGHTS: {error} (KD.TEACHER.NAME is {cfg.KD.TEACHER.NAME!r})") from None
    if cfg.KD.MARGINS == "teacher":
        model.set_margins()
    return model


@builds("mtda_kd")
def mtda_kd_stages(cfg: CfgNode, data: Data, model: RetrievalModel) -> list[Stage]:
    """Returns the stages of ``PROCESSOR.NAME: mtda_kd``."""
    return [Distillation.from_cfg(cfg, data, model)]
