"""What a program needs to know of an exported file: ``model.json``, and DeepStream's configuration."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from model.deployed import Deployed
from model.exporting import OPSET
from model.layouts import LAYOUTS
from processor.extractor import make_extractor
from utils.files import sha256_of


def model_card(
    cfg: CfgNode, deployed: Deployed, layout: str, precision: str, width: int, folder: Path
) -> dict[str, Any]:
    """Returns the content of ``model.json``, less the report of the check. layout: of ``LAYOUTS``."""
    height, across = deployed.preprocess.size
    given = LAYOUTS[layout].given
    images = (
        "uint8, RGB, (batch, height, width, 3), any size; upright (EXIF orientation applied), transparent parts "
        "composed over 'background', 16 bits scaled to 8"
        if given is None
        else f"float32, RGB, (batch, 3, {height}, {across}), (level / 255 - {list(given.mean)}) / {list(given.std)}"
    )
    return {
        "model": cfg.MODEL.NAME,
        "type": cfg.MODEL.TRANSFORMER_TYPE if cfg.MODEL.NAME == "transformer" else "",
        "method": cfg.PROCESSOR.NAME,
        "layout": layout,
        "precision": precision,
        "inputs": {"images": images, **dict.fromkeys(deployed.sides, "int64, (batch,)")},
        "output": f"features, float32, (batch, {width})",
        "width": width,
        "size": [height, across],
        "resize": cfg.INPUT.RESIZE,
        "resize_margin": cfg.INPUT.RESIZE_MARGIN,
        "background": list(cfg.INPUT.BACKGROUND),
        "mean": list(cfg.INPUT.PIXEL_MEAN),
        "std": list(cfg.INPUT.PIXEL_STD),
        "flip": deployed.flip,
        "unit_length": deployed.unit,
        "distance": cfg.TEST.METRIC,
        "opset": OPSET,
        "sha256": {path.name: sha256_of(path).hex() for path in sorted(folder.iterdir())},
        "weight": Path(cfg.TEST.WEIGHT).name,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def calibration_of(cfg: CfgNode) -> dict[str, Any]:
    """Returns the entry of TEST.CALIBRATION in ``model.json``, none without it.

    Raises ``UserError`` if it is of another model.
    """
    calibration = make_extractor(cfg).calibration if cfg.TEST.CALIBRATION else None
    return {} if calibration is None else {"calibration": calibration.content()}


def tracker_config(size: tuple[int, int], width: int) -> str:
    """Returns the ReID section and what it needs of DeepStream's nvtracker (NvDCF or NvDeepSORT), as YAML.

    size: (H, W). width: of a feature. Scaling and normalisation are in the file, so factor and offsets do nothing.
    """
    return f"""# Beside these sections, nvtracker needs those of its own sample config_tracker_NvDeepSORT.yml.
ReID:
  reidType: 2
  batchSize: 100
  workspaceSize: 1000
  reidFeatureSize: {width}
  reidHistorySize: 100
  inferDims: [3, {size[0]}, {size[1]}]
  networkMode: 0  # fp32; 1 is fp16
  inputOrder: 0  # NCHW
  colorFormat: 0  # RGB
  offsets: [0.0, 0.0, 0.0]
  netScaleFactor: 1.0
  keepAspc: 0  # crops are stretched, as in training
  addFeatureNormalization: 0  # features have unit length
  onnxFile: "model.onnx"
"""
