"""The fingerprint of training lists: of their content, not of where they lie or how they are stored."""

from __future__ import annotations

import shutil

import numpy as np
import pytest

from datasets import make_dataset
from datasets.fingerprint import fingerprint_of
from datasets.records import join
from tests.tiny import write_market
from tools.make_shards import main as make_shards


def of(dataset, records=None, image_dir=""):
    return fingerprint_of({"a": (dataset, dataset.train if records is None else records)}, image_dir)


def test_it_does_not_depend_on_where_the_data_lie(tmp_path):
    write_market(tmp_path / "here")
    expected = of(make_dataset("market1501", tmp_path / "here"))
    shutil.copytree(tmp_path / "here", tmp_path / "very far" / "away")
    assert of(make_dataset("market1501", tmp_path / "very far" / "away")) == expected
    make_shards(["--out", str(tmp_path / "shards"), "DATASETS.ROOT_DIR", str(tmp_path / "here")])
    assert of(make_dataset("market1501", tmp_path, shards=tmp_path / "shards")) == expected


def test_it_does_not_depend_on_how_the_names_are_packed(tmp_path):
    dataset = make_dataset("market1501", write_market(tmp_path))
    half = len(dataset.train) // 2
    shuffled = np.random.default_rng(0).permutation(len(dataset.train))
    again = dataset.train.take(shuffled).take(np.argsort(shuffled))
    assert of(dataset, again) == of(dataset)
    assert of(dataset, join([dataset.train[:half], dataset.train[half:]])) == of(dataset)
    assert of(dataset, dataset.train.take(shuffled)) != of(dataset)


@pytest.mark.parametrize("place", ["", "photos"])
def test_paths_count_as_the_table_has_them(tmp_path, place):
    found = []
    for root in ("one", "two"):
        images = tmp_path / root / place if place else tmp_path / root / "tables"
        (tmp_path / root / "tables").mkdir(parents=True)
        table = tmp_path / root / "tables" / "dataset.csv"
        table.write_text("path,pid,split\na/1.jpg,1,train\na/2.jpg,2,train\n")
        image_dir = str(images) if place else ""
        options = {"image_dir": image_dir} if place else {}
        found.append(of(make_dataset("csv", table, **options), image_dir=image_dir))
        table.write_text("path,pid,split\nb/1.jpg,1,train\nb/2.jpg,2,train\n")
        assert of(make_dataset("csv", table, **options), image_dir=image_dir) != found[-1]
    assert found[0] == found[1]
