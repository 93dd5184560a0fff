"""``tools.study``: kills cost nothing, the test set is never looked at, and mistakes are one line."""

from __future__ import annotations

import shlex
import sys

import pytest

from processor import run
from tests.runs import Killed, call, kill_at
from tests.tiny import options
from tools import study
from tools.study_space import Choices, Range, read_space
from utils.errors import UserError

optuna = pytest.importorskip("optuna", reason="requirements-dev.txt has it")

SPACE = "SOLVER.BASE_LR: {low: 1.0e-4, high: 1.0e-2, log: true}\nSOLVER.MAX_EPOCHS: [1, 2]\n"


@pytest.fixture
def space(tmp_path):
    (tmp_path / "space.yml").write_text(SPACE)
    return tmp_path / "space.yml"


def plan_of(root, out, space, trials=3, **changes) -> study.Plan:
    words = options(root, out, DATASETS__VAL_SHARE=0.5, **changes)
    return study.Plan("", words, read_space(space), trials, out)


def stored(ran) -> list[tuple]:
    return [(t.number, t.state.name, t.params, t.value) for t in ran.get_trials()]


def test_a_killed_study_goes_on_inside_its_trial_and_ends_as_one_that_was_not(market, tmp_path, space, monkeypatch):
    whole = study.run_study(plan_of(market, tmp_path / "a" / "same", space, trials=2))
    evaluated, real = [], run.evaluate

    def evaluate(model, tests, *rest):
        evaluated.extend(test.name for test in tests)
        return real(model, tests, *rest)

    monkeypatch.setattr(run, "evaluate", evaluate)
    plan = plan_of(market, tmp_path / "b" / "same", space, trials=2)
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            study.run_study(plan)
    states = [t.state.name for t in study.open_study(plan, "").get_trials()]
    assert states.count("RUNNING") == 1 and len(states) <= 2
    again = study.run_study(plan)
    assert stored(again) == stored(whole) and len(stored(again)) == 2
    assert set(evaluated) == {"validation"}
    assert stored(study.run_study(plan)) == stored(again)  # nothing is left to do
    assert not [*tmp_path.rglob("*.pth"), *tmp_path.rglob("last")]
    said = study.result_lines(plan, again)
    assert "2 trials: 2 finished" in said[0]
    words = shlex.split(said[-1])
    assert words[words.index("DATASETS.VAL_SHARE") + 1] == "0" and "python train.py" in said[-1]
    assert call("train", words[4:]) == 0


def test_a_trial_below_the_median_ends_early_and_a_failed_one_is_named(market, tmp_path, space, monkeypatch):
    (tmp_path / "space.yml").write_text("SOLVER.IMS_PER_BATCH: [4, 64]\n")
    plan, said = plan_of(market, tmp_path / "out", space, trials=4), []
    monkeypatch.setattr(optuna.Trial, "should_prune", lambda self: self.number == 3)
    monkeypatch.setattr(Choices, "suggest", lambda self, trial, key: 64 if trial.number == 1 else 4)
    ran = study.run_study(plan, say=said.append)
    assert [t.state.name for t in ran.get_trials()] == ["COMPLETE", "FAIL", "COMPLETE", "PRUNED"]
    assert "trial 2 of 4: failed: SOLVER.IMS_PER_BATCH" in said[1] and "trial 4 of 4: ended early" in said[3]
    with pytest.raises(UserError, match="holds a study of other settings"):
        study.run_study(plan_of(market, tmp_path / "out", space, SOLVER__MARGIN=0.5))


def test_two_processes_that_ask_at_once_do_not_run_more_than_there_are(market, tmp_path, space, monkeypatch):
    plan = plan_of(market, tmp_path / "out", space, trials=1)
    one, two = (study.Trials(plan, study.open_study(plan, "")) for _ in range(2))
    first, waiting = one.next(), two.next()
    assert next(first).number == 0
    early = [[], []]  # as if it had counted before the other asked
    monkeypatch.setattr(two, "counted", lambda: early.pop() if early else study.Trials.counted(two))
    assert list(waiting) == []
    assert [study.SURPLUS in t.user_attrs for t in one.study.get_trials()] == [False, True]


def test_a_study_whose_trials_all_fail_says_why(market, tmp_path, space):
    with pytest.raises(UserError, match="all 3 trials failed, the last one with: SOLVER.IMS_PER_BATCH"):
        study.run_study(plan_of(market, tmp_path / "out", space, trials=9, SOLVER__IMS_PER_BATCH=64))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("SOLVER.BASE_LRR: [1]", "SOLVER.BASE_LRR: unknown key, did you mean 'SOLVER.BASE_LR'"),
        ("SOLVER: {BASE_LR: [1]}", "SOLVER: is a section"),
        ("MODEL.DROP_PATH: [0.1, 1.5]", "MODEL.DROP_PATH: 1.5 must be at most 1"),
        ("MODEL.DROP_PATH: {low: -1, high: 0.5}", "MODEL.DROP_PATH: -1.0 must be at least 0"),
        ("MODEL.POOLING: [gen]", "MODEL.POOLING: unknown 'gen', did you mean 'gem'"),
        ("MODEL.JPM: {low: 0, high: 1}", "does not take one number"),
        ("SOLVER.BASE_LR: 0.1", "SOLVER.BASE_LR: expected a list of choices, or a range"),
        ("SOLVER.BASE_LR: {low: 0.1, hi: 1}", "SOLVER.BASE_LR: expected a list of choices, or a range"),
        ("SOLVER.BASE_LR: {low: 0.1, high: 0.1}", "low 0.1 must be below high 0.1"),
        ("SOLVER.BASE_LR: {low: 0, high: 0.1, log: true}", "low 0.0 must be above 0"),
        ("SOLVER.BASE_LR: {low: 0.1, high: 1, log: 3}", "log must be true or false"),
        ("SOLVER.SEED: [1, 2]", "a study cannot vary it: the identities held out"),
        ("DATASETS.VAL_SHARE: [0.1, 0.2]", "a study cannot vary it: all trials are compared"),
        ("DINO.PATCH_SIZE: [8]", "varying it changes nothing"),
        ("- SOLVER.BASE_LR", "expected dotted keys"),
        ("a: [", "not valid YAML"),
    ],
)
def test_a_space_that_is_not_one_is_refused(text, words, tmp_path):
    (tmp_path / "space.yml").write_text(text)
    with pytest.raises(UserError) as error:
        read_space(tmp_path / "space.yml")
    assert words in str(error.value) and "\n" not in str(error.value)


def test_a_space_reads_choices_of_any_kind_and_ranges(tmp_path):
    (tmp_path / "space.yml").write_text(
        "INPUT.SIZE_TRAIN: [[64, 32], [128, 64]]\nSOLVER.MAX_EPOCHS: {low: 1, high: 3}\nMODEL.JPM: [true, false]\n"
        "SOLVER.BASE_LR: {low: '1e-4', high: 0.1, log: true}\n"
    )
    read = read_space(tmp_path / "space.yml")
    assert read["SOLVER.MAX_EPOCHS"] == Range(1, 3, False, True) and read["MODEL.JPM"] == Choices((True, False))
    assert read["SOLVER.BASE_LR"] == Range(1e-4, 0.1, True, False)
    trial = optuna.create_study().ask()
    assert read["INPUT.SIZE_TRAIN"].suggest(trial, "INPUT.SIZE_TRAIN") in ([64, 32], [128, 64])


def test_mistakes_of_the_command_are_one_line(market, tmp_path, space, monkeypatch):
    words = ["--space", str(space), "--out", str(tmp_path / "out")]
    for more, match in (
        ([], "DATASETS.VAL_SHARE is 0: a study chooses settings on identities held out"),
        (["--trials", "0"], "--trials: must be at least 1"),
        (["--space", str(tmp_path / "none.yml")], "none.yml: no such file"),
        (["--storage", "nosql://x", "DATASETS.VAL_SHARE", "0.5"], "--storage: nosql://x: cannot be used"),
    ):
        with pytest.raises(UserError, match=match):
            study.main([*words, *more])
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(UserError, match="needs optuna: pip install -r requirements-extra.txt"):
        study.main([*words, "DATASETS.VAL_SHARE", "0.5"])
