"""The files of a published model, written from a finished run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from configs import dump, load_config
from configs.defaults import KEYS
from configs.values import lookup
from datasets.catalogue import find_spec
from datasets.options import names_of
from processor.extractor import Extractor, make_extractor
from processor.finished import FREE_KEYS, FinishedRun
from processor.published import CALIBRATION, DESCRIPTION, SETTINGS, WEIGHTS
from processor.trained import last_of_run
from tools.publishing.card import Published, model_card, verdict_rows
from utils.calibration import Calibration
from utils.errors import UserError
from utils.feature_files import read_json
from utils.files import sha256_of, write_json, write_text
from utils.weight_files import write_tensors

CARD = "README.md"
EXPORTED = "exported"
"""Where a verdict is looked for in a run's folder."""


def tested_weights(run: FinishedRun) -> tuple[CfgNode, str]:
    """Returns the configuration and the weights that the figures of a run's last evaluation are of."""
    if run.tested:
        config_file, weight = run.folder / run.config_text()[0], run.evaluation.weight
    else:
        config_file, weight = last_of_run(run.folder)
    if not Path(weight).is_file():
        raise UserError(f"{run.folder}: the weights of its last evaluation, {weight}, are no more; test others there")
    return load_config(config_file, ["TEST.WEIGHT", weight, "TEST.RUNTIME", "torch"]), weight


def without_places(cfg: CfgNode) -> CfgNode:
    """Returns the settings without what is of one machine alone: paths, workers, the device."""
    cfg = cfg.clone()
    cfg.defrost()
    for name, key in KEYS.items():
        if key.path or name in FREE_KEYS:
            section, _, leaf = name.rpartition(".")
            (lookup(cfg, section) if section else cfg)[leaf] = key.default
    cfg.freeze()
    return cfg


def write_published(
    run_folder: Path,
    out: Path,
    address: str,
    licence: str,
    calibration: Path | None = None,
    exported: Path | None = None,
) -> list[str]:
    """Writes the files of a published model and returns their names.

    address: how it will be loaded. calibration: a file of tools.calibrate, by default the run's own; exported: a folder
    of tools.export, by default ``exported`` in the run's, whose verdict joins the card. Raises ``UserError`` for a run
    that has not finished, a model that needs code, and a calibration or verdict of another model.
    """
    run = FinishedRun.load(run_folder)
    cfg, weight = tested_weights(run)
    if cfg.EXTRA_MODULES:
        raise UserError(
            f"{run_folder}: EXTRA_MODULES {cfg.EXTRA_MODULES!r}: nobody can load this model without code, and none is "
            "published with one; export it (tools.export) and share the file"
        )
    extractor = make_extractor(cfg)
    decisions = calibration_of(run_folder, extractor, cfg.TEST.METRIC, calibration)
    verdict = verdict_of(run_folder, extractor, exported)
    state = extractor.model.state_dict()
    kept = {name: value for name, value in state.items() if not name.startswith(extractor.model.optional_keys)}
    write_tensors(out / WEIGHTS, kept)
    write_text(out / SETTINGS, dump(without_places(cfg)))
    if decisions is not None:
        decisions.write(out / CALIBRATION)
    digests = {path.name: sha256_of(path).hex() for path in sorted(out.iterdir())}
    description = description_of(cfg, run, extractor)
    description |= {"license": licence, "sha256": digests, "weight": Path(weight).name}
    write_text(out / CARD, model_card(Published(run, description, address, licence, decisions, verdict)))
    write_json(out / DESCRIPTION, description)
    return sorted(path.name for path in out.iterdir())


def description_of(cfg: CfgNode, run: FinishedRun, extractor: Extractor) -> dict[str, Any]:
    """Returns the content of ``model.json``, less licence and digests."""
    names, start = names_of(cfg.DATASETS.NAMES), cfg.MODEL.PRETRAIN_PATH
    network = cfg.MODEL.TRANSFORMER_TYPE if cfg.MODEL.NAME == "transformer" else cfg.MODEL.NAME
    started = "" if cfg.MODEL.PRETRAIN_CHOICE == "no" else start if start.startswith("timm:") else Path(start).name
    return {
        "network": network, "method": cfg.PROCESSOR.NAME, "kind": find_spec(names[0]).kind, "trained_on": list(names),
        "started_from": started, "width": extractor.width, "size": list(extractor.size),
        "unit_length": extractor.unit, "flip": extractor.flip, "distance": cfg.TEST.METRIC,
        "inputs": ["images", *extractor.sides], "model_hash": extractor.model_hash,
        "commit": run.evaluation.commit, "torch": torch.__version__,
    }  # fmt: skip


def calibration_of(folder: Path, extractor: Extractor, metric: str, path: Path | None) -> Calibration | None:
    """Returns the calibration that goes with a model, None without one. Raises ``UserError`` if it is of another."""
    path = path or (folder / CALIBRATION if (folder / CALIBRATION).is_file() else None)
    if path is None:
        return None
    calibration = Calibration.read(path)
    calibration.refuse_other(extractor.model_hash, metric, extractor.unit, path)
    return calibration


def verdict_of(folder: Path, extractor: Extractor, exported: Path | None) -> dict[str, Any] | None:
    """Returns the verdict of an exported file, None without one. Raises ``UserError`` if it is of another model."""
    path = (exported or folder / EXPORTED) / DESCRIPTION
    if exported is None and not path.is_file():
        return None
    content = read_json(path)
    if content.get("model_hash") != extractor.model_hash:
        raise UserError(f"{path}: is of another model or setting; export this one with tools.export, or move it away")
    verdict = content.get("verdict")
    try:
        verdict_rows(verdict["rows"] if verdict else [])
    except (LookupError, TypeError, ValueError, AttributeError, StopIteration):
        raise UserError(f"{path}: damaged: not the verdict of an export; export the model again") from None
    return verdict
