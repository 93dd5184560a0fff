"""A store in a folder: tools.search's ranks, filters, erasure from the files, kills, two writers, one-line mistakes."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import sys
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

if find_spec("lancedb") is None:
    pytest.skip("requirements-dev.txt has lancedb", allow_module_level=True)

from tests.runs import exit_code_of
from tests.tools.galleries.folders import HASH, WIDTH, bytes_in, unit_features, write_features
from tools import gallery as command
from tools import search
from tools.galleries import adding, erasing
from tools.galleries.filters import RowFilter
from tools.galleries.lancedb import LanceStore
from tools.galleries.schema import VERSION, first_id
from tools.galleries.store import META
from utils.errors import UserError


def run(*words) -> None:
    command.main([str(word) for word in words])


def lists(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """``gallery`` (400 rows) and ``query`` (9) as features, and ``store``, which has the gallery."""
    folder = tmp_path_factory.mktemp("galleries")
    feats = unit_features(400)
    write_features(folder / "gallery", feats)
    write_features(folder / "query", feats[5:400:45], name="q")
    run("create", "--store", folder / "store", "--features", folder / "gallery")
    run("add", "--store", folder / "store", "--features", folder / "gallery")
    return folder


@pytest.fixture
def copied(place, tmp_path):
    """A copy of the store that a test may change."""
    shutil.copytree(place / "store", tmp_path / "store")
    return tmp_path / "store"


def test_ranks_and_distances_are_those_of_search_to_the_bit(place, tmp_path):
    words = ("--query", place / "query", "--gallery", place / "gallery", "--k", 30, "--out", tmp_path / "a.jsonl")
    search.main([str(word) for word in words])
    run("search", "--store", place / "store", "--query", place / "query", "--k", 30, "--out", tmp_path / "b.jsonl")
    one, two = lists(tmp_path / "a.jsonl"), lists(tmp_path / "b.jsonl")
    assert len(one) == 9 and len(one[0]["found"]) == 30
    for a, b in zip(one, two, strict=True):
        assert [hit["row"] for hit in a["found"]] == [hit["row"] for hit in b["found"]]
        assert [hit["distance"] for hit in a["found"]] == [hit["distance"] for hit in b["found"]]
        assert [hit["path"] for hit in a["found"]] == [hit["path"] for hit in b["found"]]
    distances = [hit["distance"] for hit in one[1]["found"]]
    assert any(x == y for x, y in zip(distances, distances[1:], strict=False))  # copies: ties were put to the test


def test_the_order_in_which_sources_come_does_not_matter(place, tmp_path):
    more = write_features(tmp_path / "more", unit_features(400)[100:160], name="more")
    for name, order in (("ab", (place / "gallery", more)), ("ba", (more, place / "gallery"))):
        run("create", "--store", tmp_path / name, "--features", more)
        for features in order:
            run("add", "--store", tmp_path / name, "--features", features)
        run("search", "--store", tmp_path / name, "--query", place / "query", "--out", tmp_path / f"{name}.jsonl")
    assert lists(tmp_path / "ab.jsonl") == lists(tmp_path / "ba.jsonl")
    assert {hit["source"] for line in lists(tmp_path / "ab.jsonl") for hit in line["found"]} == {"gallery", "more"}


@pytest.mark.parametrize(
    ("words", "keeps"),
    [
        (("--camera", "c1"), lambda i: i % 3 == 1),
        (("--identity", "p2", "p3"), lambda i: i % 7 in (2, 3)),
        (("--since", "500", "--until", "1970-01-01T00:33:20"), lambda i: 500 <= 10 * i < 2000),
        (("--source", "gallery", "--camera", "c0", "--identity", "p1"), lambda i: i % 21 == 15),
        (("--seq", "img-3", "img-90"), lambda i: i // 4 in (3, 90)),
        (("--identity", "nobody' OR 'a'='a"), lambda i: False),
    ],
)
def test_a_filter_gives_what_the_filtered_gallery_gives(place, tmp_path, words, keeps):
    kept = np.array([i for i in range(400) if keeps(i)], int)
    run("search", "--store", place / "store", "--query", place / "query", "--out", tmp_path / "f.jsonl", *words)
    found = lists(tmp_path / "f.jsonl")
    feats = unit_features(400)
    for line, query in zip(found, feats[5:400:45], strict=True):
        distances = ((feats[kept].astype(float) - query) ** 2).sum(1)
        wanted = kept[np.argsort(distances, kind="stable")][:10]
        np.testing.assert_array_equal([hit["row"] for hit in line["found"]], wanted)


def test_tracklets_search_by_the_mean_of_their_images(place, tmp_path):
    given = ("--query", place / "gallery", "--tracklets", "--k", 3, "--out", tmp_path / "t.jsonl")
    run("search", "--store", place / "store", *given)
    found, feats = lists(tmp_path / "t.jsonl"), unit_features(400)
    assert len(found) == 100 and found[2]["query"]["seq"] == "img-2" and found[2]["query"]["images"] == 4
    mean = feats[8:12].mean(0)
    wanted = np.argsort(-(feats @ mean), kind="stable")[:3]
    assert {hit["row"] for hit in found[2]["found"]} == set(wanted.tolist())
    with pytest.raises(UserError, match="row 0 of the queries has no seq"):
        run("search", "--store", place / "store", "--query", place / "gallery" / "features.npy", "--tracklets")


@pytest.mark.parametrize("indexed", [False, True])
def test_what_is_erased_is_in_no_answer_and_in_no_file(place, copied, indexed, capsys):
    feats, gone = unit_features(400), np.arange(2, 400, 7)
    unique = [i for i in gone if i % 10 not in (0, 9)]  # not those that have a copy
    if indexed:
        run("verify", "--store", copied, "--queries", 20, "--recall", 0.5)
    assert all(bytes_in(copied, feats[i].tobytes()) for i in unique[:3])
    assert bytes_in(copied, b"img_9.jpg")
    run("erase", "--store", copied, "--identity", "p2")
    assert f"{len(gone)} rows erased, {400 - len(gone)} left" in capsys.readouterr().out
    assert not any(bytes_in(copied, feats[i].tobytes()) for i in unique)
    assert not bytes_in(copied, b"img_9.jpg") and bytes_in(copied, b"img_10.jpg")
    assert all(bytes_in(copied, feats[i].tobytes()) for i in (1, 3, 4))  # the others are still there
    run("info", "--store", copied, "--json")
    info = json.loads(capsys.readouterr().out)
    (record,) = info["erasures"]
    assert (record["rows"], record["why"], info["rows"]) == (len(gone), "identity", 400 - len(gone))
    assert set(record) == {"rows", "why", "when"} and bool(info["index"]) == indexed
    store = LanceStore.open(str(copied))
    run("add", "--store", copied, "--features", place / "gallery")
    assert store.count(RowFilter()) == 400 - len(gone)  # a finished source does not come back


def test_an_erasure_that_was_killed_is_finished_by_the_next(copied, monkeypatch, capsys):
    feats = unit_features(400)

    def die(self) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(LanceStore, "compact", die)
        with pytest.raises(KeyboardInterrupt):
            run("erase", "--store", copied, "--path", "/images/img_8.jpg")
    assert bytes_in(copied, feats[8].tobytes())
    run("info", "--store", copied)
    assert "an erasure of 1 rows was stopped: erase again" in capsys.readouterr().out
    run("erase", "--store", copied)
    assert not bytes_in(copied, feats[8].tobytes())
    assert [record["rows"] for record in erasing.records(LanceStore.open(str(copied)))] == [1]
    with pytest.raises(UserError, match="erase: name what to erase"):
        run("erase", "--store", copied)


def die_in(what: str, after: bool, words: list) -> None:
    """Runs a command whose process is killed when the table does ``what``: in the middle, or right afterwards."""
    table = type(LanceStore.open(words[2]).table)
    real = getattr(table, what)

    def dying(self, *given, **more) -> None:
        if not after:
            threading.Timer(0.02, os.kill, (os.getpid(), signal.SIGKILL)).start()
        real(self, *given, **more)
        os.kill(os.getpid(), signal.SIGKILL)

    setattr(table, what, dying)
    command.main(words)


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("what", ["drop_index", "update", "optimize"])
def test_an_erasure_killed_inside_compaction_is_finished_by_the_next(place, copied, tmp_path, what, after):
    run("verify", "--store", copied, "--queries", 20, "--recall", 0.5)
    assert exit_code_of(die_in, what, after, ["erase", "--store", str(copied), "--identity", "p2"]) == -signal.SIGKILL
    rows = [i for i in range(400) if i % 7 != 2]
    for _ in range(2):  # before the next erasure, and after it
        store = LanceStore.open(str(copied))
        np.testing.assert_array_equal(store.ids(RowFilter()) - first_id("gallery"), rows)
        given = ("--query", place / "query", "--k", 3, "--out", tmp_path / "found.jsonl")
        run("search", "--store", copied, *given)
        assert all(hit["row"] in rows for line in lists(tmp_path / "found.jsonl") for hit in line["found"])
        run("erase", "--store", copied) if store.facts(erasing.PENDING) else None
    gone = [i for i in range(2, 400, 7) if i % 10 not in (0, 9)]
    assert not any(bytes_in(copied, unit_features(400)[i].tobytes()) for i in gone)
    assert [record["rows"] for record in erasing.records(LanceStore.open(str(copied)))] == [57]


@pytest.mark.slow
@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("what", ["create_index", "optimize"])
def test_a_killed_build_of_the_index_leaves_exact_answers_and_is_done_again(place, copied, tmp_path, what, after):
    words = ["verify", "--store", str(copied), "--queries", "20", "--recall", "0.5"]
    assert exit_code_of(die_in, what, after, words) == -signal.SIGKILL
    for name, store in (("a", copied), ("b", place / "store")):
        given = ("--query", place / "query", "--k", 5, "--out", tmp_path / f"{name}.jsonl")
        run("search", "--store", store, *given)
    assert lists(tmp_path / "a.jsonl") == lists(tmp_path / "b.jsonl")
    run(*words)
    assert LanceStore.open(str(copied)).facts("index")["index"]["rows"] == 400


def add_with_little_room(words: list, room: int, said: str) -> None:
    """Runs a command whose process cannot write a file of more than ``room`` bytes, and writes what it says."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, room))
    try:
        command.main(words)
    except UserError as error:
        Path(said).write_text(str(error))


def test_a_disk_without_room_is_one_line_and_the_same_command_goes_on(place, tmp_path):
    run("create", "--store", tmp_path / "s", "--features", place / "gallery")
    words = [str(word) for word in ("add", "--store", tmp_path / "s", "--features", place / "gallery")]
    assert exit_code_of(add_with_little_room, words, 20_000, str(tmp_path / "said")) == 0
    assert (tmp_path / "said").read_text().startswith(f"{tmp_path / 's'}: adding rows failed (")
    assert "\n" not in (tmp_path / "said").read_text() and LanceStore.open(words[2]).count(RowFilter()) == 0
    command.main(words)
    assert LanceStore.open(words[2]).count(RowFilter()) == 400


def test_old_rows_expire_by_when_they_were_added_or_by_their_time(copied, monkeypatch, capsys):
    run("expire", "--store", copied, "--days", 1)
    assert "no row matches; 400 rows" in capsys.readouterr().out
    now = erasing.time.time()
    monkeypatch.setattr(erasing.time, "time", lambda: 86400 + 2000.0)
    run("expire", "--store", copied, "--days", 1, "--by", "time")
    assert "200 rows erased, 200 left" in capsys.readouterr().out
    monkeypatch.setattr(erasing.time, "time", lambda: now + 31 * 86400)
    run("expire", "--store", copied, "--days", 30)
    assert "200 rows erased, 0 left" in capsys.readouterr().out
    assert not bytes_in(copied, unit_features(400)[300].tobytes())


def die_at_the_third_batch(words: list) -> None:
    real, count = LanceStore.add, iter(range(10))

    def add(self, rows) -> None:
        real(self, rows)
        if next(count) == 2:
            os.kill(os.getpid(), signal.SIGKILL)  # written, and not yet said to be

    LanceStore.add = add
    adding.BATCH_BYTES = 4 * WIDTH * 64
    command.main(words)


def test_a_killed_addition_goes_on_and_counts_exactly(place, tmp_path, monkeypatch, capsys):
    run("create", "--store", tmp_path / "s", "--features", place / "gallery")
    words = [str(word) for word in ("add", "--store", tmp_path / "s", "--features", place / "gallery")]
    assert exit_code_of(die_at_the_third_batch, words) == -signal.SIGKILL
    store = LanceStore.open(str(tmp_path / "s"))
    assert store.count(RowFilter()) == 192
    monkeypatch.setattr(adding, "BATCH_BYTES", 4 * WIDTH * 64)
    capsys.readouterr()
    command.main(words)
    assert "208 rows added" in (printed := capsys.readouterr().out) and "192 were there before" in printed
    store = LanceStore.open(str(tmp_path / "s"))
    np.testing.assert_array_equal(store.ids(RowFilter()), first_id("gallery") + np.arange(400))
    command.main(words)
    assert "0 rows added" in capsys.readouterr().out and store.count(RowFilter()) == 400


def test_a_second_writer_is_refused_and_a_reader_is_not(place, copied, tmp_path):
    with LanceStore.open(str(copied)).writing():
        assert exit_code_of(refused_writer, str(copied), str(place / "query")) == 7
    run("add", "--store", copied, "--features", place / "query")
    assert LanceStore.open(str(copied)).count(RowFilter()) == 409


def refused_writer(store: str, features: str) -> None:
    assert LanceStore.open(store).count(RowFilter()) == 400
    try:
        run("add", "--store", store, "--features", features)
    except UserError as error:
        assert "--store" in str(error) and "is in use by" in str(error)
        os._exit(7)


def test_the_index_is_tuned_to_a_recall_and_its_answers_are_scored_exactly(copied, place, tmp_path, capsys):
    run("verify", "--store", copied, "--recall", 0.95, "--k", 5, "--queries", 60)
    printed = capsys.readouterr().out
    assert "of the exact 5 on 60 queries" in printed
    fact = LanceStore.open(str(copied)).facts("index")["index"]
    assert fact["recall"] >= 0.95 and fact["rows"] == 400 and fact["built"]["kind"].startswith("IVF")
    for name, more in (("exact", ["--exact"]), ("index", [])):
        words = ("--query", place / "query", "--k", 5, "--out", tmp_path / f"{name}.jsonl")
        run("search", "--store", copied, *words, *more)
    assert "recall" in capsys.readouterr().out
    exact, found = (lists(tmp_path / f"{name}.jsonl") for name in ("exact", "index"))
    shares = []
    for a, b in zip(exact, found, strict=True):
        distance = {hit["row"]: hit["distance"] for hit in a["found"]}
        shares.append(np.mean([hit["row"] in distance for hit in b["found"]]))
        assert all(hit["distance"] == distance[hit["row"]] for hit in b["found"] if hit["row"] in distance)
    assert np.mean(shares) > 0.8
    run("search", "--store", copied, "--query", place / "query", "--camera", "c1", "--out", tmp_path / "c.jsonl")
    assert {hit["camid"] for line in lists(tmp_path / "c.jsonl") for hit in line["found"]} == {"c1"}


def test_a_recall_that_cannot_be_had_changes_nothing(copied, monkeypatch):
    monkeypatch.setattr(LanceStore, "efforts", lambda self: [{"partitions": 1, "factor": 1}])
    with pytest.raises(UserError, match=r"reaches a recall of 0\.\d+ at most, 1 was wanted"):
        run("verify", "--store", copied, "--recall", 1, "--queries", 60)
    assert LanceStore.open(str(copied)).facts("index") == {}


def test_mistakes_are_one_line(place, copied, tmp_path):
    feats = unit_features(20)
    bad = feats.copy()
    bad[13, 5] = np.nan
    long, wide = 2 * feats, np.concatenate([feats, feats], 1) / np.sqrt(2)
    write_features(tmp_path / "nan", bad)
    write_features(tmp_path / "long", long)
    write_features(tmp_path / "wide", wide)
    write_features(tmp_path / "other", feats, "b2" * 32)
    write_features(tmp_path / "raw", feats, unit_length=False)
    np.save(tmp_path / "bare.npy", feats)
    shutil.copytree(copied, tmp_path / "newer")
    newer = LanceStore.open(str(tmp_path / "newer"))
    newer.set_fact(META, newer.meta.content() | {"version": VERSION + 1})
    (tmp_path / "file").write_text("x")
    add, s = ("add", "--store", copied, "--features"), ("search", "--store", copied)
    calls = {
        "row 13 holds NaN or infinity": (*add, tmp_path / "nan"),
        "row 0 has length 2, and a store holds": (*add, tmp_path / "long"),
        f"features are {2 * WIDTH} wide, those of .*store {WIDTH}": (*add, tmp_path / "wide"),
        r"another model or setting \(b2b2b2b2b2b2\) than": (*add, tmp_path / "other"),
        "does not say which model its features are of": (*add, tmp_path / "bare.npy"),
        "source 'gallery' of other images; give": (*add, place / "query", "--source", "gallery"),
        "without ':'": (*add, place / "query", "--source", "a:b"),
        "written by a newer Lineup": ("info", "--store", tmp_path / "newer"),
        "absent: no store in it": ("info", "--store", tmp_path / "absent"),
        "exists and is not empty": ("create", "--store", copied, "--features", place / "gallery"),
        "file: exists and is not empty": ("create", "--store", tmp_path / "file", "--features", place / "gallery"),
        "holds features of unit length": ("create", "--store", tmp_path / "x", "--features", tmp_path / "raw"),
        "name a folder of tools.extract": ("create", "--store", tmp_path / "x", "--features", tmp_path / "bare.npy"),
        "give either --features": ("create", "--store", tmp_path / "x"),
        "than the query": (*s, "--query", tmp_path / "other"),
        "give either --query or --text": s,
        "--k: must be at least 1, got 0": (*s, "--query", place / "query", "--k", 0),
        "expected seconds or a date": (*s, "--query", place / "query", "--since", "noon"),
        "must be after --since": (*s, "--query", place / "query", "--since", "5", "--until", "5"),
        "--days: expected 0 to": ("expire", "--store", copied, "--days", -1),
        "--recall: expected a share": ("verify", "--store", copied, "--recall", 2),
    }
    for line, words in calls.items():
        with pytest.raises(UserError, match=line) as error:
            run(*words)
        assert "\n" not in str(error.value), line
    opened = LanceStore.open(str(copied))
    assert opened.count(RowFilter()) == 400 and not (tmp_path / "x").exists()
    assert list(opened.facts("source:")) == ["source:gallery"]


def test_a_filter_on_a_column_that_nobody_filled_is_refused(tmp_path, place):
    feats = write_features(tmp_path / "plain", unit_features(20))
    rows = (feats / "rows.csv").read_text().splitlines()
    (feats / "rows.csv").write_text("\n".join(",".join(line.split(",")[:2]) for line in rows) + "\n")
    run("create", "--store", tmp_path / "s", "--features", feats)
    run("add", "--store", tmp_path / "s", "--features", feats)
    with pytest.raises(UserError, match="no row has the column time that the filter uses"):
        run("search", "--store", tmp_path / "s", "--query", feats, "--since", "5")
    run("search", "--store", tmp_path / "s", "--query", feats, "--identity", "p1", "--out", tmp_path / "o.csv")


@pytest.mark.parametrize("damage", ["cut", "zeros"])
def test_a_damaged_store_is_one_line(copied, damage):
    for path in copied.rglob("*"):
        if path.suffix == ".lance" and path.is_file():
            raw = path.read_bytes()
            path.write_bytes(raw[: len(raw) // 2] if damage == "cut" else bytes(len(raw)))
    with pytest.raises(UserError, match=r"store: .* failed \(") as error:
        run("info", "--store", copied)
    assert "\n" not in str(error.value)


def test_without_lancedb_that_is_said(place, monkeypatch):
    monkeypatch.setitem(sys.modules, "lancedb", None)
    with pytest.raises(UserError, match="needs lancedb: pip install -r requirements-extra.txt"):
        run("info", "--store", place / "store")


def test_the_hash_is_the_store_s(place):
    assert LanceStore.open(str(place / "store")).meta.model_hash == HASH
