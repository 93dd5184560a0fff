"""What ``train.py`` and ``test.py`` do: from a configuration to a trained or tested model and its files."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from configs import dump
from datasets.catalogue import find_spec
from datasets.loaders import Data, TestSet, make_dataloader
from datasets.options import names_of
from model import make_model
from model.pretrained import load_initial_weights
from model.summary import summary
from processor.evaluate import Settings, evaluate, mean_of, means
from processor.generalisation import generalisation
from processor.methods.cluster import cluster
from processor.methods.dino import dino
from processor.methods.dmmd import dmmd
from processor.methods.mtda_kd import mtda_kd
from processor.methods.prompt import prompt
from processor.methods.self_distill import self_distill
from processor.methods.supervised import supervised
from processor.stage import Stage
from processor.trained import output_folder, tested_model, weight_file
from processor.trainer import LAST, Trainer
from solver import make_average
from utils.device import choose_device, choose_precision, seed_everything
from utils.distributed import barrier, is_main, rank, start, stop, world_size
from utils.errors import UserError, nearest
from utils.extra_modules import import_extras
from utils.files import write_json, write_text
from utils.logger import close_logging, set_up_logging
from utils.methods import method_of
from utils.provenance import commit, environment, machine
from utils.trees import flat

log = logging.getLogger("lineup")

METHODS: dict[str, Callable[[Any, Data, nn.Module], list[Stage]]] = {
    "supervised": supervised,
    "prompt": prompt,
    "dino": dino,
    "cluster": cluster,
    "dmmd": dmmd,
    "mtda_kd": mtda_kd,
    "self_distill": self_distill,
}
"""PROCESSOR.NAME -> function of (cfg, data, model) that gives the method's stages; ``register_method`` adds one."""

After = Callable[[Any, nn.Module, Data, torch.device, Path], None]
"""What follows a finished run: (cfg, model, data, device, folder)."""

FREE_KEYS = (
    "SOLVER.RESUME", "OUTPUT_DIR", "DATALOADER.NUM_WORKERS", "DATALOADER.CACHE_GB", "DATALOADER.CACHE",
    "DATASETS.LIST_CACHE", "DATASETS.SHARDS", "SOLVER.LOG_PERIOD", "SOLVER.STAGE1.LOG_PERIOD",
    "SOLVER.STAGE2.LOG_PERIOD", "MODEL.DEVICE",
)  # fmt: skip
"""Keys that may differ between a run and its continuation: they change no weight."""


def register_method(name: str):
    """Decorator: makes ``PROCESSOR.NAME: name`` run the stages that the decorated (cfg, data, model) -> list gives."""

    def add(build):
        METHODS[name] = build
        return build

    return add


def fingerprint(cfg) -> dict[str, Any]:
    """The settings that a restart must share with the run it goes on from."""
    return {k: v for k, v in flat(cfg).items() if k not in FREE_KEYS and not k.startswith("TEST.")}


def resolved(cfg, folder: Path) -> str:
    """The YAML that gives the same run again, in the same folder."""
    copy = cfg.clone()
    copy.defrost()
    copy.OUTPUT_DIR = str(folder)
    return dump(copy)


def prepare(cfg, config_file: str, notes: list[str], log_name: str):
    """Device, processes, folder, log and seeds: what training and testing begin with."""
    device = choose_device(cfg.MODEL.DEVICE)
    start(device)
    folder = output_folder(cfg, config_file)
    set_up_logging(folder, log_name)
    for note in notes:
        log.info(note)
    seed_everything(cfg.SOLVER.SEED)
    import_extras(cfg.EXTRA_MODULES)
    log.info("device %s, %d process%s", device, world_size(), "es" if world_size() > 1 else "")
    return device, folder


def train(cfg, config_file: str = "", notes: list[str] | None = None, after: After | None = None) -> dict[str, Any]:
    """Trains what the configuration asks for and returns the content of ``metrics.json``.

    after: called on the first process when all files are written, while the log is still open.
    """
    try:
        return _train(cfg, config_file, notes or [], after)
    finally:
        stop()
        close_logging()


def _train(cfg, config_file: str, notes: list[str], after: After | None) -> dict[str, Any]:
    device, folder = prepare(cfg, config_file, notes, "log.txt")
    dtype = choose_precision(cfg.SOLVER.PRECISION, device)
    if cfg.PROCESSOR.NAME not in METHODS:
        hint = nearest(cfg.PROCESSOR.NAME, METHODS)
        raise UserError(f"PROCESSOR.NAME: unknown {cfg.PROCESSOR.NAME!r}{hint} This version has: {', '.join(METHODS)}")
    if is_main() and (cfg.SOLVER.RESUME == "never" or not (folder / LAST).exists()):
        write_text(folder / "config.yml", resolved(cfg, folder))
    data = make_dataloader(cfg)
    check_keep_best(cfg, data)
    model = make_model(cfg, data.num_classes, data.num_cameras, data.num_views, data.kind)
    log.info("model: %s", summary(model, tuple(cfg.INPUT.SIZE_TEST)))
    if cfg.SOLVER.RESUME != "auto" or not (folder / LAST).exists():
        load_initial_weights(cfg, model)
    stages = METHODS[cfg.PROCESSOR.NAME](cfg, data, model)
    add_averaging(cfg, stages[-1])
    seed_everything(cfg.SOLVER.SEED + rank())
    settings = Settings.from_cfg(cfg)
    results: dict[str, Any] = {}

    def evaluate_now(network: nn.Module) -> dict[str, float]:
        results.clear()
        results.update(evaluate(network, data.tests, settings, device, folder))
        return means(held_out(network)) if data.validation else mean_of(data.tests, results)

    def held_out(network: nn.Module) -> dict[str, dict[str, float]]:
        return evaluate(network, [data.validation], settings, device)

    writer = scalar_writer(folder)
    trainer = Trainer(
        device=device,
        dtype=dtype,
        folder=folder,
        model_name=cfg.MODEL.NAME.replace(":", "_"),
        fingerprint=fingerprint(cfg),
        evaluate=evaluate_now if data.tests else None,
        evaluate_before=cfg.SOLVER.EVAL_BEFORE,
        resume=cfg.SOLVER.RESUME,
        keep_best=cfg.SOLVER.KEEP_BEST,
        clip_grad=cfg.SOLVER.CLIP_GRAD,
        accumulation=cfg.SOLVER.ACCUMULATION,
        compiled=cfg.MODEL.COMPILE,
        writer=writer,
    )
    progress = trainer.fit(stages)
    if not results and progress.history:  # finished already, but perhaps killed before it could say so
        if before := training_metrics(folder):
            return before
        evaluate_now(stages[-1].evaluated().to(device))
    metrics = {"results": results, "mean": mean_of(data.tests, results) if results else {}, "history": progress.history}
    metrics |= on_unseen_targets(cfg, results)
    if cfg.SOLVER.KEEP_BEST:
        metrics["best"] = best_entry(cfg, data.validation, progress)
    metrics |= {
        "commit": commit(), "config_file": config_file, "seed": cfg.SOLVER.SEED, "method": cfg.PROCESSOR.NAME,
        "seconds": round(progress.seconds, 1), "machine": f"{world_size()} x {machine(device)}",
        "environment": environment(device),
    }  # fmt: skip
    if is_main():
        write_json(folder / "metrics.json", metrics)
    if writer is not None:
        writer.flush()
    if after and is_main():
        after(cfg, model, data, device, folder)
    log.info("done: %s", folder)
    return metrics


def on_unseen_targets(cfg, results: dict[str, dict[str, float]]) -> dict[str, Any]:
    """The report of domain generalisation, where all that was tested was never trained on; else nothing."""
    sources = names_of(cfg.DATASETS.NAMES)
    seen = {find_spec(name).name for name in sources}
    if not (results and cfg.DATASETS.TARGETS) or method_of(cfg).targets or seen & results.keys():
        return {}
    return {"generalisation": generalisation(sources, results)}


def add_averaging(cfg, stage: Stage) -> None:
    """SOLVER.EMA for a method's last stage: the average of its model's weights, and the epochs after its own."""
    stage.average = make_average(cfg, stage.model, stage.epochs)
    stage.epochs += cfg.SOLVER.EMA.EXTRA_EPOCHS


def training_metrics(folder: Path) -> dict[str, Any]:
    """What training left in ``metrics.json``, also where a test has written since; empty when there is none."""
    path = folder / "metrics.json"
    metrics = json.loads(path.read_text()) if path.exists() else {}
    return metrics if "history" in metrics else metrics.get("training", {})


def check_keep_best(cfg, data: Data) -> None:
    chosen_on = [data.validation] if data.validation else data.tests
    other = [test.protocol for test in chosen_on if test.protocol in ("retrieval", "classification")]
    if cfg.SOLVER.KEEP_BEST and other:
        raise UserError(
            f"SOLVER.KEEP_BEST {cfg.SOLVER.KEEP_BEST!r} and TEST.PROTOCOL {other[0]!r} cannot go together: it measures "
            f"{'Recall@K and NMI' if other[0] == 'retrieval' else 'Top-1 and Top-5'} only"
        )


def best_entry(cfg, validation: TestSet | None, progress) -> dict[str, Any]:
    """What ``best.pth`` is, and on which images it was chosen: choosing on the test set flatters the figure."""
    chosen_on = "identities held out of training" if validation else "the test set"
    log.info("best.pth: %s %.4f at %s, chosen on %s", cfg.SOLVER.KEEP_BEST, progress.best, progress.best_at, chosen_on)
    return {"by": cfg.SOLVER.KEEP_BEST, "value": progress.best, "at": progress.best_at, "chosen_on": chosen_on}


def scalar_writer(folder: Path):
    """TensorBoard's writer on the first process, None elsewhere."""
    if not is_main():
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder / "tensorboard"))


def test(cfg, config_file: str = "", notes: list[str] | None = None, after: After | None = None) -> dict[str, Any]:
    """Tests ``TEST.WEIGHT`` and returns the content of ``metrics.json``. after: see ``train``."""
    try:
        return _test(cfg, config_file, notes or [], after)
    finally:
        stop()
        close_logging()


def _test(cfg, config_file: str, notes: list[str], after: After | None) -> dict[str, Any]:
    weight_file(cfg)  # before any work
    device, folder = prepare(cfg, config_file, notes, "test_log.txt")
    data = make_dataloader(cfg, training=False)
    model = tested_model(cfg, data)
    results = evaluate(model.to(device), data.tests, Settings.from_cfg(cfg), device, folder)
    metrics = {
        "results": results,
        "mean": mean_of(data.tests, results),
        "weight": cfg.TEST.WEIGHT,
        "commit": commit(),
        "config_file": config_file,
        "environment": environment(device),
    }
    metrics |= on_unseen_targets(cfg, results)
    if trained := training_metrics(folder):
        metrics["training"] = trained
    barrier()  # all have read what stood there
    if is_main():
        write_json(folder / "metrics.json", metrics)
    if is_main():
        write_text(folder / "test_config.yml", resolved(cfg, folder))
    if after and is_main():
        after(cfg, model, data, device, folder)
    barrier()
    return metrics
