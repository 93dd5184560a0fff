"""The command ``tools.check_data``, the kept copies of lists, packed paths."""

from __future__ import annotations

import os
import pickle
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter

from datasets import make_dataset, quality
from datasets.checks import log_kinds
from datasets.paths import Paths, chain
from datasets.readers.scan import walk_images
from datasets.records import Records
from datasets.storage import cache
from tests.datasets.miniatures import LUPERSON, MARKET, MINIATURES, lists
from tests.parity.cases import DATA, REQUIRED, ROOT
from tests.pictures import PICTURES, UNCLEAR
from tests.tiny import write_market
from tools import check_data as check
from utils.commands import run_command


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


def drawn(size: tuple[int, int], seed: int) -> Image.Image:
    """Some soft shapes with sharp edges."""
    rng = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(rng.integers(0, 255, 3).tolist()))
    pen = ImageDraw.Draw(image)
    for _ in range(12):
        left, top = (int(rng.integers(0, side)) for side in size)
        pen.rectangle((left, top, left + 20, top + 30), fill=tuple(rng.integers(0, 255, 3).tolist()))
    return image


def test_blurred_images_and_near_duplicates_are_counted_and_shown(tmp_path, capsys):
    place = tmp_path / "market1501"
    files = [f"{split}/{pid:04d}_c{cam}s1_000000_00.jpg" for split, ids in
             (("bounding_box_train", (1, 2, 3)), ("query", (4, 5)), ("bounding_box_test", (4, 5)))
             for pid in ids for cam in (1, 2)]  # fmt: skip
    for i, name in enumerate(files):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        image = drawn((64, 128), i)
        if i == 2:
            image = drawn((64, 128), i).filter(ImageFilter.GaussianBlur(4))
        image.save(place / name, quality=95)
    drawn((64, 128), 0).save(place / files[1], quality=60)  # the same person again
    drawn((64, 128), 4).save(place / files[-1], quality=60)  # of training, in the gallery
    code, out = run(capsys, "--sheet", tmp_path / "s.png", *keys(tmp_path))
    assert code == 0
    assert f"quality of all {len(files)} images: 1 blurred, 2 pairs of near-duplicates" in out
    assert f": {place / files[2]}" in out and "  blur 0." in out
    first, second = (line for line in out.splitlines() if line.startswith("  similar "))
    assert f"{place / files[4]} ~ {place / files[-1]} (different identities or splits)" in first
    assert f"{place / files[0]} ~ {place / files[1]}" in second and "different" not in second
    assert "notice: 1 pairs of near-duplicates have different identities or are in training and test" in out
    plain = check.contact_sheet(make_dataset("market1501", tmp_path), tmp_path / "plain.png")
    with Image.open(tmp_path / "s.png") as sheet, Image.open(tmp_path / "plain.png") as without:
        assert plain and sheet.height == without.height + 2 * (96 + 12 + 4)
    _, out = run(capsys, "--sample", 4, *keys(tmp_path, OUTPUT_DIR=tmp_path / "out"))
    assert f"quality of 4 of {len(files)} images (--sample 0: all): " in out


def test_a_sample_is_runs_of_neighbours_over_all_lists():
    sizes = {"train": 5000, "query": 10, "gallery": 500}
    lists = {name: Records.of([str(i) for i in range(size)]) for name, size in sizes.items()}
    chosen = check.sample_of(lists, 500)
    assert [len(c) for c in chosen.values()] == [5000, 10, 500]
    assert 450 <= sum(c.sum() for c in chosen.values()) <= 500
    assert chosen["gallery"][-50:].all() and chosen["train"][:50].all()
    assert all(c.all() for c in check.sample_of(lists, 0).values())


def test_candidates_for_likeness_stay_few_however_alike_images_are():
    same = [np.full((32, 32), 90, np.uint8)] * 2000
    assert len(quality.candidates(same)) < 10 * len(same)
    assert len(quality.near_duplicates(same[:10])) == 45
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 255, (32, 32), np.uint8) for _ in range(500)]
    assert len(quality.candidates(noise)) < 500 and quality.near_duplicates(noise) == []


@pytest.mark.parametrize(("words", "line"), [
    (["DATASETS.ROOT_DIR", "nowhere"], "is not a folder"),
    (["DATASETS.NAMES", "martek1501"], "unknown dataset"),
    (["DATASETS.NAMEZ", "x"], "DATASETS.NAMEZ"),
])  # fmt: skip
def test_a_mistake_is_one_line_and_code_2(words, line, capsys):
    with pytest.raises(SystemExit, match="2"):
        run_command(lambda: check.main(words))
    done = capsys.readouterr()
    assert line in done.err and done.err.count("\n") == 1 and not done.out


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
    sample = 400 if form == "market1501" else 100  # they are the same images
    code, out = run(
        capsys, "--sheet", tmp_path / "s.png", "--sample", sample, *keys(root, DATASETS__NAMES=form, **more)
    )
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


def test_each_kind_of_image_and_of_id_is_counted(tmp_path, capsys):
    kinds = ("turned 6 JPEG", "turned 3 PNG", "16-bit PNG", "RGBA PNG", "palette GIF", "animation", "JPEG")
    rows = []
    for i, kind in enumerate(kinds):
        (tmp_path / f"{i}.jpg").write_bytes(PICTURES[kind][0])
        rows.append((f"{i}.jpg", "1.0", "1", "train", "1", "1", "90" if i == 6 else "9", "9"))
    (tmp_path / "f.tif").write_bytes(UNCLEAR["floats in 0 to 1"])
    raw = PICTURES["PNG"][0]
    (tmp_path / "cut.jpg").write_bytes(raw[: len(raw) // 2])
    more = (("f.tif", "2", "train"), ("cut.jpg", "nan", "train"), ("6.jpg", "-1.0", "train"), ("6.jpg", "3", "query"))
    rows += [(name, pid, "1", split, "", "", "", "") for name, pid, split in more]
    lines = ["path,pid,camid,split,x1,y1,x2,y2,label", *(",".join((*row, "x")) for row in rows)]
    (tmp_path / "dataset.csv").write_text("\n".join(lines))
    with pytest.raises(SystemExit) as end:
        check.main(["DATASETS.NAMES", "csv", "DATASETS.ROOT_DIR", str(tmp_path), "OUTPUT_DIR", str(tmp_path / "out")])
    assert end.value.code == 1
    out = capsys.readouterr().out
    for line in (
        "2 images: turned by their EXIF orientation", "1 images: of 16 bits", "2 images: with transparency",
        "1 images: animated", "1 images: of 32-bit integers or floats", "1 images: with a crop box that reaches beyond",
        "1 images: truncated", "8 ids are decimals, such as '1.0', read as '1'", "1 rows have a missing value",
        "1 rows are of nobody", "of the columns 'pid', 'label', 'pid' counts", "1 training images have no identity",
        "the gallery is empty, and the query has 1 images",
    ):  # fmt: skip
        assert line in out, line


def deep_files(folder: Path, top: int, white: bool = False) -> list[str]:
    """Writes four 16-bit images with values up to ``top``; white: TIFFs whose 0 is white."""
    rng = np.random.default_rng(0)
    for i in range(4):
        values = rng.integers(0, top + 1, (16, 8)).astype(np.uint16)
        values[0, 0] = top
        more = {"tiffinfo": {262: 0}} if white else {}
        Image.fromarray(values).save(folder / f"{i}.png", "TIFF" if white else "PNG", **more)
    return [f"{i}.png,{i // 2},{i % 2},train" for i in range(4)]


@pytest.mark.parametrize(("top", "white", "words"), [
    (4095, False, "only the lower 12 of them, so they are almost black: if the camera gives 12 bits, multiply"),
    (16383, False, "the lower 14"), (1023, False, "by 64"), (255, False, "the lower 8"), (4095, True, "the lower 12"),
    (16384, False, ""), (65535, False, ""), (65535, True, ""),
])  # fmt: skip
def test_images_of_16_bits_that_use_few_of_them_are_named(top, white, words, tmp_path, capsys, caplog):
    rows = deep_files(tmp_path, top, white)
    (tmp_path / "dataset.csv").write_text("\n".join(["path,pid,camid,split", *rows]))
    words_of_run = ["DATASETS.NAMES", "csv", "DATASETS.ROOT_DIR", str(tmp_path), "OUTPUT_DIR", str(tmp_path / "out")]
    with pytest.raises(SystemExit):
        check.main(words_of_run)
    lines = [line for line in capsys.readouterr().out.splitlines() if "16 bits use" in line]
    with caplog.at_level("WARNING", logger="lineup"):
        log_kinds("csv", "train", make_dataset("csv", tmp_path).train.paths)
    lines += [record.getMessage() for record in caplog.records if "16 bits use" in record.getMessage()]
    assert len(lines) == (2 if words else 0) and all("4 images of 16 bits" in line and words in line for line in lines)


def test_endings_that_are_left_out_are_counted(tmp_path, capsys):
    for person in ("a", "b", "c"):
        (tmp_path / person).mkdir()
        for i, ending in enumerate((".JPG", ".jfif", ".Png", ".gif", ".tif", ".webp", ".xyz", "")):
            Image.new("RGB", (9, 9), (20 * i, 0, 0)).save(tmp_path / person / f"{i}{ending}", "PNG")
    with pytest.raises(SystemExit) as end:
        out = str(tmp_path.parent / "out")
        check.main(["DATASETS.NAMES", "folder", "DATASETS.ROOT_DIR", str(tmp_path), "OUTPUT_DIR", out])
    out = capsys.readouterr().out
    assert "6 files are left out, as their endings are no image's: .xyz 3, no ending 3" in out
    assert "files: 18 read" in out and end.value.code == 0


def test_images_of_test_rows_with_cameras_are_looked_at_once(tmp_path, capsys):
    rows = []
    for pid in range(4):
        for cam in range(2):
            Image.new("RGB", (9, 9), (60 * pid, 99 * cam, 0)).save(tmp_path / f"{pid}_{cam}.png")
            rows.append(f"{pid}_{cam}.png,{pid},{cam},test")
    (tmp_path / "dataset.csv").write_text("\n".join(["path,pid,camid,split", *rows]))
    with pytest.raises(SystemExit):
        check.main(["DATASETS.NAMES", "csv", "DATASETS.ROOT_DIR", str(tmp_path), "OUTPUT_DIR", str(tmp_path / "out")])
    out = capsys.readouterr().out
    assert "files: 8 read" in out and "query and gallery at once" not in out and "contents more than once" not in out
