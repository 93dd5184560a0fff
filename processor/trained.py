"""Reads the model of ``TEST.WEIGHT`` and names the folder of a run."""

from __future__ import annotations

from pathlib import Path

from yacs.config import CfgNode

from datasets.loaders import Data
from model import RetrievalModel, make_model
from model.summary import require_size
from processor.adapters import BASE, with_base
from utils.checkpoint import LoadReport, as_tensors, load_complete
from utils.errors import UserError


def output_folder(cfg: CfgNode, config_file: str) -> Path:
    """Returns OUTPUT_DIR, by default ``runs/`` and the name of the YAML file."""
    return Path(cfg.OUTPUT_DIR or Path("runs") / (Path(config_file).stem or "default"))


def tested_model(cfg: CfgNode, data: Data) -> RetrievalModel:
    """Returns the model of TEST.WEIGHT. Raises ``UserError`` if the file is missing or belongs to another model."""
    model = make_model(cfg, data.num_classes, data.num_cameras, data.num_views, data.kind)
    load_tested(cfg, model, weight_file(cfg))
    tested, trained = ((size[0], size[1]) for size in (cfg.INPUT.SIZE_TEST, cfg.INPUT.SIZE_TRAIN))
    require_size(model, "INPUT.SIZE_TEST", tested, trained)
    return model


def load_tested(cfg: CfgNode, model: RetrievalModel, path: str) -> LoadReport:
    """Loads a checkpoint, or one of adapters with the backbone's file. Raises ``UserError`` as ``load_complete``."""
    if cfg.MODEL.LORA.RANK:  # other files are read once
        state, _ = as_tensors(path, key=cfg.MODEL.WEIGHT_KEY)
        if BASE in state:
            return load_complete(model, with_base(cfg, model, state, path))
    return load_complete(model, path, key=cfg.MODEL.WEIGHT_KEY)


def weight_file(cfg: CfgNode) -> str:
    """Returns TEST.WEIGHT. Raises ``UserError`` if it is empty or the file does not exist."""
    if not cfg.TEST.WEIGHT:
        raise UserError(
            "TEST.WEIGHT is empty: name the checkpoint to test, such as TEST.WEIGHT runs/market1501/transformer_120.pth"
        )
    if not Path(cfg.TEST.WEIGHT).is_file():
        raise UserError(f"TEST.WEIGHT: {cfg.TEST.WEIGHT}: no such file")
    return cfg.TEST.WEIGHT
