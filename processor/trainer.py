"""The one training loop: precision, accumulation, several processes, logging, evaluation, checkpoints, exact resume."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import reduce
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from datasets.fingerprint import Fingerprint, refuse_other_lists
from model import RetrievalModel
from processor.finished import LAST, PLACES
from processor.last import (
    BegunEpoch,
    RunProgress,
    begun_epoch,
    blamed_on,
    check_random,
    load_average,
    load_modules,
    load_optimizers,
    load_scaler,
    progress_of,
    read_last,
    require,
)
from processor.loggers.base import Loggers
from processor.meter import Meter
from processor.stage import Stage, TrainingBatches, batches_after
from solver import WeightAverage, reestimate_batch_norm
from utils.device import python_random_kept, quick_attention, random_states, restore_random_states
from utils.distributed import (
    any_rank,
    barrier,
    gather_objects,
    is_distributed,
    is_main,
    rank,
    share_buffers,
    world_size,
)
from utils.errors import UserError
from utils.stop_signals import CODE, StopSignals
from utils.weight_files import save_atomically

log = logging.getLogger("lineup")


class Trainer:
    """Runs stages one after another.

    device, dtype: where and in which precision (float16 with a gradient scaler). folder: OUTPUT_DIR. model_name: in
    the names of saved files. fingerprint, training_lists: the settings and what identifies the lists that a restart
    must share. evaluate: model -> named shares, or None for no evaluation; evaluate_before: evaluate the untrained
    model too; watch: called with the history after each evaluation; slim: what a
    checkpoint of weights holds of a state, all without it. resume: ``auto``, ``never`` or a path. keep_best:
    name of the value to keep the best weights by, or ''. clip_grad: largest gradient norm, 0 for no limit.
    accumulation: micro-batches per update. save_every: minutes after which ``last`` is saved inside an epoch, 0 for
    never. signals: noted while training, which then stops behind a step. compiled: compile the model. loggers: of
    scalars, on the first process.
    """

    def __init__(
        self,
        *,
        device: torch.device,
        dtype: torch.dtype,
        folder: str | Path,
        model_name: str,
        fingerprint: dict[str, Any],
        training_lists: Fingerprint | None = None,
        evaluate: Callable[[RetrievalModel], dict[str, float]] | None = None,
        watch: Callable[[list[dict[str, Any]]], None] | None = None,
        slim: Callable[[dict[str, Any]], dict[str, Any]] | None = None,
        evaluate_before: bool = False,
        resume: str = "auto",
        keep_best: str = "",
        clip_grad: float = 0.0,
        accumulation: int = 1,
        save_every: float = 0.0,
        signals: StopSignals | None = None,
        compiled: bool = False,
        loggers: Loggers | None = None,
    ):
        self.device, self.dtype, self.folder, self.model_name = device, dtype, Path(folder), model_name
        self.training_lists = training_lists or {}
        self.fingerprint, self.evaluate, self.resume, self.keep_best = fingerprint, evaluate, resume, keep_best
        self.clip_grad, self.accumulation, self.compiled = clip_grad, accumulation, compiled
        self.loggers = loggers or Loggers({})
        self.watch, self.slim = watch, slim
        self.evaluate_before, self.save_every, self.signals = evaluate_before, save_every, signals or StopSignals()
        self.scaler = torch.amp.GradScaler(device.type, enabled=dtype == torch.float16)
        self.progress = RunProgress()
        self.clock = self.saved_at = time.monotonic()  # until when the seconds are counted; when ``last`` was saved

    # ---------------------------------------------------------------- the loop

    def fit(self, stages: list[Stage]) -> RunProgress:
        """Trains every stage to its end, from the start or from where the same command stopped before."""
        with self.signals.deferred():
            return self._fit(stages)

    def _fit(self, stages: list[Stage]) -> RunProgress:
        state = self._read_last(stages)
        if state and self.progress.stage == len(stages):
            log.info("this run is finished already (%s); SOLVER.RESUME never trains it again", self.folder)
            with blamed_on(self.last):
                load_modules(stages[-1], state)
            return self.progress
        for index in range(self.progress.stage, len(stages)):
            self._run_stage(stages, index, state)
            state = None
        return self.progress

    def _run_stage(self, stages: list[Stage], index: int, state: dict[str, Any] | None) -> None:
        stage = stages[index]
        begun = self._begin(stage, state)
        log.info("stage %s: epochs %d to %d", stage.name, self.progress.epoch + 1, stage.epochs)
        if self.evaluate and self.evaluate_before and not self.progress.step:
            self.evaluate_stage(stage, epoch=0)
        for epoch in range(self.progress.epoch + 1, stage.epochs + 1):
            final, self.clock = epoch == stage.epochs, time.monotonic()
            batches = self._run_epoch(stage, epoch, begun, state)
            begun = None
            self.progress.epoch = epoch
            if stage.average:
                stage.average.after_epoch(epoch)
                if final:
                    self._take_average(stage, stage.average, epoch, batches)
            if stage.evaluates and self.evaluate and is_due(epoch, stage.periods.eval, final):
                self.evaluate_stage(stage, epoch)
            if is_due(epoch, stage.periods.checkpoint, final):
                self._save_weights(stage, f"{self.model_name}{stage.suffix}", f"_{epoch}.pth")
            if final:
                self.progress.stage, self.progress.epoch = index + 1, 0
            self._save_last(stages[index + 1] if final and index + 1 < len(stages) else stage, begun=not final)
            self._stop_if_asked(f"after epoch {epoch} of stage {stage.name}", self.progress.stage == len(stages))

    def _begin(self, stage: Stage, state: dict[str, Any] | None) -> BegunEpoch | None:
        """Prepares a stage for its first step, or for its next one after a restart from ``state``.

        Returns how far the epoch had come in which ``state`` was saved.
        """
        for module in stage.modules().values():
            module.to(self.device)
        if state:
            with blamed_on(self.last):
                load_modules(stage, state)
                self._restore_random(state)  # a stage that has not begun may draw when it does
        self.start_stage(stage)
        if not state:
            return None
        with blamed_on(self.last):
            self._restore(stage, state)
            return begun_epoch(state)

    def start_stage(self, stage: Stage) -> None:
        """Calls ``begin`` in the precision of training and wraps the stage's network for several processes."""
        with self._autocast():
            stage.begin()
        if self.compiled:
            stage.model.compile()
        stage.net = stage.stepped()
        if is_distributed() and any(p.requires_grad for p in stage.net.parameters()):
            ids = [self.device.index] if self.device.type == "cuda" else None
            stage.net = DistributedDataParallel(stage.net, device_ids=ids)

    def _autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32)

    def _run_epoch(
        self, stage: Stage, epoch: int, begun: BegunEpoch | None, state: dict[str, Any] | None
    ) -> TrainingBatches:
        """Trains for one epoch and returns its batches, which may be iterated again.

        begun: continue the epoch from there; state: the whole of what was saved then.
        """
        batches = stage.batches(epoch) if begun is None else self._resumed_batches(stage, epoch, begun)
        steps, done = len(batches) // self.accumulation, begun.steps if begun else 0
        if steps == 0:
            raise UserError(
                f"SOLVER.ACCUMULATION: {self.accumulation} is more than the {len(batches)} batches of an epoch"
            )
        stage.model.train()
        meter = Meter(begun)
        if begun and state:
            with blamed_on(self.last):
                require(done <= steps, f"within: step {done} of {steps}")
                for step in range(done):  # what they leave behind, such as modes and the rates of an epoch
                    stage.set_rates(epoch, step, steps)
                self._restore_random(state)
        bar = tqdm(
            chunks(batches_after(batches, done * self.accumulation), self.accumulation), total=steps, initial=done,
            desc=f"{stage.name} {epoch}/{stage.epochs}", leave=False,
            disable=not (is_main() and sys.stderr.isatty()),
        )  # fmt: skip
        for step, group in enumerate(bar, done + 1):
            stage.set_rates(epoch, step - 1, steps)
            terms = self.step(stage, group, f"epoch {epoch}, step {step}")
            if stage.average:
                stage.average.after_step()
            self.progress.step += 1
            meter.add(terms | stage.logs(), sum(map(len, group)) * world_size())
            if step % stage.periods.log == 0 or step == steps:
                rate = stage.optimizers[0].param_groups[0]["lr"]
                line = f"{stage.name} epoch {epoch}/{stage.epochs} step {step}/{steps} {meter} lr {rate:.3g}"
                log.info("%s, %.0f images/s", line, meter.speed)
                values = meter.means() | {"lr": rate, "images_per_s": meter.speed}
                self.loggers.write(stage.name, values, self.progress.step)
            self._save_inside(stage, meter, step, f"step {step} of {steps} of epoch {epoch} of stage {stage.name}")
        return batches

    def _resumed_batches(self, stage: Stage, epoch: int, begun: BegunEpoch) -> TrainingBatches:
        with blamed_on(self.last):
            batches = stage.resume_epoch(epoch, begun.stage)
        log.info("going on inside epoch %d, after step %d", epoch, begun.steps)
        return batches

    def step(self, stage: Stage, batches: list, where: str) -> dict[str, float]:
        """Makes one update from micro-batches, whose gradients are averaged, and returns the terms and their sum.

        where: names the step in the message of a loss that is not finite.
        """
        for optimizer in stage.optimizers:
            optimizer.zero_grad(set_to_none=True)
        sums: dict[str, Tensor] = {}
        batches = [batch.to(self.device) for batch in batches]
        for i, batch in enumerate(batches):
            last = i + 1 == len(batches)
            for name, term in self._backward(stage, batch, len(batches), last, where).items():
                sums[name] = sums[name] + term if name in sums else term
        self._step_optimizers(stage)
        with quick_attention(self.device, self.dtype), self._autocast():
            stage.after_step(batches)
        return {name: float(value) for name, value in sums.items()}

    def _backward(self, stage: Stage, batch: Any, count: int, last: bool, where: str) -> dict[str, Tensor]:
        """Adds the gradient of one of ``count`` micro-batches; returns its share of the terms and of their sum."""
        wrapped = stage.net if isinstance(stage.net, DistributedDataParallel) else None
        with (
            wrapped.no_sync() if wrapped and not last else nullcontext(),  # synchronises the sum of the micro-batches
            quick_attention(self.device, self.dtype),
        ):
            with self._autocast():
                terms = stage.losses(batch)
            total = reduce(torch.add, terms.values()) / count
            self._refuse_non_finite(stage, terms, total, where)
            self.scaler.scale(total).backward()
        return {name: term.detach() / count for name, term in (terms | {"loss": total * count}).items()}

    def _step_optimizers(self, stage: Stage) -> None:
        for optimizer in stage.optimizers:
            self.scaler.unscale_(optimizer)
        stage.before_step()
        if self.clip_grad:  # the main optimizer's alone: others, such as the centers', have gradients of another scale
            main_parameters = [p for group in stage.optimizers[0].param_groups for p in group["params"]]
            nn.utils.clip_grad_norm_(main_parameters, self.clip_grad)
        for optimizer in stage.optimizers:
            self.scaler.step(optimizer)
        self.scaler.update()

    def _refuse_non_finite(self, stage: Stage, terms: dict[str, Tensor], total: Tensor, where: str) -> None:
        if not torch.isfinite(total):
            values = ", ".join(f"{k} {float(v.detach()):.4g}" for k, v in terms.items())
            rate = stage.optimizers[0].param_groups[0]["lr"]
            raise UserError(
                f"the loss is not finite at {where} of stage {stage.name} ({values}; learning rate {rate:.3g}); lower "
                "SOLVER.BASE_LR, set SOLVER.CLIP_GRAD or SOLVER.PRECISION fp32"
            )

    def _take_average(self, stage: Stage, average: WeightAverage, epoch: int, batches: TrainingBatches) -> None:
        """Replaces the last weights by the averaged ones. If an evaluation is due, it evaluates the last ones first."""
        if stage.evaluates and self.evaluate and is_due(epoch, stage.periods.eval, final=False):
            self.evaluate_stage(stage, epoch, weights="last")
        log.info("the mean of %d states of the weights replaces the last one", average.count)
        average.apply()
        if average.bn_update:
            wrapped, stage.net = stage.net, stage.model  # the wrapper would broadcast the first process's statistics
            reestimate_batch_norm(stage.model, batches, lambda batch: stage.forward(batch.to(self.device)))
            stage.net = wrapped

    # ---------------------------------------------------------------- evaluation and files

    @python_random_kept()
    def evaluate_stage(self, stage: Stage, epoch: int, **more: str) -> None:
        """Evaluates a stage's network and adds an entry to the history, with ``more`` in it."""
        assert self.evaluate is not None, "evaluation was not asked for"
        model = stage.evaluated()
        share_buffers(model)  # batch norm's running statistics are the first process's, as in the saved files
        metrics = self.evaluate(model)
        entry = {"stage": stage.name, "epoch": epoch, **more, **metrics}
        self.progress.history.append(entry)
        values = {name: value for name, value in metrics.items() if isinstance(value, float)}
        self.loggers.write(stage.name, values, self.progress.step)
        if self.keep_best and metrics[self.keep_best] > self.progress.best:
            self.progress.best, self.progress.best_at = metrics[self.keep_best], f"{stage.name} epoch {epoch}"
            self._save_weights(stage, "best", ".pth")
        if self.watch is not None:
            self.watch(self.progress.history)

    def _save_weights(self, stage: Stage, name: str, ending: str) -> None:
        if is_main():
            for kind, state in stage.saved_states().items():
                held = self.slim(state) if self.slim is not None else state
                save_atomically(held, self.folder / f"{name}{kind}{ending}")

    def _save_inside(self, stage: Stage, meter: Meter, step: int, where: str) -> None:
        """Saves ``last`` inside an epoch if it is time to, and stops there if a signal asks for it."""
        due = self.save_every > 0 and time.monotonic() - self.saved_at >= 60 * self.save_every
        stop, due = any_rank(bool(self.signals.received), due, device=self.device)
        if not (stop or due):
            return
        inner = stage.epoch_state()
        if inner is not None:
            within = BegunEpoch(step, inner, meter.sums, meter.counts, meter.images, meter.seconds)
            self._save_last(stage, begun=True, within=within)
        elif stop:
            log.warning("stage %s cannot go on inside an epoch: what this epoch has trained is lost", stage.name)
        else:
            log.warning("SOLVER.SAVE_EVERY_MINUTES: stage %s cannot be saved inside an epoch", stage.name)
            self.saved_at = time.monotonic()
        if stop:
            self._stop(f"after {where}")

    def _stop_if_asked(self, where: str, finished: bool) -> None:
        """Ends the process if a signal asked for it and there is more to train."""
        if any_rank(bool(self.signals.received), device=self.device)[0] and not finished:
            self._stop(where)

    def _stop(self, where: str) -> None:
        self.loggers.flush()
        log.warning("%s: stopped %s; the same command goes on from there", self.signals.received or "a signal", where)
        raise SystemExit(CODE)

    def _save_last(self, stage: Stage, begun: bool, within: BegunEpoch | None = None) -> None:
        """Saves all that decides how the run continues; of a stage that has not begun, its weights alone.

        within: how far an epoch has come that is not at its end.
        """
        now = time.monotonic()
        self.progress.seconds += now - self.clock
        self.clock = now
        states = gather_objects(random_states())
        if is_main():
            state = {
                "fingerprint": self.fingerprint,
                "training_lists": self.training_lists,
                "progress": vars(self.progress),
                "modules": {name: module.state_dict() for name, module in stage.modules().items()},
                "random": states,
                "scaler": self.scaler.state_dict(),
            }
            if begun:
                state["optimizers"] = [optimizer.state_dict() for optimizer in stage.optimizers]
                state["stage"] = stage.state_dict()
                state["average"] = stage.average.state_dict() if stage.average else None
            if within is not None:
                state["within"] = vars(within)
            save_atomically(state, self.folder / LAST)
        barrier()
        self.saved_at = time.monotonic()

    @property
    def last(self) -> Path:
        """The file to resume from."""
        return self.folder / LAST if self.resume in ("auto", "never") else Path(self.resume)

    def _read_last(self, stages: list[Stage]) -> dict[str, Any] | None:
        path = self.last
        if (self.folder / LAST).is_dir():
            raise UserError(f"{self.folder / LAST}: a folder where the run's state is to be saved; rename it")
        visible = gather_objects(path.is_file())
        if any(visible) and not all(visible):
            raise UserError(f"{path}: some processes see this file and others do not; the nodes must share OUTPUT_DIR")
        if self.resume == "never" or (self.resume == "auto" and not path.exists()):
            return None
        if not path.is_file():
            what = "a folder; name the file 'last' in it" if path.is_dir() else "no such file"
            raise UserError(f"SOLVER.RESUME: expected 'auto', 'never' or a file, got {self.resume!r} ({what})")
        state = read_last(path)
        with blamed_on(path):
            require(isinstance(state["fingerprint"], dict), "fingerprint is not a section")
        saved = state["fingerprint"]
        compared = {*saved, *self.fingerprint} - ({*PLACES} if "training_lists" in state else set())
        differing = [k for k in sorted(compared, key=str) if saved.get(k) != self.fingerprint.get(k)]
        if differing:
            key = differing[0]
            raise UserError(
                f"{path} was written with another configuration ({key} {saved.get(key)!r}, now "
                f"{self.fingerprint.get(key)!r}); choose another OUTPUT_DIR, or SOLVER.RESUME never to start over"
            )
        with blamed_on(path):
            refuse_other_lists(state.get("training_lists"), self.training_lists, path)
            self.progress = progress_of(state, stages)
            check_random(state.get("random"))
        if self.progress.stage < len(stages):
            log.info("resuming from %s: stage %d, after epoch %d", path, self.progress.stage + 1, self.progress.epoch)
        return state

    def _restore(self, stage: Stage, state: dict[str, Any]) -> None:
        if "optimizers" in state:
            load_optimizers(stage, state["optimizers"])
            stage.load_state_dict(state["stage"])
            load_average(stage, state["average"])
            self._restore_random(state)
        if not load_scaler(self.scaler, state.get("scaler")):
            log.warning("the run goes on in fp16, which it did not use before: resuming is not exact")

    def _restore_random(self, state: dict[str, Any]) -> None:
        if len(state["random"]) == world_size():
            restore_random_states(state["random"][rank()])
        else:
            log.warning(
                "the number of processes has changed: random numbers start from the seed again, resuming is not exact"
            )


def is_due(epoch: int, period: int, final: bool) -> bool:
    """Returns whether something done every ``period`` epochs (0: in the final one alone) is to be done now."""
    return final or (period > 0 and epoch % period == 0)


def chunks(batches: Iterator, size: int) -> Iterator[list]:
    """Yields groups of ``size`` batches and leaves a smaller rest out."""
    while len(group := list(islice(batches, size))) == size:
        yield group
