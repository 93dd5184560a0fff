"""Knowledge distillation from one ReID network to another: relations within a batch, stage maps, logits.

Dissimilarities: "Knowledge Distillation for Multi-Target Domain Adaptation in Real-Time Person Re-Identification".
Distances: Park et al., "Relational Knowledge Distillation", CVPR 2019. Stage maps: Heo et al., "A Comprehensive
Overhaul of Feature Distillation", ICCV 2019. Logits: Hinton et al., "Distilling the Knowledge in a Neural Network",
arXiv:1503.02531.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from loss.weighted_sum import weighted_sum

STAGE_SHARES = (1 / 8, 1 / 4, 1 / 2, 1.0)
"""Weight of each stage's margin loss, the last stage's highest."""


def dissimilarities(feats: Tensor) -> Tensor:
    """Returns one minus the cosine of every pair of rows. (B, D) -> (B, B)."""
    unit = F.normalize(feats.float())
    return 1 - unit @ unit.t()


class SymmetricLog(torch.autograd.Function):
    """Matrix logarithm of a symmetric matrix whose eigenvalues are raised to ``floor`` at least. (B, B) -> (B, B).

    The gradient is by divided differences (Daleckii and Krein): that of ``eigh`` is not finite for equal eigenvalues,
    which features narrower than the batch have.
    """

    floor = 1e-4

    @staticmethod
    def forward(ctx: Any, matrix: Tensor) -> Tensor:
        values, vectors = torch.linalg.eigh(matrix)
        values = values.clamp(min=SymmetricLog.floor)
        ctx.save_for_backward(values, vectors)
        return (vectors * values.log()) @ vectors.t()

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        values, vectors = ctx.saved_tensors
        gap, logs = values[:, None] - values, values.log()
        equal = gap.abs() < 1e-3 * values
        slopes = torch.where(equal, 1 / values, (logs[:, None] - logs) / torch.where(equal, 1, gap))
        at_floor = values <= SymmetricLog.floor
        slopes = slopes.masked_fill(at_floor[:, None] & at_floor, 0)
        return vectors @ (slopes * (vectors.t() @ grad @ vectors)) @ vectors.t()


def symmetric_log(matrix: Tensor) -> Tensor:
    """Returns ``SymmetricLog`` of a matrix. (B, B) -> (B, B)."""
    return cast(Tensor, SymmetricLog.apply(matrix))


def dissimilarity_distillation(student: Tensor, teacher: Tensor, log_euclid: bool = False) -> Tensor:
    """Returns the Frobenius norm of the difference of the two dissimilarity matrices, not divided by their size.

    student: (B, d). teacher: (B, D). log_euclid: compares the matrix logarithms of the similarities instead (a
    dissimilarity matrix has negative eigenvalues and no real logarithm; a similarity matrix has no negative ones).
    Returns a scalar.
    """
    with torch.autocast(student.device.type, enabled=False):
        ours, theirs = dissimilarities(student), dissimilarities(teacher)
        if log_euclid:
            ours, theirs = symmetric_log(1 - ours), symmetric_log(1 - theirs)
        return torch.linalg.matrix_norm(ours - theirs)


def relative_distances(feats: Tensor) -> Tensor:
    """Returns the distances of all pairs of unit-length rows over their mean. (B, D) -> (B (B - 1) / 2,).

    Rows that are all equal give zeros.
    """
    distances = F.pdist(F.normalize(feats.float()))
    return distances / distances.mean().clamp(min=torch.finfo(distances.dtype).tiny)


def distance_distillation(student: Tensor, teacher: Tensor) -> Tensor:
    """Returns the mean Huber loss between the relative distances of both (Park et al., CVPR 2019, eq. 4 to 6).

    student: (B, d). teacher: (B, D). Rows are scaled to unit length first, as retrieval compares them; each side is
    divided by its own mean distance, so that neither width nor spread matters. With B = 2 the only distance is the
    mean, and the loss is 0. Returns a scalar.
    """
    with torch.autocast(student.device.type, enabled=False):
        return F.smooth_l1_loss(relative_distances(student), relative_distances(teacher))


def logit_distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """Returns the divergence of the student's softened class shares from the teacher's (Hinton et al., 2015).

    student, teacher: (B, C) logits. temperature: of both; the mean over the batch is multiplied by its square, which
    keeps the size of the gradient. Returns a scalar.
    """
    with torch.autocast(student.device.type, enabled=False):
        shares = (teacher.float() / temperature).log_softmax(1)
        ours = (student.float() / temperature).log_softmax(1)
        return temperature**2 * F.kl_div(ours, shares, reduction="batchmean", log_target=True)


def margin_distillation(student_map: Tensor, teacher_map: Tensor) -> Tensor:
    """Returns the sum of squared differences of one stage's maps where the student is too high or the teacher active.

    Both (B, n). The teacher's values are at least its margins (``bn_margins``): where the teacher is silent, any lower
    student value counts as right. Returns a scalar.
    """
    with torch.autocast(student_map.device.type, enabled=False):
        student_map, teacher_map = student_map.float(), teacher_map.float()
        counts = (student_map > teacher_map) | (teacher_map > 0)
        return ((student_map - teacher_map).square() * counts).sum()


def margin_total(student_maps: list[Tensor], teacher_maps: list[Tensor], batch: int) -> Tensor:
    """Returns the weighted sum of the four stages' margin losses over 1000 times the batch size, a scalar."""
    terms = (margin_distillation(s, t) for s, t in zip(student_maps, teacher_maps, strict=True))
    return weighted_sum(terms, STAGE_SHARES) / (1000 * batch)
