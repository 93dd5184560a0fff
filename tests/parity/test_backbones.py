"""Reference cases of SOLIDER, PersonViT and PASS: same numbers, gradients and schedules from the same weights."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import loss
from configs import load_config
from model import make_model
from tests.parity import cases
from tests.parity.checks import build, check_eval, check_schedule, close, counts, tensors
from utils.checkpoint import load_pretrained

pytestmark = pytest.mark.parity

PREFIXES = ("solider_", "personvit_", "pass_")


def wrapped(state: dict[str, torch.Tensor], wrapper: str) -> dict:
    """A file in the published layout: the state under its key, beside what training left there."""
    return {wrapper: state, "epoch": 100} if wrapper else state


def set_after(model, case) -> None:
    """Sets the parameters that the file does not bring to the case's made values."""
    make = cases.reader().make_weight
    seed, state = case.params.get("weights_seed", 0), model.state_dict()
    with torch.no_grad():
        for key, shape, dtype in case.params.get("set_after", []):
            state[key].copy_(torch.from_numpy(make(key, shape, dtype, seed)))


def check_pretrained(case) -> None:
    model = make_model(load_config(opts=case.params["config"]), *counts(case.params)).eval()
    state = {key: torch.from_numpy(np.ascontiguousarray(value)) for key, value in case.state_dict().items()}
    report = load_pretrained(model, wrapped(state, case.params.get("wrapper", "")), case.params.get("hw_ratio", 1))
    used = {name.removeprefix("base.") for name, parameter in model.named_parameters() if parameter.requires_grad}
    later = {key.removeprefix("base.") for key, *_ in case.params.get("set_after", [])}
    assert not set(report.missing) & used - later and not report.mismatched, str(report)
    set_after(model, case)
    with torch.no_grad():
        close(case, model(tensors(case)["images"]), case.outputs()["feat"], "feat")


def check_training(case) -> None:
    model, given, wanted = build(case).train(), tensors(case), case.outputs()
    out = model(given["images"], label=given["label"])
    terms = loss.make_loss(load_config(opts=case.params["config"]), case.params["num_class"])(out, given["label"])
    total = sum(terms.values())
    total.backward()
    found = {f"score_{i}": s for i, s in enumerate(out.scores)} | {f"feat_{i}": f for i, f in enumerate(out.feats)}
    found["loss"] = total
    parameters = dict(model.named_parameters())
    for name, value in wanted.items():
        ours = parameters[name.removeprefix("grad.")].grad if name.startswith("grad.") else found.pop(name)
        close(case, ours, value, name)
    assert not found, f"{case.name}: unchecked {sorted(found)}"
    if "frozen" in case.params:
        without = {name for name, parameter in parameters.items() if parameter.grad is None}
        assert set(case.params["frozen"]) <= without
        assert all(not parameters[name].requires_grad for name in without)


def kind_of(case):
    outputs, mode = set(case.outputs()), case.params.get("mode")
    if mode == "eval" and outputs == {"feat"}:
        return check_pretrained if case.params.get("load") == "pretrained" else check_eval
    if mode == "train" and {"score_0", "feat_0", "loss"} <= outputs:
        return check_training
    if outputs and all(k.endswith((".lr", ".weight_decay")) for k in outputs):
        return check_schedule
    return None


def test_the_reference_cases_are_there():
    for prefix in PREFIXES:
        if not cases.names(prefix):
            assert not cases.REQUIRED, f"no {prefix}* case in {cases.GOLDEN}"
            pytest.skip(f"no {prefix}* case in {cases.GOLDEN}; set LINEUP_GOLDEN to their folder")


@pytest.mark.parametrize("name", [name for prefix in PREFIXES for name in cases.names(prefix)])
def test_case(name):
    case = cases.load(name)
    check = kind_of(case)
    words = f"mode {case.params.get('mode')}, outputs {sorted(case.outputs())}"
    assert check, f"{name}: no test handles this kind ({words})"
    check(case)
