"""A finished run read back: which evaluation counts, and one line for every damaged file."""

from __future__ import annotations

import json
import os
import shutil

import numpy as np
import pytest

from processor import run
from processor.finished import FinishedRun
from processor.query_files import Queries, Ranked
from tests.runs import call
from tests.tiny import config, options, write_market
from utils.errors import UserError


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """A data root, and a folder in which training and then a test have finished, with other figures."""
    root, folder = write_market(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("runs") / "run"
    assert call("train", options(root, folder, TEST__REPORT=True)) == 0
    changes = {"TEST__WEIGHT": folder / "transformer_1.pth", "TEST__FLIP": True, "TEST__REPORT": True}
    assert call("test", options(root, folder, **changes)) == 0
    return root, folder


@pytest.fixture
def copy(both, tmp_path):
    return shutil.copytree(both[1], tmp_path / "copy")


def test_training_and_a_test_in_one_folder_keep_a_file_each(both):
    finished = FinishedRun.load(both[1])
    assert finished.training is not None and finished.test is not None
    assert finished.training.method == "supervised" and len(finished.training.history) == 2
    assert finished.test.weight.endswith("transformer_1.pth") and finished.training.weight == ""
    for metrics in (finished.training, finished.test):
        assert metrics.results["market1501"].keys() >= {"mAP", "Rank-1", "queries"}
        assert metrics.mean == {k: pytest.approx(v) for k, v in metrics.results["market1501"].items()}
        assert metrics.commit and metrics.environment["torch"]
    assert finished.seed == 1234 and finished.settings["TEST.FLIP"] is True and "TEST.WEIGHT" not in finished.settings


def test_the_last_evaluation_is_the_one_that_the_queries_are_of(both, tmp_path):
    root, folder = both
    finished = FinishedRun.load(folder)
    assert finished.tested and finished.evaluation is finished.test
    assert finished.queries("market1501").scores(finished.evaluation.results["market1501"]).keys() >= {"mAP", "Rank-1"}
    assert finished.config_text()[0] == "test_config.yml" and "FLIP: true" in finished.config_text()[1]
    again = shutil.copytree(folder, tmp_path / "again")
    run.train(config(root, again, SOLVER__RESUME="never", SOLVER__MAX_EPOCHS=3, SOLVER__BASE_LR=0.05))
    finished = FinishedRun.load(again)
    assert not finished.tested and finished.evaluation is finished.training
    assert finished.config_text()[0] == "config.yml" and finished.ranked("market1501") is None
    for name in ("metrics.json", "test_metrics.json"):  # neither file depends on the time at which it was written
        os.utime(again / name, (0, 0))
    assert not FinishedRun.load(again).tested


def test_a_folder_without_a_finished_run_is_refused(tmp_path):
    with pytest.raises(UserError, match="no metrics.json or test_metrics.json of a finished run; train or test there"):
        FinishedRun.load(tmp_path)


METRICS = {
    "cut off": lambda text: text[: len(text) // 2],
    "a list": lambda text: "[1, 2]",
    "no results": lambda text: json.dumps({"history": []}),
    "results of another type": lambda text: json.dumps({"results": [0.5]}),
    "a share above 1": lambda text: json.dumps({"results": {"a": {"mAP": 50.2}}}),
    "a negative count": lambda text: json.dumps({"results": {"a": {"queries": -1}}}),
    "not a number": lambda text: json.dumps({"results": {"a": {"mAP": float("nan")}}}),
    "a word": lambda text: json.dumps({"results": {"a": {"mAP": "0.5"}}}),
    "history of numbers": lambda text: json.dumps({"results": {}, "history": [1, 2]}),
    "seed of another type": lambda text: json.dumps({"results": {}, "seed": "one"}),
}


@pytest.mark.parametrize("damage", METRICS)
def test_damaged_metrics_are_one_line_that_names_the_file(copy, damage):
    path = copy / "metrics.json"
    path.write_text(METRICS[damage](path.read_text()))
    with pytest.raises(UserError, match=r"metrics\.json: damaged.*remove it, and train or test again") as error:
        FinishedRun.load(copy)
    assert "\n" not in str(error.value)


def test_a_run_that_finds_its_metrics_damaged_says_so(both, copy):
    (copy / "metrics.json").write_text("{")
    with pytest.raises(UserError, match=r"metrics\.json: damaged"):
        run.train(config(both[0], copy, TEST__REPORT=True))


def rows(*lines: str) -> str:
    return "\n".join(["path,pid,camid,AP,INP,first_match_rank,valid", *lines]) + "\n"


@pytest.mark.parametrize(
    "text",
    [
        "", "path,pid\n", rows(), rows("a.jpg,1,2,0.5,0.5"), rows("a.jpg,1,2,1.5,0.5,1,1"), rows("a.jpg,1,2,0.5,x,1,1"),
        rows("a.jpg,1,2,0.5,0.5,0,1"), rows("a.jpg,1,2,0.5,0.5,1,2"), rows("a.jpg,1,2,,,3,0"), rows('"a.jpg,1,2'),
    ],
)  # fmt: skip
def test_a_damaged_table_of_queries_is_one_line(tmp_path, text):
    (tmp_path / "per_query.csv").write_text(text)
    with pytest.raises(UserError, match=r"per_query\.csv: damaged .*test the model again"):
        Queries.load(tmp_path / "per_query.csv")
    with pytest.raises(UserError, match=r"absent\.csv: missing"):
        Queries.load(tmp_path / "absent.csv")


def test_identities_and_cameras_may_be_text(tmp_path):
    (tmp_path / "q.csv").write_text(rows("a.jpg,1,door west,0.5,0.5,2,1", "b.jpg,2,7,,,,0"))
    queries = Queries.load(tmp_path / "q.csv")
    assert queries.pids.tolist() == [1, 2] and queries.camids.tolist() == ["door west", "7"]
    assert queries.first.tolist() == [2, 0] and queries.valid.tolist() == [True, False]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("lists", lambda a: a + 1000), ("judged", lambda a: a[:, :1]), ("judged", lambda a: a + 3),
        ("distances", lambda a: np.full_like(a, np.nan)), ("pids", lambda a: a[:-1]), ("cmc", lambda a: a + 1),
        ("boxes", lambda a: a[:, :2]), ("camera_map", lambda a: a[:, :1]), ("map_xy", lambda a: a * 2 - 1),
        ("q_boxes", lambda a: a.astype("S4")), ("lists", lambda a: a[0]),
    ],
)  # fmt: skip
def test_damaged_rankings_are_one_line(copy, name, change):
    path = copy / "ranked.npz"
    ranked = Ranked.load(path)
    with np.load(path) as stored:
        arrays = dict(stored)
    np.savez(path, **arrays | {name: change(arrays[name])})
    with pytest.raises(UserError, match=r"ranked\.npz: damaged or of another version"):
        FinishedRun.load(copy).ranked("market1501")
    assert len(ranked.paths) > 4
    path.write_bytes(b"PK")
    with pytest.raises(UserError, match="not an archive of arrays; test the model again") as error:
        FinishedRun.load(copy).ranked("market1501")
    assert "pickle" not in str(error.value)


def test_rankings_of_other_queries_and_damaged_settings_are_told(copy):
    lines = (copy / "per_query.csv").read_text().splitlines()
    (copy / "per_query.csv").write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match=r"ranked\.npz: holds 8 queries and per_query\.csv 7"):
        FinishedRun.load(copy).ranked("market1501")
    (copy / "config.yml").write_text("SOLVER: [\n")
    with pytest.raises(UserError, match=r"config\.yml: damaged"):
        _ = FinishedRun.load(copy).settings
