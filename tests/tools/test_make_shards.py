"""Tar shards: every entry gives the same tuples and the same pixels; what goes wrong is one line."""

from __future__ import annotations

import json
import subprocess
import sys
import tarfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from datasets import make_dataloader, make_dataset
from datasets.paths import Paths
from datasets.records import SPLITS
from datasets.storage.files import own_name, read_bytes
from datasets.storage.pillow_decoding import load_image
from datasets.storage.shard_index import list_options
from tests.datasets.every import NAMES, OPTIONS, build, paint
from tests.datasets.miniatures import MINIATURES, lists, message
from tests.parity.cases import ROOT
from tests.runs import call
from tests.tiny import config, options, write_market
from tools import check_data as check
from tools import make_shards as shards
from tools.make_shards import write_shards
from utils.errors import UserError


def convert(dataset, out: Path, size: int = 6_000, **chosen) -> str:
    return write_shards(dataset, out, list_options(dataset.spec, dataset.use_all, chosen), size)


def below(dataset) -> dict[str, list[tuple]]:
    """The lists with paths relative to the dataset."""
    base = f"{dataset.folder if dataset.folder.is_dir() else dataset.folder.parent}/"
    return {s: [(own_name(p).removeprefix(base), *ids) for p, *ids in rows] for s, rows in lists(dataset).items()}


@pytest.mark.parametrize("name", NAMES)
def test_an_entry_gives_the_same_tuples_and_pixels_from_shards(name, tmp_path):
    more = OPTIONS.get(name, {})
    build(name, tmp_path / "data")
    if name in MINIATURES or not more:
        paint(tmp_path / "data")
    plain = make_dataset(name, tmp_path / "data", **more)
    convert(plain, tmp_path / "out", **more)
    expected = below(plain)
    (tmp_path / "data").rename(tmp_path / "gone")
    (tmp_path / "out").rename(tmp_path / "moved")
    packed = make_dataset(name, tmp_path / "nowhere", shards=tmp_path / "moved", **more)
    assert below(packed) == expected
    for of in ("same_list", "protocol", "shared_ids", "num_classes", "num_cameras", "num_views", "use_all", "spec"):
        assert getattr(packed, of) == getattr(plain, of)
    seen = set()
    for split in SPLITS:
        one, two = getattr(plain, split), getattr(packed, split)
        for of in ("seqs", "boxes"):
            a, b = getattr(one, of), getattr(two, of)
            assert (a is None and b is None) or np.array_equal(a, b)
        assert {k: v.tolist() for k, v in one.extra.items()} == {k: v.tolist() for k, v in two.extra.items()}
        for old, new in zip(one.paths, two.paths, strict=True):
            there = old.replace(str(tmp_path / "data"), str(tmp_path / "gone"))
            assert new.startswith(str(tmp_path / "moved")) and new.endswith(f"/{Path(old).name}")
            image = load_image(new)
            assert image.tobytes() == load_image(there).tobytes()
            seen.add(image.tobytes())
    assert len(seen) == len({p for s in SPLITS for p in getattr(plain, s).paths})  # every image is its own


def test_options_and_training_on_everything_go_into_the_shards(tmp_path):
    build("university1652", tmp_path / "data")
    chosen = {"direction": "satellite_drone"}
    for more in (chosen, {"use_all": True}):
        out = tmp_path / "_".join(more)
        plain = make_dataset("university1652", tmp_path / "data", **more)
        convert(plain, out, **more)
        assert below(make_dataset("university1652", "nowhere", shards=out, **more)) == below(plain)
    text = message(make_dataset, "university1652", "nowhere", shards=tmp_path / "direction")
    assert "was written with direction 'satellite_drone', this run has 'drone_satellite'" in text
    text = message(make_dataset, "university1652", "nowhere", shards=tmp_path / "use_all")
    assert "was written with use_all True, this run has False" in text
    assert "has no option" in message(make_dataset, "market1501", "nowhere", shards=tmp_path, direction="x")


def test_the_layout_is_webdatasets(tmp_path):
    build("csv", tmp_path / "data")
    paint(tmp_path / "data")
    dataset = make_dataset("csv", tmp_path / "data")
    line = convert(dataset, tmp_path / "out")
    home = tmp_path / "out" / "csv"
    names = sorted(path.name for path in home.iterdir())
    assert names == [f"{i:06d}.tar" for i in range(len(names) - 1)] + ["index.npz"] and len(names) > 2
    assert line.startswith(f"csv: 5 images in {len(names) - 1} shards")  # one of them shows two people
    samples, numbers = [], []
    for shard in names[:-1]:
        with tarfile.open(home / shard) as tar:
            members = tar.getmembers()
            assert (home / shard).stat().st_size <= 10 * 1024 + 6_000
            for image, text in zip(members[::2], members[1::2], strict=True):
                key = image.name.partition(".")[0]
                assert text.name == f"{key}.json" and image.name.rpartition(".")[2] in ("jpg", "png")
                samples.append(json.load(tar.extractfile(text)))
                numbers.append(int(key))
                assert tar.extractfile(image).read() == (tmp_path / "data" / samples[-1]["path"]).read_bytes()
    assert numbers == list(range(5))
    assert samples[1] == {"path": "in/b.jpg", "rows": [
        {"split": "train", "pid": 0, "camid": 0, "viewid": 0, "box": [0, 0, 4, 6]},
        {"split": "train", "pid": 1, "camid": 0, "viewid": 0, "box": [2, 1, 4, 8]},
    ]}  # fmt: skip
    again = tmp_path / "again"
    convert(dataset, again)
    assert [(again / "csv" / n).read_bytes() for n in names[:-1]] == [(home / n).read_bytes() for n in names[:-1]]


def test_webdataset_streams_the_shards(tmp_path):
    webdataset = pytest.importorskip("webdataset")
    build("market1501", tmp_path / "data")
    paint(tmp_path / "data")
    dataset = make_dataset("market1501", tmp_path / "data")
    convert(dataset, tmp_path / "out")
    urls = sorted(str(path) for path in (tmp_path / "out" / "market1501").glob("*.tar"))
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("jpg", "json"))
    paths = [*dataset.train.paths, *dataset.query.paths, *dataset.gallery.paths]
    assert [str(dataset.folder / text["path"]) for _, text in found] == paths
    for (image, _), path in zip(found, paths, strict=True):
        assert image.tobytes() == load_image(path).tobytes()


def test_very_long_lists_share_no_image_between_rows_and_read_alike(tmp_path, monkeypatch):
    build("cub200", tmp_path / "data")
    paint(tmp_path / "data")
    plain = make_dataset("cub200", tmp_path / "data")
    assert convert(plain, tmp_path / "short").startswith("cub200: 3 images")
    monkeypatch.setattr(shards, "LONG", 1)
    assert convert(plain, tmp_path / "long").startswith("cub200: 4 images")
    packed = make_dataset("cub200", "nowhere", shards=tmp_path / "long")
    assert below(packed) == below(plain)
    assert load_image(packed.gallery.paths[0]).tobytes() == load_image(plain.gallery.paths[0]).tobytes()


def test_more_shards_than_a_byte_can_number(tmp_path):
    paths = Paths(b"ab", np.arange(2), np.ones(2, np.int32), [f"/{i}/" for i in range(300)], np.array([299, 1]))
    assert paths == ["/299/a", "/1/b"] and paths.take([1, 0]) == ["/1/b", "/299/a"]


# ---------------------------------------------------------------- commands and training


def content(loader) -> list:
    return [(b.images, b.pids, b.cam_labels, b.view_labels, b.rows) for b in loader]


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_and_features_lists_are_those_of_the_folders(market, tmp_path, workers, capsys):
    shards.main(["--out", str(tmp_path), "--gb", "0.000005", *map(str, options(market, tmp_path / "x"))])
    assert "market1501: 32 images in" in capsys.readouterr().out
    plain = make_dataloader(config(market, tmp_path))
    changes = {"DATASETS__SHARDS": tmp_path, "DATALOADER__NUM_WORKERS": workers, "DATALOADER__CACHE_GB": 0.000005}
    packed = make_dataloader(config(tmp_path / "nowhere", tmp_path, **changes))
    assert 0 < len(packed.train.loader.dataset.store) < 16
    for one, two in ((plain.train.epoch(2), packed.train.epoch(2)), (plain.tests[0].loader, packed.tests[0].loader)):
        ours, theirs = content(one), content(two)
        assert len(ours) == len(theirs) > 1
        assert all(torch.equal(x, y) for a, b in zip(ours, theirs, strict=True) for x, y in zip(a, b, strict=True))


def test_a_mistake_is_one_line_and_code_2(tmp_path):
    command = [sys.executable, "-m", "tools.make_shards", "--out", str(tmp_path), "DATASETS.ROOT_DIR", "nowhere"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2 and not done.stdout
    assert done.stderr.count("\n") == 1 and "DATASETS.ROOT_DIR 'nowhere' is not a folder" in done.stderr


def test_a_run_goes_on_from_shards_to_the_same_weights(tmp_path):
    root = write_market(tmp_path / "data")
    shards.main(["--out", str(tmp_path / "s"), "DATASETS.ROOT_DIR", str(root)])
    packed = {"DATASETS__SHARDS": tmp_path / "s"}
    assert call("train", options(root, tmp_path / "a", SOLVER__MAX_EPOCHS=2)) == 0
    assert call("train", options("nowhere", tmp_path / "b", SOLVER__MAX_EPOCHS=2, **packed)) == 0
    one, two = (torch.load(tmp_path / run / "transformer_2.pth", weights_only=True) for run in "ab")
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    results = [json.loads((tmp_path / run / "metrics.json").read_text())["results"] for run in "ab"]
    assert results[0] == results[1]


def test_vehicleid_draws_the_same_galleries_from_shards(tmp_path):
    from processor.evaluate import Settings, score

    build("vehicleid", tmp_path / "data")
    paint(tmp_path / "data")
    convert(make_dataset("vehicleid", tmp_path / "data"), tmp_path / "s", size=4_000)
    found = []
    for more in ({}, {"DATASETS__SHARDS": tmp_path / "s"}):
        cfg = config(tmp_path / "data", tmp_path, DATASETS__NAMES="vehicleid", **more)
        (test,) = make_dataloader(cfg, training=False).tests
        feats = torch.cat([batch.images.flatten(1) for batch in test.loader])
        found.append(score(test, feats, Settings.from_cfg(cfg)).metrics)
    assert found[0] == found[1]


def test_the_check_command_looks_into_shards(tmp_path, capsys):
    write_market(tmp_path / "data")
    shards.main(["--out", str(tmp_path / "s"), "DATASETS.ROOT_DIR", str(tmp_path / "data")])
    outputs = []
    for words in (["DATASETS.ROOT_DIR", tmp_path / "data"], ["DATASETS.SHARDS", tmp_path / "s"]):
        with pytest.raises(SystemExit) as caught:
            capsys.readouterr()
            check.main(["--sheet", str(tmp_path / "s.png"), *map(str, words)])
        assert caught.value.code == 0
        outputs.append(capsys.readouterr().out.splitlines()[1:])
    assert outputs[0] == outputs[1] and "files: 32 read, 0 missing, 0 damaged" in outputs[0]


def test_threads_that_open_more_shards_than_stay_open_read_their_own_bytes(tmp_path):
    addresses = {}
    for i in range(100):
        (tmp_path / f"{i:06d}.tar").write_bytes(b"%03d" % i * 50)
        addresses[f"{tmp_path}/{i:06d}.tar/3+3/a.jpg"] = b"%03d" % i
    wanted = list(addresses) * 20
    with ThreadPoolExecutor(8) as pool:
        assert list(pool.map(read_bytes, wanted)) == [addresses[path] for path in wanted]


# ---------------------------------------------------------------- what goes wrong


@pytest.fixture
def home(tmp_path):
    build("market1501", tmp_path / "data")
    paint(tmp_path / "data")
    convert(make_dataset("market1501", tmp_path / "data"), tmp_path)
    return tmp_path / "market1501"


def test_shards_that_are_not_there_or_not_whole_are_told(home):
    def told() -> str:
        return message(make_dataset, "market1501", "nowhere", shards=home.parent)

    assert f"no index.npz in {home.parent / 'veri'} (found: no such folder)" in message(
        make_dataset, "veri", "nowhere", shards=home.parent
    )
    last = sorted(home.glob("*.tar"))[-1]
    whole = last.read_bytes()
    last.write_bytes(whole[:-100])
    assert f"{last} has {len(whole) - 100:,} bytes instead of {len(whole):,}; copy the shards again" in told()
    last.unlink()
    assert f"{last} is missing" in told()
    last.write_bytes(whole)
    make_dataset("market1501", "nowhere", shards=home.parent)
    index = (home / "index.npz").read_bytes()
    (home / "index.npz").write_bytes(index[: len(index) // 2])
    assert f"{home / 'index.npz'}: is damaged" in told()


def test_an_image_that_is_damaged_or_cut_off_in_a_shard_is_named(home, monkeypatch):
    path = make_dataset("market1501", "nowhere", shards=home.parent).train.paths[0]
    shard, _, rest = path.partition(".tar/")
    start, _, length = rest.partition("/")[0].partition("+")
    raw = bytearray(Path(f"{shard}.tar").read_bytes())
    raw[int(start) : int(start) + int(length)] = b"?" * int(length)
    Path(f"{shard}.tar").write_bytes(raw)
    text = message(load_image, path)
    assert text.startswith(f"{path}: the image cannot be read") and own_name(path) in text
    Path(f"{shard}.tar").write_bytes(raw[: int(start) + 5])
    assert "the shard ends before byte" in message(load_image, path)
    Path(f"{shard}.tar").unlink()
    from datasets.storage.files import opened

    opened.cache_clear()
    assert "the image is missing" in message(load_image, path)

@pytest.mark.parametrize("kind", ["float32", "int32"])
def test_pixels_that_no_run_reads_are_not_packed(kind, tmp_path):
    build("market1501", tmp_path / "data")
    dataset = make_dataset("market1501", tmp_path / "data")
    path = dataset.gallery.paths[1]
    Image.fromarray(np.zeros((8, 4), kind)).save(path, "TIFF")
    line = message(convert, dataset, tmp_path / "out")
    assert path in line and "whose range the file does not state" in line
    assert not (tmp_path / "out" / "market1501").exists() and message(load_image, path) == line
    Path(path).write_bytes(b"not an image")  # the run names it, or skips it by BAD_IMAGES
    assert "1 shards" in convert(dataset, tmp_path / "out", 10**9)



def test_nothing_is_left_of_a_conversion_that_cannot_be_finished(tmp_path):
    build("market1501", tmp_path / "data")
    dataset = make_dataset("market1501", tmp_path / "data")
    Path(dataset.gallery.paths[1]).unlink()
    assert f"{dataset.gallery.paths[1]}: the image is missing" in message(convert, dataset, tmp_path / "out")
    assert not list((tmp_path / "out").iterdir())
    (tmp_path / "out" / "market1501").mkdir()
    assert "already exists; remove it" in message(convert, dataset, tmp_path / "out")
    (tmp_path / "file").write_text("")
    Image.new("RGB", (4, 8)).save(dataset.gallery.paths[1])
    assert f"{tmp_path / 'file' / 'market1501'} cannot be written" in message(convert, dataset, tmp_path / "file")
    with pytest.raises(UserError, match="--gb: must be above 0, got 0"):
        shards.main(["--out", str(tmp_path / "o"), "--gb", "0", "DATASETS.ROOT_DIR", str(tmp_path / "data")])
