"""``tools.calibrate``: a file of thresholds and probabilities of a trained model, and a page."""

from __future__ import annotations

import json

import numpy as np
import pytest

from processor.extractor import Extractor
from tests.runs import call
from tests.tiny import options, words, write_market
from tools.calibrate import main
from utils.calibration import Calibration
from utils.errors import UserError


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run of seconds on twelve identities, and the words that test it."""
    root = write_market(tmp_path_factory.mktemp("data"), ids=12, images=4)
    folder = tmp_path_factory.mktemp("run")
    assert call("train", options(root, folder)) == 0
    return options(root, folder) + ["TEST.WEIGHT", str(folder / "transformer_2.pth")], folder


def test_a_calibration_is_written_read_back_and_shown(trained, tmp_path, capsys):
    settings, folder = trained
    page = tmp_path / "page.html"
    main(["--far", "0.1", "0.02", "--prior", "0.2", "--page", str(page), *map(str, settings)])
    printed = capsys.readouterr().out
    calibration = Calibration.read(folder / "calibration.json")
    assert calibration.identities == 12 and calibration.pairs == "across" and calibration.dataset == "market1501"
    assert [row.far for row in calibration.thresholds] == [0.1, 0.02]
    strict, loose = calibration.threshold(0.02), calibration.threshold(0.1)
    assert calibration.threshold() == strict and strict.distance <= loose.distance and strict.tar <= loose.tar
    assert all(row.low <= row.distance <= row.high for row in calibration.thresholds)
    assert f"{strict.distance:.4f}" in printed and "12 identities" in printed
    html = page.read_text()
    assert html.count("<svg") >= 2 and f"{strict.distance:.4f}" in html and "https:" not in html
    near, far = calibration.probability(np.array([0.0, 4.0]))
    assert near > far and calibration.probability.prior == 0.2
    weight, others = settings[-1], map(str, settings[:-2])
    extractor = Extractor.load("", weight, *others)
    calibration.refuse_other(extractor.model_hash, "euclidean", True)
    with pytest.raises(UserError, match="is of another model"):
        calibration.refuse_other("0" * 64, "euclidean", True)
    with pytest.raises(UserError, match="is of TEST.METRIC 'euclidean'"):
        calibration.refuse_other(extractor.model_hash, "cosine", True)
    with pytest.raises(UserError, match="it has 0.1, 0.02"):
        calibration.threshold(0.5)


def test_settings_may_stand_before_the_options(trained, tmp_path):
    settings, _ = trained
    main([*map(str, settings), "--far", "0.1", "--out", str(tmp_path / "c.json")])
    assert Calibration.read(tmp_path / "c.json").threshold(0.1).far == 0.1


def test_what_cannot_be_calibrated_is_refused(trained, tmp_path):
    settings, _ = trained
    with pytest.raises(UserError, match="--far 1e-06: .* pairs of 12 identities show no rate below"):
        main(["--far", "1e-6", *map(str, settings)])
    with pytest.raises(UserError, match="--prior: expected a share between 0 and 1"):
        main(["--prior", "2", *map(str, settings)])
    with pytest.raises(UserError, match="TEST.WEIGHT is empty"):
        main([*map(str, settings[:-2])])


def test_identities_of_training_are_refused(trained, tmp_path):
    settings, _ = trained
    table, images = tmp_path / "t.csv", next(iter(tmp_path.glob("x")), None)
    assert images is None
    root = settings[settings.index("DATASETS.ROOT_DIR") + 1]
    rows = ["path,pid,camid,split"]
    for pid in range(1, 13):
        for cam in (1, 2):
            for i in range(4):
                split = "train" if i < 2 else ("query" if i == 2 else "gallery")
                rows.append(
                    f"{root}/market1501/bounding_box_train/{pid:04d}_c{cam}s1_{i:06d}_00.jpg,{pid},{cam},{split}"
                )
    table.write_text("\n".join(rows) + "\n")
    changed = settings + words({"DATASETS__NAMES": "csv", "DATASETS__FILE": str(table)})
    with pytest.raises(UserError, match="12 of the identities to calibrate on are in its training list"):
        main([*map(str, changed)])


DAMAGE = {
    "another version": lambda c: c | {"version": 2},
    "no version": lambda c: {k: v for k, v in c.items() if k != "version"},
    "a list": lambda c: [c],
    "text for a number": lambda c: c | {"identities": "12"},
    "no thresholds": lambda c: c | {"thresholds": []},
    "a threshold without its rate": lambda c: c | {"thresholds": [{"distance": 1.0}]},
    "a rate above 1": lambda c: c | {"thresholds": [c["thresholds"][0] | {"far": 2}]},
    "probabilities that rise": lambda c: (
        c | {"probability": c["probability"] | {"odds": [0.0, 1.0], "distances": [0, 1]}}
    ),
    "knots of another number": lambda c: c | {"probability": c["probability"] | {"odds": [0.0]}},
    "a prior of 1": lambda c: c | {"probability": c["probability"] | {"prior": 1}},
    "an unknown entry": lambda c: c | {"more": 1},
    "NaN": lambda c: c | {"figures": {"ece": float("nan")}},
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_damaged_files_are_one_line(kind, trained, tmp_path):
    settings, folder = trained
    if not (folder / "calibration.json").exists():
        main(["--far", "0.1", *map(str, settings)])
    content = json.loads((folder / "calibration.json").read_text())
    path = tmp_path / "c.json"
    path.write_text(json.dumps(content))
    assert Calibration.read(path).identities == 12
    path.write_text(json.dumps(DAMAGE[kind](content)))
    with pytest.raises(UserError, match="c.json"):
        Calibration.read(path)


def test_other_files_are_not_calibrations(tmp_path):
    for text in ("", "[" * 100_000, "root:x:0:0\n", "{}"):
        (tmp_path / "c.json").write_text(text)
        with pytest.raises(UserError, match="not a calibration file"):
            Calibration.read(tmp_path / "c.json")
    with pytest.raises(UserError, match="no such calibration file"):
        Calibration.read(tmp_path / "none.json")
