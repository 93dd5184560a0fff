"""The model of ``TEST.WEIGHT``, and the folder of a run."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn

from datasets.loaders import Data
from model import make_model
from utils.checkpoint import load_weights, require_complete
from utils.errors import UserError

log = logging.getLogger("lineup")


def output_folder(cfg, config_file: str) -> Path:
    return Path(cfg.OUTPUT_DIR or Path("runs") / (Path(config_file).stem or "default"))


def tested_model(cfg, data: Data) -> nn.Module:
    """The model of TEST.WEIGHT. Raises ``UserError`` where there is none, or it is another model's."""
    model = make_model(cfg, data.num_classes, data.num_cameras, data.num_views, data.kind)
    report = load_weights(model, weight_file(cfg))
    log.info("%s", report)
    require_complete(model, report)
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
