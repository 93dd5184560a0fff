"""The command ``tools.label``: tables, other tools' labels, training on what is decided, and what it refuses."""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.fuzz.model_files import calibration
from tests.tiny import config
from tests.tools.labelling.sessions import settings_of, write_crops
from tools import label
from tools.labelling import neighbours
from tools.labelling.journal import Journal
from utils.errors import UserError
from utils.scoring.calibration import Probability


@pytest.fixture(scope="module")
def folder(tmp_path_factory, plain):
    """Crops, one of which cannot be read, and the table of a first start."""
    folder = tmp_path_factory.mktemp("label")
    (write_crops(folder / "crops") / "broken.png").write_bytes(b"no image")
    label.main(words(folder, plain))
    return folder


def words(folder: Path, plain, *more: str, out: str = "labels.csv") -> list[str]:
    images = [] if "--labels" in more else ["--images", str(folder / "crops")]
    return [*images, "--out", str(folder / out), *(["--table"] if "--write" not in more else []), *more,
            *settings_of(plain.TEST.WEIGHT)]  # fmt: skip


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as handle:
        return list(csv.DictReader(handle))


def decide(folder: Path, *contents: dict) -> None:
    names = sorted(path.name for path in (folder / "crops").iterdir())
    journal = Journal.open(folder / "labels.work" / "journal.jsonl", names)
    for content in contents:
        journal.append(content)
    journal.close()


def test_the_first_start_writes_a_table_and_counts_what_cannot_be_read(folder, plain, capsys):
    label.main(words(folder, plain))
    out = capsys.readouterr().out
    assert "20 images, " in out and "1 cannot be read and are left out; 0 decisions about 0 images" in out
    rows = rows_of(folder / "labels.csv")
    assert [row["path"] for row in rows] == [f"crops/{i}_{j}.png" for i in range(5) for j in range(4)]
    assert {row["split"] for row in rows} == {"train"} and {row["decided"] for row in rows} == {"no"}


def test_labels_of_another_tool_come_in_and_go_out(folder, plain, tmp_path, capsys):
    for name in ("crops", "labels.work"):
        shutil.copytree(folder / name, tmp_path / name)
    labels = {f"{i}_{j}": "odd" if i % 2 else "even" for i in range(5) for j in range(3)} | {"elsewhere": "x"}
    (tmp_path / "labels.json").write_text(json.dumps({"labels": labels}))
    label.main(words(tmp_path, plain, "--read", str(tmp_path / "labels.json"), "--only_decided"))
    assert "15 images have names, 15 of them new; 1 are not here" in capsys.readouterr().out
    pids = {Path(row["path"]).stem: row["pid"] for row in rows_of(tmp_path / "labels.csv")}
    assert {name: pid for name, pid in pids.items() if pid} == {n: v for n, v in labels.items() if n != "elsewhere"}
    label.main(words(tmp_path, plain, "--read", str(tmp_path / "labels.json")))
    assert "15 images have names, 0 of them new" in capsys.readouterr().out
    label.main(words(tmp_path, plain, "--write", f"fiftyone:{tmp_path / 'f.json'}", "--only_decided"))
    content = json.loads((tmp_path / "f.json").read_text())
    assert content["classes"] == ["even", "odd"] and len(content["labels"]) == 15
    with pytest.raises(UserError, match="none of its 1 labels is of an image here"):
        (tmp_path / "other.json").write_text(json.dumps({"labels": {"elsewhere": "x"}}))
        label.main(words(tmp_path, plain, "--read", str(tmp_path / "other.json")))


def test_retraining_starts_from_what_is_decided_and_goes_on_from_the_same_journal(folder, plain, tmp_path, capsys):
    for name in ("crops", "labels.work"):
        shutil.copytree(folder / name, tmp_path / name)
    small = config(tmp_path, tmp_path, MODEL__NAME="resnet10", SOLVER__MAX_EPOCHS=1, SOLVER__EVAL_PERIOD=1)
    (tmp_path / "fine.yml").write_text(small.dump())
    more = ["--retrain", str(tmp_path / "fine.yml")]
    with pytest.raises(UserError, match="--retrain: 0 identities of two or more images are decided, and 4 are needed"):
        label.main(words(tmp_path, plain, *more))
    fours = [list(range(4 * i, 4 * i + 4)) for i in range(5)]
    decide(tmp_path, *({"same": [four], "name": [[four[0], f"person {i}"]]} for i, four in enumerate(fours)))
    label.main(words(tmp_path, plain, *more))
    out = capsys.readouterr().out
    assert "trained on 5 identities" in out and "5 decisions about 20 images" in out
    table = rows_of(tmp_path / "labels.work" / "retrained-5" / "dataset.csv")
    assert len(table) == 20 and {row["split"] for row in table} == {"train", "test"}
    pids = [row["pid"] for row in rows_of(tmp_path / "labels.csv")]
    assert all((pids[i] == pids[j]) == (i // 4 == j // 4) for i in range(20) for j in range(20))
    assert len(list((tmp_path / "labels.work").glob("features-*"))) == 3  # of the copied folder, before and after


def test_the_labels_of_a_table_are_checked(folder, plain, tmp_path):
    with open(tmp_path / "dataset.csv", "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerows([["path", "pid", "split"], *([folder / "crops" / f"{i}_{j}.png", i, "train"]
                         for i in range(5) for j in range(4))])  # fmt: skip
    label.main(words(tmp_path, plain, "--labels", str(tmp_path / "dataset.csv"), out="clean.csv"))
    assert [row["pid"] for row in rows_of(tmp_path / "clean.csv")] == [str(i // 4) for i in range(20)]
    assert (tmp_path / "clean.changes.csv").read_text() == "path,from,to,reason\n"


def test_clusters_come_from_a_calibration(folder, plain, tmp_path):
    for name in ("crops", "labels.work"):
        shutil.copytree(folder / name, tmp_path / name)
    (meta,) = (tmp_path / "labels.work").glob("features-*/meta.json")
    path = tmp_path / "calibration.json"
    more = ["--calibration", str(path)]
    for odds, identities in ((np.inf, {"1"}), (0.0, {""})):  # all pairs are the same, or none is
        probability = Probability(np.array([0.0, 4.0]), np.full(2, odds), 0.01)
        model_hash = json.loads(meta.read_text())["model_hash"]
        replace(calibration(), model_hash=model_hash, probability=probability).write(path)
        label.main(words(tmp_path, plain, *more))
        assert {row["pid"] for row in rows_of(tmp_path / "labels.csv")} == identities
    calibration().write(path)
    with pytest.raises(UserError, match="is of another model or setting"):
        label.main(words(tmp_path, plain, *more))
    with pytest.raises(UserError, match="is of TEST.WEIGHT, not of what --retrain trains"):
        label.main(words(tmp_path, plain, *more, "--retrain", "x.yml"))


def test_what_the_command_refuses(folder, plain, tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "a.png").write_bytes(b"no image")
    weight = settings_of(plain.TEST.WEIGHT)
    images, out = ["--images", str(folder / "crops")], ["--out", str(tmp_path / "x.csv")]
    taken = socket.create_server(("127.0.0.1", 0))
    port = str(taken.getsockname()[1])
    for given, message in (
        ([*out, *weight], "one of them"),
        ([*images, "--out", str(tmp_path / "x.txt"), "--table", *weight], "must be a .csv file"),
        (["--images", str(tmp_path / "empty"), *out, "--table", *weight], "no images in it"),
        (["--images", str(tmp_path / "bad"), *out, "--table", *weight], "none of the 1 images could be read"),
        (["--images", str(tmp_path / "missing"), *out, "--table", *weight], "no such folder"),
        ([*images, *out, "--port", port, *weight], f"--port: 127.0.0.1:{port} cannot be used"),
        ([*images, *out, "--port", "70000", *weight], "between 0 and 65535"),
        ([*images, *out, "--write", "excel:x", *weight], "expected FORMAT:PATH with one of cvat, labelstudio"),
        (["--labels", str(tmp_path / "x.csv"), *out, "--read", "x", *weight], "checks labels only"),
        ([*images, *out, "--read", str(tmp_path / "none"), "--table", *weight], "does not exist"),
    ):
        with pytest.raises(UserError, match=message):
            label.main(given)
    taken.close()
    if os.getuid():  # nothing is read-only for root
        (tmp_path / "closed").mkdir(mode=0o500)
        with pytest.raises(UserError, match="cannot be written"):
            label.main([*images, "--out", str(tmp_path / "closed" / "x.csv"), "--table", *weight])


def test_the_token_is_for_its_owner_and_stays(tmp_path):
    token = label.kept_token(tmp_path)
    assert len(token) == 32 and label.kept_token(tmp_path) == token
    assert (tmp_path / "token").stat().st_mode & 0o077 == 0


def test_many_images_are_announced(monkeypatch, caplog):
    monkeypatch.setattr(neighbours, "MANY", 30)
    neighbours.make_graph(np.random.default_rng(0).normal(size=(40, 8)), 5, 2, 0.5, np.arange(40), 40)
    assert "40 images: comparing all of them takes 1 minutes or more, once, and about 0.0 GB of memory" in caplog.text
