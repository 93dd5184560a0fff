"""Reads the model of ``TEST.WEIGHT`` and names the folder of a run."""

from __future__ import annotations

import re
from pathlib import Path

from yacs.config import CfgNode

from configs import load_config
from datasets.loaders import Data
from model import RetrievalModel, make_model
from model.deployed import side_labels
from model.summary import require_size
from processor.adapters import BASE, with_base
from processor.exported import ExportedFile, is_exported
from processor.finished import CONFIG, TEST_CONFIG
from processor.runtime_network import in_runtime
from processor.runtimes import READERS, TORCH
from utils.checkpoint import LoadReport, as_tensors, load_complete
from utils.errors import UserError


def output_folder(cfg: CfgNode, config_file: str) -> Path:
    """Returns OUTPUT_DIR, by default ``runs/`` and the name of the YAML file."""
    return Path(cfg.OUTPUT_DIR or Path("runs") / (Path(config_file).stem or "default"))


def tested_model(cfg: CfgNode, data: Data) -> RetrievalModel:
    """Returns the model of TEST.WEIGHT in torch.

    Raises ``UserError`` if the file is missing, belongs to another model or is an exported one.
    """
    weight = weight_file(cfg)
    if is_exported(weight):
        raise UserError(
            f"TEST.WEIGHT: {weight} is an exported file, and here the network itself is needed: name its weights, such "
            f"as {Path(weight).parent / 'model.safetensors'}"
        )
    model = make_model(cfg, data.num_classes, data.num_cameras, data.num_views, data.kind)
    load_tested(cfg, model, weight)
    tested, trained = ((size[0], size[1]) for size in (cfg.INPUT.SIZE_TEST, cfg.INPUT.SIZE_TRAIN))
    require_size(model, "INPUT.SIZE_TEST", tested, trained)
    return model


def tested_file(cfg: CfgNode) -> ExportedFile | None:
    """Returns the exported file that TEST.WEIGHT names, None for a checkpoint.

    Raises ``UserError`` if it is of another network than the configuration, or made with other settings.
    """
    if not is_exported(weight_file(cfg)):
        return None
    file = ExportedFile.read(cfg.TEST.WEIGHT)
    file.refuse_other_network(cfg)
    file.refuse_other_settings(cfg)
    return file


def in_tested_runtime(cfg: CfgNode, model: RetrievalModel) -> RetrievalModel:
    """Returns the model as TEST.RUNTIME asks for it: itself, or exported and in another runtime."""
    if cfg.TEST.RUNTIME == TORCH:
        return model
    if cfg.KD.MULTI_HEAD:
        raise UserError("KD.MULTI_HEAD: a model with a head per target has several features; set TEST.RUNTIME torch")
    size = cfg.INPUT.SIZE_TEST[0], cfg.INPUT.SIZE_TEST[1]
    return in_runtime(model, cfg.TEST.RUNTIME, size, side_labels(cfg))


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


def last_of_run(folder: Path) -> tuple[Path, str]:
    """Returns the YAML and the weights of a run's folder: its last checkpoint, or what was tested there.

    Raises ``UserError`` if the folder has no settings of a run, or no weights.
    """
    if not folder.is_dir():
        raise UserError(
            f"{folder}: expected the folder of a run, or a {' or '.join(READERS)} file of tools.export; a YAML file "
            "needs its weights too"
        )
    path = next((folder / name for name in (CONFIG, TEST_CONFIG) if (folder / name).is_file()), None)
    if path is None:
        raise UserError(f"{folder}: no {CONFIG} or {TEST_CONFIG}, which a run's folder has; name one (OUTPUT_DIR)")
    cfg = load_config(path)
    name = re.compile(rf"{re.escape(cfg.MODEL.NAME.replace(':', '_'))}_(\d+)\.pth")
    epochs = {int(match[1]): file for file in folder.iterdir() if (match := name.fullmatch(file.name))}
    weight = str(epochs[max(epochs)]) if epochs else cfg.TEST.WEIGHT
    if not weight:
        raise UserError(f"{folder}: no checkpoint {cfg.MODEL.NAME.replace(':', '_')}_EPOCH.pth; has training ended?")
    return path, weight
