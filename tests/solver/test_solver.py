"""Parameter groups, optimizers by name, and the schedules against their formulas."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from torch import nn

from model import make_model
from processor.stage import Stage
from solver import make_optimizer, make_scheduler
from solver.optimizer import parameter_groups
from tests.tiny import config
from utils.errors import UserError


def settings(**changes):
    return config(Path("none"), Path("none"), **changes)


MODELS = {
    "jpm": {"MODEL__JPM": True, "MODEL__SIE_CAMERA": True},
    "arcface": {"MODEL__ID_LOSS_TYPE": "arcface", "MODEL__REDUCE_FEAT_DIM": True},
    "resnet": {"MODEL__NAME": "resnet10"},
}


def by_name(optimizer, module: nn.Module) -> dict[str, dict]:
    names = {id(p): n for n, p in module.named_parameters()}
    actual = [(names[id(p)], group) for group in optimizer.param_groups for p in group["params"]]
    assert len(actual) == len(dict(actual)), "a parameter is in two groups"
    return dict(actual)


@pytest.mark.parametrize("large_fc", [False, True])
@pytest.mark.parametrize("changes", MODELS.values(), ids=list(MODELS))
def test_every_trained_parameter_is_in_one_group_with_the_rate_and_decay_of_its_name(changes, large_fc):
    cfg = settings(
        SOLVER__BASE_LR=0.01, SOLVER__BIAS_LR_FACTOR=2, SOLVER__WEIGHT_DECAY=1e-4, SOLVER__WEIGHT_DECAY_BIAS=3e-4,
        SOLVER__LARGE_FC_LR=large_fc, **changes,
    )  # fmt: skip
    model = make_model(cfg, 5, 3, 1)
    groups = by_name(make_optimizer(cfg, model), model)
    assert set(groups) == {n for n, p in model.named_parameters() if p.requires_grad}
    assert "bottleneck.bias" not in groups
    for name, group in groups.items():
        rate = 0.02 if "bias" in name or (large_fc and ("classifier" in name or "arcface" in name)) else 0.01
        assert (group["lr"], group["weight_decay"]) == (rate, 3e-4 if "bias" in name else 1e-4), name
    assert len({id(group) for group in groups.values()}) == (3 if large_fc else 2)


def test_a_classifiers_bias_takes_the_classifiers_rate_and_the_biases_decay():
    module = nn.Module()
    module.classifier, module.arcface, module.other = nn.Linear(2, 2), nn.Linear(2, 2, bias=False), nn.Linear(2, 2)
    groups = parameter_groups(module, 1.0, 0.5, bias_lr_factor=3.0, weight_decay_bias=0.25, large_fc_lr=True)
    actual = {id(p): (g["lr"], g["weight_decay"]) for g in groups for p in g["params"]}
    assert [actual[id(p)] for p in module.parameters()] == [(2, 0.5), (2, 0.25), (2, 0.5), (1, 0.5), (3, 0.25)]
    plain = parameter_groups(module, 1.0, 0.5, bias_lr_factor=3.0)
    assert {(g["lr"], g["weight_decay"]) for g in plain} == {(1, 0.5), (3, 0.5)}


def test_a_shared_parameter_is_trained_once():
    module = nn.Module()
    module.one = module.two = nn.Linear(2, 2)
    assert sum(len(g["params"]) for g in parameter_groups(module, 1.0, 0.0)) == 2


@pytest.mark.parametrize("name", ["SGD", "Adam", "AdamW", "RMSprop"])
def test_optimizers_come_by_their_name_with_their_own_defaults(name):
    module = nn.Linear(2, 2)
    cfg = settings(SOLVER__OPTIMIZER_NAME=name, SOLVER__MOMENTUM=0.7, SOLVER__BASE_LR=0.02)
    actual = make_optimizer(cfg, module)
    torchs = getattr(torch.optim, name)([torch.zeros(1)], lr=0.02).defaults
    assert type(actual) is getattr(torch.optim, name)
    assert actual.defaults == torchs | ({"momentum": 0.7} if name == "SGD" else {})
    if name == "SGD":
        nesterov = make_optimizer(settings(SOLVER__OPTIMIZER_NAME="SGD", SOLVER__NESTEROV=True), module)
        assert nesterov.defaults["nesterov"] and not actual.defaults["nesterov"]


@pytest.mark.parametrize(
    ("name", "hint"), [("Adm", "'Adam'"), ("sgd", "'SGD'"), ("Optimizer", ""), ("lr_scheduler", ""), ("LBFGS", "")]
)
def test_an_unknown_optimizer_is_refused_with_the_nearest(name, hint):
    with pytest.raises(UserError, match="SOLVER.OPTIMIZER_NAME") as caught:
        make_optimizer(settings(SOLVER__OPTIMIZER_NAME=name), nn.Linear(2, 2))
    assert hint in str(caught.value) and "\n" not in str(caught.value)


def test_settings_that_an_optimizer_refuses_are_reported():
    cfg = settings(SOLVER__OPTIMIZER_NAME="SGD", SOLVER__NESTEROV=True, SOLVER__MOMENTUM=0.0)
    with pytest.raises(UserError, match="SOLVER.OPTIMIZER_NAME: SGD refuses its settings.*momentum"):
        make_optimizer(cfg, nn.Linear(2, 2))


# ---------------------------------------------------------------- schedules


def rates(epochs: int, **changes) -> list[list[float]]:
    """The rates of two groups, biases at twice the base, in force in epochs 1, 2, ..."""
    cfg = settings(SOLVER__BASE_LR=0.01, SOLVER__BIAS_LR_FACTOR=2, **changes)
    optimizer = make_optimizer(cfg, nn.Linear(3, 3))
    scheduler = make_scheduler(cfg, optimizer)
    actual = [[g["lr"] for g in optimizer.param_groups]]
    for epoch in range(1, epochs + 1):
        scheduler.step(epoch)
        actual.append([g["lr"] for g in optimizer.param_groups])
    start = int(cfg.SOLVER.SCHEDULER_START)
    assert start == 1 or actual[0] == actual[1 - start]  # until the first step the rates are those of t = 0
    return actual[1:]


def slow_cosine(base: float, t: int, warmup: int, epochs: int) -> float:
    if t < warmup:
        return 0.01 * 0.01 + t * (base - 0.01 * 0.01) / warmup
    if t < epochs:
        return 0.002 * 0.01 + 0.5 * (base - 0.002 * 0.01) * (1 + math.cos(math.pi * t / epochs))
    return 0.002 * 0.01


@pytest.mark.parametrize(("method", "start"), [("linear", 1), ("cosine", 0)])
@pytest.mark.parametrize("warmup", [0, 1, 5])
def test_the_cosine_is_the_published_formula_at_each_systems_time(method, start, warmup):
    actual = rates(24, SOLVER__WARMUP_METHOD=method, SOLVER__WARMUP_EPOCHS=warmup, SOLVER__MAX_EPOCHS=20)
    expected = [[slow_cosine(base, e - 1 + start, warmup, 20) for base in (0.01, 0.02)] for e in range(1, 25)]
    assert [pytest.approx(w) for w in expected] == actual
    if start == 0 and warmup:
        assert actual[0] == pytest.approx([1e-4, 1e-4])
    assert actual[23] == pytest.approx([2e-5, 2e-5])


@pytest.mark.parametrize("method", ["linear", "constant"])
@pytest.mark.parametrize(("start", "iters", "warmup"), [(0, 0, 4), (1, 6, 6), (-1, 0, 4)])
def test_multistep_falls_at_its_steps_after_its_warm_up(method, start, iters, warmup):
    actual = rates(
        20, SOLVER__SCHEDULER="multistep", SOLVER__SCHEDULER_START=start, SOLVER__WARMUP_METHOD=method,
        SOLVER__WARMUP_EPOCHS=4, SOLVER__WARMUP_ITERS=iters, SOLVER__WARMUP_FACTOR=0.1, SOLVER__GAMMA=0.5,
        SOLVER__STEPS=[15, 8],
    )  # fmt: skip
    expected = []
    for epoch in range(1, 21):
        t = epoch - 1 + start
        weight = 1.0
        if t < warmup:
            weight = 0.1 if method == "constant" else 0.1 * (1 - t / warmup) + t / warmup
        falls = 0
        for at in (8, 15):
            if at <= t:
                falls += 1
        expected.append([base * weight * 0.5**falls for base in (0.01, 0.02)])
    assert [pytest.approx(w) for w in expected] == actual


def test_step_falls_after_every_so_many_epochs():
    actual = rates(9, SOLVER__SCHEDULER="step", SOLVER__STEP_SIZE=3, SOLVER__GAMMA=0.1)
    assert [r[0] for r in actual] == pytest.approx([0.01] * 3 + [0.001] * 3 + [0.0001] * 3)


def slow_tail(base: float, e: int, warmup: int, epochs: int, last: int) -> float:
    if warmup and e <= warmup:
        return base / 100 + (base - base / 100) * e / warmup
    return base / 2 * (1 + math.cos(math.pi * (min(e, last) - warmup) / (epochs - warmup)))


@pytest.mark.parametrize(("warmup", "ratio"), [(0, 0.5), (3, 0.8), (5, 1.0)])
def test_msvits_rate_settles_when_averaging_begins(warmup, ratio):
    actual = rates(
        25, SOLVER__SCHEDULER="msvit", SOLVER__WARMUP_EPOCHS=warmup, SOLVER__MAX_EPOCHS=20, SOLVER__EMA__RATIO=ratio
    )
    last = int(20 * ratio)
    assert [pytest.approx([slow_tail(b, e, warmup, 20, last) for b in (0.01, 0.02)]) for e in range(1, 26)] == actual
    assert actual[last - 1] == actual[24] and (ratio < 1 or actual[24] == pytest.approx([0, 0]))


@pytest.mark.parametrize(("ratio", "warmup"), [(0.2, 5), (1.0, 20)])
def test_a_warm_up_beyond_the_settled_rate_is_refused(ratio, warmup):
    changes = {"SOLVER__WARMUP_EPOCHS": warmup, "SOLVER__MAX_EPOCHS": 20, "SOLVER__EMA__RATIO": ratio}
    with pytest.raises(UserError, match=r"SOLVER\.WARMUP_EPOCHS.*SOLVER\.EMA\.RATIO"):
        rates(1, SOLVER__SCHEDULER="msvit", **changes)


def test_the_cosine_per_step_moves_within_an_epoch_from_0_to_its_floor():
    cfg = settings(
        SOLVER__BASE_LR=0.01, SOLVER__SCHEDULER="cosine_per_step", SOLVER__SCHEDULER_START=0, SOLVER__WARMUP_EPOCHS=2,
        SOLVER__MAX_EPOCHS=10, SOLVER__COSINE_FLOOR=1e-4,
    )  # fmt: skip
    optimizer = make_optimizer(cfg, nn.Linear(2, 2))
    stage = Stage(nn.Linear(2, 2), 10, make_solver=None)
    stage.scheduler = make_scheduler(cfg, optimizer)
    actual = []
    for epoch in range(1, 11):
        for step in range(4):
            stage.set_rates(epoch, step, 4)
            actual.append(optimizer.param_groups[0]["lr"])
    assert actual[:9] == pytest.approx([0.01 * i / 8 for i in range(9)])
    expected = [1e-4 + 0.5 * (0.01 - 1e-4) * (1 + math.cos(math.pi * i / 32)) for i in range(32)]
    assert actual[8:] == pytest.approx(expected)


def test_vectors_are_spared_from_decay_if_asked():
    module = nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2))
    module.scale = nn.Parameter(torch.ones(3, 1, 1))
    cfg = settings(SOLVER__WEIGHT_DECAY=0.05, SOLVER__WEIGHT_DECAY_BIAS=0.05, SOLVER__DECAY_VECTORS=False)
    actual = {name: group["weight_decay"] for name, group in by_name(make_optimizer(cfg, module), module).items()}
    assert actual == {"0.weight": 0.05, "scale": 0.05, "0.bias": 0, "1.weight": 0, "1.bias": 0}


def test_the_rate_of_an_epoch_does_not_depend_on_the_epochs_before_it():
    cfg = settings(SOLVER__MAX_EPOCHS=20)
    one, two = (make_optimizer(cfg, nn.Linear(2, 2)) for _ in range(2))
    walked, jumped = make_scheduler(cfg, one), make_scheduler(cfg, two)
    for epoch in range(1, 14):
        walked.step(epoch)
    jumped.step(13)
    assert [g["lr"] for g in one.param_groups] == [g["lr"] for g in two.param_groups]
    again = make_scheduler(cfg, two)  # as after resuming: an optimizer whose rates have moved
    again.step(13)
    assert [g["lr"] for g in one.param_groups] == [g["lr"] for g in two.param_groups]


def test_an_unknown_schedule_is_refused_with_the_nearest():
    with pytest.raises(UserError, match="SOLVER.SCHEDULER: unknown 'cosin', did you mean 'cosine'"):
        make_scheduler(settings(SOLVER__SCHEDULER="cosin"), make_optimizer(settings(), nn.Linear(2, 2)))
