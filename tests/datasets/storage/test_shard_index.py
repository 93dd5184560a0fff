"""An index of shards that was damaged or made by a stranger."""

from __future__ import annotations

import json

import numpy as np
import pytest

from datasets import make_dataset
from datasets.catalogue import find_spec
from datasets.storage.shard_index import list_options, read_shards
from tests.tiny import write_market
from tools.make_shards import write_shards
from utils.errors import UserError

OPTIONS = list_options(find_spec("market1501"), False, {})


@pytest.fixture
def home(tmp_path):
    dataset = make_dataset("market1501", write_market(tmp_path), list_cache=False)
    write_shards(dataset, tmp_path / "out", OPTIONS, 10**9)
    return tmp_path / "out" / "market1501"


def edited(home, change):
    """Writes the index again after a change of its arrays and of its description."""
    with np.load(home / "index.npz") as archive:
        arrays = {name: archive[name] for name in archive.files}
    kept = json.loads(bytes(arrays["kept"]))
    change(arrays, kept)
    np.savez(home / "index.npz", **arrays | {"kept": np.frombuffer(json.dumps(kept).encode(), np.uint8)})


def outside(arrays, kept):
    kept["splits"]["train"]["roots"] = [["as is", "/etc/"]]


def above(arrays, kept):
    kept["splits"]["query"]["roots"] = [["below", "../000000.tar/"]]


def other_shard(arrays, kept):
    kept["sizes"] = {"../../x": 3}


def beyond(arrays, kept):
    arrays["train/starts"] = arrays["train/starts"] + 10**6


def negative(arrays, kept):
    arrays["train/starts"] = arrays["train/starts"] - 10**6


def no_such_root(arrays, kept):
    arrays["train/root"] = arrays["train/root"] + 5


def short(arrays, kept):
    arrays["train/pids"] = arrays["train/pids"][:-1]


def listed(arrays, kept):
    kept["sizes"] = [1, 2]


def without(arrays, kept):
    del kept["splits"]["gallery"]


CHANGES = [outside, above, other_shard, beyond, negative, no_such_root, short, listed, without]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_an_index_that_does_not_fit_is_one_line(change, home):
    edited(home, lambda arrays, kept: None)
    read_shards(find_spec("market1501"), home.parent, OPTIONS)
    edited(home, change)
    with pytest.raises(UserError, match=r"index\.npz: is damaged") as error:
        read_shards(find_spec("market1501"), home.parent, OPTIONS)
    assert "\n" not in str(error.value)
