"""How a reference case is compared: what the tests of several methods share."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn

from configs import load_config
from model import make_model
from solver import make_optimizer, make_scheduler
from utils.checkpoint import load_weights


def close(case, found, wanted, what: str) -> None:
    found = found.detach().numpy() if isinstance(found, torch.Tensor) else found
    np.testing.assert_allclose(found, wanted, rtol=case.rtol, atol=case.atol, err_msg=f"{case.name}: {what}")


def tensors(case) -> dict[str, torch.Tensor]:
    return {k: torch.from_numpy(np.ascontiguousarray(v)) for k, v in case.inputs().items()}


def counts(params) -> tuple[int, int, int]:
    return params["num_class"], params["camera_num"], params["view_num"]


def build(case):
    model = make_model(load_config(opts=case.params["config"]), *counts(case.params))
    report = load_weights(model, case.state_dict())
    assert not report.missing and not report.mismatched, str(report)
    return model


def check_eval(case) -> None:
    model, given = build(case).eval(), tensors(case)
    labels = {k: given[k] for k in ("cam_label", "view_label") if k in given}
    with torch.no_grad():
        close(case, model(given["images"], **labels), case.outputs()["feat"], "feat")


def check_train(case) -> None:
    model, given = build(case).train(), tensors(case)
    labels = {k: given[k] for k in ("label", "cam_label", "view_label") if k in given}
    with torch.no_grad():
        out = model(given["images"], **labels)
    found = {f"score_{i}": s for i, s in enumerate(out.scores)} | {f"feat_{i}": f for i, f in enumerate(out.feats)}
    wanted = case.outputs()
    assert set(found) == set(wanted), f"{case.name}: {sorted(found)} for {sorted(wanted)}"
    for name, value in wanted.items():
        close(case, found[name], value, name)


def module_of(params) -> nn.Module:
    """A module with the parameters that the case lists, under their names."""
    root = nn.Module()
    for name, shape in params["module"]:
        *path, leaf = name.split(".")
        node = root
        for word in path:
            if not hasattr(node, word):
                node.add_module(word, nn.Module())
            node = getattr(node, word)
        node.register_parameter(leaf, nn.Parameter(torch.zeros(shape), requires_grad=name not in params["frozen"]))
    return root


def check_defaults(optimizer: torch.optim.Optimizer, stored: dict, what: str) -> None:
    """An optimizer's defaults against the stored ones; a case may hold a tuple as a list."""
    for key, value in stored.items():
        assert np.array_equal(optimizer.defaults[key], value), f"{what}: {key}"


def check_schedule(case) -> None:
    for variant, spec in case.params["variants"].items():
        cfg, module = load_config(opts=spec["config"]), module_of(case.params)
        optimizer = make_optimizer(cfg, module)
        assert type(optimizer).__name__ == spec["optimizer"]["class"]
        check_defaults(optimizer, spec["optimizer"]["defaults"], variant)
        scheduler, names = make_scheduler(cfg, optimizer), {id(p): n for n, p in module.named_parameters()}
        rates = case.outputs()[f"{variant}.lr"]
        for epoch in range(1, len(rates) + 1):
            scheduler.step(epoch)
            groups = {names[id(p)]: g for g in optimizer.param_groups for p in g["params"]}
            close(case, [groups[n]["lr"] for n in spec["parameters"]], rates[epoch - 1], f"{variant} epoch {epoch}")
        decays = [groups[n]["weight_decay"] for n in spec["parameters"]]
        close(case, decays, case.outputs()[f"{variant}.weight_decay"], f"{variant} decay")
