"""Scalars in MLflow, by its own environment: MLFLOW_TRACKING_URI, MLFLOW_EXPERIMENT_NAME."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

from utils.files import write_text

RUN_ID = "mlflow_run_id"
"""File in OUTPUT_DIR: the run that a restart goes on with."""
PARAMETERS = 100
"""What MLflow takes in one call."""
LONGEST_VALUE = 500
PATIENCE = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}
"""Unless the environment says otherwise: MLflow's own would hold training up for minutes when the server is gone."""


class MlflowRun:
    """Writes to a run of MLflow, named after OUTPUT_DIR; a restart goes on with the same one."""

    def __init__(self, folder: Path, settings: dict[str, Any], resumed: bool):
        for name, value in PATIENCE.items():
            os.environ.setdefault(name, value)
        from mlflow import MlflowClient

        self.client = MlflowClient()
        kept = folder / RUN_ID
        if resumed and kept.is_file():
            self.run_id = kept.read_text(encoding="utf-8").strip()
            self.client.update_run(self.run_id, status="RUNNING")
            return
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "lineup")
        known = self.client.get_experiment_by_name(name)
        experiment = known.experiment_id if known else self.client.create_experiment(name)
        self.run_id = self.client.create_run(experiment, run_name=folder.name).info.run_id
        write_text(kept, self.run_id + "\n")
        self._write_settings(settings)

    def _write_settings(self, settings: dict[str, Any]) -> None:
        from mlflow.entities import Param

        shown = [Param(key, str(value)[:LONGEST_VALUE]) for key, value in settings.items()]
        for start in range(0, len(shown), PARAMETERS):
            self.client.log_batch(self.run_id, params=shown[start : start + PARAMETERS])

    def write(self, stage: str, values: dict[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        named = {re.sub(r"[^\w. /-]", "_", f"{stage}/{name}"): value for name, value in values.items()}
        self.client.log_batch(self.run_id, metrics=[Metric(name, value, now, step) for name, value in named.items()])

    def flush(self) -> None:
        """Does nothing: each ``write`` waits until it is stored."""

    def close(self, finished: bool) -> None:
        self.client.set_terminated(self.run_id, "FINISHED" if finished else "KILLED")
