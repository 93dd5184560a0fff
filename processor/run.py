"""What ``train.py`` and ``test.py`` do: from a configuration to a trained or tested model and its files."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

import processor.methods  # noqa: F401 - fills in the stages of utils.methods.METHODS
from configs import dump, with_traits
from datasets.catalogue import find_spec
from datasets.loaders import Data, TestSet, make_dataloader
from datasets.options import names_of
from model import RetrievalModel, make_model
from model.freezing import freeze_matching
from model.pretrained import load_initial_weights
from model.summary import require_size, summary
from processor.adapters import Slim, slim_checkpoints
from processor.evaluate import Settings, evaluate, generalisation_report, mean_of, means
from processor.finished import CONFIG, FREE_KEYS, LAST, TEST_CONFIG
from processor.last import RunProgress
from processor.loggers.base import Loggers
from processor.loggers.make_loggers import make_loggers, refuse_missing_loggers
from processor.metrics_files import METRICS, TEST_METRICS, Results, TrainingMetrics
from processor.runtime_network import network_of_file
from processor.stage import Stage
from processor.trained import in_tested_runtime, output_folder, tested_file, tested_model, weight_file
from processor.trainer import Trainer
from solver import make_average
from utils.device import choose_device, choose_precision, seed_everything
from utils.distributed import barrier, broadcast_object, is_main, rank, start, stop, world_size
from utils.errors import UserError
from utils.extra_modules import import_extras
from utils.files import write_json, write_text
from utils.folder_lock import sole_user
from utils.logger import close_logging, set_up_logging
from utils.methods import method_of, register_method
from utils.provenance import commit, environment, machine
from utils.stop_signals import StopSignals
from utils.trees import flat

__all__ = ["register_method", "test", "train"]

log = logging.getLogger("lineup")

After = Callable[[CfgNode, RetrievalModel, Data, torch.device, Path], None]
"""What follows a finished run: (cfg, model, data, device, folder)."""

Watch = Callable[[list[dict[str, Any]]], None]
"""What follows an evaluation in training: (the history so far, the newest last)."""


def train(
    cfg: CfgNode,
    config_file: str = "",
    notes: Sequence[str] = (),
    after: After | None = None,
    *,
    watch: Watch | None = None,
    held_out_only: bool = False,
) -> dict[str, Any]:
    """Trains what the configuration asks for and returns the content of ``metrics.json``.

    notes: lines for the log. after: called on the first process when all files are written, while the log is open.
    watch: called after each evaluation with the history; what it raises ends the run. held_out_only: evaluate on the
    identities that DATASETS.VAL_SHARE holds out, as the set ``validation``, and never on the test sets. Raises
    ``UserError`` for a user's mistake.
    """
    with prepared(cfg, config_file, notes, "log.txt") as context:
        return _train(cfg, config_file, context, after, watch, held_out_only)


def _train(
    cfg: CfgNode,
    config_file: str,
    context: RunContext,
    after: After | None,
    watch: Watch | None,
    held_out_only: bool,
) -> dict[str, Any]:
    device, folder = context.device, context.folder
    dtype = choose_precision(cfg.SOLVER.PRECISION, device)
    cfg = with_traits(cfg)
    method_of(cfg)  # refuses an unknown name before any work
    refuse_missing_loggers(cfg)
    write_config(cfg, folder)
    data = make_dataloader(cfg)
    if held_out_only:
        data.tests = [held_out(data)]
    refuse_keep_best(cfg, data)
    model = make_initial_model(cfg, data, folder)
    slim = slim_checkpoints(cfg, model)
    stages = build_stages(cfg, data, model)
    evaluator = Evaluator(data, Settings.from_cfg(cfg), device, folder)
    with make_loggers(cfg, folder) as loggers:
        progress = make_trainer(cfg, context, dtype, evaluator, loggers, watch, slim).fit(stages)
    if not evaluator.results and progress.history:  # finished before this start
        if (folder / METRICS).exists():
            return TrainingMetrics.read(folder / METRICS).content
        evaluator(stages[-1].evaluated().to(device))  # the run was killed before it could write the file
    metrics = training_metrics(cfg, config_file, device, data, progress, evaluator.results)
    if is_main():
        write_json(folder / METRICS, metrics)
    if after and is_main():
        after(cfg, model, data, device, folder)
    log.info("done: %s", folder)
    return metrics


def test(cfg: CfgNode, config_file: str = "", notes: Sequence[str] = (), after: After | None = None) -> dict[str, Any]:
    """Tests ``TEST.WEIGHT`` and returns the content of ``test_metrics.json``. notes, after: see ``train``."""
    weight_file(cfg)  # before any work
    with prepared(cfg, config_file, notes, "test_log.txt") as context:
        return _test(cfg, config_file, context, after)


def _test(cfg: CfgNode, config_file: str, context: RunContext, after: After | None) -> dict[str, Any]:
    device, folder = context.device, context.folder
    cfg = with_traits(cfg)
    file = tested_file(cfg)
    data = make_dataloader(cfg, training=False)
    if file is None:
        model = tested_model(cfg, data)
        network = in_tested_runtime(cfg, model)
    else:
        model = network = network_of_file(file, cfg.TEST.RUNTIME, cfg.TEST.IMS_PER_BATCH)
    results = evaluate(network.to(device), data.tests, Settings.from_cfg(cfg), device, folder)
    metrics = {"results": results, "mean": mean_of(data.tests, results), "weight": cfg.TEST.WEIGHT}
    metrics |= {"runtime": network.runs_in}
    metrics |= provenance(config_file, device) | on_unseen_targets(cfg, results)
    if is_main():
        write_json(folder / TEST_METRICS, metrics)
        write_text(folder / TEST_CONFIG, resolved(cfg, folder))
        if after:
            after(cfg, model, data, device, folder)
    barrier()
    return metrics


# ---------------------------------------------------------------- before training


@contextmanager
def shared_folder(folder: Path) -> Iterator[int]:
    """``sole_user`` for all processes of a run as one: the first takes the folder, and all fail if it cannot."""
    with ExitStack() as stack:
        removed, refusal = 0, ""
        if is_main():
            try:
                removed = stack.enter_context(sole_user(folder))
            except UserError as error:
                refusal = str(error)
        if refusal := broadcast_object(refusal):
            raise UserError(refusal)
        yield removed


@dataclass(frozen=True)
class RunContext:
    """Where a run works. folder: OUTPUT_DIR. signals: those that end it."""

    device: torch.device
    folder: Path
    signals: StopSignals


@contextmanager
def prepared(cfg: CfgNode, config_file: str, notes: Sequence[str], log_name: str) -> Iterator[RunContext]:
    """Joins the processes, locks the folder, opens the log, sets the seeds and imports the user's modules.

    At the end the folder is free again and the log closed.
    """
    device = choose_device(cfg.MODEL.DEVICE)
    folder, signals = output_folder(cfg, config_file), StopSignals()
    try:
        start(device)
        with signals.listening(), shared_folder(folder) as removed:
            set_up_logging(folder, log_name)
            for note in notes:
                log.info(note)
            if removed:
                log.info("removed half-written files of a process that was killed: %d in %s", removed, folder)
            seed_everything(cfg.SOLVER.SEED)
            import_extras(cfg.EXTRA_MODULES)
            log.info("device %s, %d process%s", device, world_size(), "es" if world_size() > 1 else "")
            yield RunContext(device, folder, signals)
    finally:
        stop()
        close_logging()


def write_config(cfg: CfgNode, folder: Path) -> None:
    """Writes the resolved YAML of a run that starts; one that resumes has it already."""
    if is_main() and (cfg.SOLVER.RESUME == "never" or not (folder / LAST).exists()):
        write_text(folder / CONFIG, resolved(cfg, folder))


def resolved(cfg: CfgNode, folder: Path) -> str:
    """Returns the YAML that gives the same run again, in the same folder."""
    copy = cfg.clone()
    copy.defrost()
    copy.OUTPUT_DIR = str(folder)
    return dump(copy)


def fingerprint(cfg: CfgNode) -> dict[str, Any]:
    """Returns the settings that a restart must share with the run that it resumes."""
    return {k: v for k, v in flat(cfg).items() if k not in FREE_KEYS and not k.startswith("TEST.")}


def refuse_keep_best(cfg: CfgNode, data: Data) -> None:
    """Raises ``UserError`` if the best weights are to be kept by a value that is not measured."""
    chosen_on = [data.validation] if data.validation else data.tests
    others = [test.protocol for test in chosen_on if test.protocol in ("retrieval", "classification")]
    if cfg.SOLVER.KEEP_BEST and others:
        raise UserError(
            f"SOLVER.KEEP_BEST {cfg.SOLVER.KEEP_BEST!r} and TEST.PROTOCOL {others[0]!r} cannot go together: it "
            f"measures {'Recall@K and NMI' if others[0] == 'retrieval' else 'Top-1 and Top-5'} only"
        )


def held_out(data: Data) -> TestSet:
    """Returns the set of identities held out of training. Raises ``UserError`` if there is none."""
    if data.validation is None:
        raise UserError(
            "DATASETS.VAL_SHARE: no identities are held out of training to evaluate on; set it to a share of them, "
            "such as 0.25"
        )
    return data.validation


def make_initial_model(cfg: CfgNode, data: Data, folder: Path) -> RetrievalModel:
    """Builds the network, with its initial weights unless the run resumes."""
    model = make_model(cfg, data.num_classes, data.num_cameras, data.num_views, data.kind)
    trained = cfg.INPUT.SIZE_TRAIN[0], cfg.INPUT.SIZE_TRAIN[1]
    for key in ("SIZE_TEST", "SIZE_TRAIN"):
        require_size(model, f"INPUT.{key}", (cfg.INPUT[key][0], cfg.INPUT[key][1]), trained)
    log.info("model: %s", summary(model, (cfg.INPUT.SIZE_TEST[0], cfg.INPUT.SIZE_TEST[1])))
    if cfg.SOLVER.RESUME != "auto" or not (folder / LAST).exists():
        load_initial_weights(cfg, model)
    freeze_matching(model, cfg.SOLVER.FREEZE)
    return model


def build_stages(cfg: CfgNode, data: Data, model: RetrievalModel) -> list[Stage]:
    """Builds the method's stages; random numbers are from then on each process's own."""
    build = method_of(cfg).stages
    assert build is not None, "processor.methods gives every row its stages"
    stages = build(cfg, data, model)
    add_averaging(cfg, stages[-1])
    seed_everything(cfg.SOLVER.SEED + rank())
    return stages


def add_averaging(cfg: CfgNode, stage: Stage) -> None:
    """Gives a method's last stage the average of ``SOLVER.EMA``, and the epochs that it adds."""
    stage.average = make_average(cfg, stage.model, stage.epochs)
    stage.epochs += cfg.SOLVER.EMA.EXTRA_EPOCHS


# ---------------------------------------------------------------- training


class Evaluator:
    """Evaluates a network on a run's test sets; returns the means that the trainer logs and keeps the best by.

    ``results`` holds the last evaluation of the test sets. Identities held out of training, if there are any, give the
    means; they are evaluated beside the test sets.
    """

    def __init__(self, data: Data, settings: Settings, device: torch.device, folder: Path):
        self.data, self.settings, self.device, self.folder = data, settings, device, folder
        self.results: Results = {}

    def __call__(self, network: RetrievalModel) -> dict[str, float]:
        self.results = evaluate(network, self.data.tests, self.settings, self.device, self.folder)
        if self.data.validation and not self.data.held_out_only:
            return means(evaluate(network, [self.data.validation], self.settings, self.device))
        return mean_of(self.data.tests, self.results)


def make_trainer(
    cfg: CfgNode,
    context: RunContext,
    dtype: torch.dtype,
    evaluator: Evaluator,
    loggers: Loggers,
    watch: Watch | None = None,
    slim: Slim | None = None,
) -> Trainer:
    """Makes the trainer by the SOLVER keys."""
    return Trainer(
        device=context.device,
        dtype=dtype,
        folder=context.folder,
        model_name=cfg.MODEL.NAME.replace(":", "_"),
        fingerprint=fingerprint(cfg),
        training_lists=evaluator.data.fingerprint,
        evaluate=evaluator if evaluator.data.tests else None,
        watch=watch,
        slim=slim,
        evaluate_before=cfg.SOLVER.EVAL_BEFORE,
        resume=cfg.SOLVER.RESUME,
        keep_best=cfg.SOLVER.KEEP_BEST,
        clip_grad=cfg.SOLVER.CLIP_GRAD,
        accumulation=cfg.SOLVER.ACCUMULATION,
        save_every=cfg.SOLVER.SAVE_EVERY_MINUTES,
        signals=context.signals,
        compiled=cfg.MODEL.COMPILE,
        loggers=loggers,
    )


# ---------------------------------------------------------------- after training


def training_metrics(
    cfg: CfgNode, config_file: str, device: torch.device, data: Data, progress: RunProgress, results: Results
) -> dict[str, Any]:
    """Returns the content of ``metrics.json``."""
    mean = mean_of(data.tests, results) if results else {}
    metrics: dict[str, Any] = {"results": results, "mean": mean, "history": progress.history}
    metrics |= {} if data.held_out_only else on_unseen_targets(cfg, results)
    if cfg.SOLVER.KEEP_BEST:
        metrics["best"] = best_entry(cfg, data, progress)
    return metrics | provenance(config_file, device) | {
        "seed": cfg.SOLVER.SEED, "method": cfg.PROCESSOR.NAME, "seconds": round(progress.seconds, 1),
        "machine": f"{world_size()} x {machine(device)}",
    }  # fmt: skip


def provenance(config_file: str, device: torch.device) -> dict[str, Any]:
    """Returns the entries of both metrics files that say what computed them, and when."""
    now = datetime.now(UTC).isoformat()
    return {"commit": commit(), "config_file": config_file, "environment": environment(device), "finished": now}


def on_unseen_targets(cfg: CfgNode, results: Results) -> dict[str, Any]:
    """Returns the report of domain generalisation if no test set was trained on, else an empty dictionary."""
    sources = names_of(cfg.DATASETS.NAMES)
    trained_on = {find_spec(name).name for name in sources}
    if not (results and cfg.DATASETS.TARGETS) or method_of(cfg).targets or trained_on & results.keys():
        return {}
    return {"generalisation": generalisation_report(sources, results)}


def best_entry(cfg: CfgNode, data: Data, progress: RunProgress) -> dict[str, Any]:
    """Describes ``best.pth`` and the images that it was chosen on: choosing on the test set flatters the figure."""
    chosen_on = "identities held out of training" if data.validation else "the test set"
    log.info("best.pth: %s %.4f at %s, chosen on %s", cfg.SOLVER.KEEP_BEST, progress.best, progress.best_at, chosen_on)
    return {"by": cfg.SOLVER.KEEP_BEST, "value": progress.best, "at": progress.best_at, "chosen_on": chosen_on}
