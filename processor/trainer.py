"""The one training loop: precision, accumulation, several processes, logging, evaluation, checkpoints, exact resume."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from processor.stage import Stage
from solver import reestimate_batch_norm
from utils.checkpoint import read_state, save_atomically
from utils.device import quick_attention, random_states, restore_random_states
from utils.distributed import barrier, gather_objects, is_distributed, is_main, rank, share_buffers, world_size
from utils.errors import UserError

log = logging.getLogger("lineup")

LAST = "last"
"""The file in OUTPUT_DIR from which a run goes on."""


@dataclass
class Progress:
    """Where a run stands. stage, epoch: completed so far; a finished run has all stages behind it.

    seconds: spent so far, evaluation included. history: metrics of each evaluation.
    """

    stage: int = 0
    epoch: int = 0
    step: int = 0
    seconds: float = 0.0
    best: float = -1.0
    best_at: str = ""
    history: list[dict[str, Any]] = field(default_factory=list)


class Trainer:
    """Runs stages one after another.

    device, dtype: where and in which precision (float16 with a gradient scaler). folder: OUTPUT_DIR. model_name: for
    the names of saved files. fingerprint: the settings that a restart must share. evaluate: model -> named shares, or
    None for no evaluation; evaluate_before: the untrained model too. resume: ``auto``, ``never`` or a path.
    keep_best: '' or the name of the value to keep the best by. clip_grad: largest gradient norm, 0 for
    none. accumulation: micro-batches per update.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        dtype: torch.dtype,
        folder: str | Path,
        model_name: str,
        fingerprint: dict[str, Any],
        evaluate: Callable[[nn.Module], dict[str, float]] | None = None,
        evaluate_before: bool = False,
        resume: str = "auto",
        keep_best: str = "",
        clip_grad: float = 0.0,
        accumulation: int = 1,
        compiled: bool = False,
        writer: Any = None,
    ):
        self.device, self.dtype, self.folder, self.model_name = device, dtype, Path(folder), model_name
        self.fingerprint, self.evaluate, self.resume, self.keep_best = fingerprint, evaluate, resume, keep_best
        self.clip_grad, self.accumulation, self.compiled, self.writer = clip_grad, accumulation, compiled, writer
        self.evaluate_before = evaluate_before
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.progress = Progress()

    # ---------------------------------------------------------------- the loop

    def fit(self, stages: list[Stage]) -> Progress:
        """Trains every stage to its end, from the beginning or from where the same command stopped before."""
        state = self._read_last(stages)
        if state and self.progress.stage == len(stages):
            log.info("this run is finished already (%s); SOLVER.RESUME never starts it anew", self.folder)
            load_modules(stages[-1], state)
            return self.progress
        for index in range(self.progress.stage, len(stages)):
            self._run_stage(stages, index, state)
            state = None
        return self.progress

    def _run_stage(self, stages: list[Stage], index: int, state: dict[str, Any] | None) -> None:
        stage = stages[index]
        for module in stage.modules().values():
            module.to(self.device)
        if state:
            load_modules(stage, state)
            self._restore_random(state)  # a stage that has not begun may draw when it does
        with self._autocast():
            stage.begin()
        self._wrap(stage)
        if state:
            self._restore(stage, state)
        log.info("stage %s: epochs %d to %d", stage.name, self.progress.epoch + 1, stage.epochs)
        if self.evaluate and self.evaluate_before and not self.progress.step:
            self._evaluate(stage, epoch=0)
        for epoch in range(self.progress.epoch + 1, stage.epochs + 1):
            began = time.perf_counter()
            self._run_epoch(stage, epoch)
            self.progress.epoch = epoch
            final = epoch == stage.epochs
            if stage.average:
                stage.average.after_epoch(epoch)
                if final:
                    self._take_average(stage, epoch)
            if stage.evaluates and self.evaluate and due(epoch, stage.eval_period, final):
                self._evaluate(stage, epoch)
            if due(epoch, stage.checkpoint_period, final):
                self._save_weights(stage, f"{self.model_name}{stage.suffix}", f"_{epoch}.pth")
            self.progress.seconds += time.perf_counter() - began
            if final:
                self.progress.stage, self.progress.epoch = index + 1, 0
            self._save_last(stages[index + 1] if final and index + 1 < len(stages) else stage, begun=not final)

    def _wrap(self, stage: Stage) -> None:
        if self.compiled:
            stage.model.compile()
        stage.net = stage.stepped()
        if is_distributed() and any(p.requires_grad for p in stage.net.parameters()):
            ids = [self.device.index] if self.device.type == "cuda" else None
            stage.net = DistributedDataParallel(stage.net, device_ids=ids)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _run_epoch(self, stage: Stage, epoch: int) -> None:
        batches = stage.batches(epoch)
        steps = len(batches) // self.accumulation
        if steps == 0:
            raise UserError(
                f"SOLVER.ACCUMULATION: {self.accumulation} is more than the {len(batches)} batches of an epoch"
            )
        stage.model.train()
        meter, began, images = Meter(), time.perf_counter(), 0
        bar = tqdm(
            chunks(batches, self.accumulation), total=steps, desc=f"{stage.name} {epoch}/{stage.epochs}", leave=False,
            disable=not (is_main() and sys.stderr.isatty()),
        )  # fmt: skip
        for step, group in enumerate(bar):
            stage.set_rates(epoch, step, steps)
            terms = self._update(stage, group, f"epoch {epoch}, step {step + 1}")
            if stage.average:
                stage.average.after_step()
            self.progress.step += 1
            images += sum(len(b) for b in group if hasattr(b, "__len__")) * world_size()
            meter.add(terms | stage.logs())
            if (step + 1) % max(stage.log_period, 1) == 0 or step + 1 == steps:
                rate = stage.optimizers[0].param_groups[0]["lr"]
                speed = images / (time.perf_counter() - began)
                line = f"{stage.name} epoch {epoch}/{stage.epochs} step {step + 1}/{steps} {meter} lr {rate:.3g}"
                log.info("%s, %.0f images/s", line, speed)
                self._write_scalars(stage, meter.means() | {"lr": rate, "images_per_s": speed})

    def _update(self, stage: Stage, group: list, where: str) -> dict[str, float]:
        for optimizer in stage.optimizers:
            optimizer.zero_grad(set_to_none=True)
        shown: dict[str, Tensor] = {}
        moved = []
        for i, batch in enumerate(group):
            batch = batch.to(self.device) if hasattr(batch, "to") else batch
            moved.append(batch)
            last = i + 1 == len(group)
            quiet = (
                stage.net.no_sync() if not last and isinstance(stage.net, DistributedDataParallel) else nullcontext()
            )
            with quiet, quick_attention(self.device, self.dtype):
                with self._autocast():
                    terms = stage.losses(batch)
                total = sum(terms.values()) / len(group)
                self._refuse_non_finite(stage, terms, total, where)
                self.scaler.scale(total).backward()
            for name, term in (terms | {"loss": total * len(group)}).items():
                shown[name] = shown.get(name, 0) + term.detach() / len(group)
        for optimizer in stage.optimizers:
            self.scaler.unscale_(optimizer)
        stage.before_step()
        if self.clip_grad:  # the main optimizer's alone: others, such as the centers', have gradients of another scale
            owned = [p for group in stage.optimizers[0].param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(owned, self.clip_grad)
        for optimizer in stage.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()
        with quick_attention(self.device, self.dtype), self._autocast():
            stage.after_step(moved)
        return {name: float(value) for name, value in shown.items()}

    def _refuse_non_finite(self, stage: Stage, terms: dict[str, Tensor], total: Tensor, where: str) -> None:
        if not torch.isfinite(total):
            values = ", ".join(f"{k} {float(v.detach()):.4g}" for k, v in terms.items())
            rate = stage.optimizers[0].param_groups[0]["lr"]
            raise UserError(
                f"the loss is not finite at {where} of stage {stage.name} ({values}; learning rate {rate:.3g}); lower "
                "SOLVER.BASE_LR, set SOLVER.CLIP_GRAD or SOLVER.PRECISION fp32"
            )

    def _take_average(self, stage: Stage, epoch: int) -> None:
        """The averaged weights take the place of the last ones, which are evaluated before if it is their turn."""
        if stage.evaluates and self.evaluate and due(epoch, stage.eval_period, final=False):
            self._evaluate(stage, epoch, weights="last")
        log.info("the mean of the weights of %d times takes the place of the last", stage.average.count)
        stage.average.apply()
        if stage.average.bn_update:
            wrapped, stage.net = stage.net, stage.model  # the wrapper would hand out the first process's statistics
            reestimate_batch_norm(
                stage.model,
                stage.batches(epoch),
                lambda batch: stage.losses(batch.to(self.device) if hasattr(batch, "to") else batch),
            )
            stage.net = wrapped

    # ---------------------------------------------------------------- evaluation and files

    def _evaluate(self, stage: Stage, epoch: int, **more: str) -> None:
        """more: what the entry of the history says besides."""
        model = stage.evaluated()
        share_buffers(model)  # batch norm's running statistics are the first process's, as in the saved files
        metrics = self.evaluate(model)
        entry = {"stage": stage.name, "epoch": epoch, **more, **metrics}
        self.progress.history.append(entry)
        self._write_scalars(stage, {k: v for k, v in metrics.items() if isinstance(v, float)})
        if self.keep_best and metrics[self.keep_best] > self.progress.best:
            self.progress.best, self.progress.best_at = metrics[self.keep_best], f"{stage.name} epoch {epoch}"
            self._save_weights(stage, "best", ".pth")

    def _write_scalars(self, stage: Stage, values: dict[str, float]) -> None:
        if self.writer is not None:
            for name, value in values.items():
                self.writer.add_scalar(f"{stage.name}/{name}", value, self.progress.step)

    def _save_weights(self, stage: Stage, name: str, ending: str) -> None:
        if is_main():
            for kind, state in stage.saved_states().items():
                save_atomically(state, self.folder / f"{name}{kind}{ending}")

    def _save_last(self, stage: Stage, begun: bool) -> None:
        """Everything that decides how the run goes on; of a stage not yet begun, its weights alone."""
        states = gather_objects(random_states())
        if is_main():
            state = {
                "fingerprint": self.fingerprint,
                "progress": vars(self.progress),
                "modules": {name: module.state_dict() for name, module in stage.modules().items()},
                "random": states,
                "scaler": self.scaler.state_dict(),
            }
            if begun:
                state["optimizers"] = [optimizer.state_dict() for optimizer in stage.optimizers]
                state["stage"] = stage.state_dict()
                state["average"] = stage.average.state_dict() if stage.average else None
            save_atomically(state, self.folder / LAST)
        barrier()

    def _read_last(self, stages: list[Stage]) -> dict[str, Any] | None:
        path = self.folder / LAST if self.resume in ("auto", "never") else Path(self.resume)
        there = gather_objects(path.is_file())
        if any(there) and not all(there):
            raise UserError(f"{path}: some processes see this file and others do not; the nodes must share OUTPUT_DIR")
        if self.resume == "never" or (self.resume == "auto" and not path.exists()):
            return None
        if not path.is_file():
            raise UserError(f"SOLVER.RESUME: {self.resume!r} is neither 'auto' nor 'never' nor a file")
        state = read_state(path)
        if "fingerprint" not in state or "progress" not in state:
            raise UserError(
                f"SOLVER.RESUME: {path} is no file that a run can go on from; weights belong in MODEL.PRETRAIN_PATH"
            )
        theirs = state["fingerprint"]
        other = [k for k in sorted({*theirs, *self.fingerprint}) if theirs.get(k) != self.fingerprint.get(k)]
        if other:
            raise UserError(
                f"{path}: was written with another configuration ({other[0]} {theirs.get(other[0])!r}, now "
                f"{self.fingerprint.get(other[0])!r}); choose another OUTPUT_DIR, or SOLVER.RESUME never to start anew"
            )
        self.progress = Progress(**state["progress"])
        if self.progress.stage < len(stages):
            log.info("going on from %s: stage %d, after epoch %d", path, self.progress.stage + 1, self.progress.epoch)
        return state

    def _restore(self, stage: Stage, state: dict[str, Any]) -> None:
        if "optimizers" in state:
            for optimizer, saved in zip(stage.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
            stage.load_state_dict(state["stage"])
            if stage.average:
                stage.average.load_state_dict(state["average"])
            self._restore_random(state)
        self.scaler.load_state_dict(state["scaler"])

    def _restore_random(self, state: dict[str, Any]) -> None:
        if len(state["random"]) == world_size():
            restore_random_states(state["random"][rank()])
        else:
            log.warning("the number of processes has changed: random numbers go on from the seed, not exactly")


def load_modules(stage: Stage, state: dict[str, Any]) -> None:
    """Puts the weights of a ``last`` file into a stage's modules."""
    for name, module in stage.modules().items():
        module.load_state_dict(state["modules"][name])


class Meter:
    """Running means of named values since it was made."""

    def __init__(self) -> None:
        self.sums: dict[str, float] = {}
        self.counts: dict[str, int] = {}

    def add(self, values: dict[str, float]) -> None:
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value
            self.counts[name] = self.counts.get(name, 0) + 1

    def means(self) -> dict[str, float]:
        return {name: total / self.counts[name] for name, total in self.sums.items()}

    def __str__(self) -> str:
        return " ".join(f"{name} {value:.3f}" for name, value in self.means().items())


def due(epoch: int, period: int, final: bool) -> bool:
    return final or (period > 0 and epoch % period == 0)


def chunks(batches, size: int) -> Iterator[list]:
    """Groups of ``size`` batches; a smaller rest is left out."""
    source = iter(batches)
    while len(group := list(islice(source, size))) == size:
        yield group
