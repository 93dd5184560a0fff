"""Distillation terms: invariances, gradients, margins against the integral."""

from __future__ import annotations

import torch
from scipy.integrate import quad
from scipy.stats import norm

import loss
from loss.distillation import SymmetricLog


def test_dissimilarities_forget_scale_rotation_and_width():
    student = torch.randn(6, 8)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8))
    wider = torch.cat([3 * student @ rotation, torch.zeros(6, 5)], 1)
    assert float(loss.dissimilarity_distillation(student, wider)) < 1e-5
    assert float(loss.dissimilarity_distillation(student, torch.randn(6, 20))) > 0.1


def test_the_log_form_is_zero_for_equal_geometry_and_finite_for_few_dimensions():
    student = torch.randn(8, 3, requires_grad=True)  # rank 3 of 8: equal eigenvalues at the floor
    value = loss.dissimilarity_distillation(student, torch.randn(8, 5), log_euclid=True)
    value.backward()
    assert value > 0 and student.grad.isfinite().all() and student.grad.abs().sum() > 0
    scaled = loss.dissimilarity_distillation(student, 2 * student.detach(), log_euclid=True)
    assert float(scaled.detach()) < 1e-3


def test_the_matrix_logarithm_inverts_the_exponential_and_has_its_gradient():
    a = torch.randn(5, 5, dtype=torch.double)
    positive = a @ a.t() + torch.eye(5)
    torch.testing.assert_close(torch.matrix_exp(SymmetricLog.apply(positive)), positive)
    assert torch.autograd.gradcheck(lambda m: SymmetricLog.apply((m + m.t()) / 2), positive.requires_grad_())


def test_a_silent_teacher_asks_for_nothing_below_it():
    teacher = torch.tensor([[-1.0, -1.0, 2.0, 2.0]])
    student = torch.tensor([[-3.0, 0.0, 1.0, 4.0]])  # below a silent one, above it, below an active one, above it
    assert float(loss.margin_distillation(student, teacher)) == 0 + 1 + 1 + 4


def test_margins_are_the_mean_of_the_negative_part():
    scale, shift = torch.tensor([1.0, -0.5, 2.0]), torch.tensor([0.3, 0.1, -1.0])
    for margin, s, b in zip(loss.bn_margins(scale, shift), scale.abs(), shift, strict=True):
        s, b = float(s), float(b)
        mass = norm.cdf(0, b, s)
        mean = quad(lambda x, b=b, s=s: x * norm.pdf(x, b, s), b - 12 * s, 0)[0] / mass
        assert abs(float(margin) - mean) < 1e-5
    assert float(loss.bn_margins(torch.tensor([0.1]), torch.tensor([5.0]))) == -3 * torch.tensor(0.1)
