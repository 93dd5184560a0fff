"""Features go from the network into a store: killed and shared by two processes, every image has one row."""

from __future__ import annotations

import os
import signal
from importlib.util import find_spec

import numpy as np
import pytest

if find_spec("lancedb") is None:
    pytest.skip("requirements-dev.txt has lancedb", allow_module_level=True)

from processor.extractor import make_extractor
from tests.runs import exit_code_of, started_ranks
from tests.tiny import options
from tools import extract, gallery
from tools.galleries import sink
from tools.galleries.filters import RowFilter
from tools.galleries.lancedb import LanceStore
from tools.galleries.schema import first_id
from utils.errors import UserError


def in_small_shards(words: list[str]) -> None:
    extract.SHARD_ROWS, sink.FLUSH_SECONDS = 4, 0.0
    extract.main(words)


def die_at_the_third_write(words: list[str]) -> None:
    real, count = LanceStore.add, iter(range(10))

    def add(self, rows) -> None:
        real(self, rows)
        if next(count) == 2:
            os.kill(os.getpid(), signal.SIGKILL)

    LanceStore.add = add
    in_small_shards(words)


@pytest.mark.slow
def test_a_killed_extraction_is_finished_by_two_processes_and_every_image_has_one_row(plain, tmp_path, monkeypatch):
    images = tmp_path / "images"
    images.mkdir()
    market = sorted((tmp_path.parent / plain.DATASETS.ROOT_DIR / "market1501").rglob("*.jpg"))[:13]
    for i, path in enumerate(market):
        (images / f"{i:02d}.jpg").write_bytes(b"" if i == 6 else path.read_bytes())
    given = options(plain.DATASETS.ROOT_DIR, tmp_path / "log", MODEL__NAME="resnet10", TEST__WEIGHT=plain.TEST.WEIGHT)
    given += ["TEST.IMS_PER_BATCH", "2"]
    store = str(tmp_path / "store")
    (tmp_path / "any.yml").write_text("OUTPUT_DIR: ''\n")
    model = ["--config_file", str(tmp_path / "any.yml"), *map(str, given)]
    gallery.main(["create", "--store", store, *model])
    words = ["--images", str(images), "--to", store, "--source", "door", *model]
    assert exit_code_of(die_at_the_third_write, words) == -signal.SIGKILL
    assert LanceStore.open(store).count(RowFilter()) == 6
    processes = started_ranks(in_small_shards, words, output=tmp_path)
    for process in processes:
        process.join(120)
    assert [process.exitcode for process in processes] == [0, 0], (tmp_path / "rank0.txt").read_text()
    opened = LanceStore.open(store)
    rows = [i for i in range(13) if i != 6]
    np.testing.assert_array_equal(opened.ids(RowFilter()) - first_id("door"), rows)
    fact = opened.facts("source:")["source:door"]
    assert (fact["kept"], fact["skipped"], fact["finished"]) == (12, 1, True) and not opened.facts("shard:")
    printed = (tmp_path / "rank0.txt").read_text()
    assert "1 of 4 shards were done before" in printed and "12 images as source door, 1 skipped" in printed
    extractor = make_extractor(plain)
    wanted = extractor([images / f"{i:02d}.jpg" for i in rows])
    parts = list(opened.scan(RowFilter()))
    ids, feats = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    np.testing.assert_allclose(feats[np.argsort(ids)], wanted, atol=1e-5)
    monkeypatch.setattr(extract, "stream", None)
    extract.main(words)  # finished: nothing is computed
    with pytest.raises(UserError, match="another model or setting"):
        extract.main([*words, "TEST.FLIP", "True"])
    for wrong, line in (
        (["--out", "x"], "give either --out DIR or --to STORE"),
        (["--runtime", "auto"], "needs --out"),
    ):
        with pytest.raises(UserError, match=line):
            extract.main([*words[:4], *wrong, *model])
