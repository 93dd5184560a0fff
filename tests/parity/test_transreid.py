"""Reference cases of TransReID and of TransReID-SSL's supervised half: same numbers from the same weights."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

import loss
from configs import load_config
from model import make_model
from solver import make_optimizer, make_scheduler
from tests.parity import cases
from tests.parity.checks import check_defaults, check_eval, check_train, close, counts, module_of, tensors
from utils.checkpoint import load_pretrained

pytestmark = pytest.mark.parity


def check_pos_embed(case) -> None:
    for name, target in case.params["targets"].items():
        model = make_model(load_config(opts=target["config"]), *counts(case.params))
        load_pretrained(model, case.state_dict(), case.params["hw_ratio"])
        found = model.state_dict()["base.pos_embed"][..., : case.params["channels"]]
        close(case, found, case.outputs()[f"{name}.pos_embed"], name)


def check_losses(case) -> None:
    given = tensors(case)
    labels, margin, epsilon = given["labels"], case.params["margin"], case.params["epsilon"]
    functions = {
        "ce_plain": lambda t: loss.cross_entropy(t["scores"], labels),
        "ce_smooth": lambda t: loss.cross_entropy(t["scores"], labels, epsilon),
        "triplet_soft": lambda t: loss.triplet(t["feats"], labels, None),
        "triplet_hard": lambda t: loss.triplet(t["feats"], labels, margin),
        "triplet_soft_normalized": lambda t: loss.triplet(t["feats"], labels, None, normalize=True),
        "triplet_hard_normalized": lambda t: loss.triplet(t["feats"], labels, margin, normalize=True),
        "center": lambda t: loss.center(t["feats"], labels, t["centers"]),
    }
    from loss.triplet import hardest_pairs

    wanted = case.outputs()
    pairs = dict(zip(("triplet.dist_ap", "triplet.dist_an"), hardest_pairs(given["feats"], labels), strict=True))
    for name, value in pairs.items():
        close(case, value, wanted.pop(name), name)
    for name, function in functions.items():
        leaves = {k: v.clone().requires_grad_() for k, v in given.items() if v.is_floating_point()}
        value = function(leaves)
        close(case, value, wanted.pop(name), name)
        value.backward()
        for key in [k for k in wanted if k.startswith(f"{name}.grad_")]:
            close(case, leaves[key.split("grad_")[1]].grad, wanted.pop(key), key)
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


def check_composition(case) -> None:
    wanted = case.outputs()
    for variant, spec in case.params["variants"].items():
        leaves = {k: v.requires_grad_() if v.is_floating_point() else v for k, v in tensors(case).items()}
        parts = sorted(int(k.split("_")[1]) for k in leaves if k.startswith("score_")) if spec["lists"] else [0]
        out = SimpleNamespace(scores=[leaves[f"score_{i}"] for i in parts], feats=[leaves[f"feat_{i}"] for i in parts])
        terms = loss.make_loss(load_config(opts=spec["config"]), case.params["num_class"])(out, leaves["labels"])
        total = sum(terms.values())
        close(case, total, wanted.pop(variant), variant)
        total.backward()
        for key in [k for k in wanted if k.startswith(f"{variant}.grad_")]:
            close(case, leaves[key.split("grad_")[1]].grad, wanted.pop(key), key)
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


def check_schedule(case) -> None:
    for variant, spec in case.params["variants"].items():
        extra = [] if spec["schedule"] == "cosine" else ["SOLVER.SCHEDULER", spec["schedule"]]
        cfg = load_config(opts=[*spec["config"], *extra])
        assert spec["schedule"] == cfg.SOLVER.SCHEDULER and int(cfg.SOLVER.SCHEDULER_START) == spec["first_t"]
        module = module_of(case.params)
        optimizer = make_optimizer(cfg, module)
        assert type(optimizer).__name__ == spec["optimizer"]["class"]
        check_defaults(optimizer, spec["optimizer"]["defaults"], variant)
        scheduler = make_scheduler(cfg, optimizer)
        names = {id(p): n for n, p in module.named_parameters()}
        rates = case.outputs()[f"{variant}.lr"]
        for epoch in range(1, len(rates) + 1):
            scheduler.step(epoch)
            groups = {names[id(p)]: g for g in optimizer.param_groups for p in g["params"]}
            close(case, [groups[n]["lr"] for n in spec["parameters"]], rates[epoch - 1], f"{variant} epoch {epoch}")
        decays = case.outputs().get(f"{variant}.weight_decay")
        if decays is not None:
            close(case, [groups[n]["weight_decay"] for n in spec["parameters"]], decays, f"{variant} decay")


def kind_of(case):
    """The check for a case, from its mode and the names of its outputs."""
    outputs, mode = set(case.outputs()), case.params.get("mode")
    if mode == "eval" and outputs == {"feat"}:
        return check_eval
    if mode == "train" and all(k.startswith(("score_", "feat_")) for k in outputs):
        return check_train
    if all(k.endswith(".pos_embed") for k in outputs):
        return check_pos_embed
    if "ce_plain" in outputs:
        return check_losses
    if all(k.endswith((".lr", ".weight_decay")) for k in outputs) and "variants" in case.params:
        return check_schedule
    if "variants" in case.params and "num_class" in case.params:
        return check_composition
    return None


SSL_KINDS = ("ssl_vit_", "ssl_gem_", "ssl_reduce_", "ssl_jpm_", "ssl_pos_embed", "ssl_schedule", "ssl_swin_")
NAMES = cases.names("transreid_") + [n for n in cases.names("ssl_") if n.startswith(SSL_KINDS)]


def test_the_reference_cases_are_there():
    if not cases.names("transreid_"):
        assert not cases.REQUIRED, f"no reference cases in {cases.GOLDEN}"
        pytest.skip(f"no reference cases in {cases.GOLDEN}; set LINEUP_GOLDEN to their folder")


@pytest.mark.parametrize("name", NAMES)
def test_case(name):
    case = cases.load(name)
    check = kind_of(case)
    assert check, (
        f"{name}: no test handles this kind (mode {case.params.get('mode')}, outputs {sorted(case.outputs())[:6]})"
    )
    check(case)
