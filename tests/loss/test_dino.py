"""DINO's loss: against loops, its gradient, its centre, its temperatures, and what it refuses."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from loss import DINOLoss
from utils.errors import UserError


def make(out_dim: int = 7, ncrops: int = 4, **changes) -> DINOLoss:
    settings = {"warmup_teacher_temp": 0.04, "teacher_temp": 0.07, "warmup_teacher_temp_epochs": 3, "nepochs": 5}
    return DINOLoss(out_dim, ncrops, **settings | changes).double()


def slow_loss(student, teacher, center, ncrops: int, student_temp: float, teacher_temp: float):
    """What the paper says, in loops over crops and images."""
    total, count = 0, 0
    crops, views = student.chunk(ncrops), teacher.chunk(2)
    for u, view in enumerate(views):
        for v, crop in enumerate(crops):
            if u == v:
                continue
            for t, s in zip(view, crop, strict=True):
                expected = F.softmax((t - center[0]) / teacher_temp, dim=0)
                total = total - (expected * F.log_softmax(s / student_temp, dim=0)).sum() / len(crop)
            count += 1
    return total / count


@pytest.mark.parametrize("ncrops", [2, 3, 6])
def test_it_is_the_slow_version_in_value_and_gradient(ncrops):
    torch.manual_seed(0)
    function = make(ncrops=ncrops)
    function.center.normal_()
    student = torch.randn(3 * ncrops, 7, dtype=torch.double, requires_grad=True)
    teacher = torch.randn(6, 7, dtype=torch.double, requires_grad=True)
    expected = slow_loss(student, teacher.detach(), function.center.clone(), ncrops, 0.1, 0.055)
    actual = function(student, teacher, epoch=1)
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=1e-5)
    ours, theirs = (torch.autograd.grad(x, student)[0] for x in (actual, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6)
    assert torch.autograd.grad(function(student, teacher, 1), teacher, allow_unused=True)[0] is None


def test_the_centre_follows_the_teacher_after_the_loss_was_taken():
    torch.manual_seed(0)
    function, student, teacher = make(), torch.randn(8, 7).double(), torch.randn(4, 7).double()
    first = function(student, teacher, 0)
    torch.testing.assert_close(function.center, 0.1 * teacher.mean(0, keepdim=True))
    again = function(student, teacher, 0)
    assert not torch.equal(first, again)
    assert not function.center.requires_grad and "center" in function.state_dict()


def test_a_teacher_without_an_opinion_costs_the_logarithm_of_the_width():
    function = make()
    nothing = torch.zeros(8, 7).double()
    assert float(function(nothing, nothing[:4], 0)) == pytest.approx(math.log(7), rel=1e-6)


def test_a_constant_added_to_all_logits_changes_nothing():
    torch.manual_seed(0)
    student, teacher = torch.randn(8, 7).double(), torch.randn(4, 7).double()
    one, two = make()(student, teacher, 0), make()(student + 3, teacher - 2, 0)
    torch.testing.assert_close(one, two, rtol=1e-4, atol=1e-5)


def test_the_temperature_rises_over_the_warm_up_and_stays():
    temps = make().teacher_temps
    assert temps == pytest.approx([0.04, 0.055, 0.07, 0.07, 0.07])
    assert make(warmup_teacher_temp_epochs=0).teacher_temps == [0.07] * 5


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        ((8, 6), (4, 7), "DINO.OUT_DIM: the student gives 6 logits and the teacher 7"),
        ((8, 7), (4, 6), "the teacher 6"),
        ((9, 7), (4, 7), "9 student rows and 4 teacher rows are not 4 and 2 crops"),
        ((8, 7), (6, 7), "8 student rows and 6 teacher rows"),
    ],
)
def test_student_and_teacher_that_do_not_fit_are_refused(student, teacher, words):
    with pytest.raises(UserError, match=words):
        make()(torch.randn(student), torch.randn(teacher), 0)


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(UserError, match="DINO.WARMUP_TEACHER_TEMP_EPOCHS: 6 .* more than the 5"):
        make(warmup_teacher_temp_epochs=6)
