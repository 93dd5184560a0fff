"""Multi-target adaptation by distillation: one student learns from one frozen teacher per target domain.

"Knowledge Distillation for Multi-Target Domain Adaptation in Real-Time Person Re-Identification".
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor, nn

import loss
from datasets.options import names_of
from loss.distillation import margin_total
from loss.dmmd import SIGMAS
from model import ReIDOutput, RetrievalModel, make_model
from model.networks.torchreid import PREFIX, gives_stage_maps, head_of
from processor.methods.dmmd import dmmd_terms
from processor.methods.domains import Pairs, Zipped, load_start, target_groups
from processor.stage import Stage
from solver import make_solver
from utils.checkpoint import as_tensors, load_complete
from utils.distributed import gather_rows, is_distributed
from utils.errors import UserError

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
    """What ``KD.STYLE`` distils, by name. student (B, d), teacher (B, D); maps (B, n) of four stages each."""
    terms = {}
    if style != "only_feats":
        terms["outputs"] = loss.dissimilarity_distillation(student, teacher, log_euclid)
    if style != "only_outputs":
        terms["maps"] = margin_total(student_maps, teacher_maps, batch)
    return terms


@dataclass
class Turn:
    """One update: a source batch and a batch of the target whose turn it is."""

    pairs: Pairs
    target: int

    def __len__(self) -> int:
        return len(self.pairs)

    def to(self, device: torch.device) -> Turn:
        return Turn(self.pairs.to(device), self.target)


class Turns:
    """The updates of one epoch: ``sweeps`` passes, each with ``per_sweep`` updates made by ``sweep(number)``."""

    def __init__(self, sweep, sweeps: int, per_sweep: int):
        self.sweep, self.sweeps, self.per_sweep = sweep, sweeps, per_sweep

    def __len__(self) -> int:
        return self.sweeps * self.per_sweep

    def __iter__(self) -> Iterator[Turn]:
        for number in range(self.sweeps):
            yield from self.sweep(number)


class Distillation(Stage):
    """The student's updates, one target and its teacher at a time.

    teachers: one per target, in its order; ``drifting`` runs them in training mode, as released. alternation: ``batch``
    takes turns for every batch, ``full`` after a whole pass. order: ``fixed``, ``random`` or ``shift`` (the target
    nearest to the source first, by the overall term of D-MMD). sweeps: passes per epoch; the schedule counts them.
    weights: of target, source and adaptation terms. gather: dissimilarities and D-MMD over all processes' batches.
    """

    name = "mtda_kd"

    def __init__(
        self,
        model: nn.Module,
        teachers: Sequence[nn.Module],
        source,
        targets: Sequence,
        loss_function,
        epochs: int,
        make_solver,
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
    ):
        super().__init__(model, epochs)
        self.gather = gather
        self.teachers, self.drifting = nn.ModuleList(teachers), drifting
        self.source, self.targets, self.loss_function, self.make_solver = source, targets, loss_function, make_solver
        self.num_instances, self.seed, self.style, self.log_euclid = num_instances, seed, style, log_euclid
        self.alternation, self.order, self.sweeps = alternation, order, sweeps
        self.on_target, self.on_source, self.on_shift = weights
        self.teachers.requires_grad_(False).train(drifting)

    @classmethod
    def from_cfg(cls, cfg, data, model: nn.Module) -> Distillation:
        refuse_conflicts(cfg)
        load_start(model, "KD.STUDENT_WEIGHT", cfg.KD.STUDENT_WEIGHT)
        teachers = [make_teacher(cfg, path, data) for path in cfg.KD.TEACHER.WEIGHTS]
        if not cfg.KD.WEIGHT_DA:
            model.freeze_classifiers()  # no term uses them
        if cfg.KD.MULTI_HEAD:
            model.freeze_shared_head()

        for target in data.targets:
            groups = "identity" if cfg.DMMD.GROUPS == "identity" else "tracklet"
            target.relabel(target_groups(target.records, groups, cfg.DATALOADER.NUM_INSTANCE))
        stage = cls(
            model,
            teachers,
            data.train,
            data.targets,
            loss.make_loss(cfg, data.num_classes),
            cfg.SOLVER.MAX_EPOCHS,
            partial(make_solver, cfg),
            cfg.DATALOADER.NUM_INSTANCE,
            seed=cfg.SOLVER.SEED,
            style=cfg.KD.STYLE,
            alternation=cfg.KD.ALTERNATION,
            order=cfg.KD.ORDER,
            sweeps=len(teachers) if cfg.KD.SWEEPS == "per_teacher" else 1,
            weights=(cfg.KD.WEIGHT_TARGET, cfg.KD.WEIGHT_SOURCE, cfg.KD.WEIGHT_DA),
            drifting=cfg.KD.TEACHER.MODE == "train",
            log_euclid=cfg.KD.LOG_EUCLID,
            gather=cfg.SOLVER.GATHER,
        )
        stage.eval_period, stage.checkpoint_period = cfg.SOLVER.EVAL_PERIOD, cfg.SOLVER.CHECKPOINT_PERIOD
        stage.log_period = cfg.SOLVER.LOG_PERIOD
        return stage

    def modules(self) -> dict[str, nn.Module]:
        return {"model": self.model} | ({"teachers": self.teachers} if self.drifting else {})

    def begin(self) -> None:
        self.teachers.to(self.device())
        optimizer, self.scheduler = self.make_solver(self.model)
        self.optimizers = [optimizer]

    def device(self) -> torch.device:
        return next(self.model.parameters()).device

    # ---------------------------------------------------------------- whose turn it is

    def batches(self, epoch: int) -> Turns:
        source, targets = self.source.epoch(epoch), [target.epoch(epoch) for target in self.targets]
        longest = max(len(target) for target in targets)
        if self.alternation == "batch":
            side_by_side = Zipped([source, *targets], length=longest)
            return Turns(lambda n: self.by_batch(side_by_side, epoch, n), self.sweeps, longest * len(targets))
        pairs = [Zipped([source, target]) for target in targets]
        return Turns(lambda n: self.one_by_one(pairs, epoch), 1, sum(len(pair) for pair in pairs))

    def by_batch(self, side_by_side: Zipped, epoch: int, sweep: int) -> Iterator[Turn]:
        rng = np.random.default_rng([self.seed, epoch, sweep])
        for batch in side_by_side:
            source, *targets = batch.parts
            for i in self.ordered(rng, lambda b=batch: self.shifts(b)):
                yield Turn(Pairs([source, targets[i]]), i)

    def one_by_one(self, pairs: list[Zipped], epoch: int) -> Iterator[Turn]:
        rng = np.random.default_rng([self.seed, epoch])
        for i in self.ordered(rng, lambda: [np.mean([self.shifts(b)[0] for b in pair]) for pair in pairs]):
            for batch in pairs[i]:
                yield Turn(batch, i)

    def ordered(self, rng: np.random.Generator, shifts) -> list[int]:
        """The targets' order. shifts: gives each target's distance to the source, if it is needed."""
        if self.order == "random":
            return rng.permutation(len(self.targets)).tolist()
        return np.argsort(shifts(), kind="stable").tolist() if self.order == "shift" else [*range(len(self.targets))]

    @torch.no_grad()
    def shifts(self, batch: Pairs) -> list[float]:
        """The overall term of D-MMD between the student's source features and those of each target's batch."""
        training = self.model.training
        source, *targets = (self.model.eval()(part.to(self.device()).images) for part in batch.parts)
        self.model.train(training)
        return [float(loss.dmmd(source, target, self.num_instances, SIGMAS)[2]) for target in targets]

    def set_rates(self, epoch: int, step: int, steps: int) -> None:
        per_sweep = max(steps // self.sweeps, 1)
        if step % per_sweep == 0:
            sweep = min(step // per_sweep, self.sweeps - 1)
            self.scheduler.step(self.sweeps * (epoch - 1) + sweep + 1)

    # ---------------------------------------------------------------- one update

    def losses(self, batch: Turn) -> dict[str, Tensor]:
        source, target = batch.pairs.parts
        teacher = self.teachers[batch.target]
        self.model.use_domain(batch.target)
        seen = self.net(source.images, label=source.pids) if self.sees_source() else None
        ours = self.net(target.images)
        terms = {f"target_{k}": self.on_target * v for k, v in self.distil(ours, teacher, target.images).items()}
        if self.on_source:
            found = self.distil(seen, teacher, source.images)
            terms |= {f"source_{k}": self.on_source * v for k, v in found.items()}
        elif self.drifting:
            look(teacher, source.images)
        if self.on_shift:
            adapted = self.loss_function(seen, source.pids)
            feats = seen.feats[0], ours.feats[0]
            adapted |= dmmd_terms(*feats, self.num_instances, (1.0, 1.0, 1.0), SIGMAS, self.gather)
            terms |= {f"da_{k}": self.on_shift / 100 * v for k, v in adapted.items()}
        return terms

    def sees_source(self) -> bool:
        """Released runs pass source batches through the student for their running statistics even if no term does."""
        return bool(self.on_source or self.on_shift or self.drifting)

    def distil(self, ours: ReIDOutput, teacher: nn.Module, images: Tensor) -> dict[str, Tensor]:
        theirs = look(teacher, images)
        feats = ours.feats[0], theirs.feats[0]
        if self.gather:
            feats = tuple(gather_rows(f) for f in feats)
        return style_terms(self.style, *feats, ours.maps, theirs.maps, len(images), self.log_euclid)


@torch.no_grad()
def look(teacher: RetrievalModel, images: Tensor) -> ReIDOutput:
    """What a teacher shows: its feature (of retrieval, unless it runs in training mode), stage maps if it has any."""
    return teacher.outputs(images)


def refuse_conflicts(cfg) -> None:
    """Raises ``UserError`` where teachers and targets do not match, or stage maps are asked of what has none."""
    if cfg.KD.MULTI_HEAD and is_distributed():
        raise UserError("KD.MULTI_HEAD trains one head at a time and runs as one process; start without torchrun")
    weights, targets = cfg.KD.TEACHER.WEIGHTS, names_of(cfg.DATASETS.TARGETS)
    if len(weights) != len(targets):
        raise UserError(
            f"KD.TEACHER.WEIGHTS: {len(weights)} files for {len(targets)} DATASETS.TARGETS; one teacher per target, in "
            "their order"
        )
    if cfg.KD.STYLE == "only_outputs":
        return
    for key, name in (("KD.TEACHER.NAME", cfg.KD.TEACHER.NAME), ("MODEL.NAME", cfg.MODEL.NAME)):
        if not gives_stage_maps(name):
            raise UserError(
                f"KD.STYLE {cfg.KD.STYLE!r} and {key} {name!r} cannot go together: only the torchreid ResNets have "
                "matching stages; KD.STYLE 'only_outputs' takes any"
            )
    if cfg.MODEL.MAPS != "student":
        raise UserError(f"KD.STYLE {cfg.KD.STYLE!r} needs MODEL.MAPS 'student', which is {cfg.MODEL.MAPS!r}")


def make_teacher(cfg, path: str, data) -> RetrievalModel:
    """A teacher of the architecture ``KD.TEACHER.NAME`` with the weights of a file, whose head decides the head.

    SPCL files have one batch norm per domain (``BN_S``, ``BN_T``); the target's is taken. Raises ``UserError`` for a
    file of another architecture.
    """
    state, _ = as_tensors(path)
    if any(".BN_T." in key for key in state):
        log.info("%s: has a batch norm per domain (BN_S, BN_T); the target's is taken", path)
    teacher = cfg.clone()
    teacher.defrost()
    teacher.MODEL.NAME, teacher.KD.MULTI_HEAD = cfg.KD.TEACHER.NAME, False
    teacher.MODEL.MAPS = "none" if cfg.KD.STYLE == "only_outputs" else "teacher"
    if teacher.MODEL.NAME.startswith(PREFIX):
        teacher.MODEL.FC_HEAD, teacher.MODEL.FC_DIM = head_of(state, cfg.MODEL.FC_DIM)
    model = make_model(teacher, data.num_classes, data.num_cameras, data.num_views)
    try:
        load_complete(model, path)
    except UserError as error:
        raise UserError(f"KD.TEACHER.WEIGHTS: {error} (KD.TEACHER.NAME is {cfg.KD.TEACHER.NAME!r})") from None
    if cfg.KD.MARGINS == "teacher":
        model.set_margins()
    return model


def mtda_kd(cfg, data, model: nn.Module) -> list[Stage]:
    """The stages of ``PROCESSOR.NAME: mtda_kd``."""
    return [Distillation.from_cfg(cfg, data, model)]
