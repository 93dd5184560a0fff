"""Milvus in its local form, which the same client serves: tools.search's ranks, filters, erasure, and no server."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

pytest.importorskip("pymilvus", reason="requirements-dev.txt has it")
pytest.importorskip("milvus_lite", reason="requirements-dev.txt has it")

from tests.tools.galleries.folders import bytes_in, unit_features, write_features
from tools import gallery as command
from tools import search
from tools.galleries import milvus
from tools.galleries.filters import RowFilter
from tools.galleries.milvus import MilvusStore, Place
from tools.galleries.schema import StoreMeta
from utils.errors import UserError


def run(*words) -> None:
    command.main([str(word) for word in words])


def found_in(path) -> list[list[dict]]:
    return [json.loads(line)["found"] for line in path.read_text().splitlines()]


@pytest.mark.slow
def test_a_round_trip_through_the_local_form(tmp_path, capsys):
    feats, store = unit_features(200), tmp_path / "s.db"
    write_features(tmp_path / "gallery", feats)
    write_features(tmp_path / "query", feats[5:200:45], name="q")
    run("create", "--store", store, "--features", tmp_path / "gallery")
    for count in (200, 0):  # the second finds it finished
        run("add", "--store", store, "--features", tmp_path / "gallery")
        assert f"{count} rows added" in capsys.readouterr().out
    words = ["--query", tmp_path / "query", "--k", 8, "--out"]
    search.main([str(word) for word in (*words, tmp_path / "a.jsonl", "--gallery", tmp_path / "gallery")])
    run("search", "--store", store, *words, tmp_path / "b.jsonl")
    one, two = found_in(tmp_path / "a.jsonl"), found_in(tmp_path / "b.jsonl")
    assert [[(hit["row"], hit["distance"]) for hit in hits] for hits in one] == [
        [(hit["row"], hit["distance"]) for hit in hits] for hits in two
    ]
    run("search", "--store", store, *words, tmp_path / "c.jsonl", "--camera", "c1", "--since", 100, "--until", 1500)
    kept = [i for i in range(200) if i % 3 == 1 and 100 <= 10 * i < 1500]
    for hits, query in zip(found_in(tmp_path / "c.jsonl"), feats[5:200:45], strict=True):
        order = np.argsort(((feats[kept].astype(float) - query) ** 2).sum(1), kind="stable")[:8]
        assert [hit["row"] for hit in hits] == [kept[i] for i in order]
        assert all(hit["time"] == 10 * hit["row"] for hit in hits)
    run("verify", "--store", store, "--queries", 20, "--k", 5, "--recall", 0.9)
    assert "of the exact 5 on 20 queries" in capsys.readouterr().out
    gone = [i for i in range(2, 200, 7) if i % 10 not in (0, 9)]
    assert any(bytes_in(tmp_path / "s.db", feats[i].tobytes()) for i in gone)
    run("erase", "--store", store, "--identity", "p2")
    assert "29 rows erased, 171 left, the index was built again" in capsys.readouterr().out
    assert not any(bytes_in(tmp_path / "s.db", feats[i].tobytes()) for i in gone)
    assert any(bytes_in(tmp_path / "s.db", feats[i].tobytes()) for i in (1, 3, 4))  # the others are still there
    run("expire", "--store", store, "--days", 0)
    assert "171 rows erased, 0 left" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "gallery")
    with pytest.raises(UserError, match="exists; name another file"):
        run("create", "--store", store, "--features", tmp_path / "query")


def test_facts_are_read_in_pages(tmp_path, monkeypatch):
    monkeypatch.setattr(milvus, "READ_ROWS", 3)
    store = MilvusStore.create(str(tmp_path / "s.db"), StoreMeta("0" * 64, 8))
    try:
        for i in range(8):
            store.set_fact(f"shard:{i}", {"kept": i, "skipped": 0})
        assert {name: fact["kept"] for name, fact in store.facts("shard:").items()} == {
            f"shard:{i}": i for i in range(8)
        }
        assert set(store.facts()) == {"meta", *(f"shard:{i}" for i in range(8))}
    finally:
        store.close()


def test_a_server_that_is_not_there_is_asked_three_times(monkeypatch, tmp_path):
    monkeypatch.setattr(milvus, "WAIT", 0.01)
    monkeypatch.setattr(milvus, "TIMEOUT", 0.2)
    tries = []
    monkeypatch.setattr(milvus.time, "sleep", tries.append)
    with pytest.raises(
        UserError, match=r"milvus://127\.0\.0\.1:1/lineup: no Milvus answers there, 3 attempts"
    ) as error:
        run("info", "--store", "milvus://127.0.0.1:1")
    assert tries[:1] == [0.01] and "\n" not in str(error.value)


def test_addresses():
    assert Place.of("milvus://h").uri == "http://h:19530" and Place.of("milvus+tls://h:443/a").name == "a"
    for wrong in ("milvus://", "milvus://u:secret@h", "milvus://h:port", "milvus://h?token=x"):
        with pytest.raises(UserError, match="expected milvus://HOST") as error:
            Place.of(wrong)
        assert "secret" not in str(error.value)
    with pytest.raises(UserError, match="cannot be the name of a collection"):
        Place.of("milvus://h/a-b")


def test_texts_are_quoted():
    where = RowFilter(identity=('a" or id > 0 or identity == "', "b\\"), since=1.5)
    assert milvus.expression(where) == (
        r'identity in ["a\" or id > 0 or identity == \"", "b\\"] and time > -1e+300 and time >= 1.5'
    )


def test_no_local_store_is_one_line(tmp_path):
    with pytest.raises(UserError, match="no such store; python -m tools.gallery create makes one"):
        MilvusStore.open(str(tmp_path / "absent.db"))
