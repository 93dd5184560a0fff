"""The sampler of an anchor and others of its identity: what a pass holds, its ends, epochs and processes."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.gallery_samplers import MultipleGalleryNoCamera, multiple_gallery_nocam

COUNTS = (6, 4, 3, 2, 1)
PIDS = np.repeat(np.arange(5), COUNTS)


def one_pass(k: int, seed: int = 0) -> list[np.ndarray]:
    """The rows of a pass, split where the identity changes."""
    rows = np.concatenate(multiple_gallery_nocam(PIDS, 1, k, np.random.default_rng(seed)))
    return np.split(rows, np.flatnonzero(np.diff(PIDS[rows])) + 1)


@pytest.mark.parametrize("seed", range(5))
def test_a_pass_holds_each_identity_once_with_its_anchor_and_others(seed):
    groups = {int(PIDS[g[0]]): g for g in one_pass(4, seed)}
    assert sorted(groups) == [0, 1, 2, 3, 4]
    assert [len(groups[pid]) for pid in range(5)] == [4, 4, 4, 4, 1], "a single image is given alone, once"
    assert len(set(groups[0])) == 4, "five others: without replacement"
    for group in groups.values():
        anchor, *others = group.tolist()
        assert anchor not in others


def test_three_others_for_three_places_are_drawn_with_replacement_as_published():
    drawn = [next(g for g in one_pass(4, seed) if PIDS[g[0]] == 1)[1:] for seed in range(40)]
    assert any(len(set(others)) < 3 for others in drawn)
    enough = [next(g for g in one_pass(5, seed) if PIDS[g[0]] == 0)[1:] for seed in range(40)]
    assert all(len(set(others)) == 4 for others in enough), "five others for four places"


def test_passes_follow_one_another_until_the_epoch_is_full():
    sampler = MultipleGalleryNoCamera(PIDS, 4, 4, seed=0, iterations=11)
    assert len(sampler) == 11 and all(len(batch) == 4 for batch in sampler)
    first = list(sampler)
    sampler.set_epoch(2)
    assert list(sampler) != first
    sampler.set_epoch(1)
    assert list(sampler) == first, "an epoch depends on its number alone"
    other = MultipleGalleryNoCamera(PIDS, 4, 4, seed=0, iterations=11, stream=1)
    assert list(other) != first


def test_processes_share_every_batch_in_order():
    whole = list(MultipleGalleryNoCamera(PIDS, 4, 2, seed=3, iterations=5))
    halves = [list(MultipleGalleryNoCamera(PIDS, 4, 2, 3, 5, rank=r, world=2)) for r in range(2)]
    assert [a + b for a, b in zip(*halves, strict=True)] == whole


def test_too_few_images_give_an_empty_epoch():
    assert len(MultipleGalleryNoCamera(PIDS, 64, 4, seed=0, iterations=3)) == 0
