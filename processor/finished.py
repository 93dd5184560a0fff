"""A finished run, read back from its folder. Nothing else parses the files that training and testing leave there.

``metrics.json`` is written by training and ``test_metrics.json`` by a test. The files of single queries are those of
the folder's last evaluation: ``per_query.csv`` holds a row per query; ``ranked.npz`` (with TEST.REPORT) holds what
pages show of the rankings: the nearest images of every query, the paths of these images, the CMC curve, mAP from camera
to camera, and a map of some features. Both are a few megabytes at MSMT17's size. ``config.yml`` and ``test_config.yml``
are the resolved settings.

This module imports no torch, so that commands which only read these files start at once.
"""

from __future__ import annotations

import csv
import json
import re
import zipfile
import zlib
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import yaml

from configs.yaml_reader import parse_yaml
from utils.errors import UserError, reason_of
from utils.files import write_atomically
from utils.safe_zip import check_archive
from utils.scoring.judgements import JUNK, RIGHT
from utils.trees import flat

METRICS, TEST_METRICS = "metrics.json", "test_metrics.json"
CONFIG, TEST_CONFIG = "config.yml", "test_config.yml"
PER_QUERY, RANKED = "per_query.csv", "ranked.npz"
LAST = "last"
"""The file in OUTPUT_DIR from which a stopped run resumes."""

FREE_KEYS = (
    "SOLVER.RESUME", "OUTPUT_DIR", "DATALOADER.NUM_WORKERS", "DATALOADER.TIMEOUT", "DATALOADER.CACHE_GB",
    "DATALOADER.CACHE", "DATASETS.LIST_CACHE", "DATASETS.MAX_TABLE_GB", "DATASETS.SHARDS", "SOLVER.LOG_PERIOD",
    "SOLVER.STAGE1.LOG_PERIOD", "SOLVER.STAGE2.LOG_PERIOD", "SOLVER.SAVE_EVERY_MINUTES", "MODEL.DEVICE",
)  # fmt: skip
"""Keys that may differ between a run and its continuation, or between runs of one setting: they change no weight."""

PLACES = ("DATASETS.ROOT_DIR", "DATASETS.FILE", "DATASETS.IMAGE_DIR", "DATASETS.VIEW_DIR")
"""Keys that say where data are: free between a run and its continuation if the training lists are the same."""

COUNTS = ("queries", "valid_queries", "absent_queries")
"""Figures of a test set that are numbers of images; all others are shares of 1."""

AGAIN = "remove it, and train or test again to have it written"

LONGEST = 1000
"""Letters of a name or path in a file of a run."""

SLACK = 1e-6
"""By how much a share may leave [0, 1] through rounding."""

Results = dict[str, dict[str, float]]
"""Name of each test set -> figure -> value."""


# ---------------------------------------------------------------- metrics


@dataclass(frozen=True)
class Metrics:
    """The content of ``metrics.json`` or ``test_metrics.json``, checked.

    content: all of it. results: shares of 1, and counts. mean: over the test sets that count. weight: the file that was
    tested; '' for training. finished: when, as an ISO date and time in UTC; '' if the file does not say.
    """

    content: dict[str, Any]
    results: Results
    mean: dict[str, float]
    commit: str
    config_file: str
    environment: dict[str, Any]
    weight: str
    finished: str

    @classmethod
    def read(cls, path: Path) -> Self:
        """Raises ``UserError`` naming the file and the entry if the file is damaged."""
        content = _read_json(path)
        return cls(content, **cls._entries(_Entries(path, content)))

    @classmethod
    def _entries(cls, entries: _Entries) -> dict[str, Any]:
        return {
            "results": entries.results("results"),
            "mean": entries.figures("mean", entries.get("mean", dict, {})),
            "commit": entries.text("commit"),
            "config_file": entries.text("config_file"),
            "environment": entries.environment("environment"),
            "weight": entries.text("weight"),
            "finished": entries.text("finished"),
        }


@dataclass(frozen=True)
class TrainingMetrics(Metrics):
    """The content of ``metrics.json``. history: the metrics of each evaluation. seconds: evaluations included."""

    history: list[dict[str, Any]]
    method: str
    seed: int | None
    seconds: float | None
    machine: str

    @classmethod
    def _entries(cls, entries: _Entries) -> dict[str, Any]:
        return super()._entries(entries) | {
            "history": entries.history("history"),
            "method": entries.text("method"),
            "seed": entries.get("seed", int, None),
            "seconds": entries.seconds("seconds"),
            "machine": entries.text("machine"),
        }


@dataclass(frozen=True)
class _Entries:
    """Reads entries of a JSON object and raises ``UserError`` for a wrong type or range."""

    path: Path
    content: dict[str, Any]

    def get(self, name: str, kind: type | tuple[type, ...], default: Any) -> Any:
        value = self.content.get(name, default)
        if value is not default and (not isinstance(value, kind) or isinstance(value, bool)):
            raise self.damaged(name, value)
        return value

    def text(self, name: str) -> str:
        value = self.get(name, str, "")
        if len(value) > LONGEST:
            raise self.damaged(name, value)
        return value

    def seconds(self, name: str) -> float | None:
        value = self.get(name, (int, float), None)
        if value is not None and not (is_finite(value) and 0 <= value < 1e12):
            raise self.damaged(name, value)
        return value

    def environment(self, name: str) -> dict[str, Any]:
        entries = self.get(name, dict, {})
        for key, value in entries.items():
            if not isinstance(value, str) or len(value) > LONGEST or len(key) > LONGEST:
                raise self.damaged(f"{key} in {name}", value)
        return entries

    def results(self, name: str) -> Results:
        if name not in self.content:
            raise UserError(f"{self.path}: damaged, it has no {name!r}; {AGAIN}")
        sets = self.get(name, dict, None)
        if not isinstance(sets, dict) or not all(0 < len(test) <= LONGEST and test.isprintable() for test in sets):
            raise self.damaged(name, sets)
        return {test: self.figures(f"{name} of {test}", row) for test, row in sets.items()}

    def figures(self, name: str, row: Any) -> dict[str, float]:
        if not isinstance(row, dict):
            raise self.damaged(name, row)
        for figure, value in row.items():
            share = is_finite(value) and -SLACK <= value <= (2**53 if figure in COUNTS else 1 + SLACK)
            if not share or len(figure) > LONGEST:
                raise self.damaged(f"{figure} in {name}", value)
        return dict(row)

    def history(self, name: str) -> list[dict[str, Any]]:
        entries = self.get(name, list, [])
        for entry in entries:
            if not isinstance(entry, dict) or not isinstance(entry.get("stage"), str):
                raise self.damaged(name, entry)
            epoch = entry.get("epoch")
            if not isinstance(epoch, int) or isinstance(epoch, bool) or not 0 <= epoch < 10**9:
                raise self.damaged(f"an epoch in {name}", epoch)
            self.figures(name, {k: v for k, v in entry.items() if k not in ("stage", "epoch", "weights")})
        return entries

    def damaged(self, name: str, value: object) -> UserError:
        return UserError(f"{self.path}: damaged, {name} is {str(value)[:60]!r}; {AGAIN}")


def is_finite(value: object) -> bool:
    """Returns whether a value is a number, no truth value, that a float can hold."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) <= 1e300  # false for NaN


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({reason_of(error)}); {AGAIN}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: damaged, expected a JSON object; {AGAIN}")
    return content


# ---------------------------------------------------------------- single queries


@dataclass(frozen=True)
class Queries:
    """The content of ``per_query.csv``, (Q,) each; AP and INP are NaN if the protocol has none or nothing matches.

    pids, camids: the dataset's own, numbers or text. first: rank of the first match from 1, 0 without a match. valid:
    whether there is a match.
    """

    paths: list[str]
    pids: np.ndarray
    camids: np.ndarray
    ap: np.ndarray
    inp: np.ndarray
    first: np.ndarray
    valid: np.ndarray

    @classmethod
    def load(cls, path: Path) -> Queries:
        """Raises ``UserError`` if the file is missing or damaged."""
        try:
            with open(path, newline="", encoding="utf-8", errors="surrogateescape") as handle:
                rows = list(csv.DictReader(handle, strict=True))
            queries = cls(
                paths=[row["path"] for row in rows],
                pids=_numbers_or_text(rows, "pid"),
                camids=_numbers_or_text(rows, "camid"),
                ap=_shares(rows, "AP"),
                inp=_shares(rows, "INP"),
                first=np.array([int(row["first_match_rank"] or 0) for row in rows], np.int64),
                valid=np.array([{"0": False, "1": True}[row["valid"]] for row in rows], bool),
            )
            if not rows or ((queries.first > 0) != queries.valid).any():
                raise ValueError("no rows, or a rank that does not fit 'valid'")
        except (OSError, KeyError, ValueError, TypeError, OverflowError, csv.Error) as error:
            reason = "missing" if isinstance(error, FileNotFoundError) else f"damaged ({reason_of(error)})"
            raise UserError(f"{path}: {reason}; test the model again to have it written") from None
        return queries

    def scores(self, metrics: dict[str, float]) -> dict[str, np.ndarray]:
        """Returns each query's share in a figure, by the figure's name: (Q,), NaN if the query does not count.

        Only for figures that are the mean of such shares, as their values in ``metrics`` show: Rank-k with drawn
        galleries is not, nor is a mean over draws.
        """
        shares = {"mAP": self.ap, "mINP": self.inp}
        for name in metrics:
            rank = re.fullmatch(r"(Rank|Recall|Top)[-@](\d+)", name)
            if rank:
                hit = self.valid & (self.first <= int(rank[2]))
                counts_misses = rank[1] != "Rank"
                shares[name] = np.where(self.valid | counts_misses, hit, np.nan).astype(float)
        return {
            name: shares[name] for name in metrics
            if name in shares and not np.isnan(shares[name]).all()
            and abs(np.nanmean(shares[name]) - metrics[name]) < 1e-5
        }  # fmt: skip

    @property
    def quality(self) -> np.ndarray:
        """What queries are ordered by, 1 is best: AP, or 1 / rank of the first match if there is no AP; or NaN."""
        if not np.isnan(self.ap).all():
            return self.ap
        return np.where(self.valid, 1 / np.maximum(self.first, 1), np.nan)


def _numbers_or_text(rows: list[dict[str, str]], name: str) -> np.ndarray:
    """Returns a column as integers if all its values are whole numbers, else as text."""
    values = [_text(row[name]) for row in rows]
    try:
        return np.array([int(value) for value in values], np.int64)
    except (ValueError, OverflowError):
        return np.array(values, dtype=object if max(map(len, values)) > LONGEST else None)  # not Q times the longest


def _text(value: str | None) -> str:
    if value is None:
        raise ValueError("a row is cut off")
    return value


def _shares(rows: list[dict[str, str]], name: str) -> np.ndarray:
    values = np.array([float(_text(row[name]) or "nan") for row in rows], np.float64)
    if ((values < 0) | (values > 1)).any() or np.isinf(values).any():
        raise ValueError(f"{name} outside of 0 to 1")
    return values


DAMAGE = (
    OSError, ValueError, KeyError, IndexError, EOFError, TypeError, AttributeError, OverflowError, SyntaxError,
    NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy and zipfile raise for damaged files."""


@dataclass(frozen=True)
class Ranked:
    """The content of ``ranked.npz``. Q queries, K images in each list, S images that are in some list.

    lists: (Q, K) rows of the images below. judged: (Q, K) 1 right, 0 wrong, -1 junk (left out of the scores).
    distances: (Q, K). paths, pids, camids, boxes (S, 4): the images; q_boxes (Q, 4): the queries' crops, all 0 for
    whole images. cmc: (R,) or empty. q_cameras (A,), g_cameras (C,), camera_map (A, C) with NaN for no match, and
    camera_count (A, C); empty if cameras are not known or too many. map_xy (M, 2), map_pids, map_camids (M,),
    map_query (M,): the map's points, and whether each is a query. Identities and cameras are the dataset's own, numbers
    or text.
    """

    lists: np.ndarray
    judged: np.ndarray
    distances: np.ndarray
    paths: list[str]
    pids: np.ndarray
    camids: np.ndarray
    boxes: np.ndarray
    q_boxes: np.ndarray
    cmc: np.ndarray
    q_cameras: np.ndarray
    g_cameras: np.ndarray
    camera_map: np.ndarray
    camera_count: np.ndarray
    map_xy: np.ndarray
    map_pids: np.ndarray
    map_camids: np.ndarray
    map_query: np.ndarray

    def save(self, path: Path) -> None:
        """Writes the file."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays["paths"] = np.frombuffer("\0".join(self.paths).encode(errors="surrogateescape"), np.uint8)
        write_atomically(path, lambda handle: np.savez_compressed(handle, **arrays))

    @classmethod
    def load(cls, path: Path) -> Ranked:
        """Raises ``UserError`` if the file is damaged or of another version."""
        check_archive(path)
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {f.name: stored[f.name] for f in fields(cls)}
            paths = arrays["paths"].tobytes().decode(errors="surrogateescape").split("\0")
            ranked = cls(**arrays | {"paths": paths})
            ranked._check()
        except (MemoryError, *DAMAGE) as error:
            raise UserError(
                f"{path}: damaged or of another version ({reason_of(error)}); test the model again to have it written"
            ) from None
        return ranked

    def _check(self) -> None:
        """Raises ``ValueError`` for an array of another shape, type or range."""
        images, (queries, places) = len(self.paths), self.lists.shape
        cameras, points = (len(self.q_cameras), len(self.g_cameras)), len(self.map_xy)
        shapes = {
            "judged": (queries, places), "distances": (queries, places), "q_boxes": (queries, 4), "pids": (images,),
            "camids": (images,), "boxes": (images, 4), "camera_map": cameras, "camera_count": cameras,
            "map_xy": (points, 2), "map_pids": (points,), "map_camids": (points,), "map_query": (points,),
            "cmc": (self.cmc.size,), "q_cameras": (cameras[0],), "g_cameras": (cameras[1],),
        }  # fmt: skip
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
            names = name.endswith(("pids", "camids", "_cameras"))
            numbers = "biu" if name in ("judged", "boxes", "q_boxes", "map_query") else "biuf"
            if array.dtype.kind not in ("biufU" if names else numbers):
                raise ValueError(f"{name} holds {array.dtype}")
        if self.lists.dtype.kind not in "iu":
            raise ValueError(f"lists holds {self.lists.dtype}")
        within = {
            "lists": (self.lists, 0, images - 1), "judged": (self.judged, JUNK, RIGHT), "cmc": (self.cmc, 0, 1 + SLACK),
            "distances": (self.distances, -np.inf, np.inf), "map_xy": (self.map_xy, -SLACK, 1 + SLACK),
            "camera_map": (self.camera_map[~np.isnan(self.camera_map)], -SLACK, 1 + SLACK),
            "camera_count": (self.camera_count, 0, 2**53),
        }  # fmt: skip
        for name, (array, low, high) in within.items():
            if array.size and not ((array >= low) & (array <= high)).all():  # a NaN is outside too
                raise ValueError(f"{name} outside of {low:g} to {high:g}")


def file_name(stem: str, test: str, several: bool) -> str:
    """Returns the name of a test set's file: ``per_query.csv``, or ``per_query_NAME.csv`` with several sets."""
    path = Path(stem)
    return f"{path.stem}_{re.sub(r'[^A-Za-z0-9._-]', '_', test)}{path.suffix}" if several else stem


def kept_places(judged: np.ndarray, count: int) -> int:
    """Returns how many places of one list (K,) to show: up to the ``count``-th image that is not junk."""
    kept = np.flatnonzero(np.cumsum(judged != JUNK) == count)
    return int(kept[0]) + 1 if len(kept) else len(judged)


# ---------------------------------------------------------------- the run


class FinishedRun:
    """A run's folder, read back. ``FinishedRun.load(folder)`` makes one.

    training, test: what ``metrics.json`` and ``test_metrics.json`` hold; one of them may be None. The other files are
    read when they are asked for. Whatever is damaged raises ``UserError`` with the file's name.
    """

    def __init__(self, folder: Path, training: TrainingMetrics | None, test: Metrics | None):
        self.folder, self.training, self.test = folder, training, test

    @classmethod
    def load(cls, folder: str | Path) -> FinishedRun:
        """Reads a folder. Raises ``UserError`` if no training or test has finished there."""
        folder = Path(folder)
        paths = folder / METRICS, folder / TEST_METRICS
        if not any(path.is_file() for path in paths):
            raise UserError(
                f"{folder}: no {METRICS} or {TEST_METRICS} of a finished run; train or test there first (OUTPUT_DIR)"
            )
        training = TrainingMetrics.read(paths[0]) if paths[0].is_file() else None
        return cls(folder, training, Metrics.read(paths[1]) if paths[1].is_file() else None)

    @property
    def evaluation(self) -> Metrics:
        """The last evaluation, which the queries' files are of: the test, unless training finished after it."""
        if self.training is None or self.test is None:
            metrics = self.test or self.training
            assert metrics is not None, "load refuses a folder with neither"
            return metrics
        return self.training if self.training.finished > self.test.finished else self.test

    @property
    def tested(self) -> bool:
        """Whether the last evaluation was a test."""
        return self.evaluation is self.test

    def _path(self, stem: str, name: str, metrics: Metrics) -> Path:
        return self.folder / file_name(stem, name, len(metrics.results) > 1)

    def queries(self, name: str) -> Queries:
        """Returns the scores of the single queries of a test set."""
        return Queries.load(self._path(PER_QUERY, name, self.evaluation))

    def ranked(self, name: str) -> Ranked | None:
        """Returns the rankings of a test set, None if the evaluation ran without TEST.REPORT."""
        path = self._path(RANKED, name, self.evaluation)
        if not path.exists():
            return None
        ranked, count = Ranked.load(path), len(self.queries(name).paths)
        if len(ranked.lists) != count:
            raise UserError(
                f"{path}: holds {len(ranked.lists)} queries and {PER_QUERY} {count}; test the model again to have both "
                "written"
            )
        return ranked

    def config_text(self) -> tuple[str, str]:
        """Returns the name and text of the YAML of the last evaluation; '' if the file is missing."""
        name = TEST_CONFIG if self.tested else CONFIG
        path = self.folder / name
        return name, path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""

    @cached_property
    def config(self) -> dict[str, Any]:
        """The settings of training by dotted key; empty if there was none."""
        return _flat_yaml(self.folder / CONFIG)

    @cached_property
    def settings(self) -> dict[str, Any]:
        """The settings on which the last evaluation's figures depend, by dotted key; empty if they are not known.

        Those of training, and a test's own under TEST. The path of the weights counts only in a folder of a test alone,
        where nothing else says how they were trained.
        """
        test = _flat_yaml(self.folder / TEST_CONFIG) if self.tested else {}
        if not self.config:
            return test
        settings = self.config | {key: value for key, value in test.items() if key.startswith("TEST.")}
        settings.pop("TEST.WEIGHT", None)
        return settings

    @property
    def seed(self) -> int | None:
        """SOLVER.SEED of training, None if it is not known."""
        return self.config.get("SOLVER.SEED")


def _flat_yaml(path: Path) -> dict[str, Any]:
    if not path.exists():
        return {}
    try:
        tree = parse_yaml(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({reason_of(error)})") from None
    if not isinstance(tree, dict):
        raise UserError(f"{path}: damaged, expected sections of settings")
    return flat(tree)
