"""Pairs counted in blocks, thresholds with intervals and probabilities, against slow versions and scikit-learn."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.isotonic import IsotonicRegression
from sklearn.metrics import roc_curve

from utils.errors import UserError
from utils.scoring.calibration import (
    Probability,
    _crossing,
    reliability,
    resampled_rates,
    smallest_far,
    threshold_at,
    thresholds,
    unknown_distance,
    unknown_threshold,
)
from utils.scoring.pair_counts import PAIRS, PairCounts, count_pairs


def images(identities: int, seed: int, each: int = 6, noise: float = 0.5) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns features around a centre per identity, some centres near each other, with identities and cameras."""
    rng = np.random.default_rng(seed)
    groups = np.random.default_rng(99).normal(size=(12, 24)) * 0.8
    centres = groups[rng.integers(0, 12, identities)] + 0.7 * rng.normal(size=(identities, 24))
    feats = np.repeat(centres, each, 0) + noise * rng.normal(size=(identities * each, 24))
    pids = np.repeat(np.arange(identities), each)
    return feats.astype(np.float32), pids + 100, rng.integers(0, 3, len(pids))


def counted(identities: int = 40, seed: int = 0, which: str = "all", **options) -> PairCounts:
    feats, pids, cams = images(identities, seed)
    return count_pairs(feats, feats, pids, pids, cams, cams, which=which, same_list=True, **options)


def slow_pairs(which: str, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Returns the distances of all pairs that count, and whether each is genuine, by a matrix."""
    feats, pids, cams = images(40, seed)
    unit = feats.astype(np.float64) / np.linalg.norm(feats.astype(np.float64), axis=1, keepdims=True)
    dist = ((unit[:, None] - unit[None]) ** 2).sum(2)
    keep = ~np.eye(len(pids), dtype=bool)
    one = cams[:, None] == cams[None]
    keep &= {"all": np.ones_like(one), "within": one, "across": ~one}[which]
    return dist[keep], (pids[:, None] == pids[None])[keep]


@pytest.mark.parametrize("which", PAIRS)
def test_pairs_are_those_of_a_matrix(which):
    pairs, (dist, same) = counted(which=which), slow_pairs(which)
    assert pairs.impostors == (~same).sum() == pairs.impostor_counts.sum()
    assert pairs.genuine == pytest.approx(np.sort(dist[same]), abs=1e-5)
    assert pairs.nearest == pytest.approx(np.sort(dist[~same])[: len(pairs.nearest)], abs=1e-5)
    assert pairs.pairs_of.sum() == 2 * pairs.impostors and len(pairs.nearest) > 0.01 * pairs.impostors
    within = pairs.nearest <= pairs.tail_edges[-1]
    assert within.all() and pairs.tail_counts.sum() >= 2 * len(pairs.nearest)
    for name, values in (("genuine", dist[same]), ("impostor", dist[~same])):
        below = np.cumsum(getattr(pairs, f"{name}_counts"))[:-1]
        at = pairs.edges[1:-1]
        low, high = (np.searchsorted(np.sort(values), at + shift) for shift in (-1e-5, 1e-5))
        assert (below >= low).all() and (below <= high).all()


def test_blocks_and_two_lists_change_nothing():
    feats, pids, cams = images(40, 3)
    args = (feats[:100], feats[100:], pids[:100], pids[100:], cams[:100], cams[100:])
    one, other = count_pairs(*args), count_pairs(*args, max_memory=200_000)
    for name in ("genuine", "nearest", "genuine_counts", "impostor_counts", "tail_counts", "pairs_of"):
        assert np.array_equal(getattr(one, name), getattr(other, name)), name


@pytest.mark.parametrize("memory", [None, 200_000])
@pytest.mark.parametrize("which", PAIRS)
def test_each_identitys_impostor_pairs_in_two_lists_of_other_cameras(which, memory):
    feats, pids, cams = images(40, 3)
    (q_pids, g_pids), (q_cams, g_cams) = ((of_all[:100], of_all[100:]) for of_all in (pids - 20 * (pids > 120), cams))
    g_cams[::2] = 1  # the cameras of one list say nothing about the other's
    pairs = count_pairs(feats[:100], feats[100:], q_pids, g_pids, q_cams, g_cams, which=which, max_memory=memory)
    one = q_cams[:, None] == g_cams[None]
    kept = (q_pids[:, None] != g_pids[None]) & {"all": np.ones_like(one), "within": one, "across": ~one}[which]
    expected = [kept[q_pids == pid].sum() + kept[:, g_pids == pid].sum() for pid in pairs.identities]
    assert pairs.pairs_of.tolist() == expected and pairs.impostors == kept.sum()


@pytest.mark.parametrize("which", PAIRS)
def test_beyond_the_tail_some_queries_stand_for_many_pairs(which, monkeypatch):
    whole = counted(which=which)
    monkeypatch.setattr("utils.scoring.pair_counts.EXACT", 240 * 240 // 3)
    some = counted(which=which)
    for name in ("genuine", "nearest", "impostors", "genuine_counts", "tail_counts", "pairs_of"):
        assert np.array_equal(getattr(whole, name), getattr(some, name)), name
    assert some.impostor_counts.sum() == some.impostors
    upto = np.searchsorted(whole.edges, whole.tail_edges[-1]) - 1
    assert np.array_equal(whole.impostor_counts[:upto], some.impostor_counts[:upto])
    shares = [np.cumsum(pairs.impostor_counts) / pairs.impostors for pairs in (whole, some)]
    assert 0 < np.abs(shares[0] - shares[1]).max() < 0.03


def test_a_threshold_is_that_of_scikit_learns_curve():
    pairs, (dist, same) = counted(), slow_pairs("all")
    false, true, cuts = roc_curve(same, -dist, drop_intermediate=False)
    for far in (0.01, 0.003, 0.001):
        distance = threshold_at(pairs, far)
        at = np.flatnonzero(false <= far)[-1]
        (row,) = thresholds(pairs, [far], draws=20)
        assert row.tar == pytest.approx(true[at], abs=2 / same.sum())
        assert (dist[~same] <= distance - 1e-6).mean() <= far < (dist[~same] <= distance + 1e-3).mean() + 1e-4
        assert -cuts[at] <= distance + 1e-5


def test_a_bootstrap_draw_is_a_weighted_count_of_pairs():
    feats, pids, _ = images(12, 5)
    pairs = count_pairs(feats, feats, pids, pids, which="all", same_list=True, far=0.3)
    rates, edges = resampled_rates(pairs, draws=4, seed=7), pairs.tail_edges[1:]
    rng = np.random.default_rng(7)
    unit = feats / np.linalg.norm(feats, axis=1, keepdims=True)
    dist = ((unit[:, None] - unit[None]) ** 2).sum(2)
    for row in rates:
        drawn = np.bincount(rng.integers(0, 12, 12), minlength=12)
        weight = drawn[pids - 100][:, None] + drawn[pids - 100][None] - 1
        other = pids[:, None] != pids[None]
        within = [other & (dist <= edge) for edge in edges]
        plain = np.array([pairs.sum() / other.sum() for pairs in within])
        slow = np.array([(weight * pairs).sum() / (weight * other).sum() for pairs in within])
        change = np.divide(slow, plain, out=np.ones_like(slow), where=plain > 0) - 1
        assert row == pytest.approx(np.maximum.accumulate(plain * np.exp(change)), abs=3e-3)


def test_intervals_cover_what_other_identities_give():
    many = counted(600, 1234, far=0.05)
    covers = []
    for seed in range(30):
        for row in thresholds(counted(60, seed), [0.01, 0.003], draws=300):
            got = np.searchsorted(many.nearest, row.distance, "right") / many.impostors
            true = threshold_at(many, row.far)
            covers.append((row.low <= true <= row.high, row.got_low <= got <= row.got_high))
    assert 0.85 <= np.mean(covers, 0)[0] <= 1 and np.mean(covers, 0)[1] >= 0.9


def test_probabilities_are_isotonic_regressions():
    pairs, (dist, same) = counted(), slow_pairs("all")
    prior = same.mean()
    probability = Probability.fit(pairs, prior)
    fitted = IsotonicRegression(increasing=False).fit(dist, same)
    at = np.linspace(dist.min(), dist.max(), 400)
    assert np.abs(probability(at) - fitted.predict(at)).mean() < 0.02  # bins against single pairs
    assert (np.diff(probability(at)) <= 0).all() and probability(at).min() >= 0 and probability(at).max() <= 1


def test_another_prior_is_another_weight():
    pairs = counted()
    for prior in (0.001, 0.1, 0.9):
        assert Probability.fit(pairs, 0.5).at(prior)(pairs.genuine) == pytest.approx(
            Probability.fit(pairs, prior)(pairs.genuine)
        )
    own = reliability(Probability.fit(pairs, 0.3), pairs)
    assert own.ece < 1e-3 and own.share.sum() == pytest.approx(1)


@pytest.mark.parametrize("prior", [0.5, 0.05])
def test_probabilities_hold_for_other_identities(prior):
    held_out = reliability(Probability.fit(counted(150, 0), prior), counted(150, 1))
    assert held_out.ece < 0.02 and held_out.brier < prior * (1 - prior) / 2


def test_brier_and_calibration_error_are_those_of_single_pairs():
    fitted_on, pairs = counted(40, 0), counted(40, 0)
    dist, same = slow_pairs("all")
    probability = Probability.fit(fitted_on, 0.5)
    p = probability(dist)
    weight = np.where(same, 0.5 / same.sum(), 0.5 / (~same).sum())
    assert reliability(probability, pairs).brier == pytest.approx((weight * (p - same) ** 2).sum(), abs=2e-3)


def test_absent_queries_come_back_as_unknown():
    feats, pids, _ = images(300, 4)
    queries = np.arange(len(pids)) % 6 < 3
    half = pids < 100 + 150
    groups = [count_pairs(*(feats[rows] for rows in (queries & some, ~queries & some)),
                          *(pids[rows] for rows in (queries & some, ~queries & some)), which="all", far=0.05)
              for some in (half, ~half)]  # fmt: skip
    fitted, held_out = groups
    row = unknown_threshold(fitted, 0.05)
    got = (held_out.nearest_of <= row.distance).mean()
    assert row.got_low <= got <= row.got_high and row.low <= row.distance <= row.high
    assert (fitted.nearest_of <= row.distance).mean() <= 0.05 < (fitted.nearest_of <= row.distance + 1e-3).mean() + 0.01
    smaller = unknown_distance(np.sort(fitted.nearest_of), 0.05, ratio=3.0)  # a third of the gallery, nobody as near
    assert smaller > row.distance
    some = np.random.default_rng(0).permutation(np.flatnonzero(~queries & ~half))[:150]
    third = count_pairs(feats[queries & ~half], feats[some], pids[queries & ~half], pids[some], which="all", far=0.05)
    assert 0.01 < (third.nearest_of <= smaller).mean() < 0.12
    with pytest.raises(UserError, match="--fpir 0.001: 450 queries show no rate below 0.0067"):
        unknown_threshold(fitted, 0.001)
    with pytest.raises(UserError, match="--fpir: expected a share between 0 and 1"):
        unknown_threshold(fitted, 1)


def test_the_nearest_stranger_is_that_of_a_matrix():
    feats, pids, _ = images(30, 8)
    pairs = counted(30, 8)
    unit = feats / np.linalg.norm(feats, axis=1, keepdims=True)
    dist = ((unit[:, None] - unit[None]) ** 2).sum(2)
    dist[pids[:, None] == pids[None]] = np.inf
    assert pairs.nearest_of == pytest.approx(np.minimum(dist.min(1), pairs.tail_edges[-1]), abs=1e-5)
    assert np.array_equal(pairs.identities[pairs.query_rows], pids)


def test_what_the_data_cannot_show_is_refused():
    pairs = counted(6)
    with pytest.raises(UserError, match=r"--far 0.0001: .* identities show no rate below 0.0056"):
        threshold_at(pairs, 1e-4)
    assert threshold_at(pairs, smallest_far(pairs)) > 0
    with pytest.raises(UserError, match="expected a share between 0 and 1"):
        threshold_at(pairs, 1.5)
    with pytest.raises(UserError, match="more than the pairs were counted for"):
        threshold_at(pairs, 0.5)


def test_a_pair_in_both_orders_is_one_trial():
    feats, pids, cams = images(8, 2)
    one_list = count_pairs(feats, feats, pids, pids, which="all", same_list=True, far=0.3)
    pairs = [(i, j) for i in range(len(pids)) for j in range(i)]
    genuine = sum(pids[i] == pids[j] for i, j in pairs)
    assert one_list.distinct == (genuine, len(pairs) - genuine)
    assert all(isinstance(number, int) for number in one_list.distinct), "shown to people and written to JSON"
    assert smallest_far(one_list) == 3 / (len(pairs) - genuine)
    half = len(pids) // 2
    two_lists = count_pairs(feats[:half], feats[half:], pids[:half], pids[half:] - 2, which="all", far=0.3)
    assert two_lists.distinct == (len(two_lists.genuine), two_lists.impostors)
    assert smallest_far(two_lists) == 3 / two_lists.impostors


def test_what_gives_no_pairs_is_refused():
    feats, pids, cams = images(5, 0)
    with pytest.raises(UserError, match="all images are of one camera"):
        count_pairs(feats, feats, pids, pids, cams * 0, cams * 0)
    with pytest.raises(UserError, match="cameras are not known"):
        count_pairs(feats, feats, pids, pids)
    with pytest.raises(UserError, match="one identity only"):
        count_pairs(feats, feats, pids * 0, pids * 0, which="all", same_list=True)
    with pytest.raises(UserError, match="no genuine pair"):
        count_pairs(feats[::6], feats[::6], pids[::6], pids[::6], which="all", same_list=True)
    same = np.ones_like(feats)
    with pytest.raises(UserError, match="all distances are equal"):
        Probability.fit(count_pairs(same, same, pids, pids, which="all", same_list=True), 0.5)
    with pytest.raises(UserError, match="--prior"):
        Probability.fit(counted(), 1)


def test_in_a_gallery_of_one_image_nearly_every_stranger_may_be_answered():
    nearest = np.linspace(1, 2, 50)
    assert unknown_distance(nearest, 0.5, ratio=1e6) == np.nextafter(2.0, -np.inf)  # the share is 1


@pytest.mark.parametrize("fpir", [0.0, 1.0, -0.1])
def test_a_rate_of_unknowns_is_a_share(fpir):
    with pytest.raises(UserError, match="--fpir: expected a share between 0 and 1"):
        unknown_distance(np.linspace(1, 2, 50), fpir)


def test_a_rate_that_no_edge_reaches_or_all_exceed_ends_at_the_outer_edge():
    edges, rates = np.array([1.0, 2.0, 3.0]), np.array([0.1, 0.2, 0.4])
    assert [_crossing(edges, rates, far) for far in (0.05, 0.15, 0.3, 0.5)] == pytest.approx([1, 1.5, 2.5, 3])
