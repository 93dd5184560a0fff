"""Defaults and constants are the published ones: a changed one changes results without an error."""

from __future__ import annotations

import inspect

import pytest
import torch

import loss
from loss.dmmd import SIGMAS
from loss.make_loss import id_and_triplet
from loss.mean_of_terms import mean_of_terms

DEFAULTS = [
    (loss.cross_entropy, {"epsilon": 0.0}),
    (loss.triplet, {"margin": 0.3, "normalize": False}),
    (loss.supervised_contrastive, {"temperature": 1.0}),
    (loss.simclr, {"temperature": 0.1}),
    (loss.ClusterMemory, {"temperature": 0.05, "momentum": 0.2, "update": "mean", "normalize": True}),
    (loss.DINOLoss, {"student_temp": 0.1, "center_momentum": 0.9}),
    (id_and_triplet, {"id_weight": 1.0, "triplet_weight": 1.0, "epsilon": 0.0, "margin": None, "normalize": False,
                      "gather": False}),
    (mean_of_terms, {"id_weight": 1.0, "triplet_weight": 1.0, "epsilon": 0.0, "margin": None, "normalize": True,
                     "gather": False}),
]  # fmt: skip


@pytest.mark.parametrize("function, defaults", DEFAULTS, ids=lambda value: getattr(value, "__name__", ""))
def test_the_defaults_are_the_contract_s(function, defaults):
    parameters = inspect.signature(function).parameters
    assert {name: parameters[name].default for name in defaults} == defaults


def test_the_kernel_widths_of_dmmd_are_the_published_nineteen():
    widths = [1e-6, 1e-5, 1e-4, 1e-3, 1e-2, 1e-1, 1, 5, 10, 15, 20, 25, 30, 35, 100, 1e3, 1e4, 1e5, 1e6]
    assert list(SIGMAS) == widths


def test_a_stage_map_counts_where_the_student_is_higher_or_the_teacher_is_active():
    student = torch.tensor([[-1.0, 2.0, -3.0, 0.5, -1.0]])
    teacher = torch.tensor([[-0.5, 1.0, 2.0, 0.0, 0.0]])
    # silent and higher, lower than the active teacher, silent and at zero: only these count
    assert loss.margin_distillation(student, teacher).item() == 1.0 + 25.0 + 0.25
