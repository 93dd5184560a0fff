"""Two processes on gloo: the gradient of one process with the whole batch, and a whole run by ``torchrun``."""

from __future__ import annotations

import json

import pytest
import torch

from tests.runs import TORCHRUN, call, start_process
from tests.tiny import options, write_market


def test_gathered_losses_and_synchronised_norms_have_the_gradient_of_one_process(shares):
    one, two = (torch.load(shares / f"world_{n}.pt", weights_only=True) for n in (1, 2))
    assert one["grads"].keys() == two["grads"].keys() and len(one["grads"]) > 40
    for kind in ("grads", "buffers"):
        for name, wanted in one[kind].items():
            torch.testing.assert_close(two[kind][name], wanted, rtol=1e-5, atol=1e-5, msg=lambda m, n=name: f"{n}: {m}")
    largest = max(float(g.abs().max()) for g in one["grads"].values())
    assert largest > 0.1, "the gradients are too small for the comparison to mean anything"


def test_a_run_by_torchrun_trains_evaluates_and_goes_on(market, tmp_path):
    words = options(
        market, tmp_path, SOLVER__IMS_PER_BATCH=8, SOLVER__MAX_EPOCHS=2, MODEL__METRIC_LOSS_TYPE="triplet_center",
        SOLVER__EMA__RATIO=0.5, TEST__REPORT=True,
    )  # fmt: skip
    done = start_process(*TORCHRUN, "train.py", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("stage supervised") == 1  # only the first process logs
    metrics = json.loads((tmp_path / "metrics.json").read_text())
    assert metrics["results"]["market1501"]["queries"] == 8
    assert "Worst queries" in (tmp_path / "report.html").read_text()
    assert "6 query images" in (tmp_path / "pictures" / "index.json").read_text()  # not one process's share of them
    assert call("test", options(market, tmp_path / "one", TEST__WEIGHT=tmp_path / "transformer_2.pth")) == 0
    alone = json.loads((tmp_path / "one" / "test_metrics.json").read_text())["results"]["market1501"]
    for key, value in metrics["results"]["market1501"].items():
        assert abs(alone[key] - value) < 1e-6, key
    again = start_process(*TORCHRUN, "train.py", *words)
    assert again.returncode == 0 and "finished already" in again.stdout


def test_processes_that_skip_bad_images_keep_step_and_gather_batches_of_one_length(tmp_path):
    train = write_market(tmp_path) / "market1501" / "bounding_box_train"
    for path in sorted(train.glob("0001_*")) + sorted(train.glob("0002_*"))[:1]:  # all of one identity, one of another
        path.write_bytes(b"")
    words = options(
        tmp_path, tmp_path / "run", DATALOADER__BAD_IMAGES="skip", SOLVER__GATHER=True, SOLVER__IMS_PER_BATCH=8,
        DATALOADER__SAMPLER="softmax",
    )  # fmt: skip
    done = start_process(*TORCHRUN, "train.py", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.count("5 images could not be read in this epoch") == 2  # epochs; counted over both processes


def test_gathered_adaptation_has_the_gradient_of_one_process(shares):
    for method in ("cluster", "dmmd", "mtda_kd"):
        one, two = (torch.load(shares / f"{method}_{n}.pt", weights_only=True)["grads"] for n in (1, 2))
        assert one.keys() == two.keys() and len(one) > 290
        scale = max(float(g.abs().max()) for g in one.values())
        for name, wanted in one.items():
            apart = float((two[name] - wanted).abs().max()) / scale
            assert apart < 1e-5, f"{method} {name}: apart by {apart:.1e} of the largest gradient"


def test_pre_training_on_two_processes_is_that_of_one(shares):
    one, two = (torch.load(shares / f"dino_{n}.pt", weights_only=True) for n in (1, 2))
    assert one["losses"] == pytest.approx(two["losses"], rel=1e-7) and one["losses"][0] != one["losses"][1]
    torch.testing.assert_close(two["center"], one["center"], rtol=1e-6, atol=1e-9)
    for kind, least in (("grads", 50), ("teacher", 60)):
        assert one[kind].keys() == two[kind].keys() and len(one[kind]) > least
        scale = max(float(value.abs().max()) for value in one[kind].values())
        for name, wanted in one[kind].items():
            apart = float((two[kind][name] - wanted).abs().max()) / scale
            assert apart < 1e-6, f"{kind} {name}: apart by {apart:.1e} of the largest"


def test_pre_training_by_torchrun_leaves_its_files(market, tmp_path):
    words = options(
        market, tmp_path, PROCESSOR__NAME="dino", DATALOADER__SAMPLER="softmax", MODEL__STEM_CONV=True,
        DINO__OUT_DIM=8, DINO__HIDDEN_DIM=16, DINO__CROP_HEIGHT=16, DINO__CROP_WIDTH=8, DINO__USE_BN_IN_HEAD=True,
        SOLVER__OPTIMIZER_NAME="AdamW", SOLVER__BASE_LR=1e-3,
    )  # fmt: skip
    done = start_process(*TORCHRUN, "train.py", *words)
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "transformer_backbone_2.pth").is_file() and done.stdout.count("stage dino") == 1


def test_gathered_self_distillation_has_the_gradient_and_the_memories_of_one_process(shares):
    for mode in ("released", "logits"):
        one, two = (torch.load(shares / f"{mode}_{n}.pt", weights_only=True) for n in (1, 2))
        assert one["grads"].keys() == two["grads"].keys() and len(one["grads"]) > 40
        scale = max(float(g.abs().max()) for g in one["grads"].values())
        for name, wanted in one["grads"].items():
            apart = float((two["grads"][name] - wanted).abs().max()) / scale
            assert apart < 1e-5, f"{mode} {name}: apart by {apart:.1e} of the largest gradient"
        for name, wanted in one["memories"].items():
            torch.testing.assert_close(two["memories"][name], wanted, rtol=1e-4, atol=1e-5)
