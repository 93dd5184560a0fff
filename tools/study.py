"""Searches for settings with Optuna: ``python -m tools.study --config_file FILE --space FILE [--trials 20]``.

A trial is a training run with settings drawn from the space file, a YAML of dotted keys with choices or ranges. It is
judged by its mAP on identities held out of training (``DATASETS.VAL_SHARE``, required), never on a test set. A trial
that is below the median of the others at an evaluation (``SOLVER.EVAL_PERIOD``) ends there. The study is in ``--out``:
the same command continues it after a kill, inside the trial that was running, and several of them share the trials; on
machines without a common disk, with a database in ``--storage``.
"""

from __future__ import annotations

import os
import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from yacs.config import CfgNode

from configs import load_config
from processor import run
from processor.finished import FREE_KEYS
from tools.study_space import Space, read_space
from utils.commands import make_parser, run_command, runtime_mistake
from utils.errors import UserError, reason_of
from utils.folder_lock import sole_user
from utils.processes import host_name
from utils.trees import flat

if TYPE_CHECKING:  # optional
    import optuna

FIGURE = "mAP"
OWNER, REASON, SETTINGS, SURPLUS = "owner", "reason", "settings", "surplus"
"""Names of what is stored with a study and its trials."""
STARTUP = 5
"""Trials that are finished before any is ended early."""
HOPELESS = 3
"""Failed trials, without a finished one, that end the study: then its settings are at fault, not the draw."""
ALWAYS = ["SOLVER.EVAL_BEFORE", False, "SOLVER.CHECKPOINT_PERIOD", 0, "TEST.REPORT", False, "SOLVER.RESUME", "auto"]
"""Overrides of every trial: it keeps no more files than it needs."""


def import_optuna() -> Any:
    """Returns the library, its messages off. Raises ``UserError`` if it is not installed."""
    try:
        import optuna
    except ImportError:
        raise UserError("tools.study needs optuna: pip install -r requirements-extra.txt") from None
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
    return optuna


@dataclass(frozen=True)
class Plan:
    """What a study does. opts: the command line's overrides. trials: how many, in all. out: its folder."""

    config_file: str
    opts: list[Any]
    space: Space
    trials: int
    out: Path

    def overrides(self, settings: dict[str, Any], folder: Path) -> list[Any]:
        """Returns all overrides of the run of a trial."""
        drawn = [word for pair in settings.items() for word in pair]
        return [*self.opts, *ALWAYS, *drawn, "OUTPUT_DIR", str(folder)]

    def base(self) -> CfgNode:
        """Returns the configuration that the trials vary. Raises ``UserError`` unless it holds identities out."""
        cfg = load_config(self.config_file, self.opts)
        if not 0 < cfg.DATASETS.VAL_SHARE < 1:
            raise UserError(
                f"DATASETS.VAL_SHARE is {cfg.DATASETS.VAL_SHARE:g}: a study chooses settings on identities held out of "
                "training, never on the test set; set it to a share of them, such as DATASETS.VAL_SHARE 0.25"
            )
        return cfg

    def identity(self) -> dict[str, Any]:
        """Returns the settings that all processes of a study share, as JSON has them."""
        fixed = {k: v for k, v in flat(self.base()).items() if k not in FREE_KEYS and k not in self.space}
        return {k: _plain(v) for k, v in fixed.items()} | {f"space of {k}": str(v) for k, v in self.space.items()}


def _plain(value: Any) -> Any:
    return [_plain(v) for v in value] if isinstance(value, list | tuple) else value


def open_study(plan: Plan, storage: str) -> optuna.Study:
    """Opens the study of a plan, or makes it. storage: the URL of a database; '' for SQLite in the plan's folder.

    Raises ``UserError`` if the storage cannot be used or holds the study of other settings.
    """
    optuna, name = import_optuna(), plan.out.resolve().name
    plan.out.mkdir(parents=True, exist_ok=True)
    url = storage or f"sqlite:///{(plan.out / 'study.db').resolve()}"
    engine = {"connect_args": {"timeout": 120}} if url.startswith("sqlite") else {}
    try:
        database = optuna.storages.RDBStorage(url, engine_kwargs=engine)
        study = optuna.create_study(
            storage=database, study_name=name, direction="maximize", load_if_exists=True,
            pruner=optuna.pruners.MedianPruner(n_startup_trials=STARTUP),
        )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - of SQLAlchemy, its drivers and Optuna
        raise UserError(f"--storage: {storage or url}: cannot be used ({reason_of(error)})") from None
    ours, theirs = plan.identity(), study.user_attrs.get(SETTINGS)
    if theirs is None:
        study.set_user_attr(SETTINGS, ours)
    elif theirs != ours:
        key = min(k for k in {*ours, *theirs} if ours.get(k) != theirs.get(k))
        raise UserError(
            f"--out: {plan.out} holds a study of other settings ({key} {theirs.get(key)}, now {ours.get(key)}); choose "
            "another folder"
        )
    return study


# ---------------------------------------------------------------- one trial


class Trials:
    """The trials of a study, as they are handed out to this process."""

    def __init__(self, plan: Plan, study: optuna.Study):
        self.plan, self.study, self.optuna = plan, study, import_optuna()
        self.owner = f"{host_name()}:{plan.out.resolve()}"

    def counted(self) -> list[Any]:
        """Returns the stored trials that count, by number: all but those that came to be beyond the last one."""
        return [trial for trial in self.study.get_trials(deepcopy=False) if SURPLUS not in trial.user_attrs]

    def folder(self, number: int) -> Path:
        """Returns the OUTPUT_DIR of a trial."""
        return self.plan.out / "trials" / f"{number:03d}"

    @contextmanager
    def claimed(self, number: int) -> Iterator[bool]:
        """Gives whether the trial is this process's alone inside the context."""
        claim = sole_user(self.plan.out / "claims" / f"{number:03d}")
        try:
            claim.__enter__()
        except UserError:
            yield False
            return
        try:
            yield True
        finally:
            claim.__exit__(None, None, None)

    def next(self) -> Iterator[optuna.Trial]:
        """Yields the trials of this process, each while it is claimed: first those of processes that have ended."""
        running = self.optuna.trial.TrialState.RUNNING
        for stored in self.counted():
            if stored.state != running or stored.user_attrs.get(OWNER, self.owner) != self.owner:
                continue
            with self.claimed(stored.number) as ours:
                if ours and self.study.get_trials(deepcopy=False)[stored.number].state == running:
                    yield self.optuna.trial.Trial(self.study, stored._trial_id)
        while len(self.counted()) < self.plan.trials:
            trial = self.study.ask()
            with self.claimed(trial.number) as ours:
                if not ours:  # another process found it unclaimed a moment ago, and runs it
                    continue
                trial.set_user_attr(OWNER, self.owner)
                if trial.number not in [one.number for one in self.counted()[: self.plan.trials]]:
                    trial.set_user_attr(SURPLUS, True)  # another process asked at the same moment
                    self.study.tell(trial, state=self.optuna.trial.TrialState.FAIL)
                    return
                yield trial

    def settings(self, trial: optuna.Trial) -> dict[str, Any]:
        """Draws a trial's settings; drawn before a kill, they are the same again."""
        seed = (self.plan.base().SOLVER.SEED + 7919 * trial.number) % 2**32
        self.study.sampler = self.optuna.samplers.TPESampler(seed=seed, constant_liar=True)
        return {key: entry.suggest(trial, key) for key, entry in self.plan.space.items()}

    def run(self, trial: optuna.Trial) -> str:
        """Trains a trial, stores what became of it and returns that in words."""
        state, settings = self.optuna.trial.TrialState, self.settings(trial)
        words, folder = shown_settings(settings), self.folder(trial.number)
        reported = set(self.study.get_trials(deepcopy=False)[trial.number].intermediate_values)

        def watch(history: list[dict[str, Any]]) -> None:
            if FIGURE not in history[-1]:
                raise UserError(f"TEST.PROTOCOL: its evaluation has no {FIGURE} to choose by")
            if len(history) not in reported:
                trial.report(history[-1][FIGURE], len(history))
            if trial.should_prune():
                raise self.optuna.TrialPruned

        try:
            cfg = load_config(self.plan.config_file, self.plan.overrides(settings, folder))
            value = run.train(cfg, self.plan.config_file, watch=watch, held_out_only=True)["mean"][FIGURE]
        except self.optuna.TrialPruned:
            self.study.tell(trial, state=state.PRUNED)
            self.tidy(folder)
            return f"ended early, {words}"
        except (UserError, MemoryError, RuntimeError) as error:
            reason = str(error) if isinstance(error, UserError) else runtime_mistake(str(error) or "out of memory")
            if not reason:
                raise
            trial.set_user_attr(REASON, reason)
            self.study.tell(trial, state=state.FAIL)
            return f"failed: {reason}"
        self.study.tell(trial, value)
        self.tidy(folder)
        return f"{FIGURE} {100 * value:.1f}, {words}"

    def tidy(self, folder: Path) -> None:
        """Removes the weights of a trial; its log, figures and settings stay."""
        for path in (*folder.glob("*.pth"), folder / "last"):
            path.unlink(missing_ok=True)

    def refuse_hopeless(self) -> None:
        """Raises ``UserError`` if the first trials all failed."""
        states = self.optuna.trial.TrialState
        ended = [one for one in self.counted() if one.state.is_finished()]
        if len(ended) >= min(HOPELESS, self.plan.trials) and all(one.state == states.FAIL for one in ended):
            reason = ended[-1].user_attrs.get(REASON, "unknown")
            raise UserError(f"all {len(ended)} trials failed, the last one with: {reason}")


def shown_settings(settings: dict[str, Any]) -> str:
    """Returns settings as KEY VALUE words of a command line."""
    words = (word for pair in settings.items() for word in pair)
    return shlex.join(f"{word:.4g}" if isinstance(word, float) else str(word) for word in words)


# ---------------------------------------------------------------- the study


def run_study(plan: Plan, storage: str = "", say: Callable[[str], object] = print) -> optuna.Study:
    """Runs trials until the study has as many as the plan asks for, or others run the rest; returns the study.

    say: takes the lines for the user. Raises ``UserError`` for mistakes in the settings, before or in the first trials.
    """
    plan.base()
    trials = Trials(plan, open_study(plan, storage))
    for trial in trials.next():
        say(f"trial {trial.number + 1} of {plan.trials}: {trials.run(trial)}")
        trials.refuse_hopeless()
    return trials.study


def result_lines(plan: Plan, study: optuna.Study) -> list[str]:
    """Returns what is printed of a study: how its trials ended, the best settings, and the command that trains them."""
    states = import_optuna().trial.TrialState
    stored = [one for one in study.get_trials(deepcopy=False) if SURPLUS not in one.user_attrs]
    count = {state: sum(one.state == state for one in stored) for state in states}
    line = (
        f"{len(stored)} trials: {count[states.COMPLETE]} finished, {count[states.PRUNED]} ended early, "
        f"{count[states.FAIL]} failed"
    )
    running = f", {count[states.RUNNING]} running in other processes" if count[states.RUNNING] else ""
    if not count[states.COMPLETE]:
        return [line + running]
    best = study.best_trial
    drawn = {key: entry.suggest(FrozenValues(best.params), key) for key, entry in plan.space.items()}
    given = dict(zip(plan.opts[::2], plan.opts[1::2], strict=True))
    settings = given | drawn | {"DATASETS.VAL_SHARE": 0, "OUTPUT_DIR": plan.out / "best"}
    words = ["python", "train.py", "--config_file", plan.config_file, *(word for kv in settings.items() for word in kv)]
    return [
        line + running,
        f"best: trial {best.number + 1}, {FIGURE} {100 * (best.value or 0):.1f} on identities held out of training",
        *(f"  {key} {value}" for key, value in drawn.items()),
        "trained with them on all training identities, and then tested, by:",
        "  " + shlex.join(map(str, words)),
    ]


class FrozenValues:
    """Stands for a trial whose values are known."""

    def __init__(self, params: dict[str, Any]):
        self.params = params

    def suggest_categorical(self, name: str, choices: Any) -> Any:
        """Returns the known value."""
        return self.params[name]

    def suggest_float(self, name: str, low: float, high: float, *, log: bool = False) -> float:
        """Returns the known value."""
        return self.params[name]

    def suggest_int(self, name: str, low: int, high: int, *, log: bool = False) -> int:
        """Returns the known value."""
        return self.params[name]


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    parser = make_parser(
        "python -m tools.study", __doc__,
        "--config_file configs/quickstart.yml --space space.yml --trials 40 DATASETS.VAL_SHARE 0.25", settings=True,
    )  # fmt: skip
    parser.add_argument("--space", type=Path, required=True, metavar="FILE", help="YAML of keys with choices or ranges")
    parser.add_argument("--trials", type=int, default=20, metavar="N", help="trials in all (default: 20)")
    parser.add_argument("--out", type=Path, metavar="DIR", help="the study's folder (default: below runs/)")
    parser.add_argument("--storage", default="", metavar="URL", help="database of the study (default: SQLite in DIR)")
    args = parser.parse_args(argv)
    if args.trials < 1:
        raise UserError(f"--trials: must be at least 1, got {args.trials}")
    if int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise UserError("tools.study runs its trials in one process each; start it several times instead of torchrun")
    out = args.out or Path("runs") / f"study_{Path(args.config_file).stem}_{args.space.stem}"
    plan = Plan(args.config_file, args.opts, read_space(args.space), args.trials, out)
    study = run_study(plan, args.storage)
    print("\n".join(result_lines(plan, study)))


if __name__ == "__main__":
    run_command(main)
