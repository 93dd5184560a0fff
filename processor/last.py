"""The file ``last``: all that decides how a run continues, checked before anything is taken from it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from processor.stage import Stage
from utils.device import random_states
from utils.errors import UserError, reason_of
from utils.weight_files import read_state


@dataclass
class RunProgress:
    """How far a run has come. stage, epoch: completed so far; a finished run has completed all stages.

    seconds: spent so far, evaluation included. history: the metrics of each evaluation.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best: float = -1.0
    best_at: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class BegunEpoch:
    """How far an epoch has come that was interrupted. steps: completed. stage: the stage's ``epoch_state``.

    sums, counts, images: what the log lines of the epoch are computed from.
    """

    steps: int
    stage: dict[str, Any]
    sums: dict[str, float]
    counts: dict[str, int]
    images: int
    seconds: float


class Damaged(UserError):
    """An entry of the file is not what was written."""


@contextmanager
def blamed_on(path: Path) -> Iterator[None]:
    """Turns whatever goes wrong while entries are taken from the file into one line that names it."""
    try:
        yield
    except Damaged as error:
        reason = str(error)
    except UserError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, OverflowError) as error:
        reason = reason_of(error)
    else:
        return
    raise UserError(f"{path}: damaged ({reason}); SOLVER.RESUME never starts over") from None


def require(condition: object, what: str) -> None:
    """Raises ``Damaged`` with the words ``what`` unless the condition holds."""
    if not condition:
        raise Damaged(what)


def is_number(value: object) -> bool:
    """Returns whether a value is a finite number and no truth value."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def is_count(value: object) -> bool:
    """Returns whether a value is a whole number of at least 0."""
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63


# ---------------------------------------------------------------- reading


def read_last(path: Path) -> dict[str, Any]:
    """Returns the content of a file to resume from. Raises ``UserError`` for any other file."""
    state = read_state(path)
    if "fingerprint" not in state or "progress" not in state:
        raise UserError(
            f"SOLVER.RESUME: {path} is not a file to resume from ('last' in a run's folder); initial weights belong in "
            "MODEL.PRETRAIN_PATH"
        )
    return state


def progress_of(state: Mapping[str, Any], stages: list[Stage]) -> RunProgress:
    """Returns the progress of a file. Raises ``Damaged`` for values that a run of these stages cannot have."""
    saved = state["progress"]
    names = {f.name for f in fields(RunProgress)}
    require(isinstance(saved, dict) and saved.keys() == names, "progress has other entries")
    for name in ("stage", "epoch", "step"):
        require(is_count(saved[name]), f"progress: {name} is {short(saved[name])}")
    require(is_number(saved["seconds"]) and saved["seconds"] >= 0, f"progress: seconds is {short(saved['seconds'])}")
    require(is_number(saved["best"]) and -1 <= saved["best"] <= 1.001, f"progress: best is {short(saved['best'])}")
    require(isinstance(saved["best_at"], str), "progress: best_at is not a text")
    progress = RunProgress(**saved)
    require(progress.stage <= len(stages), f"progress: stage {progress.stage} of {len(stages)}")
    epochs = stages[progress.stage].epochs if progress.stage < len(stages) else 1
    require(progress.epoch < epochs, f"progress: epoch {progress.epoch} of {epochs} is done, and the stage is not")
    require(isinstance(progress.history, list), "progress: history is not a list")
    for entry in progress.history:
        require(isinstance(entry, dict), "progress: history holds something else than evaluations")
        require(is_count(entry.get("epoch")), "progress: an evaluation has no epoch")
        require(isinstance(entry.get("stage"), str), "progress: an evaluation has no stage")
        for name, value in entry.items():
            known = name in ("epoch", "stage", "weights") or is_number(value)
            require(isinstance(name, str) and known, f"progress: history has {name} {short(value)}")
    begun = progress.epoch > 0 or state.get("within") is not None
    for name in ("optimizers", "stage", "average") if begun else ():
        require(name in state, f"it has no {name!r}")
    require("stage" not in state or isinstance(state["stage"], dict), "stage is not a section")
    return progress


def begun_epoch(state: Mapping[str, Any]) -> BegunEpoch | None:
    """Returns how far an interrupted epoch has come; None between epochs."""
    saved = state.get("within")
    if saved is None:
        return None
    names = {f.name for f in fields(BegunEpoch)}
    require(isinstance(saved, dict) and saved.keys() == names, "within has other entries")
    within = BegunEpoch(**saved)
    for name in ("steps", "images"):
        require(is_count(saved[name]), f"within: {name} is {short(saved[name])}")
    require(is_number(within.seconds) and within.seconds >= 0, f"within: seconds is {short(within.seconds)}")
    require(isinstance(within.stage, dict), "within: stage is not a section")
    for name, kind in (("sums", float), ("counts", int)):
        values = saved[name]
        require(isinstance(values, dict), f"within: {name} is not a section")
        kinds = all(isinstance(key, str) and type(value) is kind for key, value in values.items())
        require(kinds, f"within: {name} has other kinds")
    require(within.sums.keys() == within.counts.keys() and all(n > 0 for n in within.counts.values()), "within: counts")
    return within


def short(value: object) -> str:
    """Returns what a message shows of a value."""
    return repr(value)[:40] if isinstance(value, bool | int | float | str) or value is None else type(value).__name__


# ---------------------------------------------------------------- taking what it holds


def load_modules(stage: Stage, state: Mapping[str, Any]) -> None:
    """Loads the weights into a stage's modules. Raises ``Damaged`` unless every tensor fits in shape and type."""
    saved, modules = state.get("modules"), stage.modules()
    require(isinstance(saved, dict), "it has no 'modules'")
    assert isinstance(saved, dict)
    for name in modules:
        require(isinstance(saved.get(name), dict), f"modules: {name!r} is missing")
    for name, module in modules.items():
        refuse_other_tensors(saved[name], module, f"modules: {name}")
        module.load_state_dict(saved[name])


def refuse_other_tensors(saved: Mapping[str, Any], module: nn.Module, where: str) -> None:
    """Raises ``Damaged`` unless a state has the module's tensors, each in its shape and type."""
    own = module.state_dict()
    differing = sorted(map(str, own.keys() ^ saved.keys()))
    require(not differing, f"{where}: {', '.join(differing[:3])} {'is' if len(differing) == 1 else 'are'} not in both")
    for name, value in own.items():
        if isinstance(value, Tensor):
            refuse_other_tensor(saved[name], value, f"{where}.{name}")


def refuse_other_tensor(saved: object, own: Tensor, where: str) -> None:
    """Raises ``Damaged`` unless ``saved`` is a tensor of the shape and type of ``own``."""
    require(isinstance(saved, Tensor), f"{where} is not a tensor")
    assert isinstance(saved, Tensor)
    require(saved.shape == own.shape, f"{where} has shape {tuple(saved.shape)}, expected {tuple(own.shape)}")
    require(saved.dtype == own.dtype, f"{where} holds {saved.dtype}, expected {own.dtype}")


def load_optimizers(stage: Stage, saved: object) -> None:
    """Loads the optimizers' states. Raises ``Damaged`` for other groups or for a state of another shape."""
    require(isinstance(saved, list) and len(saved) == len(stage.optimizers), "optimizers: another number")
    assert isinstance(saved, list)
    for i, (optimizer, state) in enumerate(zip(stage.optimizers, saved, strict=True)):
        check_optimizer(optimizer, state, f"optimizers: {i}")
        optimizer.load_state_dict(state)


def check_optimizer(optimizer: Optimizer, state: Any, where: str) -> None:
    """Raises ``Damaged`` unless a state could be this optimizer's."""
    require(isinstance(state, dict) and state.keys() >= {"state", "param_groups"}, f"{where} is not an optimizer state")
    own = optimizer.state_dict()["param_groups"]
    groups = state["param_groups"]
    require(isinstance(groups, list) and len(groups) == len(own), f"{where}: other groups")
    for group, expected in zip(groups, own, strict=True):
        require(isinstance(group, dict) and group.get("params") == expected["params"], f"{where}: other parameters")
        for name, value in expected.items():
            if name in group:
                require(same_kind(group[name], value), f"{where}: {name} is {short(group[name])}")
            else:  # switches that a later torch has come to know
                require(isinstance(value, bool) or value is None, f"{where}: {name} is missing")
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    require(isinstance(state["state"], dict), f"{where}: state is not a section")
    for number, entries in state["state"].items():
        require(is_count(number) and number < len(parameters), f"{where}: state of a parameter {short(number)}")
        require(isinstance(entries, dict), f"{where}: state of parameter {number}")
        for name, value in entries.items():
            shape = parameters[number].shape
            fits = is_number(value) or value is None or (isinstance(value, Tensor) and state_fits(name, value, shape))
            require(fits, f"{where}: {name} of parameter {number} does not fit its shape {tuple(shape)}")


def state_fits(name: object, value: Tensor, shape: torch.Size) -> bool:
    """Returns whether a tensor of an optimizer's state may belong to a parameter of a shape.

    Such a tensor has the parameter's shape or is one number; factored variances (Adafactor) lack one dimension.
    """
    factored = str(name).endswith("_var") and value.dim() == len(shape)
    return value.shape == shape or value.dim() == 0 or (
        factored and all(a in (1, b) for a, b in zip(value.shape, shape, strict=True))
    )


def same_kind(value: object, expected: object) -> bool:
    """Returns whether two settings of an optimizer are of one kind: truth values, numbers, texts, lists of these."""
    if isinstance(expected, bool) or expected is None:
        return isinstance(value, bool) or value is None
    if isinstance(expected, int | float):
        return is_number(value)
    if isinstance(expected, list | tuple) and isinstance(value, list | tuple) and len(value) == len(expected):
        return all(map(same_kind, value, expected))
    return type(value) is type(expected)


def load_average(stage: Stage, saved: Any) -> None:
    """Loads the average of the weights. Raises ``Damaged`` for one of another network, or where there is none."""
    require((saved is None) == (stage.average is None), "average: there is one where there is none")
    if stage.average is None:
        return
    require(isinstance(saved, dict) and saved.keys() == {"count", "held"}, "average has other entries")
    require(is_count(saved["count"]) and isinstance(saved["held"], dict), "average: count")
    require(bool(saved["count"]) == bool(saved["held"]), "average: count")
    weights = stage.average.weights() if saved["count"] else {}
    require(saved["held"].keys() == weights.keys(), "average: of other weights")
    for name, value in weights.items():
        refuse_other_tensor(saved["held"][name], value, f"average: {name}")
    stage.average.load_state_dict(saved)


def load_scaler(scaler: torch.amp.GradScaler, saved: Any) -> bool:
    """Loads the gradient scaler's state; returns False if it belongs to a run without one (on another device)."""
    require(isinstance(saved, dict), "scaler is not a section")
    if not saved:
        return not scaler.is_enabled()
    names = {"scale", "growth_factor", "backoff_factor", "growth_interval", "_growth_tracker"}
    require(saved.keys() == names and all(is_number(value) and value >= 0 for value in saved.values()), "scaler")
    require(saved["scale"] > 0 and saved["growth_interval"] >= 1, "scaler")
    scaler.load_state_dict(saved)
    return True


def check_random(saved: Any) -> None:
    """Raises ``Damaged`` unless the random states of all processes have the form of this process's."""
    require(isinstance(saved, list) and saved, "random is not a list")
    for states in saved:
        same_form(states, random_states(), "random")
        _, keys, position, has_gauss, _ = states["numpy"]
        require(int(keys.min()) >= 0 and int(keys.max()) < 2**32, "random: numpy")
        require(is_count(position) and position <= len(keys) and has_gauss in (0, 1), "random: numpy")


def same_form(saved: Any, own: Any, where: str) -> None:
    """Raises ``Damaged`` unless two nested values have the same kinds, lengths and shapes.

    Entries of a GPU may be missing on either side, and a number may be None.
    """
    if isinstance(own, dict):
        require(isinstance(saved, dict) and saved.keys() - {"cuda"} == own.keys() - {"cuda"}, where)
        for name in own.keys() & saved.keys():
            same_form(saved[name], own[name], f"{where}: {name}")
    elif isinstance(own, list | tuple):
        require(isinstance(saved, list | tuple) and len(saved) == len(own), where)
        for value, expected in zip(saved, own, strict=True):
            same_form(value, expected, where)
    elif isinstance(own, Tensor):
        refuse_other_tensor(saved, own, where)
    elif isinstance(own, str):
        require(saved == own, where)
    else:
        require(saved is None or is_number(saved), where)


