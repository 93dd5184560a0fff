"""The sampler of an anchor and others of its identity whatever their cameras: a pass, its ends, epochs, processes."""

from __future__ import annotations

import numpy as np
import pytest

from datasets.samplers import EpochSampler, multiple_gallery_nocam

COUNTS = (6, 4, 3, 2, 1)
PIDS = np.repeat(np.arange(5), COUNTS)


def one_pass(k: int, seed: int = 0) -> list[np.ndarray]:
    """The rows of a pass, split where the identity changes."""
    rows = np.concatenate(multiple_gallery_nocam(PIDS, 1, k, np.random.default_rng(seed)))
    return np.split(rows, np.flatnonzero(np.diff(PIDS[rows])) + 1)


def sampler(batch: int, k: int, steps: int, seed: int | tuple[int, ...] = 0, rank: int = 0, world: int = 1):
    return EpochSampler(multiple_gallery_nocam, PIDS, batch, k, seed, rank, world, steps=steps)


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
    one = sampler(4, 4, steps=11)
    assert len(one) == 11 and all(len(batch) == 4 for batch in one)
    first = list(one)
    one.set_epoch(2)
    assert list(one) != first
    one.set_epoch(1)
    assert list(one) == first, "an epoch depends on its number alone"


def test_samplers_with_further_numbers_in_the_seed_draw_apart():
    drawn = [list(sampler(4, 4, 5, seed)) for seed in (3, (3, 0), (3, 1))]
    assert drawn[0] != drawn[1] != drawn[2] != drawn[0]
    assert list(sampler(4, 4, 5, (3,))) == drawn[0], "one number is what it was"


def test_processes_share_the_batches_of_a_round():
    halves = [list(sampler(4, 2, 5, rank=r, world=2)) for r in range(2)]
    assert [len(half) for half in halves] == [5, 5] and all(len(b) == 2 for half in halves for b in half)
    assert halves[0] != halves[1]


def test_too_few_images_give_an_empty_epoch():
    assert len(sampler(64, 4, 3)) == 0
