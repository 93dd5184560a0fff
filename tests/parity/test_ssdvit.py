"""Reference cases of SSDViT: same numbers from the same weights. ``ssdvit_rank`` stands with the evaluation's cases."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from configs import load_config
from loss import ClusterMemory
from loss.self_distillation import entry_distillation, identity_distillation, soft_share
from model import make_model
from processor.methods.self_distill import Recipe
from tests.parity import cases
from tests.parity.checks import check_schedule, close, counts, tensors
from utils.checkpoint import load_weights, require_complete

pytestmark = pytest.mark.parity

RANKING = "ssdvit_rank"

FEATS = ("tri", "rb", "bn_x", "bn_x_rb")


def build(case, *changes):
    model = make_model(load_config(opts=[*case.params["config"], *changes]), *counts(case.params))
    report = load_weights(model, case.state_dict())
    require_complete(model, report)
    assert not report.missing and not report.unexpected and not report.mismatched, str(report)
    return model


def check_eval(case) -> None:
    wanted, images = case.outputs(), tensors(case)["images"]
    for name, change in case.params.get("outputs", {"feat": []}).items():
        model = build(case, *change).eval()
        with torch.no_grad():
            close(case, model(images), wanted.pop(name), name)
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


def check_train(case) -> None:
    model, wanted = build(case).train(), case.outputs()
    with torch.no_grad():
        out = model(tensors(case)["images"])
    assert out.scores == []
    found = dict(zip(FEATS, out.feats, strict=True))
    for i, name in enumerate(case.params.get("feats", FEATS)):
        close(case, found[name], wanted.pop(f"feat{i}"), name)
    state = model.state_dict()
    for name in [name for name in wanted if name.startswith("after.")]:
        close(case, state[name.removeprefix("after.")], wanted.pop(name), name)
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


def memory_of(case, given) -> ClusterMemory:
    return ClusterMemory(F.normalize(given["memory_raw"]), case.params["memory_temperature"], normalize=False)


def leaves(given) -> dict[str, torch.Tensor]:
    return {k: v.clone().requires_grad_(v.is_floating_point()) for k, v in given.items()}


def distillation(case) -> dict[str, float]:
    p = case.params
    alpha = soft_share(p["epoch0"] + 1, p["max_epochs"], p["alpha"])
    return {"alpha": alpha, "temperature": p["temperature"], "weight": p["weight"]}


def check_memory(case) -> None:
    given, wanted = leaves(tensors(case)), case.outputs()
    memory = ClusterMemory(
        given["memory"], case.params["temperature"], case.params["momentum"], update="mean", normalize=False
    )
    value = memory(given["feats"], given["labels"])
    close(case, value, wanted.pop("loss"), "loss")
    value.backward()
    close(case, given["feats"].grad, wanted.pop("grad_feats"), "gradient")
    assert torch.equal(memory.features, given["memory"]), "moved by the loss"
    memory.update(given["update_feats"], given["update_labels"])
    close(case, memory.features, wanted.pop("memory_after"), "memory after the update")
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


def check_step(case) -> None:
    """The terms as a step has them, by the names of the case."""
    given, wanted, p = leaves(tensors(case)), case.outputs(), case.params
    recipe = Recipe(
        mode=p["mode"], temperature=p["temperature"], weight=p["weight"], alpha=p["alpha"], margin=p["margin"],
        triplet_weights=tuple(p["triplet_weights"]),
    )  # fmt: skip
    weak = [given[name] for name in ("tri", "rb", "f_out", "f_out_rb")]
    found = recipe.terms(
        memory_of(case, given), weak, given["labels"], given["f_out_aug"], given["labels_aug"], p["epoch0"] + 1,
        p["max_epochs"],
    )  # fmt: skip
    close(case, found["memory"], wanted.pop("loss_s"), "loss_s")
    close(case, found["triplet"], wanted.pop("loss_tri"), "loss_tri")
    close(case, 1e6 * found["block"], wanted.pop("loss_rb_times_1e6"), "loss_rb")
    close(case, found["view"], wanted.pop("loss_aug"), "loss_aug")
    assert not found["view"].requires_grad
    close(case, sum(found.values()), wanted.pop("total"), "total")
    for name, term in (("loss_s", "memory"), ("loss_tri", "triplet")):
        for key in [key for key in wanted if key.startswith(f"{name}.grad_")]:
            (grad,) = torch.autograd.grad(found[term], given[key.split("grad_")[1]], retain_graph=True)
            close(case, grad, wanted.pop(key), key)
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


def check_released_gradient(case) -> None:
    given, wanted = leaves(tensors(case)), case.outputs()
    feats = [given[name] for name in ("f_out", "f_out_rb", "f_out_aug")]
    term, _ = entry_distillation(*feats, given["labels"], given["labels_aug"], **distillation(case))
    term.backward()
    for name in ("f_out", "f_out_rb"):
        grad = given[name].grad.double()
        size = grad.square().mean().sqrt()
        close(case, 1e8 * size, wanted.pop(f"grad_{name}_rms_times_1e8"), f"size of the gradient into {name}")
        close(case, grad / size, wanted.pop(f"grad_{name}_scaled"), f"gradient into {name}")
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


def check_logits(case) -> None:
    given, wanted = leaves(tensors(case)), case.outputs()
    memory = memory_of(case, given)
    for name, other in (("loss_rb", "f_out_rb"), ("loss_aug", "f_out_aug")):
        own, theirs = memory.logits(given["f_out"]), memory.logits(given[other])
        value = identity_distillation(own, theirs, given["labels"], **distillation(case))
        close(case, value, wanted.pop(name), name)
        value.backward()
        close(case, given[other].grad, wanted.pop(f"{name}.grad_{other}"), f"gradient of {name}")
    assert given["f_out"].grad is None, "the soft target is fixed"
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


def kind_of(case):
    """The check for a case, from its mode and the names of its outputs."""
    outputs, mode = set(case.outputs()), case.params.get("mode")
    if mode == "eval" and "feat" in outputs:
        return check_eval
    if mode == "train" and {f"feat{i}" for i in range(4)} <= outputs:
        return check_train
    if "memory_after" in outputs:
        return check_memory
    if mode == "released" and "loss_s" in outputs:
        return check_step
    if mode == "released" and all(name.startswith("grad_") for name in outputs):
        return check_released_gradient
    if mode == "logits" and {"loss_rb", "loss_aug"} <= outputs:
        return check_logits
    if "variants" in case.params and all(name.endswith((".lr", ".weight_decay")) for name in outputs):
        return check_schedule
    return None


@pytest.mark.parametrize("name", [n for n in cases.names("ssdvit_") if not n.startswith(RANKING)])
def test_case(name):
    case = cases.load(name)
    check = kind_of(case)
    assert check, f"{name}: no test handles this kind (outputs {sorted(case.outputs())[:6]})"
    check(case)
