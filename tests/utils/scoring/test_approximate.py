"""FAISS's inverted file: how many lists it has, what a short list leaves open, and what recall counts."""

from __future__ import annotations

import numpy as np
import pytest

from utils.scoring.approximate import approximate_search, make_index, recall
from utils.scoring.search import search

pytest.importorskip("faiss", reason="requirements-dev.txt has it")


@pytest.mark.parametrize(("count", "lists"), [(10, 1), (77, 1), (78, 2), (390, 10), (10_000, 256)])
def test_a_list_has_39_images_at_least_and_there_are_four_times_the_root(count, lists):
    feats = np.random.default_rng(0).normal(size=(count, 4)).astype(np.float32)
    index = make_index(feats, unit=True)
    assert index.nlist == min(lists, int(4 * count**0.5)) and index.ntotal == count


def test_lists_that_hold_too_few_end_in_no_row():
    feats = np.random.default_rng(1).normal(size=(2000, 8)).astype(np.float32)
    index = make_index(feats, unit=False)
    indices, distances = approximate_search(feats[:3], index, k=1500, unit=False)
    assert index.nlist == 51 and (indices < 0).any() and np.isinf(distances[indices < 0]).all()
    assert (indices[:, 0] == np.arange(3)).all()


def test_recall_is_the_share_of_the_exact_lists():
    feats = np.random.default_rng(2).normal(size=(60, 6)).astype(np.float32)
    exact, _ = search(feats, feats, 4, "euclidean", True, 10**8)
    assert recall(feats, feats, exact, "euclidean", True, 10**8) == 1
    assert recall(feats, feats, np.where(np.arange(4) < 1, exact, -1), "euclidean", True, 10**8) == 0.25
