"""Distillation: a trained network, or an ensemble of them, teaches another on labelled or unlabelled images.

Relations within a batch (Park et al., "Relational Knowledge Distillation", CVPR 2019, and the dissimilarities of
``mtda_kd``) and class shares (Hinton et al., "Distilling the Knowledge in a Neural Network", 2015).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from yacs.config import CfgNode

import loss
from configs import load_config, with_traits
from datasets.images import Batch
from datasets.loaders import Data
from datasets.options import names_of
from loss.make_loss import part_weights
from loss.weighted_sum import weighted_sum
from model import ReIDOutput, RetrievalModel, make_model
from model.summary import require_size
from processor.extractor import with_sides_of
from processor.methods.supervised import Supervised
from processor.stage import Stage
from processor.trained import load_tested
from utils.distributed import gather_rows, world_size
from utils.errors import UserError, conflict
from utils.extra_modules import import_extras
from utils.methods import builds


class Teacher(nn.Module):
    """A trained network that sees the student's images at its own size and normalisation, without gradients.

    size: height and width. pixels, own_pixels: (mean, standard deviation) of the student's images and of its own,
    three numbers each. knows_sides: whether its cameras and views are numbered as the student's.

    Images are resized bilinearly from the student's, so both see the same crop, flip and erasing; a teacher of larger
    images sees enlarged ones, without the detail that a smaller size has lost.
    """

    scale: Tensor
    shift: Tensor

    def __init__(
        self,
        network: RetrievalModel,
        size: tuple[int, int],
        *,
        pixels: tuple[Sequence[float], Sequence[float]],
        own_pixels: tuple[Sequence[float], Sequence[float]],
        knows_sides: bool = False,
    ):
        super().__init__()
        self.network, self.size, self.knows_sides = network.requires_grad_(False), size, knows_sides
        (mean, std), (own_mean, own_std) = (map(torch.tensor, pair) for pair in (pixels, own_pixels))
        self.register_buffer("scale", (std / own_std)[:, None, None])
        self.register_buffer("shift", ((mean - own_mean) / own_std)[:, None, None])
        self.eval()

    @torch.no_grad()
    def forward(self, batch: Batch) -> ReIDOutput:
        """Returns the retrieval feature (B, D) as ``feats[0]`` and, where the network has them, scores (B, C)."""
        images = batch.images * self.scale + self.shift
        if tuple(images.shape[2:]) != self.size:
            images = F.interpolate(images, self.size, mode="bilinear", align_corners=False, antialias=True)
        sides = (batch.cam_labels, batch.view_labels) if self.knows_sides else (None, None)
        return self.network.outputs(images, *sides)


@dataclass(frozen=True)
class Lesson:
    """The weights of the terms, as the keys of ``DISTILL`` of the same names.

    gather: take relations over the batches of all processes.
    """

    labels: float = 1.0
    distances: float = 1.0
    dissimilarities: float = 0.0
    logits: float = 0.0
    temperature: float = 4.0
    gather: bool = False

    @classmethod
    def from_cfg(cls, cfg: CfgNode) -> Lesson:
        keys = cfg.DISTILL
        return cls(
            labels=keys.WEIGHT_LABELS,
            distances=keys.WEIGHT_DISTANCES,
            dissimilarities=keys.WEIGHT_DISSIMILARITIES,
            logits=keys.WEIGHT_LOGITS,
            temperature=keys.TEMPERATURE,
            gather=cfg.SOLVER.GATHER,
        )

    def relations(self, student: Tensor, teachers: Sequence[Tensor]) -> dict[str, Tensor]:
        """Returns the weighted terms of relations by name. student: (B, d). teachers: (B, D) each, of any width.

        An ensemble's feature is its teachers' side by side, each of unit length: the mean of their similarities.
        """
        teacher = torch.cat([F.normalize(feats.float()) for feats in teachers], dim=1)
        if self.gather:
            student, teacher = gather_rows(student), gather_rows(teacher)
        terms = {}
        if self.distances:
            terms["distances"] = self.distances * loss.distance_distillation(student, teacher)
        if self.dissimilarities:
            terms["dissimilarities"] = self.dissimilarities * loss.dissimilarity_distillation(student, teacher)
        return terms

    def class_shares(self, scores: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
        """Returns the weighted term of the class shares, a scalar. scores, teachers: (B, C) of each part, teacher."""
        weights = [weight / len(teachers) for weight in part_weights(len(scores)) for _ in teachers]
        pairs = [(part, teacher) for part in scores for teacher in teachers]
        divergences = [loss.logit_distillation(*pair, self.temperature) for pair in pairs]
        return self.logits * weighted_sum(divergences, weights)


class Distill(Supervised):
    """Supervised training with one or several frozen teachers beside the labels.

    teachers: see every image that the student sees, mixed ones too. lesson: weights of the terms. unlabelled: whether
    some images have no identity (-1); these learn from relations alone. Others as for ``Supervised``.
    """

    name = "distill"

    def __init__(
        self,
        model: RetrievalModel,
        epochs: int,
        *,
        teachers: Sequence[Teacher],
        lesson: Lesson,
        unlabelled: bool = False,
        **supervised: Any,
    ):
        super().__init__(model, epochs, **supervised)
        self.teachers, self.lesson, self.unlabelled = nn.ModuleList(teachers), lesson, unlabelled

    @classmethod
    def from_cfg(cls, cfg: CfgNode, data: Data, model: RetrievalModel, **more: Any) -> Self:
        assert data.train is not None, "the method asks for it"
        lesson, without = Lesson.from_cfg(cfg), int((data.train.records.pids < 0).sum())
        refuse_conflicts(cfg, lesson, without)
        teachers = make_teachers(cfg, data.num_classes)
        if not data.num_classes or not (lesson.labels or lesson.logits):
            model.freeze_classifiers()  # no term uses them
        return super().from_cfg(cfg, data, model, teachers=teachers, lesson=lesson, unlabelled=bool(without), **more)

    def begin(self) -> None:
        self.teachers.to(self.device)
        super().begin()

    def outputs(self, batch: Batch) -> ReIDOutput:
        if not self.unlabelled:
            return super().outputs(batch)
        labels = batch.pids.clamp(min=0)  # a head with a margin needs one; the scores are not used
        label = labels if batch.pids.max() >= 0 else None
        return self.net(batch.images, label=label, cam_label=batch.cam_labels, view_label=batch.view_labels)

    def losses(self, batch: Batch) -> dict[str, Tensor]:
        batch, targets = self.mixed(batch)
        out = self.outputs(batch)
        taught = [teacher(batch) for teacher in self.teachers]
        student = out.feats[0] if out.retrieval is None else out.retrieval
        terms = self.lesson.relations(student, [of_teacher.feats[0] for of_teacher in taught])
        rows = batch.pids >= 0 if self.unlabelled else slice(None)
        pids, scores = batch.pids[rows], [part[rows] for part in out.scores]
        if self.lesson.labels and len(pids):
            labelled = ReIDOutput(scores=scores, feats=[part[rows] for part in out.feats])
            supervised = self.labelled_terms(labelled, pids, targets[rows])
            terms |= {name: self.lesson.labels * term for name, term in supervised.items()}
        if self.lesson.logits and len(pids):
            terms["logits"] = self.lesson.class_shares(scores, [of_teacher.scores[0][rows] for of_teacher in taught])
        if not (self.lesson.labels or self.lesson.logits) or not len(pids):
            unused = weighted_sum((part.sum() for part in scores), [0.0] * len(scores))
            terms = {name: term + unused for name, term in terms.items()}  # every parameter needs a gradient
        return terms

    def logs(self) -> dict[str, float]:
        return super().logs() if self.lesson.labels and self.loader.records.pids.max() >= 0 else {}


# ---------------------------------------------------------------- teachers by the keys


def refuse_conflicts(cfg: CfgNode, lesson: Lesson, without: int) -> None:
    """Raises ``UserError`` for weights that nothing can be learnt with. without: training images without identity."""
    names, files = listed(cfg.DISTILL.TEACHERS), listed(cfg.DISTILL.CHECKPOINTS)
    if not names:
        raise UserError("DISTILL.TEACHERS is empty: name the YAML of a teacher, and its file in DISTILL.CHECKPOINTS")
    if len(names) != len(files):
        raise UserError(
            f"DISTILL.CHECKPOINTS: {len(files)} files for {len(names)} DISTILL.TEACHERS; name one per teacher, in "
            "their order"
        )
    related = lesson.distances or lesson.dissimilarities
    if not (related or lesson.logits):
        raise UserError(
            "DISTILL: WEIGHT_DISTANCES, WEIGHT_DISSIMILARITIES and WEIGHT_LOGITS are all 0, so the teachers teach "
            "nothing; set one, or PROCESSOR.NAME supervised"
        )
    images = cfg.SOLVER.IMS_PER_BATCH // (1 if lesson.gather else world_size())
    if lesson.distances and images < 3:
        raise UserError(
            f"SOLVER.IMS_PER_BATCH: {images} images have one distance, which is its own mean; "
            "DISTILL.WEIGHT_DISTANCES needs at least 3 of them per process"
        )
    if without and not related:
        raise UserError(
            f"{without} training images have no pid, and only relations teach on them; set DISTILL.WEIGHT_DISTANCES "
            "or WEIGHT_DISSIMILARITIES above 0"
        )
    if without and (cfg.INPUT.MIXUP or cfg.INPUT.CUTMIX):
        key = "INPUT.MIXUP" if cfg.INPUT.MIXUP else "INPUT.CUTMIX"
        raise conflict(key, f"{without} training images without a pid", "mixed images need the identities of both")
    if "center" in cfg.MODEL.METRIC_LOSS_TYPE and (without or not lesson.labels):
        other = f"{without} training images without a pid" if without else "DISTILL.WEIGHT_LABELS 0"
        kind = f"MODEL.METRIC_LOSS_TYPE {cfg.MODEL.METRIC_LOSS_TYPE!r}"
        raise conflict(kind, other, "centers are moved by the labelled images of every batch")
    if lesson.logits and cfg.MODEL.ID_LOSS_TYPE != "softmax":
        kind = f"MODEL.ID_LOSS_TYPE {cfg.MODEL.ID_LOSS_TYPE!r}"
        raise conflict("DISTILL.WEIGHT_LOGITS", kind, "its scores hold a margin that the teachers' do not have")


def listed(value: str | Sequence[str]) -> list[str]:
    """Returns the names of a key that takes one or several."""
    return [value] if isinstance(value, str) else list(value)


def make_teachers(cfg: CfgNode, num_classes: int) -> list[Teacher]:
    """Returns the teachers of ``DISTILL``. num_classes: the student's. Raises ``UserError`` naming the one at fault."""
    pairs = zip(listed(cfg.DISTILL.TEACHERS), listed(cfg.DISTILL.CHECKPOINTS), strict=True)
    return [make_teacher(cfg, name, path, num_classes) for name, path in pairs]


def make_teacher(cfg: CfgNode, config_file: str, path: str, num_classes: int) -> Teacher:
    """Returns the teacher of a YAML and a checkpoint. cfg, num_classes: the student's.

    Raises ``UserError`` if a file is missing or of another network, or if logits are asked for and the teacher has none
    or those of other classes.
    """
    try:
        own = load_config(config_file)
        import_extras(own.EXTRA_MODULES)
        own, cameras, views = with_sides_of(with_traits(own), path)
        network = make_model(own, num_classes, cameras, views)
    except UserError as error:
        raise UserError(f"DISTILL.TEACHERS: {config_file}: {error}") from None
    if own.KD.MULTI_HEAD:
        raise UserError(f"DISTILL.TEACHERS: {config_file}: KD.MULTI_HEAD gives a feature per target, not one to teach")
    try:
        report = load_tested(own, network, path)
    except UserError as error:
        raise UserError(f"DISTILL.CHECKPOINTS: {error} (its DISTILL.TEACHERS is {config_file})") from None
    height, width = own.INPUT.SIZE_TEST
    require_size(network, f"DISTILL.TEACHERS: {config_file}: INPUT.SIZE_TEST", (height, width))
    same_data = set(names_of(own.DATASETS.NAMES)) == set(names_of(cfg.DATASETS.NAMES))
    teacher = Teacher(
        network,
        (height, width),
        pixels=(cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD),
        own_pixels=(own.INPUT.PIXEL_MEAN, own.INPUT.PIXEL_STD),
        knows_sides=same_data,
    )
    if cfg.DISTILL.WEIGHT_LOGITS:
        unfit = [*report.mismatched, *report.missing]
        if not same_data or any(name.startswith(network.classifier_keys) for name in unfit):
            raise UserError(
                f"DISTILL.WEIGHT_LOGITS: {path} was trained on other classes than the {num_classes} of DATASETS.NAMES "
                f"{cfg.DATASETS.NAMES!r}; set it to 0, relations need no classes"
            )
        with torch.no_grad():
            scores = network.outputs(torch.zeros(1, 3, height, width)).scores
        if not scores:
            raise UserError(
                f"DISTILL.WEIGHT_LOGITS: {config_file}: {type(network).__name__} has no class scores; set it to 0"
            )
    return teacher


@builds("distill")
def distill_stages(cfg: CfgNode, data: Data, model: RetrievalModel) -> list[Stage]:
    """Returns the stages of ``PROCESSOR.NAME: distill``."""
    return [Distill.from_cfg(cfg, data, model)]
