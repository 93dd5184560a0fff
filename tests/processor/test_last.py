"""An edited ``last`` ends in one line: every entry is replaced by other kinds, removed, or put out of its range."""

from __future__ import annotations

import copy
import os
import random
import shutil
import signal
from typing import Any

import pytest
import torch

from processor import run
from processor.trainer import Trainer
from tests.runs import assert_same_bytes, call, weights
from tests.tiny import config, options
from utils.errors import UserError

SETTINGS = {
    "SOLVER__MAX_EPOCHS": 2, "SOLVER__OPTIMIZER_NAME": "Adam", "SOLVER__EMA__MODE": "exponential",
    "SOLVER__EVAL_PERIOD": 1, "MODEL__METRIC_LOSS_TYPE": "triplet_center",
}  # fmt: skip

NUMBERS = (
    "step", "seconds", "best", "history", "best_at", "sums", "counts", "images", "param_groups", "scaler", "state",
)  # fmt: skip
"""Entries whose values cannot be told from others of their kind: any number, a name, a figure."""

ODD: list[Any] = [
    None, True, -1, 10**30, 10**18, float("nan"), float("inf"), 0.5, "x", "x" * 10**5, [], {}, [[[1]]], {"a": 1},
    torch.zeros(3, 1), torch.zeros(0), (1, 2),
]  # fmt: skip


@pytest.fixture(scope="module")
def stopped(market, tmp_path_factory):
    """A run that a signal stopped in its second epoch, and the folder of one that was not."""
    whole, folder = tmp_path_factory.mktemp("whole"), tmp_path_factory.mktemp("stopped")
    run.train(config(market, whole, **SETTINGS))
    count, real = iter(range(1, 99)), Trainer.step

    def step(self, *args):
        if next(count) == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, *args)

    Trainer.step = step
    try:
        with pytest.raises(SystemExit):
            run.train(config(market, folder, **SETTINGS))
    finally:
        Trainer.step = real
    return whole, folder


def paths_in(value: Any, most: int = 3) -> list[tuple]:
    """The paths of all entries; of a section or list with many entries those of the first few."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list | tuple) else ()
    named = list(items) if isinstance(value, dict) and len(value) < 12 else list(items)[:most]
    return [path for key, inner in named for path in [(key,), *((key, *rest) for rest in paths_in(inner, most))]]


def as_lists(value: Any) -> Any:
    """A copy with lists for tuples, which can be changed."""
    if isinstance(value, dict):
        return {key: as_lists(inner) for key, inner in value.items()}
    return [*map(as_lists, value)] if isinstance(value, list | tuple) else copy.deepcopy(value)


def changed(state: dict, path: tuple, value: Any, remove: bool = False) -> dict:
    """A copy of the state with another value at a path, or without it."""
    state = as_lists(state)
    *outer, last = path
    place = state
    for key in outer:
        place = place[key]
    if remove:
        del place[last]
    else:
        place[last] = value
    return state


def outcome(market, whole, folder, state) -> str:
    """How a start from a state ends: the line of its refusal, or '' if it ends as the whole run."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    torch.save(state, folder / "last")
    try:
        run.train(config(market, folder, **SETTINGS))
    except UserError as error:
        line = str(error)
        assert "\n" not in line and len(line) < 900 and "last" in line, line
        return line
    assert_same_bytes(weights(whole, 2), weights(folder, 2))
    return ""


@pytest.mark.slow
def test_every_entry_of_another_kind_is_refused_in_one_line(market, stopped, tmp_path):
    whole, folder = stopped
    state = torch.load(folder / "last", weights_only=True)
    assert outcome(market, whole, tmp_path / "run", state) == ""
    draw = random.Random(int(os.environ.get("LINEUP_FUZZ_SEED", 0)))
    paths = [path for path in paths_in(state) if path[0] not in ("fingerprint", "training_lists")]
    assert len(paths) > 100
    refused = 0
    for path in draw.sample(paths, int(os.environ.get("LINEUP_FUZZ_LAST", 25))):
        value = draw.choice(ODD)
        try:
            refused += bool(outcome(market, whole, tmp_path / "run", changed(state, path, value)))
        except AssertionError:
            assert any(name in path for name in NUMBERS), (path, value)
        except BaseException as error:
            raise AssertionError(f"{path} = {str(value)[:50]!r}: {type(error).__name__}: {error}") from error
    assert refused > 10


SPOILT = {
    "negative epoch": (("progress", "epoch"), -1, "epoch"),
    "epoch beyond the stage": (("progress", "epoch"), 2, "epoch 2 of 2"),
    "stage beyond the stages": (("progress", "stage"), 2, "stage 2 of 1"),
    "epoch as text": (("progress", "epoch"), "1", "epoch is '1'"),
    "epoch as truth": (("progress", "epoch"), True, "epoch is True"),
    "seconds not a number": (("progress", "seconds"), float("nan"), "seconds is nan"),
    "history of numbers": (("progress", "history"), [1], "history"),
    "another weight's shape": (("modules", "model", "base.cls_token"), torch.zeros(1, 2, 48), "cls_token has shape"),
    "another weight's type": (("modules", "model", "base.cls_token"), torch.zeros(1, 1, 48).half(), "base.cls_token"),
    "optimizer's state of another shape": (("optimizers", 0, "state", 0, "exp_avg"), torch.zeros(1, 1, 1), "exp_avg"),
    "rate as text": (("optimizers", 0, "param_groups", 0, "lr"), "fast", "lr is 'fast'"),
    "infinite rate": (("optimizers", 0, "param_groups", 0, "lr"), float("inf"), "lr is inf"),
    "random state of a wrong size": (("random", 0, "torch"), torch.zeros(7, dtype=torch.uint8), "random: torch"),
    "random state of nothing": (("random", 0, "torch"), torch.zeros(5056, dtype=torch.uint8), "RNG|mt19937|random"),
    "position beyond the random state": (("random", 0, "numpy", 2), 10**9, "random: numpy"),
    "no process": (("random",), [], "random"),
    "scaler": (("scaler",), {"scale": -1.0}, "scaler"),
    "average of other weights": (("average", "held"), {"x": torch.zeros(1)}, "average"),
    "average's count": (("average", "count"), -3, "average"),
    "no average": (("average",), None, "average"),
    "step beyond the epoch": (("within", "steps"), 99, "step 99 of 3"),
    "fingerprint": (("fingerprint",), [1], "fingerprint"),
}


@pytest.mark.parametrize("name", SPOILT)
def test_a_spoilt_entry_is_named(market, stopped, tmp_path, name):
    path, value, words = SPOILT[name]
    state = torch.load(stopped[1] / "last", weights_only=True)
    torch.save(changed(state, path, value), tmp_path / "last")
    with pytest.raises(UserError, match=words) as error:
        run.train(config(market, tmp_path, **SETTINGS))
    assert "damaged" in str(error.value) and "SOLVER.RESUME never" in str(error.value)


@pytest.mark.parametrize(
    "path",
    [
        ("modules", "model"), ("modules", "model", "base.cls_token"), ("modules", "centers"), ("optimizers",),
        ("stage",),
        ("optimizers", 1), ("average",), ("random",), ("scaler",), ("within", "stage"), ("progress", "step"),
        ("optimizers", 0, "param_groups", 0, "lr"), ("optimizers", 0, "param_groups", 0, "params"),
    ],
)  # fmt: skip
def test_a_missing_entry_is_refused(market, stopped, tmp_path, path):
    state = torch.load(stopped[1] / "last", weights_only=True)
    torch.save(changed(state, path, None, remove=True), tmp_path / "last")
    with pytest.raises(UserError, match=r"last: damaged \(.*SOLVER.RESUME never starts over"):
        run.train(config(market, tmp_path, **SETTINGS))


@pytest.mark.parametrize("resume", ["auto", "never", "folder"])
def test_a_folder_is_refused_before_any_training(market, tmp_path, capsys, resume):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ("other" if resume == "folder" else "last")).mkdir()
    word = str(tmp_path / "run" / "other") if resume == "folder" else resume
    assert call("train", options(market, tmp_path / "run", SOLVER__RESUME=word)) == 2
    out = capsys.readouterr()
    assert out.err.count("\n") == 1 and "a folder" in out.err and "stage supervised" not in out.out
