"""Identities over cameras: time constraints, the online mode, scores, the files and the lines of mistakes."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.datasets.miniatures import message
from tools import identities
from tools.tracking.constraints import Schedule, Travel
from tools.tracking.fitting import fitted_limit, kept_share, labelled_pairs
from tools.tracking.online import OnlineIdentities, run_online
from tools.tracking.tracking_scores import CameraBoxes, kept_numbers, overlaps, tracking_scores
from tools.tracking.tracklet_set import read_tracklets
from utils.scoring.linkage import cluster
from utils.scoring.same_odds import LogOdds

COLUMNS = ("path", "pid", "camid", "seq", "frame", "time", "x1", "y1", "x2", "y2", "quality")
PEOPLE = 6


def write_features(folder: Path, seed: int = 0, **changes: str) -> Path:
    """Six people under two cameras, once each: a tracklet of four images, the cameras' times apart.

    changes: column -> value for the second image, or ``without``: column to leave out.
    """
    rng = np.random.default_rng(seed)
    looks = rng.normal(size=(PEOPLE, 32))
    folder.mkdir(parents=True)
    Image.new("RGB", (64, 48), (90, 20, 20)).save(folder.parent / "frame.png")
    rows, feats = [], []
    for camera, delay in (("gate", 0), ("yard", 100)):
        for person in range(PEOPLE):
            for i in range(4):
                frame = 10 * person + i + 1
                row = {
                    "path": str(folder.parent / "frame.png"), "pid": f"p{person}", "camid": camera,
                    "seq": f"{camera}{person}", "frame": frame, "time": delay + frame / 10, "x1": 5 * i, "y1": 2,
                    "x2": 5 * i + 9, "y2": 40, "quality": 0.5,
                }  # fmt: skip
                rows.append(row)
                feats.append(looks[person] + 0.6 * rng.normal(size=32))
    rows[1] |= {name: value for name, value in changes.items() if name != "without"}
    names = [name for name in COLUMNS if name != changes.get("without")]
    with open(folder / "rows.csv", "w", newline="") as handle:
        writer = csv.DictWriter(handle, names, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    np.save(folder / "features.npy", np.array(feats, np.float32))
    meta = {"count": len(rows), "width": 32, "model_hash": "m", "list_hash": "l", "batch": 4}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


@pytest.fixture(scope="module")
def features(tmp_path_factory) -> Path:
    return write_features(tmp_path_factory.mktemp("set") / "features")


def run(folder: Path, out: Path, *words: str) -> list[dict[str, str]]:
    identities.main(["--features", str(folder), "--out", str(out), *words])
    with open(out / "identities.csv", newline="") as handle:
        return list(csv.DictReader(handle))


# ---------------------------------------------------------------- time


def test_who_cannot_be_one_person_against_a_loop():
    rng = np.random.default_rng(0)
    start = rng.integers(0, 40, 30).astype(float)
    cameras, end = rng.integers(0, 3, 30), start + rng.integers(0, 9, 30)
    travel = Travel({("a", "b"): 5.0, ("b", "a"): 5.0})
    schedule = Schedule(cameras, start, end, travel.matrix(["a", "b", "c"]))
    rows = np.arange(30)
    found = schedule.apart(rows[:7], rows)
    for i in range(7):
        for j in range(30):
            if cameras[i] == cameras[j]:
                wanted = start[i] <= end[j] and start[j] <= end[i]
            elif {cameras[i], cameras[j]} == {0, 1}:
                wanted = max(start[j] - end[i], start[i] - end[j]) < 5
            else:
                wanted = False
            assert found[i, j] == wanted
    assert not schedule.without_times().apart(rows, rows).any()


@pytest.mark.parametrize(("text", "line"), [
    ("a,b,c\n", "expected a header with camera_a, camera_b, seconds"),
    ("camera_a,camera_b,seconds\na,b,-1\n",
     "line 2: expected two cameras and a number of seconds from 0, got 'a', 'b', '-1'"),
    ("camera_a,camera_b,seconds\na,b\n",
     "line 2: expected two cameras and a number of seconds from 0, got 'a', 'b', ''"),
])  # fmt: skip
def test_a_table_of_ways_that_is_none(text, line, tmp_path):
    path = tmp_path / "travel.csv"
    path.write_text(text)
    assert message(Travel.read, path) in (f"{path}: {line}", f"{path}, {line}")


# ---------------------------------------------------------------- the command


def test_tracklets_of_a_person_get_one_number(features, tmp_path):
    rows = run(features, tmp_path / "out", "--threshold", "0.8", "--page", str(tmp_path / "page.html"))
    numbers = {row["seq"]: row["identity"] for row in rows}
    assert len(rows) == 2 * PEOPLE and len(set(numbers.values())) == PEOPLE
    assert all(numbers[f"gate{i}"] == numbers[f"yard{i}"] for i in range(PEOPLE))
    mot = (tmp_path / "out" / "mot" / "gate.txt").read_text().splitlines()
    assert mot[0] == f"1,{numbers['gate0']},0,2,9,38,1,-1,-1,-1" and len(mot) == 4 * PEOPLE
    page = (tmp_path / "page.html").read_text()
    assert page.count('class="shot right"') == 2 * PEOPLE and "identity 1: 2 tracklets under 2 cameras" in page
    assert page.count("data:image/jpeg") == 2 * PEOPLE


@pytest.mark.parametrize("way", ["--fit", "--threshold"])
def test_online_ends_as_offline_where_people_are_distinct(way, features, tmp_path):
    value = str(features) if way == "--fit" else "0.8"
    offline = run(features, tmp_path / "a", way, value)
    online = run(features, tmp_path / "b", way, value, "--online")
    one, other = ({r["seq"]: r["identity"] for r in rows} for rows in (offline, online))
    assert len(set(one.values())) == len(set(other.values())) == PEOPLE
    assert len({(one[seq], other[seq]) for seq in one}) == PEOPLE
    assert (tmp_path / "b" / "merges.csv").read_text().startswith("time,kept,gone\n")


def test_times_and_ways_keep_people_apart(features, tmp_path):
    everybody = run(features, tmp_path / "a", "--threshold", "3.9")
    # one camera's tracklets do not overlap here, so nothing but the way keeps them apart
    assert len({row["identity"] for row in everybody}) == 1
    (tmp_path / "travel.csv").write_text("camera_a,camera_b,seconds\nyard,gate,1000\n")
    far = run(features, tmp_path / "b", "--threshold", "3.9", "--travel", str(tmp_path / "travel.csv"))
    assert all(len({r["camid"] for r in far if r["identity"] == n}) == 1 for n in {r["identity"] for r in far})
    free = run(features, tmp_path / "c", "--threshold", "3.9", "--travel", str(tmp_path / "travel.csv"), "--no-times")
    assert len({row["identity"] for row in free}) == 1


def test_a_table_of_ways_of_other_cameras_is_refused(features, tmp_path):
    path = tmp_path / "travel.csv"
    path.write_text("camera_a,camera_b,seconds\nyard,c2,10\n1,2,10\n")
    words = ["--features", str(features), "--out", str(tmp_path / "out"), "--threshold", "1", "--travel", str(path)]
    assert message(identities.main, words) == f"{path}: names no two of the cameras gate, yard, but 1, 2, c2, yard"


def test_the_share_of_images_whose_identity_is_their_persons():
    people, images = ["a", "a", "a", "b", "b"], np.array([1, 2, 3, 4, 5])
    assert kept_share(np.array([0, 0, 0, 1, 1]), people, images) == 1
    assert kept_share(np.array([0, 0, 1, 1, 1]), people, images) == pytest.approx((1 + 2 + 4 + 5) / 15)
    assert kept_share(np.arange(5), people, images) == pytest.approx((3 + 5) / 15)


def test_the_fitted_limit_joins_labelled_tracklets_rightly(features):
    labelled, _ = read_tracklets(features)
    distances, same = labelled_pairs(labelled, labelled.schedule(Travel()).apart)
    odds = LogOdds.fit(distances, same, 1e-6)  # a prior under which a probability of a half joins nobody
    apart = labelled.schedule(Travel()).apart
    assert cluster(labelled.feats, odds, apart).max() == 2 * PEOPLE - 1
    limit = fitted_limit(labelled, odds, lambda some, tried: cluster(some.feats, odds, apart, tried))
    numbers = cluster(labelled.feats, odds, apart, limit)
    assert numbers.max() == PEOPLE - 1 and kept_share(numbers, labelled.pids, np.ones(2 * PEOPLE)) == 1


def test_scores_are_whole_for_right_numbers_and_halves_across_for_separate_cameras(features, tmp_path):
    pytest.importorskip("trackeval", reason="requirements-dev.txt has it")
    words = []
    for camera in ("gate", "yard"):
        lines = [f"{10 * p + i + 1},{p + 1},{5 * i},2,9,38,1,1,1\n" for p in range(PEOPLE) for i in range(4)]
        (tmp_path / f"{camera}.txt").write_text("".join(lines))
        words.append(f"{camera}={tmp_path / camera}.txt")
    run(features, tmp_path / "a", "--threshold", "0.8", "--truth", *words)
    figures = json.loads((tmp_path / "a" / "metrics.json").read_text())["results"]["identities"]
    assert figures["IDF1"] == figures["HOTA"] == figures["IDF1 within"] == 1 and figures["switches within"] == 0
    assert figures["re-associated, other camera"] == 1 and figures["returns to the other camera"] == PEOPLE
    run(features, tmp_path / "b", "--threshold", "0.001", "--truth", *words)
    figures = json.loads((tmp_path / "b" / "metrics.json").read_text())["results"]["identities"]
    assert figures["IDF1"] == 0.5 and figures["IDF1 within"] == 1 and figures["re-associated, other camera"] == 0
    assert message(run, features, tmp_path, "--threshold", "1", "--truth", words[0]) == (
        "--truth: camera yard has none; name a file for each camera"
    )


@pytest.mark.parametrize(("changes", "line"), [
    ({"camid": "yard"}, "tracklet gate0 spans cameras gate and yard; a tracklet is one person without a break under "
     "one camera, so number them apart"),
    ({"pid": "p3"}, "tracklet gate0 spans identities p0 and p3; a tracklet is one person without a break under one "
     "camera, so number them apart"),
    ({"frame": "1"}, "tracklet gate0 has two images of frame 1: two tracklets have one number"),
    ({"time": "0.05"}, "time runs backwards in tracklet gate0, from 0.1 to 0.05"),
    ({"time": "x"}, "time must be a number, got 'x'"),
    ({"without": "seq"}, "has no column 'seq'; extract the features of a table with seq, camid, frame and time, as "
     "tools.crops writes it"),
])  # fmt: skip
def test_what_is_no_tracklet_ends_in_one_line(changes, line, tmp_path):
    folder = write_features(tmp_path / "features", **changes)
    assert message(run, folder, tmp_path / "out", "--threshold", "1") == f"{folder}/rows.csv: {line}"
    assert not (tmp_path / "out").exists()


def test_a_camera_without_a_clock_is_named_and_keeps_to_itself(tmp_path, caplog):
    folder = write_features(tmp_path / "features", time="")
    tracklets, _ = read_tracklets(folder)
    assert [r.getMessage() for r in caplog.records] == [
        f"{folder}/rows.csv: camera gate has no clock (time), so only its own frames tell its tracklets apart"
    ]
    schedule = tracklets.schedule(Travel({("gate", "yard"): 1e6, ("yard", "gate"): 1e6}))
    gate = np.flatnonzero([camera == "gate" for camera in tracklets.cameras])
    yard = np.flatnonzero([camera == "yard" for camera in tracklets.cameras])
    assert not schedule.apart(gate, yard).any() and tracklets.start[gate[0]] == 1


@pytest.mark.parametrize(("words", "line"), [
    ((), "give one of --calibration FILE, --fit FOLDER and --threshold DISTANCE: which tracklets match?"),
    (("--threshold", "1", "--fit", "x"), "give one of --calibration FILE, --fit FOLDER and --threshold DISTANCE: which "
     "tracklets match?"),
    (("--threshold", "5"), "--threshold: squared distances of unit features are 0 to 4, got 5"),
    (("--threshold", "1", "--prior", "0.5"), "--prior: a share between 0 and 1, for --calibration or --fit"),
    (("--threshold", "1", "--least", "1"), "--least: expected a probability between 0 and 1, got 1"),
    (("--threshold", "1", "--truth", "gate"), "--truth: expected CAMERA=FILE with one of gate, yard, got 'gate'"),
    (("--threshold", "1", "--page", "a.txt"), "--page: expected a name that ends in .html, got a.txt"),
])  # fmt: skip
def test_mistakes_end_in_one_line(words, line, features, tmp_path):
    assert message(run, features, tmp_path / "out", *words) == line
    assert not (tmp_path / "out").exists()


def test_features_of_another_model_are_no_fit(features, tmp_path):
    other = write_features(tmp_path / "features")
    meta = json.loads((other / "meta.json").read_text()) | {"model_hash": "n"}
    (other / "meta.json").write_text(json.dumps(meta))
    assert message(run, features, tmp_path / "out", "--fit", str(other)) == (
        f"--fit: {other} holds features of another model or setting than {features}"
    )


# ---------------------------------------------------------------- online


def unit(*angles: float) -> np.ndarray:
    return np.array([(np.cos(a), np.sin(a)) for a in angles], np.float32)


def schedule_of(count: int) -> Schedule:
    times = np.arange(count, dtype=float)
    return Schedule(np.zeros(count, int), times, times + 0.5, np.zeros((1, 1)))


def test_numbers_that_prove_to_be_one_person_are_merged_and_reported():
    # 0 and 0.9 are too far apart; 0.45 joins one, and then the two are near enough in the mean
    feats = unit(0.0, 0.9, 0.45, 0.4)
    at_once, final, merges = run_online(feats, schedule_of(4), LogOdds.threshold(0.42))
    assert at_once.tolist()[:2] == [0, 1] and len(merges) == 1
    assert (merges[0].kept, merges[0].gone) == (0, 1) and final.tolist() == [0, 0, 0, 0]


def test_time_forbids_a_merge():
    feats = unit(0.0, 0.9, 0.45, 0.4)
    schedule = Schedule(np.zeros(4, int), np.array([0.0, 0.2, 2, 3]), np.array([0.5, 0.7, 2.5, 3.5]), np.zeros((1, 1)))
    _, final, merges = run_online(feats, schedule, LogOdds.threshold(0.42))
    assert not merges and final[0] != final[1]


def test_the_gallery_is_bounded_and_forgets_who_was_seen_longest_ago():
    feats = unit(0.0, 1.0, 2.0, 0.0, 2.0)
    online = OnlineIdentities(2, LogOdds.threshold(0.1), schedule_of(5), most=2)
    assert [online.add(i, feats[i]) for i in range(5)] == [0, 1, 2, 3, 2]
    assert len(online.people) == 2 and len(online.means) == 3


# ---------------------------------------------------------------- scores


def test_overlaps_against_a_loop():
    rng = np.random.default_rng(0)
    a, b = (np.concatenate([c := rng.uniform(0, 9, (n, 2)), c + rng.uniform(1, 9, (n, 2))], 1) for n in (4, 5))
    found = overlaps(a, b)
    for i, (l1, t1, r1, b1) in enumerate(a):
        for j, (l2, t2, r2, b2) in enumerate(b):
            shared = max(0, min(r1, r2) - max(l1, l2)) * max(0, min(b1, b2) - max(t1, t2))
            assert found[i, j] == pytest.approx(shared / ((r1 - l1) * (b1 - t1) + (r2 - l2) * (b2 - t2) - shared))
    assert overlaps([], [(0, 0, 1, 1)]).shape == (0, 1)


def test_scores_of_a_small_case_by_hand():
    """One person in three frames, whose number changes in the last."""
    pytest.importorskip("trackeval", reason="requirements-dev.txt has it")
    box = (0.0, 0.0, 10.0, 20.0)
    truth = {frame: [("ann", box)] for frame in (1, 2, 3)}
    found = {1: [(7, box)], 2: [(7, box)], 3: [(8, box)]}
    figures = tracking_scores([CameraBoxes("gate", truth, found)])
    assert figures["switches within"] == 1 and figures["IDF1"] == pytest.approx(2 * 2 / (3 + 3))
    assert figures["HOTA"] == pytest.approx(np.sqrt((2 * 2 / 3 + 1 / 3) / 3))  # association: 2/3, 2/3, 1/3


def test_who_keeps_a_number_after_being_away():
    box = (0.0, 0.0, 10.0, 20.0)
    gate = CameraBoxes("gate", {f: [("ann", box)] for f in (1, 2, 60)}, {f: [(7, box)] for f in (1, 2, 60)}, (0.1, 0.0))
    yard = CameraBoxes("yard", {30: [("ann", box)]}, {30: [(9, box)]}, (0.1, 5.0))
    assert kept_numbers([gate, yard], 5.0) == {
        "returns to the same camera": 1, "re-associated, same camera": 1.0, "returns to the other camera": 1,
        "re-associated, other camera": 0.0,
    }  # fmt: skip
