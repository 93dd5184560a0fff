"""What a sampler promises at its borders: identities with few images, batch sizes that do not divide, several ranks."""

from __future__ import annotations

import numpy as np
import pytest

from configs import load_config
from datasets import samplers
from datasets.records import Records
from datasets.samplers import EpochSampler, make_sampler
from utils.errors import UserError


def records(pids: list[int], cams: list[int] | None = None, views: list[int] | None = None) -> Records:
    return Records.of([f"{i}.jpg" for i in range(len(pids))], pids, cams, views)


def sampler(pids: list[int], name: str, world: int = 1, batch: int = 4, k: int = 2, rank: int = 0, **settings):
    words = ["DATALOADER.SAMPLER", name, "SOLVER.IMS_PER_BATCH", batch, "DATALOADER.NUM_INSTANCE", k]
    words += [word for key, value in settings.items() for word in (key.replace("__", "."), value)]
    return make_sampler(load_config(opts=words), records(pids), rank, world)


def rows_of(drawn: EpochSampler) -> list[list[int]]:
    return [[row for row, _ in batch] for batch in drawn]


@pytest.mark.parametrize("name", ["softmax_triplet", "id_triplet", "repeat_iter"])
def test_every_batch_has_k_images_of_each_of_its_identities(name):
    pids = [pid for pid in range(8) for _ in range(3)]
    for batch in rows_of(sampler(pids, name, batch=8, k=4)):
        assert len(batch) == 8
        identities, counts = np.unique([pids[row] for row in batch], return_counts=True)
        assert len(identities) == 2 and set(counts.tolist()) == {4}


@pytest.mark.parametrize("name", ["softmax_triplet", "id_triplet", "repeat_iter"])
def test_a_single_image_per_instance_is_a_valid_setting(name):
    pids = list(range(8)) * 2
    batches = rows_of(sampler(pids, name, batch=4, k=1))
    assert batches
    for batch in batches:
        assert len({pids[row] for row in batch}) == 4


def test_zero_images_per_identity_are_refused():
    with pytest.raises(UserError, match="DATALOADER.NUM_INSTANCE"):
        sampler([0, 0, 1, 1], "softmax_triplet", k=0)


def test_two_images_are_the_smallest_share_of_a_process():
    pids = [pid for pid in range(8) for _ in range(4)]
    assert len(rows_of(sampler(pids, "softmax_triplet", world=2, batch=4, k=2)))
    with pytest.raises(UserError, match="SOLVER.IMS_PER_BATCH"):
        sampler(pids, "softmax_triplet", world=2, batch=2, k=1)
    with pytest.raises(UserError, match="SOLVER.IMS_PER_BATCH"):
        sampler(pids, "softmax_triplet", world=3, batch=4, k=2)


def test_processes_share_the_batches_of_one_list():
    pids = [pid for pid in range(12) for _ in range(4)]
    drawn = [sampler(pids, "softmax_triplet", world=2, batch=8, k=2, rank=rank) for rank in (0, 1)]
    first, second = (rows_of(each) for each in drawn)
    assert len(first) == len(second) and all(len(batch) == 4 for batch in first + second)
    assert not any(set(a) & set(b) for a, b in zip(first, second, strict=True))
    seeds = [[seed for batch in each for _, seed in batch] for each in drawn]
    assert not set(seeds[0]) & set(seeds[1])


@pytest.mark.parametrize("steps", [1, 3, 4])
def test_an_epoch_has_the_number_of_steps_asked_for(steps):
    pids = np.repeat(np.arange(4), 2)  # a pass gives two batches
    drawn = EpochSampler(samplers.multiple_gallery_nocam, pids, 4, 2, 0, steps=steps)
    assert len(drawn) == len(rows_of(drawn)) == steps


def test_an_epoch_that_one_pass_fills_draws_one_pass():
    calls = []

    def rule(pids, batch_size, num_instances, rng):
        calls.append(1)
        return [np.arange(4), np.arange(4, 8)]

    EpochSampler(rule, np.arange(8), 4, 1, 0, steps=2)
    assert len(calls) == 1


def test_relabelled_rows_without_a_class_are_left_out():
    drawn = EpochSampler(samplers.multiple_gallery_nocam, np.zeros(8, int), 2, 2, 0)
    drawn.relabel(np.array([0, 0, -1, 1, 1, -1, 2, 2]))
    drawn.set_epoch(1)
    rows = {row for batch in rows_of(drawn) for row in batch}
    assert rows == {0, 1, 3, 4, 6, 7}


def test_multiple_gallery_draws_k_minus_one_others_from_other_cameras():
    pids = np.repeat(np.arange(3), 6)
    cams = np.tile([0, 0, 0, 1, 1, 1], 3)
    rng = np.random.default_rng(0)
    for batch in samplers.multiple_gallery(pids, 3, 3, rng, cams):
        first, *others = batch
        assert set(pids[batch]) == {pids[first]} and len(set(others)) == 2
        assert all(cams[other] != cams[first] for other in others)


@pytest.mark.parametrize("name", sorted(samplers.RULES))
def test_the_same_seed_and_epoch_draw_the_same_batches(name):
    pids = [pid for pid in range(8) for _ in range(4)]
    one, other = (sampler(pids, name, batch=8, k=4) for _ in range(2))
    assert rows_of(one) == rows_of(other)
    one.set_epoch(2)
    assert rows_of(one) != rows_of(other)


@pytest.mark.parametrize("views", [[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2], [0, 1, 0, 0]])
def test_two_platforms_without_their_data_is_one_line(views):
    with pytest.raises(UserError, match="needs satellite .* and drone images .* of every identity"):
        samplers.two_platforms(np.array([0, 0, 1, 1]), 4, 2, np.random.default_rng(0), np.array(views))
