"""Scalars in TensorBoard's files: ``OUTPUT_DIR/tensorboard``."""

from __future__ import annotations

from pathlib import Path
from typing import Any


class TensorBoard:
    """Writes TensorBoard's event files, one for each start of a run."""

    def __init__(self, folder: Path, settings: dict[str, Any], resumed: bool):
        from torch.utils.tensorboard import SummaryWriter  # it takes over a second to import

        self.writer = SummaryWriter(str(folder / "tensorboard"))

    def write(self, stage: str, values: dict[str, float], step: int) -> None:
        for name, value in values.items():
            self.writer.add_scalar(f"{stage}/{name}", value, step)

    def flush(self) -> None:
        self.writer.flush()

    def close(self, finished: bool) -> None:
        self.writer.close()
