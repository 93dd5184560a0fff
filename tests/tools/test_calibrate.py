"""``tools.calibrate``: a file of thresholds and probabilities of a trained model, and a page."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from configs import load_config
from datasets.loaders import TestSet
from datasets.records import Records
from processor.evaluate import Settings
from processor.extractor import Extractor
from tests.runs import call
from tests.tiny import options, words, write_market
from tools import extract, search
from tools.calibrate import Labelled, main
from tools.export import calibration_of
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


def test_an_image_is_no_pair_with_itself_where_both_lists_are_the_same_images():
    records = Records.of([f"{i}.jpg" for i in range(8)], np.arange(8) // 2, np.arange(8) % 2)
    feats = torch.from_numpy(np.random.default_rng(0).standard_normal((8, 4)).astype(np.float32))
    test = TestSet("rows", "market1501", records, records, None)
    labelled = Labelled.of(test, torch.cat([feats, feats]), Settings())
    pairs = labelled.counted(Settings(), "all", 0.5)
    assert len(pairs.genuine) == 8 and pairs.genuine.min() > 1e-3 and pairs.impostors == 48


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


@pytest.fixture(scope="module")
def decided(trained, tmp_path_factory):
    """A calibration, an extractor that decides by it, and an extracted gallery."""
    settings, folder = trained
    path = tmp_path_factory.mktemp("calibration") / "c.json"
    main(["--far", "0.2", "0.05", "--out", str(path), *map(str, settings)])
    root = Path(settings[settings.index("DATASETS.ROOT_DIR") + 1]) / "market1501"
    gallery = tmp_path_factory.mktemp("gallery") / "features"
    extract.main(["--images", str(root / "bounding_box_test"), "--out", str(gallery), *map(str, settings)])
    extractor = Extractor.load("", settings[-1], *map(str, settings[:-2]), "TEST.CALIBRATION", str(path))
    return path, extractor, gallery, root


def test_an_extractor_says_who_is_the_same(decided, trained):
    path, extractor, _, root = decided
    calibration, images = Calibration.read(path), sorted((root / "query").glob("*.jpg"))[:6]
    feats = extractor(images)
    assert extractor.same(images[0], images[0]) == extractor.same(str(images[0]), Image.open(images[0]))
    distance = float(((feats[0] - feats[1]) ** 2).sum())
    expected = calibration.probability(np.array(distance))
    assert extractor.same(images[0], images[1]) == pytest.approx(float(expected), abs=1e-4)
    gallery = {"one": feats[:2], "two": feats[2:4], "nobody": feats[:0]}
    assert extractor.identify(images[3], gallery)[0] == "two"
    name, probability = extractor.identify(images[0], {"far": -feats[:1]})
    assert name is None and probability == pytest.approx(float(calibration.probability(np.array(4.0))))
    with pytest.raises(UserError, match="nobody in the gallery"):
        extractor.identify(images[0], {})
    settings, _ = trained
    plain = Extractor.load("", settings[-1], *map(str, settings[:-2]))
    with pytest.raises(UserError, match="decisions need TEST.CALIBRATION"):
        plain.same(images[0], images[1])
    with pytest.raises(UserError, match="TEST.CALIBRATION .* is of another model"):
        Extractor.load("", settings[-1], *map(str, settings[:-2]), "TEST.CALIBRATION", path, "TEST.FLIP", True)


@pytest.mark.parametrize("kind", ["mean", "pair"])
def test_a_calibration_of_camera_norms_is_another_metric(kind, decided, trained, tmp_path, capsys):
    (settings, _), (plain, _, gallery, _) = trained, decided
    path = tmp_path / "c.json"
    normed = ["--far", "0.2", "--out", str(path), *map(str, settings), "TEST.CAMERA_NORM", kind]
    main(normed)
    assert f"TEST.METRIC euclidean, TEST.CAMERA_NORM {kind}" in capsys.readouterr().out
    calibration = Calibration.read(path)
    assert calibration.camera_norm == kind and Calibration.read(plain).camera_norm == "off"
    assert calibration.model_hash == Calibration.read(plain).model_hash
    assert calibration.threshold(0.2).distance != Calibration.read(plain).threshold(0.2).distance
    message = f"is of TEST.CAMERA_NORM '{kind}', and here images are compared without their cameras"
    with pytest.raises(UserError, match=message):
        Extractor.load("", settings[-1], *map(str, settings[:-2]), "TEST.CALIBRATION", str(path))
    with pytest.raises(UserError, match=message):
        search.main(["--query", str(gallery), "--gallery", str(gallery), "--calibration", str(path)])
    with pytest.raises(UserError, match=message):
        main(["--check", str(path), "--features", str(gallery)])


def test_distances_are_those_of_the_evaluation(decided):
    path, _, _, _ = decided
    calibration, rng = Calibration.read(path), np.random.default_rng(0)
    a, b = rng.standard_normal((3, 8)), rng.standard_normal((4, 8))
    unit = [feats / np.linalg.norm(feats, axis=1, keepdims=True) for feats in (a, b)]
    assert calibration.distances(a, b) == pytest.approx(((unit[0][:, None] - unit[1]) ** 2).sum(2))
    cosine = replace(calibration, metric="cosine", normalize=False)
    assert cosine.distances(a, b) == pytest.approx(1 - unit[0] @ unit[1].T)
    raw = replace(calibration, normalize=False)
    assert raw.distances(a, b) == pytest.approx(((a[:, None] - b) ** 2).sum(2))


def test_a_search_says_who_is_known(decided, trained, tmp_path, capsys):
    path, extractor, gallery, root = decided
    calibration, (settings, _) = Calibration.read(path), trained
    query = [str(file) for file in sorted((root / "query").glob("*.jpg"))[:5]]
    arguments = ["--query", *query, "--gallery", str(gallery), "--k", "3"]
    for far in (0.2, 0.05):
        out = tmp_path / f"{far}.jsonl"
        decide = ["--calibration", str(path), "--far", str(far)]
        search.main([*arguments, *decide, "--out", str(out), *map(str, settings)])
        limit = calibration.threshold(far).distance
        lines = [json.loads(line) for line in out.read_text().splitlines()]
        assert [line["query"]["known"] for line in lines] == [line["found"][0]["distance"] <= limit for line in lines]
        for hit in (hit for line in lines for hit in line["found"]):
            assert hit["probability"] == pytest.approx(
                float(calibration.probability(np.array(hit["distance"]))), abs=1e-5
            )
        unknown = sum(not line["query"]["known"] for line in lines)
        assert f"{unknown} show nobody of the gallery (distance above {limit:.4f})" in capsys.readouterr().out
    search.main([*arguments, "--calibration", str(path), "--out", str(tmp_path / "t.csv"), *map(str, settings)])
    assert (tmp_path / "t.csv").read_text().startswith("query,rank,distance,probability,row")
    search.main([*arguments, "--calibration", str(path), "--page", str(tmp_path / "p.html"), *map(str, settings)])
    assert ", P " in (tmp_path / "p.html").read_text()
    search.main([*arguments, "--calibration", str(path), "--fpir", "0.4", *map(str, settings)])
    limit = calibration.unknown_beyond(0.4, 72)
    assert f"(distance above {limit:.4f})" in capsys.readouterr().err
    with pytest.raises(UserError, match=r"--fpir 0.01: \d+ queries show no rate below"):
        search.main([*arguments, "--calibration", str(path), "--fpir", "0.01", *map(str, settings)])
    with pytest.raises(UserError, match="--far and --fpir: give one"):
        search.main([*arguments, "--calibration", str(path), "--fpir", "0.4", "--far", "0.2", *map(str, settings)])
    with pytest.raises(UserError, match="--fpir: chooses a threshold of --calibration"):
        search.main([*arguments, "--fpir", "0.4", *map(str, settings)])
    np.save(tmp_path / "g.npy", extractor(query))
    with pytest.raises(UserError, match="does not say which model"):
        search.main(
            ["--query", str(tmp_path / "g.npy"), "--gallery", str(tmp_path / "g.npy"), "--calibration", str(path)]
        )
    with pytest.raises(UserError, match="--far: chooses a threshold"):
        search.main([*arguments, "--far", "0.2", *map(str, settings)])
    with pytest.raises(UserError, match="is of TEST.METRIC 'euclidean'"):
        search.main([*arguments, "--metric", "cosine", "--calibration", str(path), *map(str, settings)])


def test_an_exported_model_carries_its_calibration(decided, trained, tmp_path):
    path, _, _, _ = decided
    settings, _ = trained
    cfg = load_config("", [*settings, "TEST.CALIBRATION", str(path)])
    assert calibration_of(cfg) == {"calibration": json.loads(path.read_text())}
    assert calibration_of(load_config("", settings)) == {}
    with pytest.raises(UserError, match="TEST.CALIBRATION .* is of another model"):
        calibration_of(load_config("", [*settings, "TEST.CALIBRATION", str(path), "TEST.FLIP", True]))


def test_new_images_are_compared_without_labels(decided, tmp_path, capsys):
    path, _, gallery, _ = decided
    main(["--check", str(path), "--features", str(gallery)])
    assert f"{gallery}: fits {path}" in capsys.readouterr().out
    calibration = Calibration.read(path)
    rng = np.random.default_rng(0)
    narrow = rng.standard_normal(16) + 0.1 * rng.standard_normal((200, 16))  # all look like one another
    found = calibration.drift(narrow)
    assert not found.fits and found.ratio > 5 and found.now < found.before
    with pytest.raises(UserError, match="drift shows in 40 images at least"):
        calibration.drift(narrow[:39])
    assert not calibration.drift(narrow[:40]).fits
    with pytest.raises(UserError, match="--features FOLDER"):
        main(["--check", str(path)])
    meta = json.loads((gallery / "meta.json").read_text())
    other = tmp_path / "other"
    shutil.copytree(gallery, other)
    (other / "meta.json").write_text(json.dumps(meta | {"model_hash": "f" * 64}))
    with pytest.raises(UserError, match="is of another model"):
        main(["--check", str(path), "--features", str(other)])


DAMAGE = {
    "another version": lambda c: c | {"version": 3},
    "no camera norm": lambda c: c | {"camera_norm": "cameras"},
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
    "nearest strangers out of order": lambda c: c | {"absent": [1.0, 0.5]},
    "a gallery of nothing": lambda c: c | {"images": 0},
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
