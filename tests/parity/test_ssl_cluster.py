"""Reference cases of TransReID-SSL's cluster contrast: encoder, pseudo-labels and memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from configs import load_config
from loss import ClusterMemory
from loss.cluster_memory import class_means
from model import make_model
from processor.methods.pseudo_labels import cluster
from tests.parity import cases
from tests.parity.checks import close, counts, tensors
from utils.checkpoint import load_weights

pytestmark = pytest.mark.parity

KINDS = ("ssl_cluster_", "ssl_dbscan_")


def check_encoder(case) -> None:
    cfg = load_config(opts=[*case.params["config"], "PROCESSOR.NAME", "cluster"])
    model = make_model(cfg, *counts(case.params))
    report = load_weights(model, case.state_dict())
    assert not report.missing and not report.mismatched and not report.unexpected, str(report)
    training = case.params["mode"] == "train"
    with torch.no_grad():
        found = model.train(training)(tensors(case)["images"])
    if training:
        assert found.scores == [] and len(found.feats) == 1
        found = found.feats[0]
    (wanted,) = case.outputs().values()
    close(case, found, wanted, "feat")


def check_memory(case) -> None:
    """Both updates, step after step; each step's gradient is the one on the features before scaling."""
    given, wanted, params = tensors(case), case.outputs(), case.params
    for rule in ("mean", "hard"):
        memory = ClusterMemory(given["memory"], params["temperature"], params["momentum"], rule)
        for i in range(params["steps"]):
            feats, labels = given[f"feats_{i}"].requires_grad_(), given[f"labels_{i}"].long()
            feats.grad = None
            value = memory(feats, labels)
            value.backward()
            memory.update(feats, labels)
            for name, found in (("loss", value), ("grad", feats.grad), ("memory", memory.features)):
                close(case, found, wanted.pop(f"{rule}.{name}_{i}"), f"{rule} {name} {i}")
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


def check_labels(case) -> None:
    feats, wanted = tensors(case)["feats"], case.outputs()
    for run, settings in case.params["runs"].items():
        k1, k2 = case.params["k1"], case.params["k2"]
        labels = cluster(feats, k1, k2, settings["eps"], settings["min_samples"])
        assert np.array_equal(labels, wanted.pop(f"{run}.labels")), f"{case.name}: {run}"
        assert labels.max() + 1 == settings["num_clusters"]
        memory = class_means(feats, torch.from_numpy(labels), labels.max() + 1)
        close(case, memory, wanted.pop(f"{run}.memory"), f"memory of {run}")
    assert not wanted, f"{case.name}: unchecked {sorted(wanted)}"


def kind_of(case):
    """The check for a case, from its parameters."""
    if case.params.get("mode") in ("eval", "train"):
        return check_encoder
    if "num_clusters" in case.params and "steps" in case.params:
        return check_memory
    return check_labels if "runs" in case.params else None


@pytest.mark.parametrize("name", [n for n in cases.names("ssl_") if n.startswith(KINDS)])
def test_case(name):
    case = cases.load(name)
    check = kind_of(case)
    assert check, f"{name}: no test handles this kind (outputs {sorted(case.outputs())[:6]})"
    check(case)
