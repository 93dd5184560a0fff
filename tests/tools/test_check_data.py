"""The command ``tools.check_data``, the kept copies of lists, packed paths."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from datasets import make_dataset
from datasets.paths import Paths, chain
from datasets.readers.scan import walk_images
from datasets.storage import cache
from tests.datasets.miniatures import LUPERSON, MARKET, MINIATURES, lists
from tests.parity.cases import DATA, REQUIRED, ROOT
from tests.tiny import write_market
from tools import check_data as check


def run(capsys, *words) -> tuple[int, str]:
    with pytest.raises(SystemExit) as caught:
        check.main([str(word) for word in words])
    return caught.value.code, capsys.readouterr().out


def keys(root: Path, **more) -> list:
    return ["DATASETS.ROOT_DIR", root, *(w for k, v in more.items() for w in (k.replace("__", "."), v))]


# ---------------------------------------------------------------- the command


def test_the_command_counts_shows_and_measures(tmp_path, capsys):
    write_market(tmp_path)
    code, out = run(capsys, "--sheet", tmp_path / "s.png", *keys(tmp_path))
    assert code == 0
    assert "train            4          16        2  751 / 12,936 / 6         4 / 4 / 4" in out
    assert "files: 32 read, 0 missing, 0 damaged" in out and "width 8 / 8 / 8, height 16 / 16 / 16" in out
    files = (tmp_path / "market1501/bounding_box_train").iterdir()
    pixels = [np.asarray(Image.open(path)).reshape(-1, 3) / 255 for path in files]
    mean, std = np.mean(pixels, (0, 1)), np.std(np.concatenate(pixels), 0)
    wanted = ["[" + ", ".join(f"{v:.4f}" for v in row) + "]" for row in (mean, std)]
    assert f'INPUT.PIXEL_MEAN "{wanted[0]}" INPUT.PIXEL_STD "{wanted[1]}"' in out
    with Image.open(tmp_path / "s.png") as sheet:
        assert sheet.width > 500 and len(sheet.getcolors(1 << 20)) > 100


def test_the_command_finds_missing_damaged_and_repeated_files_and_ends_with_1(tmp_path, capsys):
    place = write_market(tmp_path) / "market1501"
    train = sorted((place / "bounding_box_train").iterdir())
    query = sorted((place / "query").iterdir())
    shutil.copy(train[0], train[1])
    shutil.copy(train[0], query[0])
    train[2].write_bytes(train[2].read_bytes()[:300])
    table = [f"{p},{p.name[:4]},{p.name[6]},{s}" for s, d in
             (("train", "bounding_box_train"), ("query", "query"), ("gallery", "bounding_box_test"))
             for p in sorted((place / d).iterdir())]  # fmt: skip
    (tmp_path / "dataset.csv").write_text("\n".join(["path,pid,camid,split", *table, "odd.txt,1,1,train"]))
    code, out = run(capsys, *keys(tmp_path, DATASETS__NAMES="csv", OUTPUT_DIR=tmp_path / "out"))
    assert code == 1
    assert "files: 31 read, 1 missing, 1 damaged" in out and f"{tmp_path / 'odd.txt'}: missing" in out
    assert f"{train[2]}: cannot be read" in out
    assert "1 contents more than once in train, such as" in out and "in train and query" in out
    assert "1 files have no image's ending" in out
    assert (tmp_path / "out" / "csv.png").exists()


@pytest.mark.parametrize(("words", "line"), [
    (["DATASETS.ROOT_DIR", "nowhere"], "is not a folder"),
    (["DATASETS.NAMES", "martek1501"], "unknown dataset"),
    (["DATASETS.NAMEZ", "x"], "DATASETS.NAMEZ"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_code_2(words, line):
    done = subprocess.run([sys.executable, "-m", "tools.check_data", *words], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and line in done.stderr and done.stderr.count("\n") == 1 and not done.stdout


@pytest.mark.parametrize("form", ["market1501", "csv", "folder"])
def test_eth80_in_its_three_forms(form, tmp_path, capsys):
    source = DATA / "eth80"
    if not source.is_dir():
        assert not REQUIRED, "no ETH-80 where LINEUP_DATA points"
        pytest.skip("no ETH-80 where LINEUP_DATA points")
    root = source
    if form == "folder":
        root = tmp_path / "people"
        for path in source.rglob("*.jpg"):
            (root / path.name[:4]).mkdir(parents=True, exist_ok=True)
            (root / path.name[:4] / path.name).symlink_to(path)
    more = {"DATASETS__FILE": "eth80.csv"} if form == "csv" else {}
    code, out = run(capsys, "--sheet", tmp_path / "s.png", *keys(root, DATASETS__NAMES=form, **more))
    assert code == 0 and "0 missing, 0 damaged" in out and "warning" not in out
    rows = [line.split()[:4] for line in out.splitlines() if line.startswith(("train", "query", "gallery"))]
    images = {"train": "1,640", "query": "160", "gallery": "1,640" if form == "folder" else "1,480"}
    assert rows == [[split, "40", n, "4"] for split, n in images.items()]


# ---------------------------------------------------------------- kept lists


@pytest.fixture
def keep_all(monkeypatch, tmp_path):
    monkeypatch.setattr(cache, "LEAST", 1)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))


def age(root: Path) -> None:
    past = time.time() - 100
    for path in [root, *root.rglob("*")]:
        os.utime(path, (past, past))


def reads(monkeypatch) -> list[str]:
    """Names of the folders that are scanned from now on."""
    seen = []
    scandir = os.scandir
    monkeypatch.setattr(os, "scandir", lambda path: (seen.append(str(path)), scandir(path))[1])
    return seen


@pytest.mark.parametrize("name", sorted(MINIATURES))
def test_a_kept_list_is_the_list_and_nothing_is_scanned_for_it(name, tmp_path, keep_all, monkeypatch):
    root = tmp_path / "data"
    MINIATURES[name].build(root)
    age(root)
    before = {path: path.stat().st_mtime_ns for path in root.rglob("*") if path.is_dir()}
    first = make_dataset(name, root)
    assert list(root.rglob("*.npz"))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    seen = reads(monkeypatch)
    second = make_dataset(name, root)
    assert not seen
    assert lists(first) == lists(second)
    assert (first.same_list, first.protocol, first.shared_ids) == (second.same_list, second.protocol, second.shared_ids)
    moved = tmp_path / "moved"
    root.rename(moved)
    assert [p.replace(str(moved), str(root)) for p in make_dataset(name, moved).train.paths] == first.train.paths


def test_what_changes_the_lists_is_noticed(tmp_path, keep_all):
    place = MARKET.build(tmp_path)
    age(tmp_path)
    assert len(make_dataset("market1501", tmp_path).train) == 3
    assert len(make_dataset("market1501", tmp_path, use_all=True).train) == 6  # other options, another copy
    added = place / "bounding_box_train" / "0009_c1s1_000001_00.jpg"
    added.write_bytes(b"")
    assert len(make_dataset("market1501", tmp_path).train) == 4
    added.unlink()
    assert len(make_dataset("market1501", tmp_path).train) == 3
    veri = MINIATURES["veri"].build(tmp_path)
    age(tmp_path)
    views = [v for *_, v in make_dataset("veri", tmp_path).train]
    (veri / "keypoint_train.txt").write_text((veri / "keypoint_train.txt").read_text().replace(" 4\n", " 5\n"))
    os.utime(veri / "keypoint_train.txt", (time.time() - 50,) * 2)
    assert len(set(views)) == 3 and make_dataset("veri", tmp_path).train.viewids.tolist() == views  # dense all the same
    (veri / "keypoint_train.txt").unlink()
    assert {v for *_, v in make_dataset("veri", tmp_path).train} == {0}


def test_what_changed_just_now_is_not_kept_nor_short_lists_nor_on_request(tmp_path, monkeypatch):
    MARKET.build(tmp_path)
    monkeypatch.setattr(cache, "LEAST", 1)
    make_dataset("market1501", tmp_path)
    assert not list(tmp_path.rglob("*.npz"))
    age(tmp_path)
    make_dataset("market1501", tmp_path, list_cache=False)
    monkeypatch.setattr(cache, "LEAST", 10_000)
    make_dataset("market1501", tmp_path)
    assert not list(tmp_path.rglob("*.npz"))


def test_a_damaged_copy_is_read_anew_and_a_folder_that_cannot_be_written_uses_the_users(tmp_path, keep_all):
    place = MARKET.build(tmp_path / "data")
    age(tmp_path / "data")
    first = make_dataset("market1501", tmp_path / "data")
    (copy,) = place.rglob("*.npz")
    copy.write_bytes(copy.read_bytes()[:200])
    assert lists(make_dataset("market1501", tmp_path / "data")) == lists(first)
    shutil.rmtree(place / ".lineup")
    (place / ".lineup").write_text("in the way")
    age(tmp_path / "data")
    assert lists(make_dataset("market1501", tmp_path / "data")) == lists(first)
    assert list((tmp_path / "home" / "lineup").rglob("*.npz"))
    assert lists(make_dataset("market1501", tmp_path / "data")) == lists(first)


def test_notes_and_further_columns_are_kept_too(tmp_path, keep_all, caplog):
    rows = ["path,pid,split,seq,x1,y1,x2,y2,note", "a,1,train,,1,2,3,4,hi", "q,ä,query,s,,,,,", "g,ä,gallery,u,,,,,ho"]
    (tmp_path / "dataset.csv").write_text("\n".join(rows), encoding="utf-8")
    age(tmp_path)
    for _ in range(2):
        caplog.clear()
        dataset = make_dataset("csv", tmp_path)
        assert dataset.train.boxes.tolist() == [[1, 2, 3, 4]] and dataset.train.extra["note"].tolist() == ["hi"]
        assert dataset.query.seqs.tolist() == [0] and dataset.gallery.seqs.tolist() == [1]
        assert [r for r in caplog.records if "nothing reads the columns note" in r.message]
    assert list(tmp_path.rglob("*.npz"))


# ---------------------------------------------------------------- packed paths


def test_packed_paths_are_a_sequence_of_text(tmp_path):
    given = ["/data/a/ü.jpg", "/data/b.jpg", "elsewhere/c.jpg", "/data/", ""]
    paths = Paths.of(given, "/data/")
    assert paths == given and list(paths) == given and [paths[i] for i in range(5)] == given
    assert paths[-2] == "/data/" and paths[1:3] == given[1:3] and paths != given[:4] and paths != "text"
    assert paths.take(np.array([4, 0])) == ["", given[0]] and Paths.of(paths) is paths
    both = chain([paths.take([1]), Paths.of(["x"], "/other/"), paths.take([0])])
    assert both == ["/data/b.jpg", "x", "/data/a/ü.jpg"]
    assert pickle.loads(pickle.dumps(both)) == both
    many = chain([Paths.of([f"/{i}/a"], f"/{i}/") for i in range(300)])
    assert many == [f"/{i}/a" for i in range(300)]
    assert chain([Paths.of([]), Paths.of(["a"])]) == ["a"] and Paths.of([]) == []


def test_a_long_list_holds_no_object_per_name():
    names = np.array([b"images/%07d_crop.jpg" % i for i in range(20_000)])
    paths = Paths.of_names(names, "/data/LUP")
    assert paths[12_345] == "/data/LUP/images/0012345_crop.jpg" and len(paths) == 20_000
    assert paths.nbytes < 20_000 * (names.itemsize + 14)
    assert chain([paths.take(slice(0, 5)), paths.take(slice(5, 9))]).blob is paths.blob


def test_a_walk_is_sorted_by_whole_relative_paths(tmp_path):
    LUPERSON.build(tmp_path)
    found = [name.decode() for name in walk_images(tmp_path / "LUP" / "images").tolist()]
    assert found == sorted(found) == ["a-1.jpg", "a/1.jpg", "a/2.jpg", "b.jpg", "c.jpg"]


# ---------------------------------------------------------------- the page


def test_the_page_has_a_row_for_every_set_with_its_names_folders_and_counts():
    from datasets import CATALOGUE

    page = (ROOT / "docs/datasets.md").read_text().splitlines()
    rows = {line.split("`")[1]: line for line in page if line.startswith("| `")}
    for name, spec in CATALOGUE.items():
        if name in MINIATURES:
            assert all(f"`{word}`" in rows[name] for word in (*spec.aliases, *(f"{f}/" for f in spec.folders)))
            assert all(f"{n:,}" in rows[name] for counts in spec.published().values() for n in counts[:2] if n)
            assert spec.protocol in rows[name] and spec.availability in rows[name]
