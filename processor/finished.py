"""A finished run, read back from its folder. Nothing else parses the files that training and testing leave there.

The metrics are those of ``metrics_files``, the files of single queries those of ``query_files``; ``config.yml`` and
``test_config.yml`` are the resolved settings. None of the three modules imports torch, so that commands which only read
these files start at once.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Any

import yaml

from configs.yaml_reader import parse_yaml
from processor.metrics_files import METRICS, TEST_METRICS, Metrics, TrainingMetrics
from processor.query_files import PER_QUERY, RANKED, Queries, Ranked, file_name
from utils.errors import UserError, reason_of
from utils.trees import flat

CONFIG, TEST_CONFIG = "config.yml", "test_config.yml"
LAST = "last"
"""The file in OUTPUT_DIR from which a stopped run resumes."""

FREE_KEYS = (
    "SOLVER.RESUME", "OUTPUT_DIR", "DATALOADER.NUM_WORKERS", "DATALOADER.TIMEOUT", "DATALOADER.CACHE_GB",
    "DATALOADER.CACHE", "DATASETS.LIST_CACHE", "DATASETS.MAX_TABLE_GB", "DATASETS.SHARDS", "SOLVER.LOG_PERIOD",
    "SOLVER.STAGE1.LOG_PERIOD", "SOLVER.STAGE2.LOG_PERIOD", "SOLVER.SAVE_EVERY_MINUTES", "SOLVER.LOGGERS",
    "MODEL.DEVICE",
)  # fmt: skip
"""Keys that may differ between a run and its continuation, or between runs of one setting: they change no weight."""

PLACES = ("DATASETS.ROOT_DIR", "DATASETS.FILE", "DATASETS.IMAGE_DIR", "DATASETS.VIEW_DIR")
"""Keys that say where data are: free between a run and its continuation if the training lists are the same."""


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
