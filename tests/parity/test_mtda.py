"""Reference cases of the torchreid family, D-MMD and multi-target distillation: same numbers from the same weights."""

from __future__ import annotations

import pytest
import torch

import loss
from configs import load_config
from loss.distillation import margin_total
from model import make_model
from processor.methods.mtda_kd import style_terms
from solver import make_optimizer, make_scheduler
from tests.parity import cases
from tests.parity.checks import check_schedule, close, counts, tensors
from utils.checkpoint import load_weights

pytestmark = pytest.mark.parity

RANKING = "mtda_rank_"
"""Protocols belong to the evaluation's cases (``test_eval.py``)."""


def build(case):
    model = make_model(load_config(opts=case.params["config"]), *counts(case.params))
    report = load_weights(model, case.state_dict())
    missing = [k for k in report.missing if not k.startswith("base.margin")]
    assert not missing and not report.mismatched, str(report)
    return model


def buffer_of(model, published: str):
    """A buffer by its published name."""
    ours = next(iter(model.published_state({published: torch.zeros(1)})))
    return model.state_dict()[ours]


def check_eval(case) -> None:
    model = build(case).eval()
    with torch.no_grad():
        close(case, model(tensors(case)["images"]), case.outputs()["feat"], "feat")


def check_train(case) -> None:
    model, wanted = build(case).train(), case.outputs()
    with torch.no_grad():
        out = model(tensors(case)["images"])
    close(case, out.scores[0], wanted.pop("score0"), "score0")
    close(case, out.feats[0], wanted.pop("feat0"), "feat0")
    for name in list(wanted):
        if name.startswith("after."):
            close(case, buffer_of(model, name.removeprefix("after.")), wanted.pop(name), name)
    for j, found in enumerate(out.maps):
        assert tuple(found.shape) == tuple(wanted.pop(f"map{j}_shape")), f"{case.name}: map {j}"
        every = found.flatten()[:: case.params["map_stride"]]
        close(case, every, wanted.pop(f"map{j}_every"), f"map {j}")
        close(case, found.mean(1), wanted.pop(f"map{j}_mean"), f"mean of map {j}")
        close(case, found.square().mean(1), wanted.pop(f"map{j}_sq"), f"mean square of map {j}")
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


def check_dmmd(case) -> None:
    wanted = case.outputs()
    for i, name in enumerate(("within", "between", "overall")):
        given = {k: v.requires_grad_() for k, v in tensors(case).items()}
        value = loss.dmmd(given["source"], given["target"], case.params["num_instances"])[i]
        close(case, value, wanted.pop(name), name)
        value.backward()
        for side in ("source", "target"):
            grad = given[side].grad if given[side].grad is not None else torch.zeros_like(given[side])
            close(case, grad, wanted.pop(f"{name}.grad_{side}"), f"{name}.grad_{side}")
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


def check_distillation(case) -> None:
    wanted, given, batch = case.outputs(), tensors(case), case.params["batch"]
    student = given["student"].requires_grad_()
    ours = [given[f"student_map{j}"].requires_grad_() for j in range(4)]
    theirs = [given[f"teacher_map{j}"] for j in range(4)]
    dissimilarity = loss.dissimilarity_distillation(student, given["teacher"])
    close(case, dissimilarity, wanted.pop("dissimilarity"), "dissimilarity")
    for j in range(4):
        close(case, loss.margin_distillation(ours[j], theirs[j]), wanted.pop(f"margin{j}"), f"margin {j}")
    total = margin_total(ours, theirs, batch)
    close(case, total, wanted.pop("margin_total"), "margin total")
    for style in ("all", "only_feats", "only_outputs"):
        terms = style_terms(style, student, given["teacher"], ours, theirs, batch)
        close(case, case.params["weight"] * sum(terms.values()), wanted.pop(f"target_{style}"), style)
    (dissimilarity + 1000 * total).backward()
    close(case, student.grad, wanted.pop("dissimilarity.grad_student"), "gradient of the dissimilarity")
    for j in range(4):
        name = f"margin_total.grad_student_map{j}_times_1000"
        close(case, ours[j].grad, wanted.pop(name), name)
    close(case, loss.bn_margins(given["bn_weight"], given["bn_bias"]), wanted.pop("bn_margin"), "margins")
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


def check_sweeps(case) -> None:
    cfg, teachers = load_config(opts=case.params["config"]), case.params["teachers"]
    optimizer = make_optimizer(cfg, torch.nn.Linear(2, 2))
    scheduler = make_scheduler(cfg, optimizer)
    rates = case.outputs()["lr"]
    for epoch in range(1, len(rates) + 1):
        for sweep in range(teachers):
            scheduler.step(teachers * (epoch - 1) + sweep + 1)
            close(case, optimizer.param_groups[0]["lr"], rates[epoch - 1, sweep], f"sweep {sweep} of epoch {epoch}")


def kind_of(case):
    """The check for a case, from its mode and the names of its outputs."""
    outputs, mode = set(case.outputs()), case.params.get("mode")
    if mode == "eval" and outputs == {"feat"}:
        return check_eval
    if mode == "train" and {"score0", "feat0"} <= outputs:
        return check_train
    if "within" in outputs:
        return check_dmmd
    if "dissimilarity" in outputs:
        return check_distillation
    if "teachers" in case.params:
        return check_sweeps
    if "variants" in case.params and all(k.endswith((".lr", ".weight_decay")) for k in outputs):
        return check_schedule
    return None


@pytest.mark.parametrize("name", [n for n in cases.names("mtda_") if not n.startswith(RANKING)])
def test_case(name):
    case = cases.load(name)
    check = kind_of(case)
    assert check, f"{name}: no test handles this kind (outputs {sorted(case.outputs())[:6]})"
    check(case)
