"""Two processes on gloo: the gradient of one process with the whole batch, and whole runs.

All of it is computed in one start of two processes (``tests.together``).
"""

from __future__ import annotations

import json

import pytest
import torch

from tests.runs import call
from tests.tiny import options
from tests.together import output_of

pytestmark = pytest.mark.slow


def test_gathered_losses_and_synchronised_norms_have_the_gradient_of_one_process(together):
    one, two = (torch.load(together / f"world_{n}.pt", weights_only=True) for n in (1, 2))
    assert one["grads"].keys() == two["grads"].keys() and len(one["grads"]) > 40
    for kind in ("grads", "buffers"):
        for name, wanted in one[kind].items():
            torch.testing.assert_close(two[kind][name], wanted, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    largest = max(float(g.abs().max()) for g in one["grads"].values())
    assert largest > 0.1, "the gradients are too small for the comparison to mean anything"


def test_a_run_of_two_processes_trains_evaluates_and_goes_on(together, tmp_path):
    assert output_of(together, "run").count("stage supervised") == 1  # only the first process logs
    run = together / "run"
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["results"]["market1501"]["queries"] == 8
    assert "Worst queries" in (run / "report.html").read_text()
    assert "6 query images" in (run / "pictures" / "index.json").read_text()  # not one process's share of them
    words = options(together / "data", tmp_path / "one", TEST__WEIGHT=run / "transformer_2.pth")
    assert call("test", words) == 0
    alone = json.loads((tmp_path / "one" / "test_metrics.json").read_text())["results"]["market1501"]
    for key, value in metrics["results"]["market1501"].items():
        assert abs(alone[key] - value) < 1e-6, key
    assert "finished already" in output_of(together, "run again")


def test_processes_that_skip_bad_images_keep_step_and_gather_batches_of_one_length(together):
    text = output_of(together, "skipped images")
    assert text.count("5 images could not be read in this epoch") == 2  # epochs; counted over both processes


def test_gathered_adaptation_has_the_gradient_of_one_process(together):
    for method in ("cluster", "dmmd", "mtda_kd"):
        one, two = (torch.load(together / f"{method}_{n}.pt", weights_only=True)["grads"] for n in (1, 2))
        assert one.keys() == two.keys() and len(one) > 40
        scale = max(float(g.abs().max()) for g in one.values())
        for name, wanted in one.items():
            apart = float((two[name] - wanted).abs().max()) / scale
            assert apart < 1e-5, f"{method} {name}: apart by {apart:.1e} of the largest gradient"


def test_pre_training_on_two_processes_is_that_of_one(together):
    one, two = (torch.load(together / f"dino_{n}.pt", weights_only=True) for n in (1, 2))
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-7) and one["losses"][0] != one["losses"][1]
    torch.testing.assert_close(two["center"], one["center"], rtol=1e-6, atol=1e-9)
    for kind, least in (("grads", 50), ("teacher", 60)):
        assert one[kind].keys() == two[kind].keys() and len(one[kind]) > least
        scale = max(float(value.abs().max()) for value in one[kind].values())
        for name, wanted in one[kind].items():
            apart = float((two[kind][name] - wanted).abs().max()) / scale
            assert apart < 1e-6, f"{kind} {name}: apart by {apart:.1e} of the largest"


def test_pre_training_of_two_processes_leaves_its_files(together):
    assert output_of(together, "pre-training").count("stage dino") == 1
    assert (together / "dino" / "transformer_backbone_2.pth").is_file()


def test_gathered_self_distillation_has_the_gradient_and_the_memories_of_one_process(together):
    for mode in ("released", "logits"):
        one, two = (torch.load(together / f"{mode}_{n}.pt", weights_only=True) for n in (1, 2))
        assert one["grads"].keys() == two["grads"].keys() and len(one["grads"]) > 40
        scale = max(float(g.abs().max()) for g in one["grads"].values())
        for name, wanted in one["grads"].items():
            apart = float((two["grads"][name] - wanted).abs().max()) / scale
            assert apart < 1e-5, f"{mode} {name}: apart by {apart:.1e} of the largest gradient"
        for name, wanted in one["memories"].items():
            torch.testing.assert_close(two["memories"][name], wanted, rtol=1e-4, atol=1e-5)
