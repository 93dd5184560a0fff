"""Clean mode: three kinds of wrong labels are proposed with reasons, and the corrected table keeps everything else."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest

from tests.tools.labelling.sessions import make_session, write_crops
from tools.labelling.clean import Cleaning, propose


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    return write_crops(tmp_path_factory.mktemp("crops"), ids=6, each=6)


def truth_of(crops: Path) -> list[str]:
    return [path.name.split("_")[0] for path in sorted(crops.glob("*.png"))]


def write_labels(path: Path, crops: Path, labels: list[str]) -> Path:
    with open(path, "w", newline="") as handle:
        writer = csv.writer(handle)
        writer.writerow(["path", "pid", "split", "weather"])
        names = sorted(file.name for file in crops.glob("*.png"))
        for i, (name, label) in enumerate(zip(names, labels, strict=True)):
            writer.writerow([f"crops/{name}", label, "train" if i < 35 else "query", "rain"])
    return path


def corrected(labels: list[str], found) -> list[str]:
    labels = list(labels)
    for one in found:
        for row, name in one.accept["set"]:
            labels[row] = name
    return labels


def graph_of(crops: Path, tmp_path: Path):
    session = make_session(crops, tmp_path / "x.csv", k1=9, k2=4)
    session.journal.close()
    return session.graph


def test_right_labels_give_no_proposal_and_no_labels_none(crops, tmp_path):
    graph, truth = graph_of(crops, tmp_path), truth_of(crops)
    assert propose(graph, truth, 0.5) == [] and propose(graph, [""] * 36, 0.5) == []


def test_each_of_the_three_mistakes_is_proposed_with_its_reason(crops, tmp_path):
    graph, truth = graph_of(crops, tmp_path), truth_of(crops)
    wrong = truth[:1] + ["3"] + truth[2:]
    (one,) = propose(graph, wrong, 0.5)
    assert one.kind == "wrong label" and one.accept == {"set": [[1, "0"]]} and "labelled 3" in one.reason
    twice = ["9" if i in (1, 2) else label for i, label in enumerate(truth)]
    (one,) = propose(graph, twice, 0.5)
    assert one.kind == "one identity under two numbers" and one.accept == {"set": [[1, "0"], [2, "0"]]}
    both = ["1" if label == "0" else label for label in truth]
    (one,) = propose(graph, both, 0.5)
    assert one.kind == "two identities under one number" and "6 and 6" in one.reason
    assert {name for _, name in one.accept["set"]} == {"6"} and len(one.accept["set"]) == 6
    for labels in (wrong, twice, both):
        after = corrected(labels, propose(graph, labels, 0.5))
        same = np.array(after)[:, None] == np.array(after)
        assert np.array_equal(same, np.array(truth)[:, None] == np.array(truth))


def test_the_corrected_table_and_the_list_of_changes(crops, tmp_path):
    truth = truth_of(crops)
    labels = truth[:1] + ["3"] + truth[2:]
    table = write_labels(crops.parent / "dataset.csv", crops, labels)
    session = make_session(crops, tmp_path / "clean.csv", Cleaning.of_table(table, 0.5), k1=9, k2=4)
    (one,) = session.suspects()["rows"]
    assert session.state()["given"] and session.state()["changed"] == 0
    session.decide({"view": "suspects", "why": one["reason"], **one["accept"]})
    assert session.suspects()["rows"] == [] and session.state()["changed"] == 1
    session.save()
    with open(tmp_path / "clean.csv", newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [row["pid"] for row in rows] == truth and {row["weather"] for row in rows} == {"rain"}
    assert rows[35]["split"] == "query" and Path(rows[1]["path"]) == crops.parent / "crops" / "0_1.png"
    with open(tmp_path / "clean.changes.csv", newline="") as handle:
        (change,) = csv.DictReader(handle)
    assert (change["from"], change["to"], change["reason"]) == ("3", "0", one["reason"])
    session.undo()
    assert len(session.suspects()["rows"]) == 1
    session.decide({"view": "suspects", "keep": [one["key"]]})
    assert session.suspects()["rows"] == []
    session.save()
    with open(tmp_path / "clean.csv", newline="") as handle:
        assert [row["pid"] for row in csv.DictReader(handle)] == labels
    session.journal.close()
