"""A run goes on with the training list that it began with, wherever that lies; an edited list is refused."""

from __future__ import annotations

import csv
import shutil

import pytest
import torch

from processor import run
from tests.runs import Killed, assert_same_bytes, kill_at, weights
from tests.tiny import config
from utils.errors import UserError

COLUMNS = ("path", "pid", "camid", "viewid", "split", "x1", "y1", "x2", "y2")


@pytest.fixture
def data(market, tmp_path):
    """A folder with a copy of the images and a table of them."""
    home = tmp_path / "data"
    shutil.copytree(market / "market1501", home / "images")
    splits = {"bounding_box_train": "train", "query": "query", "bounding_box_test": "gallery"}
    rows = []
    for path in sorted((home / "images").rglob("*.jpg")):
        pid, cam = path.name[:4], path.name[6]
        values = (str(path.relative_to(home)), pid, cam, "0", splits[path.parent.name], "0", "0", "8", "16")
        rows.append(dict(zip(COLUMNS, values, strict=True)))
    write(home, rows)
    return home


def write(home, rows):
    with open(home / "dataset.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, COLUMNS)
        writer.writeheader()
        writer.writerows(rows)


def read(home):
    with open(home / "dataset.csv", newline="") as handle:
        return list(csv.DictReader(handle))


def settings(home, folder, **changes):
    return config(home, folder, DATASETS__NAMES="csv", SOLVER__MAX_EPOCHS=2, SOLVER__EVAL_PERIOD=0, **changes)


def killed(home, folder, monkeypatch, **changes):
    """A run that dies in its second epoch."""
    with monkeypatch.context() as patch:
        kill_at(patch, 6)
        with pytest.raises(Killed):
            run.train(settings(home, folder, **changes))


def swap_two_identities(rows):
    for row in rows:
        row["pid"] = {"0001": "0002", "0002": "0001"}.get(row["pid"], row["pid"])


def drop_an_identity(rows):
    rows[:] = [row for row in rows if row["pid"] != "0004"]


def add_an_identity(rows):
    rows += [row | {"pid": "0009", "split": "train"} for row in rows if row["pid"] == "0005"]


def change_a_camera(rows):
    next(row for row in rows if row["pid"] == "0003")["camid"] = "2"


def change_a_view(rows):
    rows[[row["split"] for row in rows].index("train")]["viewid"] = "1"


def change_a_box(rows):
    rows[[row["split"] for row in rows].index("train")]["x1"] = "1"


def drop_a_row_and_add_another(rows):
    trained = [row for row in rows if row["split"] == "train"]
    spare = next(row for row in rows if row["split"] == "gallery")
    rows.append(trained[0] | {"path": spare["path"]})
    rows.remove(trained[0])


EDITS = {
    swap_two_identities: "the same images, but other identities",
    drop_an_identity: "16 rows, 4 identities, 2 cameras before, 12 rows, 3 identities, 2 cameras now",
    add_an_identity: "16 rows, 4 identities, 2 cameras before, 20 rows, 5 identities, 2 cameras now",
    change_a_camera: "the same images, but other cameras",
    change_a_view: "the same images, but other views",
    change_a_box: "the same images, but other crop boxes",
    drop_a_row_and_add_another: "as many rows and identities, but other images or another order",
}


@pytest.mark.parametrize("edit", EDITS, ids=lambda edit: edit.__name__)
def test_an_edited_list_is_refused_and_the_old_one_goes_on(data, tmp_path, monkeypatch, edit):
    folder = tmp_path / "run"
    killed(data, folder, monkeypatch)
    before = read(data)
    rows = [dict(row) for row in before]
    edit(rows)
    write(data, rows)
    with pytest.raises(UserError, match="the training list is another than this run's") as error:
        run.train(settings(data, folder))
    assert f"(csv: {EDITS[edit]})" in str(error.value)
    assert "SOLVER.RESUME never" in str(error.value) and "\n" not in str(error.value)
    run.train(settings(data, folder, SOLVER__RESUME="never"))
    write(data, before)
    folder = tmp_path / "again"
    killed(data, folder, monkeypatch)
    run.train(settings(data, folder))
    assert torch.load(folder / "last", weights_only=True)["training_lists"]["csv"]["rows"] == 16


def test_data_may_move_and_their_tests_may_change(data, tmp_path, monkeypatch):
    run.train(settings(data, tmp_path / "whole"))
    killed(data, tmp_path / "moved", monkeypatch)
    elsewhere = tmp_path / "another disk" / "data"
    elsewhere.parent.mkdir()
    data.rename(elsewhere)
    rows = read(elsewhere)
    rows.remove(next(row for row in rows if row["split"] == "gallery"))
    write(elsewhere, rows)
    run.train(settings(elsewhere, tmp_path / "moved"))
    assert_same_bytes(weights(tmp_path / "whole", 2), weights(tmp_path / "moved", 2))


def test_a_list_without_fingerprint_goes_on(data, tmp_path, monkeypatch):
    killed(data, tmp_path / "run", monkeypatch)
    state = torch.load(tmp_path / "run" / "last", weights_only=True)
    del state["training_lists"]
    torch.save(state, tmp_path / "run" / "last")
    run.train(settings(data, tmp_path / "run"))
    assert (tmp_path / "run" / "transformer_2.pth").exists()
