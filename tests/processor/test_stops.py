"""Runs that are stopped inside an epoch, by a signal or a kill after a timed save, end as if they had not been."""

from __future__ import annotations

import json
import os
import random
import signal

import numpy as np
import pytest
import torch

from datasets.images import ImageList
from processor import run
from processor.methods import pseudo_labels
from processor.methods.supervised import Supervised
from processor.trainer import Trainer
from tests.kinds import KINDS, changes_of
from tests.runs import Killed, exit_code_of
from tests.tiny import config
from utils.methods import METHODS, Method


def act_at(monkeypatch, step: int, act, epoch: int = 1) -> None:
    """Calls ``act`` in the given update of the run, counted from 1 and from ``epoch``, before anything is computed."""
    count, real = iter(range(1, 10**6)), Trainer.step

    def wrapped(self, *args):
        if self.progress.epoch + 1 >= epoch and next(count) == step:
            act()
        return real(self, *args)

    monkeypatch.setattr(Trainer, "step", wrapped)


def assert_same(a, b, where: str = "last") -> None:
    """Asserts that two nested values are equal to the bit."""
    assert type(a) is type(b), where
    if isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key not in ("seconds", "fingerprint"):
                assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            assert_same(x, y, f"{where}.{i}")
    elif isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    else:
        assert a == b, where


def assert_same_end(whole, stopped) -> None:
    """Asserts that two folders hold the same run: ``last`` with all that is in it, every checkpoint, the metrics."""
    for path in sorted(whole.glob("*.pth")) + [whole / "last"]:
        assert_same(*(torch.load(folder / path.name, weights_only=True) for folder in (whole, stopped)), path.name)
    a, b = (json.loads((folder / "metrics.json").read_text()) for folder in (whole, stopped))
    for entry in ("results", "mean", "history"):
        assert a[entry] == b[entry], entry
    a, b = (log_lines(folder) for folder in (whole, stopped))
    assert a and a == b


def log_lines(folder) -> list[str]:
    """What the steps logged, without times and speeds."""
    lines = (folder / "log.txt").read_text().splitlines()
    return [line.split(" ", 2)[2].rpartition(",")[0] for line in lines if "images/s" in line]


def settings_of(kind: str, root) -> dict:
    return {"SOLVER__MAX_EPOCHS": 2, "SOLVER__LOG_PERIOD": 2, "SOLVER__STAGE2__LOG_PERIOD": 2} | changes_of(kind, root)


def die():
    raise Killed


def stop(monkeypatch, cfg, step: int, act, expected: type[BaseException], epoch: int = 1) -> None:
    """Trains until ``act`` stops the run in the given step of this process, counted from ``epoch``."""
    with monkeypatch.context() as patch:
        act_at(patch, step, act, epoch)
        with pytest.raises(expected) as stopped:
            run.train(cfg)
    if expected is SystemExit:
        assert stopped.value.code == 143
    del stopped  # holds the processes that load images, which the garbage collector would wait 5 s each for
    random.seed(step), np.random.seed(step), torch.manual_seed(step)  # what another process would start from


QUICK = ("supervised", "prompt", "dino", "cluster", "distill")
"""Kinds whose test takes less than five seconds; those of the other methods and variants are slow ones."""


@pytest.mark.parametrize(
    "kind", [kind if kind in QUICK else pytest.param(kind, marks=pytest.mark.slow) for kind in KINDS]
)
def test_a_run_stopped_inside_epochs_ends_the_same(market, tmp_path, monkeypatch, kind):
    settings = settings_of(kind, market)
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    run.train(config(market, whole, **settings))
    cfg = config(market, stopped, **settings, SOLVER__SAVE_EVERY_MINUTES=1e-9)
    # a signal in the first step, a kill in the third, which the save after the second precedes, another signal, and a
    # kill in the second epoch, which the save after the first one precedes
    stop(monkeypatch, cfg, 1, lambda: os.kill(os.getpid(), signal.SIGTERM), SystemExit)
    stop(monkeypatch, cfg, 2, die, Killed)
    stop(monkeypatch, cfg, 1, lambda: os.kill(os.getpid(), signal.SIGUSR1), SystemExit)
    stop(monkeypatch, config(market, stopped, **settings), 1, die, Killed, epoch=2)
    run.train(cfg)
    assert_same_end(whole, stopped)
    text = (stopped / "log.txt").read_text()
    assert "SIGTERM: stopped after step 1 of" in text and "SIGUSR1: stopped after step" in text
    assert "going on inside epoch" in text


def train_with_signals(cfg) -> None:
    """Trains in a process of its own, with a signal in every evaluation."""
    real = run.Evaluator.__call__

    def evaluate(self, network):
        os.kill(os.getpid(), signal.SIGTERM)
        return real(self, network)

    run.Evaluator.__call__ = evaluate
    run.train(cfg)
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


def test_a_signal_in_evaluation_stops_after_it_and_one_in_the_last_epoch_changes_nothing(market, tmp_path):
    cfg = config(market, tmp_path)
    assert exit_code_of(train_with_signals, cfg) == 143
    assert "SIGTERM: stopped after epoch 1 of stage supervised" in (tmp_path / "log.txt").read_text()
    assert exit_code_of(train_with_signals, cfg) == 0
    assert len(json.loads((tmp_path / "metrics.json").read_text())["history"]) == 2


class Clueless(Supervised):
    """Does not know how to go on inside an epoch."""

    name = "clueless"

    def epoch_state(self):
        return None


def test_a_stage_that_cannot_go_on_repeats_its_epoch_and_says_so(market, tmp_path, monkeypatch):
    stages = Method("clueless", stages=lambda *args: [Clueless.from_cfg(*args)])
    monkeypatch.setitem(METHODS, "clueless", stages)
    changes = {"PROCESSOR__NAME": "clueless", "SOLVER__SAVE_EVERY_MINUTES": 1e-9}
    run.train(config(market, tmp_path / "whole", **changes))
    assert "clueless cannot be saved inside an epoch" in (tmp_path / "whole" / "log.txt").read_text()
    with monkeypatch.context() as patch:
        act_at(patch, 2, lambda: os.kill(os.getpid(), signal.SIGTERM))
        with pytest.raises(SystemExit):
            run.train(config(market, tmp_path / "stopped", **changes))
    assert "what this epoch has trained is lost" in (tmp_path / "stopped" / "log.txt").read_text()
    run.train(config(market, tmp_path / "stopped", **changes))
    a, b = (torch.load(tmp_path / name / "last", weights_only=True) for name in ("whole", "stopped"))
    assert_same(a, b)


def drawing(real):
    """``real`` as if it imported a library that draws from Python's random state."""

    def draw(*args, **more):
        random.random()
        return real(*args, **more)

    return draw


def test_libraries_that_draw_when_they_are_imported_change_nothing(market, tmp_path, monkeypatch):
    """As rich does, which scikit-learn imports: a resumed run imports it at another moment."""
    settings = settings_of("cluster", market) | {"SOLVER__MAX_EPOCHS": 1}
    run.train(config(market, tmp_path / "imported", **settings))
    with monkeypatch.context() as patch:
        for owner, name in ((pseudo_labels, "jaccard_distance"), (run.Evaluator, "__call__")):
            patch.setattr(owner, name, drawing(getattr(owner, name)))
        run.train(config(market, tmp_path / "importing", **settings))
    assert_same(*(torch.load(tmp_path / name / "last", weights_only=True) for name in ("imported", "importing")))


def test_batches_that_were_seen_are_not_loaded_again(market, tmp_path, monkeypatch):
    loaded, real = [], ImageList.__getitems__

    def counted(self, keys):
        loaded.extend(keys)
        return real(self, keys)

    cfg = config(market, tmp_path, SOLVER__MAX_EPOCHS=1, SOLVER__EVAL_PERIOD=0)
    stop(monkeypatch, cfg, 3, lambda: os.kill(os.getpid(), signal.SIGTERM), SystemExit)
    monkeypatch.setattr(ImageList, "__getitems__", counted)
    run.train(cfg)
    assert len([key for key in loaded if isinstance(key, tuple)]) == 4  # the last of four batches
