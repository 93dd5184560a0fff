"""DINO: the student's crops are trained to match the teacher's two global crops (Caron et al., arXiv:2104.14294)."""

from __future__ import annotations

import torch
import torch.distributed as dist
from torch import Tensor, nn

from utils.distributed import is_distributed, world_size
from utils.errors import UserError

GLOBAL_CROPS = 2
"""Crops that the teacher sees: the first ones of the student's."""


class DINOLoss(nn.Module):
    """Cross entropy between the teacher's centred, sharpened softmax and the student's, over all pairs of crops.

    out_dim: width K of the logits. ncrops: V, the two global crops among them. The teacher's temperature goes from
    ``warmup_teacher_temp`` to ``teacher_temp``, both ends included, over the first ``warmup_teacher_temp_epochs`` of
    ``nepochs``. center_momentum: share of the centre that a step keeps. The buffer ``center`` is (1, K).
    """

    center: Tensor

    def __init__(
        self,
        out_dim: int,
        ncrops: int,
        warmup_teacher_temp: float,
        teacher_temp: float,
        warmup_teacher_temp_epochs: int,
        nepochs: int,
        student_temp: float = 0.1,
        center_momentum: float = 0.9,
    ):
        super().__init__()
        if warmup_teacher_temp_epochs > nepochs:
            raise UserError(
                f"DINO.WARMUP_TEACHER_TEMP_EPOCHS: {warmup_teacher_temp_epochs} epochs of warm-up are more than the "
                f"{nepochs} of SOLVER.MAX_EPOCHS"
            )
        warmup = torch.linspace(warmup_teacher_temp, teacher_temp, warmup_teacher_temp_epochs, dtype=torch.double)
        self.teacher_temps = warmup.tolist() + [teacher_temp] * (nepochs - warmup_teacher_temp_epochs)
        self.ncrops, self.student_temp, self.center_momentum = ncrops, student_temp, center_momentum
        self.register_buffer("center", torch.zeros(1, out_dim))

    def forward(self, student: Tensor, teacher: Tensor, epoch: int) -> Tensor:
        """Returns the mean over the 2V - 2 pairs of crops, a scalar, and moves the centre over all processes' rows.

        student: (V * B, K), teacher: (2 * B, K), crop after crop. epoch: from 0. Raises ``UserError`` if the numbers of
        rows do not match.
        """
        width = self.center.shape[1]
        if student.shape[1] != width or teacher.shape[1] != width:
            raise UserError(
                f"DINO.OUT_DIM: the student gives {student.shape[1]} logits and the teacher {teacher.shape[1]}, the "
                f"loss was made for {width}"
            )
        if len(student) % self.ncrops or len(student) * GLOBAL_CROPS != len(teacher) * self.ncrops:
            raise UserError(
                f"DINO: {len(student)} student rows and {len(teacher)} teacher rows are not {self.ncrops} and "
                f"{GLOBAL_CROPS} crops of the same images"
            )
        with torch.autocast(student.device.type, enabled=False):
            student, teacher = (at_least_float32(logits) for logits in (student, teacher.detach()))
            targets = torch.softmax((teacher - self.center) / self.teacher_temps[epoch], dim=1)
            log_shares = torch.log_softmax(student / self.student_temp, dim=1)
            loss = pairwise_cross_entropy(targets, log_shares, self.ncrops)
        self.move_center(teacher)
        return loss

    @torch.no_grad()
    def move_center(self, teacher: Tensor) -> None:
        """Moves the centre towards the mean of the teacher's rows on all processes. teacher: (2 * B, K)."""
        total = teacher.sum(dim=0, keepdim=True)
        if is_distributed():
            dist.all_reduce(total)
        self.center.lerp_(total / (len(teacher) * world_size()), 1 - self.center_momentum)


def at_least_float32(logits: Tensor) -> Tensor:
    """Returns the logits in float32, or as they are if their precision is higher."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def pairwise_cross_entropy(targets: Tensor, log_shares: Tensor, ncrops: int) -> Tensor:
    """Returns the mean over teacher crops u and student crops v != u of the batch's mean cross entropy, a scalar.

    targets: (2 * B, K) probabilities. log_shares: (V * B, K) log-probabilities.
    """
    batch = len(log_shares) // ncrops
    pairs = -targets.view(GLOBAL_CROPS, -1) @ log_shares.view(ncrops, -1).t() / batch  # (2, V)
    same = torch.eye(GLOBAL_CROPS, ncrops, dtype=torch.bool, device=pairs.device)
    return pairs.masked_fill(same, 0).sum() / (GLOBAL_CROPS * (ncrops - 1))
