"""The loggers of scalars: what they hold after a run, after a kill, and what their failures cost."""

from __future__ import annotations

import csv

import pytest
import torch

from processor import run
from processor.loggers import make_loggers as making
from processor.loggers.base import Loggers
from processor.loggers.csv_file import COLUMNS, CsvFile, rows_before
from processor.loggers.make_loggers import LOGGERS, make_loggers
from tests.runs import Killed, kill_at
from tests.tiny import config
from tools.report import scalars
from utils.errors import UserError

ALL = {"SOLVER__LOGGERS": ["tensorboard", "csv"], "SOLVER__LOG_PERIOD": 1}
TIMED = "images_per_s"


def table(folder) -> list[tuple[int, str, str, float]]:
    """The rows of ``scalars.csv``, without speeds."""
    with open(folder / "scalars.csv", newline="") as handle:
        head, *rows = csv.reader(handle)
    assert tuple(head) == COLUMNS
    return [(int(step), stage, name, float(value)) for step, stage, name, value in rows if name != TIMED]


@pytest.fixture(scope="module")
def whole(market, tmp_path_factory):
    """A run of two epochs of four steps, with TensorBoard and the table."""
    folder = tmp_path_factory.mktemp("runs") / "whole"
    run.train(config(market, folder, **ALL))
    return folder


def test_a_run_writes_every_loss_rate_and_figure(whole):
    rows = table(whole)
    assert {row[1] for row in rows} == {"supervised"}
    losses = [row for row in rows if row[2] == "loss"]
    assert [row[0] for row in losses] == list(range(1, len(losses) + 1)) and len(losses) >= 4
    assert len([row for row in rows if row[2] == "mAP"]) == 2
    assert {"loss", "lr", "mAP", "Rank-1"} <= {row[2] for row in rows}
    steps, values = scalars(whole / "tensorboard")["supervised/loss"]
    assert steps.tolist() == [row[0] for row in losses]
    assert values == pytest.approx([row[3] for row in losses])


def test_a_killed_run_has_each_row_once(market, whole, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at(patch, 4)  # inside an epoch, behind rows that are written again
        with pytest.raises(Killed):
            run.train(config(market, tmp_path, **ALL))
    before = table(tmp_path)
    assert before[-1][0] == 3
    with open(tmp_path / "scalars.csv", "a") as handle:
        handle.write("2,supervised,lo")  # as a kill may leave it
    run.train(config(market, tmp_path, **ALL))
    assert table(tmp_path) == table(whole)


def test_loggers_may_differ_between_a_run_and_its_continuation(market, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(Killed):
            run.train(config(market, tmp_path))
    run.train(config(market, tmp_path, SOLVER__LOGGERS="csv"))
    assert min(row[0] for row in table(tmp_path)) > 2


def test_by_default_there_is_tensorboard_alone(market, tmp_path):
    cfg = config(market, tmp_path)
    assert cfg.SOLVER.LOGGERS == ("tensorboard",)
    with make_loggers(cfg, tmp_path) as loggers:
        assert list(loggers.loggers) == ["tensorboard"]
    with make_loggers(config(market, tmp_path, SOLVER__LOGGERS="()"), tmp_path) as loggers:
        assert not loggers.loggers


def test_rows_that_are_no_rows_are_left_out(tmp_path):
    path = tmp_path / "scalars.csv"
    path.write_bytes(
        b"step,stage,name,value\n1,a,loss,0.5\n2,a,loss\n\n-1,a,b,1\n9999999999999999999,a,b,1\n\0\xff,a\n"
        b'1,"a,b",loss,2\n' + b"3" * 5000 + b",a,b,1\n2,a,loss,0.25\n3,a,loss,1\n2,a,lo"
    )
    rows = [["1", "a", "loss", "0.5"], ["1", "a,b", "loss", "2"], ["2", "a", "loss", "0.25"]]
    assert list(rows_before(path, 3)) == rows
    assert list(rows_before(tmp_path / "nothing", 3)) == []
    CsvFile(tmp_path, {}, resumed=True).write("a", {"loss": 7.0}, 2)
    assert table(tmp_path) == [(1, "a", "loss", 0.5), (1, "a,b", "loss", 2.0), (2, "a", "loss", 7.0)]


class Fails:
    """A logger that fails after some calls, as a server that goes away."""

    def __init__(self, folder=None, settings=None, resumed=False, calls: int = 2):
        self.left, self.written, self.closed = calls, [], None

    def write(self, stage, values, step):
        self.left -= 1
        if self.left < 0:
            raise ConnectionError("the server\nis gone")
        self.written.append(step)

    def flush(self):
        pass

    def close(self, finished):
        self.closed = finished


def test_a_logger_that_fails_in_the_middle_costs_one_warning_and_nothing_else(market, whole, tmp_path, monkeypatch):
    monkeypatch.setitem(LOGGERS, "mlflow", Fails)
    monkeypatch.setattr(making, "PACKAGES", ())
    run.train(config(market, tmp_path, **ALL | {"SOLVER__LOGGERS": ["mlflow", "csv"]}))
    lines = (tmp_path / "log.txt").read_text().splitlines()
    warnings = [line.split(" ", 2)[2] for line in lines if "SOLVER.LOGGERS" in line]
    assert warnings == [
        "SOLVER.LOGGERS: mlflow failed (ConnectionError: the server is gone) and is used no more; training goes on"
    ]
    assert table(tmp_path) == table(whole)
    ours, theirs = (torch.load(folder / "last", weights_only=True)["modules"] for folder in (tmp_path, whole))
    assert all(torch.equal(ours["model"][name], value) for name, value in theirs["model"].items())


def test_loggers_are_closed_with_how_the_run_ended():
    for kind in (None, SystemExit, KeyboardInterrupt):
        one, other = Fails(), Fails(calls=0)
        try:
            with Loggers({"one": one, "other": other}) as loggers:
                loggers.write("a", {"loss": 1.0}, 1)
                if kind:
                    raise kind
        except BaseException as error:  # noqa: BLE001
            assert type(error) is kind
        assert one.closed is (kind is None) and other.closed is None and one.written == [1]


@pytest.mark.parametrize("name", ["wandb", "mlflow"])
def test_a_logger_that_is_not_installed_is_refused_before_any_work(market, tmp_path, monkeypatch, name):
    monkeypatch.setattr(making, "find_spec", lambda package: None)
    line = f"^SOLVER.LOGGERS: {name} is not installed: pip install -r requirements-extra.txt$"
    with pytest.raises(UserError, match=line):
        run.train(config(market, tmp_path, SOLVER__LOGGERS=[name]))
    assert not (tmp_path / "tensorboard").exists()


def test_a_logger_that_does_not_start_is_one_line_and_the_others_are_closed(market, tmp_path, monkeypatch):
    def refuses(*_):
        raise ValueError("api_key not configured\n(no-tty). Run wandb login")

    started = Fails()
    monkeypatch.setitem(LOGGERS, "csv", lambda *_: started)
    monkeypatch.setitem(LOGGERS, "wandb", refuses)
    with pytest.raises(UserError, match=r"^SOLVER.LOGGERS: wandb does not start \(ValueError: api_key not configured"):
        make_loggers(config(market, tmp_path, SOLVER__LOGGERS=["csv", "wandb"]), tmp_path)
    assert started.closed is False


# ---------------------------------------------------------------- the libraries, without a network


@pytest.mark.slow
def test_wandb_works_offline_and_goes_on_with_its_run(market, tmp_path, monkeypatch):
    wandb = pytest.importorskip("wandb", reason="requirements-dev.txt has it")
    monkeypatch.setenv("WANDB_MODE", "offline")
    cfg = config(market, tmp_path, SOLVER__LOGGERS="wandb")
    for resumed in (False, True):
        if resumed:
            (tmp_path / "last").touch()
        with make_loggers(cfg, tmp_path) as loggers:
            loggers.write("supervised", {"loss": 1.5, "Rank-1": 0.25}, 7)
            logger = loggers.loggers["wandb"]
            assert logger.run.config["SOLVER.SEED"] == cfg.SOLVER.SEED and logger.run.settings.mode == "offline"
            assert logger.run.summary["supervised/loss"] == 1.5
    stored = list((tmp_path / "wandb").glob("offline-run-*/*.wandb"))
    names = {path.parent.name.rpartition("-")[2] for path in stored}
    assert names == {(tmp_path / "wandb_run_id").read_text().strip()}
    assert any(b"supervised/loss" in path.read_bytes() for path in stored)
    assert wandb.run is None


@pytest.fixture
def mlflow_store(tmp_path, monkeypatch):
    """MLflow's client on a store in a file, which is its own default."""
    pytest.importorskip("mlflow", reason="requirements-dev.txt has it")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "5")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "reid")
    from mlflow import MlflowClient

    return MlflowClient()


@pytest.mark.slow
def test_mlflow_works_on_a_store_in_a_file_and_goes_on_with_its_run(market, tmp_path, mlflow_store):
    folder = tmp_path / "run"
    folder.mkdir()
    cfg = config(market, folder, SOLVER__LOGGERS="mlflow")
    for step in (3, 7):
        with make_loggers(cfg, folder) as loggers:
            loggers.write("supervised", {"loss": 1.5 / step, "Recall@1": 0.25}, step)
        (folder / "last").touch()
    run_id = (folder / "mlflow_run_id").read_text().strip()
    stored = mlflow_store.get_run(run_id)
    assert stored.info.status == "FINISHED" and stored.info.run_name == "run"
    assert stored.data.params["SOLVER.SEED"] == str(cfg.SOLVER.SEED)
    assert stored.data.metrics["supervised/Recall_1"] == 0.25
    history = mlflow_store.get_metric_history(run_id, "supervised/loss")
    assert [(point.step, point.value) for point in history] == [(3, 0.5), (7, 1.5 / 7)]
    with make_loggers(cfg, folder) as loggers:  # its server goes away in the middle of a run
        loggers.loggers["mlflow"].client = type(mlflow_store)("http://127.0.0.1:9")
        loggers.write("supervised", {"loss": 1.0}, 9)
        assert not loggers.loggers
