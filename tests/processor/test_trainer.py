"""The trainer: exact resume, accumulation, precision, checkpoints, and what it refuses."""

from __future__ import annotations

import json
from functools import partialmethod

import numpy as np
import pytest
import torch

from model import ReIDOutput, make_model
from processor import run
from processor.methods.supervised import Supervised
from tests.runs import Killed, assert_same_bytes, kill_at, weights
from tests.tiny import config
from utils.errors import UserError
from utils.methods import METHODS, Method


@pytest.mark.parametrize("mode", ["uniform", "exponential"])
def test_the_average_takes_the_place_of_the_last_weights_and_both_are_told(market, tmp_path, mode):
    """For any method: here TransReID. Epochs 1 to 4, of which the mean counts 2, 3 and 4 or every update."""
    changes = {"SOLVER__MAX_EPOCHS": 3, "SOLVER__EMA__EXTRA_EPOCHS": 1, "SOLVER__CHECKPOINT_PERIOD": 1}
    smooth = {"SOLVER__EMA__MODE": mode, "SOLVER__EMA__DECAY": 0.5}
    one = {"uniform": {"SOLVER__EMA__RATIO": 0.7}, "exponential": smooth}
    plain = config(market, tmp_path / "plain", SOLVER__MAX_EPOCHS=4, SOLVER__SCHEDULER="step")
    metrics = run.train(config(market, tmp_path / "mean", SOLVER__SCHEDULER="step", **changes, **one[mode]))
    run.train(plain)
    assert [(e["epoch"], e.get("weights")) for e in metrics["history"]] == [
        (1, None), (2, None), (3, None), (4, "last"), (4, None),
    ]  # fmt: skip
    found, trace = weights(tmp_path / "mean", 4), [weights(tmp_path / "plain", e) for e in (2, 3, 4)]
    key = "base.blocks.0.mlp.fc1.weight"
    if mode == "uniform":
        torch.testing.assert_close(found[key], sum(w[key] for w in trace) / 3)
    assert not torch.equal(found[key], trace[-1][key])
    assert not torch.equal(found["bottleneck.running_mean"], trace[-1]["bottleneck.running_mean"])
    assert metrics["mean"] == {k: v for k, v in metrics["history"][-1].items() if k not in ("stage", "epoch")}


def test_the_number_of_workers_changes_nothing(market, tmp_path):
    for workers in (0, 2):
        run.train(config(market, tmp_path / str(workers), DATALOADER__NUM_WORKERS=workers))
    assert_same_bytes(weights(tmp_path / "0", 2), weights(tmp_path / "2", 2))


def test_another_seed_gives_other_weights(market, tmp_path):
    for seed in (1, 2):
        run.train(config(market, tmp_path / str(seed), SOLVER__SEED=seed, SOLVER__MAX_EPOCHS=1))
    a, b = (weights(tmp_path / str(seed), 1) for seed in (1, 2))
    assert not torch.equal(a["base.cls_token"], b["base.cls_token"])


def test_a_finished_run_says_so_and_is_left_alone(market, tmp_path, capsys):
    first = run.train(config(market, tmp_path))
    before = (tmp_path / "transformer_2.pth").stat().st_mtime_ns
    again = run.train(config(market, tmp_path))
    assert "finished already" in capsys.readouterr().out
    assert again["results"] == first["results"]
    assert (tmp_path / "transformer_2.pth").stat().st_mtime_ns == before


def test_a_run_killed_before_its_metrics_were_written_writes_them(market, tmp_path):
    first = run.train(config(market, tmp_path, SOLVER__MAX_EPOCHS=1))
    (tmp_path / "metrics.json").unlink()
    again = run.train(config(market, tmp_path, SOLVER__MAX_EPOCHS=1))
    assert again["results"] == first["results"] and again["history"] == first["history"]
    assert json.loads((tmp_path / "metrics.json").read_text()) == again


def test_starting_anew_writes_the_new_configuration(market, tmp_path):
    run.train(config(market, tmp_path, SOLVER__MAX_EPOCHS=1))
    run.train(config(market, tmp_path, SOLVER__MAX_EPOCHS=1, SOLVER__BASE_LR=0.02, SOLVER__RESUME="never"))
    assert "BASE_LR: 0.02" in (tmp_path / "config.yml").read_text()


class Drawing(Supervised):
    """Draws in ``begin`` what its losses need."""

    name = "drawing"

    def begin(self):
        super().begin()
        self.factor = 1 + torch.rand(()).item()

    def losses(self, batch):
        return {name: self.factor * term for name, term in super().losses(batch).items()}


def test_a_stage_that_draws_when_it_begins_draws_the_same_after_a_restart(market, tmp_path, monkeypatch):
    twice = Method("twice", stages=lambda *args: [kind.from_cfg(*args) for kind in (Supervised, Drawing)])
    monkeypatch.setitem(METHODS, "twice", twice)
    changes = {"PROCESSOR__NAME": "twice", "SOLVER__MAX_EPOCHS": 1}
    run.train(config(market, tmp_path / "whole", **changes))
    with monkeypatch.context() as patch:
        kill_at(patch, 5)  # the first step of the second stage
        with pytest.raises(Killed):
            run.train(config(market, tmp_path / "killed", **changes))
    run.train(config(market, tmp_path / "killed", **changes))
    assert_same_bytes(weights(tmp_path / "whole", 1), weights(tmp_path / "killed", 1))


def test_nodes_that_do_not_share_the_folder_are_told(market, tmp_path, monkeypatch):
    run.train(config(market, tmp_path, SOLVER__MAX_EPOCHS=1))
    monkeypatch.setattr("processor.trainer.gather_objects", lambda value: [value, False])
    with pytest.raises(UserError, match="must share OUTPUT_DIR"):
        run.train(config(market, tmp_path, SOLVER__MAX_EPOCHS=1))


def test_another_configuration_is_refused_and_named(market, tmp_path):
    run.train(config(market, tmp_path))
    with pytest.raises(UserError, match=r"SOLVER\.BASE_LR 0\.01, now 0\.02.*OUTPUT_DIR"):
        run.train(config(market, tmp_path, SOLVER__BASE_LR=0.02))
    run.train(config(market, tmp_path, SOLVER__BASE_LR=0.02, SOLVER__RESUME="never"))


def test_resume_from_a_named_file(market, tmp_path, monkeypatch):
    run.train(config(market, tmp_path / "whole", SOLVER__MAX_EPOCHS=2))
    with monkeypatch.context() as patch:
        kill_at(patch, 6)
        with pytest.raises(Killed):
            run.train(config(market, tmp_path / "a", SOLVER__MAX_EPOCHS=2))
    run.train(config(market, tmp_path / "b", SOLVER__MAX_EPOCHS=2, SOLVER__RESUME=str(tmp_path / "a" / "last")))
    assert_same_bytes(weights(tmp_path / "whole", 2), weights(tmp_path / "b", 2))
    with pytest.raises(UserError, match="is not a file to resume from"):
        run.train(config(market, tmp_path / "c", SOLVER__RESUME=str(tmp_path / "whole" / "transformer_2.pth")))


def test_files_of_a_run(market, tmp_path):
    metrics = run.train(config(market, tmp_path, SOLVER__CHECKPOINT_PERIOD=0, SOLVER__EVAL_PERIOD=0))
    names = {p.name for p in tmp_path.iterdir()}
    files = {"config.yml", "log.txt", "metrics.json", "per_query.csv", "last", "tensorboard", "transformer_2.pth"}
    assert names == files
    assert len(metrics["history"]) == 1  # the last epoch is always saved and evaluated
    assert set(metrics["results"]["market1501"]) >= {"mAP", "mINP", "Rank-1", "Rank-5", "Rank-10"}
    assert (tmp_path / "last").stat().st_mode & 0o044  # readable by others as any other file


def gradient(market, tmp_path, batch: int, accumulation: int) -> dict[str, torch.Tensor]:
    """The first update with plain SGD and losses that are means over images, batch norm and dropout at rest."""
    cfg = config(
        market, tmp_path / f"{accumulation}", SOLVER__IMS_PER_BATCH=batch, SOLVER__ACCUMULATION=accumulation,
        DATALOADER__SAMPLER="softmax", SOLVER__MAX_EPOCHS=1, MODEL__DROP_PATH=0.0, SOLVER__MOMENTUM=0.0,
        INPUT__PROB=0.0, INPUT__RE_PROB=0.0, INPUT__PADDING=0, SOLVER__WEIGHT_DECAY=0.0, SOLVER__WEIGHT_DECAY_BIAS=0.0,
        MODEL__PRETRAIN_CHOICE="self", MODEL__PRETRAIN_PATH=str(tmp_path / "start.pth"),
    )  # fmt: skip
    run.train(cfg)
    return weights(tmp_path / f"{accumulation}", 1)


def test_accumulation_equals_the_large_batch(market, tmp_path, monkeypatch):
    def outputs(self, batch):
        """Training outputs of a network in evaluation mode, so that no image's term depends on the others."""
        self.model.eval()
        feat = self.model.base(batch.images)
        return ReIDOutput([self.model.classifier(self.model.bottleneck(feat))], [feat])

    monkeypatch.setattr(Supervised, "outputs", outputs)
    start = make_model(config(market, tmp_path), 4)
    torch.save(start.state_dict(), tmp_path / "start.pth")
    whole, parts = gradient(market, tmp_path, 16, 1), gradient(market, tmp_path, 4, 4)
    moved = 0
    for key, value in start.state_dict().items():
        if "running" in key:
            torch.testing.assert_close(whole[key], value, rtol=0, atol=0, msg=key)
        elif value.is_floating_point():
            torch.testing.assert_close(parts[key], whole[key], rtol=0, atol=1e-6, msg=key)
            moved += int(not torch.equal(whole[key], value))
    assert moved > 20, "the comparison means nothing if hardly any weight has moved"


@pytest.mark.parametrize("changes", [
    pytest.param({"SOLVER__ACCUMULATION": 2}, id="accumulation"),
    pytest.param({"MODEL__COMPILE": True}, id="compile", marks=pytest.mark.slow),
])
def test_loss_is_finite_and_falls_and_checkpoints_have_the_plain_names(market, tmp_path, changes, capsys, monkeypatch):
    # torch's default backend builds C++ for most of a minute; what it is given is the same
    monkeypatch.setattr(torch.nn.Module, "compile", partialmethod(torch.nn.Module.compile, backend="aot_eager"))
    cfg = config(market, tmp_path, SOLVER__MAX_EPOCHS=6, SOLVER__EVAL_PERIOD=0, SOLVER__BASE_LR=0.05, **changes)
    run.train(cfg)
    losses = [
        float(line.split(" loss ")[1].split()[0]) for line in capsys.readouterr().out.splitlines() if " loss " in line
    ]
    assert np.isfinite(losses).all() and losses[-1] < losses[0]
    assert weights(tmp_path, 6).keys() == make_model(cfg, 4, 2, 1).state_dict().keys()


def test_keep_best_says_what_it_was_chosen_on(market, tmp_path):
    on_test = run.train(config(market, tmp_path / "a", SOLVER__KEEP_BEST="mAP"))
    assert on_test["best"]["chosen_on"] == "the test set"
    assert on_test["best"]["value"] == max(entry["mAP"] for entry in on_test["history"])
    held = run.train(config(market, tmp_path / "b", SOLVER__KEEP_BEST="Rank-1", DATASETS__VAL_SHARE=0.5))
    assert held["best"]["chosen_on"] == "identities held out of training"
    assert (tmp_path / "b" / "best.pth").exists()
    assert "held out of training" in (tmp_path / "b" / "log.txt").read_text()
    assert weights(tmp_path / "b", 2)["classifier.weight"].shape[0] == 2  # two of four identities were held out


def test_non_finite_loss_says_step_terms_and_rate(market, tmp_path):
    with pytest.raises(UserError, match=r"not finite at epoch \d, step \d.*id .*triplet .*learning rate"):
        run.train(config(market, tmp_path, SOLVER__BASE_LR=1e30, SOLVER__WARMUP_EPOCHS=0, SOLVER__MAX_EPOCHS=3))


def test_a_full_disk_while_saving_leaves_nothing_half_written(market, tmp_path, monkeypatch):
    import errno
    import os

    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    run.train(config(market, tmp_path, SOLVER__MAX_EPOCHS=1))
    names = {p.name for p in tmp_path.iterdir()}
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"No space left on device.*OUTPUT_DIR"):
        run.train(config(market, tmp_path, SOLVER__MAX_EPOCHS=1, SOLVER__RESUME="never"))
    assert {p.name for p in tmp_path.iterdir()} == names
    torch.load(tmp_path / "last", weights_only=True)
