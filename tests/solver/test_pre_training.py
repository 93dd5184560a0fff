"""What pre-training alone uses: cosines per update, two groups of parameters, LARS."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from solver.lars import LARS
from solver.optimizer import build_optimizer, matrices_and_vectors
from solver.schedule import cosine_at
from utils.errors import UserError


def test_a_cosine_rises_by_its_warm_up_and_approaches_its_end():
    values = [cosine_at(i, 0.5, 0.01, 6, 5, warmup=2) for i in range(30)]
    assert values[0] == 0 and values[9] == values[10] == 0.5  # both ends included
    assert values[1:10] == sorted(values[1:10]) and values[10:] == sorted(values[10:], reverse=True)
    assert 0.01 < values[-1] < 0.02
    rising = [cosine_at(i, 0.04, 0.4, 2, 10) for i in range(20)]
    assert rising[0] == pytest.approx(0.04) and rising == sorted(rising) and rising[-1] < 0.4
    assert cosine_at(0, 1.0, 0.0, 3, 1, warmup=1) == 0  # a warm-up of one update


def test_a_warm_up_of_the_whole_run_is_refused():
    with pytest.raises(UserError, match="SOLVER.WARMUP_EPOCHS: 4 epochs of warm-up leave nothing of 4"):
        cosine_at(0, 1.0, 0.0, 4, 5, warmup=4)


def test_matrices_decay_and_vectors_and_biases_do_not():
    module = nn.Module()
    module.linear, module.norm = nn.Linear(3, 2), nn.LayerNorm(2)
    module.token = nn.Parameter(torch.zeros(1, 1, 4))
    module.other = nn.Module()
    module.other.bias = nn.Parameter(torch.zeros(2, 2))  # a bias by its name
    module.frozen = nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    decayed, spared = matrices_and_vectors(module, 0.3)
    assert {id(p) for p in decayed["params"]} == {id(module.linear.weight), id(module.token)}
    assert {id(p) for p in spared["params"]} == {
        id(p) for p in (module.linear.bias, module.norm.weight, module.norm.bias, module.other.bias)
    }
    assert (decayed["weight_decay"], spared["weight_decay"]) == (0.3, 0.0)


def test_lars_is_its_formula_over_three_steps():
    torch.manual_seed(0)
    weight, bias = nn.Parameter(torch.randn(3, 2)), nn.Parameter(torch.randn(3))
    slow = {id(p): (p.detach().clone(), torch.zeros_like(p)) for p in (weight, bias)}
    optimizer = build_optimizer("LARS", [{"params": [weight, bias], "weight_decay": 0.2}], 0.5)
    assert isinstance(optimizer, LARS)
    for _ in range(3):
        for p in (weight, bias):
            p.grad = torch.randn_like(p)
            value, buffer = slow[id(p)]
            update = p.grad
            if p.dim() > 1:
                update = update + 0.2 * value
                update = update * 0.001 * value.norm() / update.norm()
            buffer = 0.9 * buffer + update
            slow[id(p)] = value - 0.5 * buffer, buffer
        optimizer.step()
    for p in (weight, bias):
        torch.testing.assert_close(p.detach(), slow[id(p)][0])


def test_lars_leaves_weights_of_zero_and_those_without_a_gradient():
    weight, other = nn.Parameter(torch.zeros(2, 2)), nn.Parameter(torch.ones(2, 2))
    weight.grad = torch.ones(2, 2)
    LARS([weight, other], lr=0.1).step()
    torch.testing.assert_close(weight.detach(), torch.full((2, 2), -0.1))
    assert other.eq(1).all()
