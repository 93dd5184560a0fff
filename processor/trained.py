"""Reads the model of ``TEST.WEIGHT`` and names the folder of a run."""

from __future__ import annotations

import logging
from pathlib import Path

from torch import nn
from yacs.config import CfgNode

from datasets.loaders import Data
from model import make_model
from utils.checkpoint import load_weights, require_complete
from utils.errors import UserError

log = logging.getLogger("lineup")


def output_folder(cfg: CfgNode, config_file: str) -> Path:
    """Returns OUTPUT_DIR, by default ``runs/`` and the name of the YAML file."""
    return Path(cfg.OUTPUT_DIR or Path("runs") / (Path(config_file).stem or "default"))


def tested_model(cfg: CfgNode, data: Data) -> nn.Module:
    """Returns the model of TEST.WEIGHT. Raises ``UserError`` if the file is missing or belongs to another model."""
    model = make_model(cfg, data.num_classes, data.num_cameras, data.num_views, data.kind)
    report = load_weights(model, weight_file(cfg))
    log.info("%s", report)
    require_complete(model, report)
    return model


def weight_file(cfg: CfgNode) -> str:
    """Returns TEST.WEIGHT. Raises ``UserError`` if it is empty or the file does not exist."""
    if not cfg.TEST.WEIGHT:
        raise UserError(
            "TEST.WEIGHT is empty: name the checkpoint to test, such as TEST.WEIGHT runs/market1501/transformer_120.pth"
        )
    if not Path(cfg.TEST.WEIGHT).is_file():
        raise UserError(f"TEST.WEIGHT: {cfg.TEST.WEIGHT}: no such file")
    return cfg.TEST.WEIGHT
