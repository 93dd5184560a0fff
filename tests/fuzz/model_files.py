"""What stands beside an exported file, and calibrations: sound ones to damage and what reads them."""

from __future__ import annotations

import hashlib
import json
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from configs import dump, get_cfg_defaults, load_config
from processor.exported import CARD, ExportedFile
from processor.loggers.csv_file import NAME, rows_before
from processor.published import DESCRIPTION, SETTINGS, WEIGHTS, PublishedModel
from utils.calibration import Calibration
from utils.scoring.calibration import Probability, Threshold

NETWORK = b"a network"


def calibration() -> Calibration:
    """Returns a calibration of few numbers."""
    return Calibration(
        model_hash="a" * 64, metric="euclidean", normalize=True, camera_norm="off", dataset="synthetic",
        pairs="within", identities=4, genuine_pairs=4, impostor_pairs=400,
        thresholds=[Threshold(0.01, 0.2, 0.1, 0.3, 0.0, 0.1, 0.5), Threshold(0.1, 0.4, 0.3, 0.5, 0.0, 0.2, 0.8)],
        probability=Probability(np.array([0.0, 1.0, 4.0]), np.array([np.inf, 1.0, 0.0]), 0.01),
        figures={"ece": 0.01}, random_pairs=np.linspace(0, 4, 9), absent=np.linspace(1, 2, 5), images=20.0,
    )  # fmt: skip


@lru_cache
def calibrations() -> list[tuple[str, bytes]]:
    return [("calibration.json", json.dumps(calibration().content()).encode())]


@lru_cache
def descriptions() -> list[tuple[str, bytes]]:
    card = {
        "model": "resnet10", "type": "", "method": "supervised", "layout": "raw", "precision": "fp32",
        "inputs": {"images": "uint8", "cam_label": "int64, (batch,)"}, "output": "features", "width": 512,
        "size": [64, 32], "resize": "auto", "resize_margin": 0, "background": [255, 255, 255],
        "mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5], "flip": False, "unit_length": True, "distance": "euclidean",
        "opset": 18, "sha256": {"model.onnx": hashlib.sha256(NETWORK).hexdigest()}, "model_hash": "a" * 64,
        "calibration": calibration().content(),
    }  # fmt: skip
    return [(CARD, json.dumps(card, indent=2).encode())]


def read_description(path: Path) -> Any:
    """Reads the file that stands beside a damaged ``model.json``, and the settings that come of it."""
    (path.parent / "model.onnx").write_bytes(NETWORK)
    file = ExportedFile.read(path.parent / "model.onnx")
    return load_config("", file.words()), file.size, file.model_hash


@lru_cache
def published() -> list[tuple[str, bytes]]:
    """The settings and the description of a published model."""
    settings = dump(get_cfg_defaults()).encode()
    digests = {name: hashlib.sha256(raw).hexdigest() for name, raw in ((WEIGHTS, NETWORK), (SETTINGS, settings))}
    description = {"sha256": digests, "model_hash": "a" * 64, "license": "mit", "width": 512}
    return [(SETTINGS, settings), (DESCRIPTION, json.dumps(description, indent=2).encode())]


def read_published(path: Path) -> Any:
    """Reads a published model with one damaged file; a stranger may describe damaged settings as they are."""
    files = dict(published()) | {WEIGHTS: NETWORK, path.name: path.read_bytes()}
    if path.name == SETTINGS:
        digests = [hashlib.sha256(raw).hexdigest().encode() for raw in (dict(published())[SETTINGS], files[SETTINGS])]
        files[DESCRIPTION] = files[DESCRIPTION].replace(*digests)
    for name, raw in files.items():
        (path.parent / name).write_bytes(raw)
    model = PublishedModel.read(path.parent)
    cfg = model.config()
    assert not cfg.EXTRA_MODULES and not cfg.MODEL.PRETRAIN_PATH
    assert Path(cfg.TEST.WEIGHT) == path.parent / WEIGHTS
    return model.licence


@lru_cache
def scalars() -> list[tuple[str, bytes]]:
    rows = [f"{step},supervised,{name},{1 / step}" for step in range(1, 40) for name in ("loss", "lr")]
    return [(NAME, "\n".join(["step,stage,name,value", *rows, ""]).encode())]


def read_scalars(path: Path) -> Any:
    """Reads what a restart keeps; nothing of the table stops a run."""
    return list(rows_before(path, 20))
