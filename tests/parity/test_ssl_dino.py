"""Reference cases of DINO pre-training: backbones on crops, head, loss, schedules and one update."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from configs import load_config
from loss import DINOLoss
from model import make_model
from model.backbones.vit import grid_size, interpolate_positions
from processor.methods.dino import clip_each, follow, freeze_prototypes
from solver.optimizer import matrices_and_vectors
from solver.schedule import cosine_at
from tests.parity import cases
from tests.parity.checks import close, counts, module_of, tensors
from utils.checkpoint import load_weights

pytestmark = pytest.mark.parity


def build(case):
    dino = ["PROCESSOR.NAME", "dino"]
    dino += ["DINO.OUT_DIM", case.params.get("out_dim", 8)]
    dino += ["DINO.USE_BN_IN_HEAD", case.params.get("use_bn_in_head", False)]
    model = make_model(load_config(opts=[*case.params["config"], *dino]), *counts(case.params)).eval()
    report = load_weights(model, case.state_dict())
    assert not report.unexpected and not report.mismatched and all(k.startswith("head.") for k in report.missing)
    return model


@torch.no_grad()
def check_backbone(case) -> None:
    model, wanted = build(case), case.outputs()
    backbone, channels = model.backbone, case.params["pos_embed_channels"]
    for name, images in tensors(case).items():
        close(case, model(images), wanted.pop(f"token_{name}"), name)
        grid = grid_size(images.shape[2:], backbone.patch, backbone.stride)
        positions = interpolate_positions(backbone.pos_embed, backbone.grid, grid)
        close(case, positions[..., :channels], wanted.pop(f"pos_embed_{name}"), f"positions {name}")
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


@torch.no_grad()
def check_multi_crop(case) -> None:
    given = tensors(case)
    close(case, build(case)([given[name] for name in case.params["crops"]]), case.outputs()["logits"], "logits")


def check_loss(case) -> None:
    params, given, wanted = case.params, tensors(case), case.outputs()
    names = ("out_dim", "ncrops", "warmup_teacher_temp", "teacher_temp", "warmup_teacher_temp_epochs", "nepochs",
             "student_temp", "center_momentum")  # fmt: skip
    function = DINOLoss(**{name: params[name] for name in names if name in params})
    close(case, np.array(function.teacher_temps), wanted.pop("teacher_temp_schedule"), "temperatures")
    for i, epoch in enumerate(params["epochs"]):
        student = given[f"student_{i}"].requires_grad_()
        value = function(student, given[f"teacher_{i}"], epoch)
        value.backward()
        close(case, value, wanted.pop(f"loss_{i}"), f"loss {i}")
        close(case, student.grad, wanted.pop(f"grad_student_{i}"), f"gradient {i}")
        close(case, function.center, wanted.pop(f"center_{i}"), f"centre {i}")
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


def check_schedule(case) -> None:
    for name, spec in case.params["schedules"].items():
        epochs, steps = spec["epochs"], spec["niter_per_ep"]
        between = spec["base_value"], spec["final_value"], epochs, steps, spec.get("warmup_epochs", 0)
        found = np.array([cosine_at(i, *between) for i in range(epochs * steps)])
        close(case, found, case.outputs()[name], name)


def check_update(case) -> None:
    params, given, wanted = case.params, tensors(case), case.outputs()
    names = [key.removeprefix("param.") for key in given if key.startswith("param.")]
    shapes = {"module": [(name, given[f"param.{name}"].shape) for name in names], "frozen": []}
    student, teacher = module_of(shapes), module_of(shapes)
    ours, theirs = dict(student.named_parameters()), dict(teacher.named_parameters())
    for name in names:
        ours[name].data = given[f"param.{name}"].clone()
        ours[name].grad = given[f"grad.{name}"].clone()
        theirs[name].data = given[f"teacher.{name}"].clone()
    held = {id(p): name for name, p in ours.items()}
    regularized, spared = ({held[id(p)] for p in group["params"]} for group in matrices_and_vectors(student, 0.1))
    assert (regularized, spared) == (set(params["regularized"]), set(params["not_regularized"]))
    norms = clip_each([ours[name] for name in names], params["clip"])
    close(case, torch.stack(norms), wanted.pop("norms"), "norms")
    if params["epoch"] < params["freeze_last_layer"]:
        freeze_prototypes(student)
    assert [name for name in names if ours[name].grad is None] == params["frozen_gradients"]
    for name in [key.removeprefix("clipped.") for key in wanted if key.startswith("clipped.")]:
        close(case, ours[name].grad, wanted.pop(f"clipped.{name}"), f"clipped {name}")
    follow(teacher, student, params["momentum"])
    for name in names:
        close(case, theirs[name], wanted.pop(f"ema.{name}"), f"teacher {name}")
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


def kind_of(case):
    """The check for a case, from the names of its outputs."""
    outputs = set(case.outputs())
    if any(key.startswith("pos_embed_") for key in outputs):
        return check_backbone
    if outputs == {"logits"}:
        return check_multi_crop
    if "teacher_temp_schedule" in outputs:
        return check_loss
    if "schedules" in case.params:
        return check_schedule
    return check_update if "norms" in outputs else None


@pytest.mark.parametrize("name", cases.names("ssl_dino_"))
def test_case(name):
    case = cases.load(name)
    check = kind_of(case)
    assert check, f"{name}: no test handles this kind (outputs {sorted(case.outputs())[:6]})"
    check(case)
