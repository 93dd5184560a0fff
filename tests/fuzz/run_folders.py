"""The files of a run's folder, sound ones to damage and what reads them."""

from __future__ import annotations

import io
import json
import random
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from processor import last
from processor.finished import FinishedRun
from processor.last import BegunEpoch, RunProgress
from processor.metrics_files import TrainingMetrics
from processor.query_files import Queries, Ranked
from processor.stage import Stage
from utils.device import random_states


def odd_state(folder: Path, draw: random.Random) -> Path:
    """Writes a ``last`` in which one entry is another one's or of another kind."""
    state = torch.load(io.BytesIO(lasts()[0][1]), weights_only=True)
    place: Any = state
    while True:
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        inner = place[key]
        if not isinstance(inner, dict | list) or not inner or draw.random() < 0.2:
            break
        place = inner
    if draw.random() < 0.2:
        del place[key]
    else:
        kinds = [None, True, -1, 2**70, float("nan"), "x", [], {}, torch.zeros(2), torch.zeros(3, dtype=torch.int64)]
        place[key] = draw.choice([*kinds, *state.values()])
    torch.save(state, folder / "last")
    return folder / "last"


class Small(Stage):
    """A stage that trains a linear layer."""

    def __init__(self) -> None:
        torch.manual_seed(0)
        self.model, self.epochs, self.average = nn.Linear(3, 2), 4, None  # pyright: ignore - no network is needed
        self.optimizers = [torch.optim.Adam(self.model.parameters())]


@lru_cache
def lasts() -> list[tuple[str, bytes]]:
    stage, out = Small(), io.BytesIO()
    stage.model(torch.ones(1, 3)).sum().backward()
    stage.optimizers[0].step()
    history = [{"stage": "small", "epoch": 1, "mAP": 0.5}]
    state = {
        "fingerprint": {"SOLVER.BASE_LR": 0.1}, "progress": vars(RunProgress(0, 1, 3, 1.5, 0.5, "small", history)),
        "modules": {"model": stage.model.state_dict()}, "random": [as_lists(random_states())], "scaler": {},
        "stage": {},
        "optimizers": [stage.optimizers[0].state_dict()], "average": None,
        "within": vars(BegunEpoch(2, {}, {"loss": 1.0}, {"loss": 2}, 8, 0.5)),
    }  # fmt: skip
    torch.save(state, out)
    return [("last", out.getvalue())]


def as_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: as_lists(inner) for key, inner in value.items()}
    return [as_lists(inner) for inner in value] if isinstance(value, list | tuple) else value


def read_all_of_last(path: Path) -> Any:
    stage = Small()
    state = last.read_last(path)
    with last.blamed_on(path):
        last.progress_of(state, [stage])
        last.check_random(state.get("random"))
        last.load_modules(stage, state)
        last.load_optimizers(stage, state.get("optimizers"))
        last.load_average(stage, state.get("average"))
        last.load_scaler(torch.amp.GradScaler("cpu", enabled=False), state.get("scaler"))
        last.begun_epoch(state)
    return state


@lru_cache
def metrics() -> list[tuple[str, bytes]]:
    row = {"mAP": 0.5, "Rank-1": 0.25, "queries": 8}
    content = {
        "results": {"market1501": row}, "mean": row, "history": [{"stage": "s", "epoch": 1, **row}], "seed": 1,
        "method": "supervised", "seconds": 1.5, "machine": "1 x 2 cores", "commit": "a" * 40, "config_file": "a.yml",
        "environment": {"python": "3.11", "torch": "2.6"}, "finished": "2026-01-01T00:00:00+00:00",
    }  # fmt: skip
    return [("metrics.json", json.dumps(content, indent=2).encode())]


@lru_cache
def queries() -> list[tuple[str, bytes]]:
    rows = [f"images/{i}.jpg,{i % 3},{i % 2},0.5,0.25,{i + 1},1" for i in range(9)] + ["images/x.jpg,7,c1,,,,0"]
    return [("per_query.csv", "\n".join(["path,pid,camid,AP,INP,first_match_rank,valid", *rows, ""]).encode())]


@lru_cache
def rankings() -> list[tuple[str, bytes]]:
    files = []
    for save in (np.savez, np.savez_compressed):
        out, draw = io.BytesIO(), np.random.default_rng(0)
        paths = np.frombuffer("\0".join(f"{i}.jpg" for i in range(6)).encode(), np.uint8)
        save(
            out, lists=draw.integers(0, 6, (4, 5)).astype(np.int32), distances=draw.random((4, 5)), paths=paths,
            judged=draw.integers(-1, 2, (4, 5)).astype(np.int8), pids=np.arange(6), camids=np.array([*"abcdef"]),
            boxes=np.zeros((6, 4), np.int32), q_boxes=np.zeros((4, 4), np.int32), cmc=np.ones(5),
            q_cameras=np.arange(2), g_cameras=np.arange(2), camera_map=np.full((2, 2), np.nan),
            camera_count=np.zeros((2, 2), np.int64),
            map_xy=draw.random((4, 2)), map_pids=np.arange(4), map_camids=np.arange(4), map_query=np.ones(4, bool),
            open_curve=np.ones((2, 3)),
        )  # fmt: skip
        files.append(("ranked.npz", out.getvalue()))
    return files


def read_settings(path: Path) -> Any:
    return FinishedRun(path.parent, None, None).config


READERS = {
    "metrics of a run": (metrics, TrainingMetrics.read),
    "queries of a run": (queries, Queries.load),
    "rankings of a run": (rankings, Ranked.load),
}
"""Name of the target -> sound files, and what reads them."""
