"""The bootstrap: known answers, and how often its intervals hold what they promise."""

from __future__ import annotations

import numpy as np
import pytest

from utils.bootstrap import bootstrap_means, counts, interval, paired_difference
from utils.errors import UserError


def test_every_draw_has_as_many_as_there_are():
    found = counts(37, 50, np.random.default_rng(0))
    assert found.shape == (50, 37) and (found.sum(1) == 37).all() and found.max() > 1


def test_the_spread_is_that_of_the_mean():
    values = np.random.default_rng(1).random((400, 2)) * (1, 3)
    samples = bootstrap_means(values, draws=4000)
    np.testing.assert_allclose(samples.mean(0), values.mean(0), rtol=0.01)
    np.testing.assert_allclose(samples.std(0), values.std(0) / 20, rtol=0.05)
    low, high = interval(samples)
    np.testing.assert_allclose(high - low, 2 * 1.96 * values.std(0) / 20, rtol=0.08)
    again = bootstrap_means(values, draws=4000)
    assert np.array_equal(samples, again)


def test_equal_values_have_an_interval_of_no_width():
    low, high = interval(bootstrap_means(np.full((9, 1), 0.25), draws=100))
    assert low[0] == high[0] == 0.25


def test_a_run_beside_itself_does_not_differ():
    run = np.random.default_rng(0).random(200)
    found = paired_difference(run, run)
    assert (found.value, found.low, found.high, found.p) == (0, 0, 0, 1) and not found.significant


def test_a_clear_difference_is_found_and_has_its_sign():
    rng = np.random.default_rng(0)
    run = rng.random(200) * 0.5
    better = run + 0.05 + 0.05 * rng.random(200)
    found = paired_difference(run, better)
    assert found.p < 2e-4 and 0.05 < found.low < found.value < found.high < 0.1
    back = paired_difference(better, run)
    assert back.value == -found.value and back.high < 0 and back.significant


def test_pairing_sees_what_apart_would_drown():
    rng = np.random.default_rng(3)
    hard = rng.random(300)  # queries differ far more than runs do
    found = paired_difference(hard, hard + 0.01 + 0.02 * rng.standard_normal(300))
    apart = 2 * np.sqrt(2) * hard.std() / np.sqrt(300)
    assert found.significant and found.value < apart / 3


def test_intervals_hold_the_truth_as_often_as_they_say_and_p_is_uniform_without_a_difference():
    rng, held, small, times = np.random.default_rng(7), 0, 0, 400
    for i in range(times):
        hard = rng.beta(0.7, 0.4, 120)  # as APs are: many near 1
        found = paired_difference(hard, hard + 0.1 * rng.standard_normal(120), draws=400, seed=i)
        held += found.low <= 0 <= found.high
        small += found.p < 0.05
    assert 0.92 < held / times < 0.98  # 0.95 give or take 2.7 standard errors of the simulation
    assert 0.02 < small / times < 0.085


def test_the_luck_of_seeds_widens_the_interval():
    rng = np.random.default_rng(0)
    hard = rng.random(500)
    sides = [np.stack([hard + luck for luck in 0.03 * rng.standard_normal(4)]) for _ in range(2)]
    several = paired_difference(*sides)
    as_one = paired_difference(sides[0].mean(0), sides[1].mean(0))
    assert abs(several.value - as_one.value) < 1e-12
    assert as_one.significant and as_one.high - as_one.low < 1e-9  # of these very runs: no query decides
    assert several.high - several.low > 0.02


def test_sides_of_different_queries_are_refused():
    with pytest.raises(UserError, match="expected the same queries, got 3 and 4"):
        paired_difference(np.zeros(3), np.zeros(4))
    with pytest.raises(UserError, match="bootstrap"):
        bootstrap_means(np.zeros((0, 2)))
