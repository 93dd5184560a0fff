"""The model of ``TEST.WEIGHT``, and the folder of a run."""

from __future__ import annotations

from pathlib import Path

from datasets.loaders import Data
from model import RetrievalModel, make_model
from utils.checkpoint import load_complete
from utils.errors import UserError


def output_folder(cfg, config_file: str) -> Path:
    return Path(cfg.OUTPUT_DIR or Path("runs") / (Path(config_file).stem or "default"))


def tested_model(cfg, data: Data) -> RetrievalModel:
    """The model of TEST.WEIGHT. Raises ``UserError`` where there is none, or it is another model's."""
    model = make_model(cfg, data.num_classes, data.num_cameras, data.num_views, data.kind)
    load_complete(model, weight_file(cfg))
    return model


def weight_file(cfg) -> str:
    """TEST.WEIGHT, a file that is there."""
    if not cfg.TEST.WEIGHT:
        raise UserError(
            "TEST.WEIGHT is empty: name the checkpoint to test, such as TEST.WEIGHT runs/market1501/transformer_120.pth"
        )
    if not Path(cfg.TEST.WEIGHT).is_file():
        raise UserError(f"TEST.WEIGHT: {cfg.TEST.WEIGHT}: no such file")
    return cfg.TEST.WEIGHT
