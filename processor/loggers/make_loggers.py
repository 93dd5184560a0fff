"""Makes the loggers of SOLVER.LOGGERS."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from yacs.config import CfgNode

from processor.finished import LAST
from processor.loggers.base import Loggers, ScalarLogger
from processor.loggers.csv_file import CsvFile
from processor.loggers.mlflow_run import MlflowRun
from processor.loggers.tensorboard import TensorBoard
from processor.loggers.wandb_run import WandbRun
from utils.distributed import is_main
from utils.errors import UserError, reason_of
from utils.trees import flat

LOGGERS: dict[str, Callable[[Path, dict[str, Any], bool], ScalarLogger]] = {
    "tensorboard": TensorBoard,
    "wandb": WandbRun,
    "mlflow": MlflowRun,
    "csv": CsvFile,
}
"""Word of SOLVER.LOGGERS -> what starts it, from OUTPUT_DIR, the settings of the run, and whether the run resumes."""
PACKAGES = ("wandb", "mlflow")
"""Loggers that need an optional package, which has their name."""


def refuse_missing_loggers(cfg: CfgNode) -> None:
    """Raises ``UserError`` if a logger of SOLVER.LOGGERS is not installed."""
    for name in cfg.SOLVER.LOGGERS:
        if name in PACKAGES and find_spec(name) is None:
            raise UserError(f"SOLVER.LOGGERS: {name} is not installed: pip install -r requirements-extra.txt")


def make_loggers(cfg: CfgNode, folder: Path) -> Loggers:
    """Starts the loggers of a run on the first process; returns none on the others.

    Raises ``UserError`` if one cannot start, before anything is trained.
    """
    resumed = cfg.SOLVER.RESUME != "never" and (folder / LAST).exists()
    loggers: dict[str, ScalarLogger] = {}
    for name in cfg.SOLVER.LOGGERS if is_main() else ():
        try:
            loggers[name] = LOGGERS[name](folder, flat(cfg), resumed)
        except Exception as error:  # noqa: BLE001 - no login, no server, no room: libraries say so in any way
            with Loggers(loggers):  # closes those that have started
                raise UserError(
                    f"SOLVER.LOGGERS: {name} does not start ({type(error).__name__}: {reason_of(error)}); see "
                    "docs/runs.md for its settings, or leave it out"
                ) from None
    return Loggers(loggers)
