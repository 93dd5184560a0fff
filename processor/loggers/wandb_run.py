"""Scalars in Weights & Biases, by its own environment: WANDB_MODE offline, WANDB_PROJECT, WANDB_ENTITY, ..."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from utils.files import write_text

RUN_ID = "wandb_run_id"
"""File in OUTPUT_DIR: the run that a restart goes on with."""


class WandbRun:
    """Writes to a run of Weights & Biases, named after OUTPUT_DIR; a restart goes on with the same one."""

    def __init__(self, folder: Path, settings: dict[str, Any], resumed: bool):
        import wandb

        kept = folder / RUN_ID
        run_id = kept.read_text(encoding="utf-8").strip() if resumed and kept.is_file() else None
        self.run = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "lineup"),
            name=folder.name, dir=str(folder), id=run_id, config=settings, resume="allow",
            settings=wandb.Settings(console="off", silent=True, disable_code=True),
        )  # fmt: skip
        write_text(kept, self.run.id + "\n")

    def write(self, stage: str, values: dict[str, float], step: int) -> None:
        self.run.log({f"{stage}/{name}": value for name, value in values.items()} | {"step": step})

    def flush(self) -> None:
        """Does nothing: a process of the library's own writes at once."""

    def close(self, finished: bool) -> None:
        self.run.finish(exit_code=0 if finished else 1)
