"""Average linkage with pairs that stay apart, against SciPy and against joining the best pair again and again."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from utils.errors import UserError
from utils.scoring import linkage as module
from utils.scoring.calibration import Probability
from utils.scoring.linkage import (
    average_linkage,
    by_first_appearance,
    cluster,
    components,
    mutual_neighbours,
    nearest_pairs,
)
from utils.scoring.same_odds import MOST, LogOdds


def nothing(some: np.ndarray, others: np.ndarray) -> np.ndarray:
    return np.zeros((len(some), len(others)), bool)


def costs(count: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 3)) + 3 * rng.normal(size=(5, 3))[rng.integers(0, 5, count)]
    return np.linalg.norm(points[:, None] - points[None], axis=2)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("limit", [0.5, 1.5, 3.0, 9.0])
def test_clusters_are_scipys(seed, limit):
    cost = costs(60, seed)
    wanted = fcluster(linkage(squareform(cost, checks=False), "average"), limit, "distance")
    assert average_linkage(cost.astype(np.float32), limit).tolist() == by_first_appearance(wanted).tolist()


def slow(cost: np.ndarray, limit: float) -> np.ndarray:
    """Joins the two clusters with the least mean cost until none is below the limit."""
    clusters = [[i] for i in range(len(cost))]
    while len(clusters) > 1:
        best = min(
            (np.mean([cost[i, j] for i in a for j in b]), x, y)
            for x, a in enumerate(clusters) for y, b in enumerate(clusters) if x < y
        )  # fmt: skip
        if best[0] >= limit:
            break
        clusters[best[1]] += clusters.pop(best[2])
    labels = np.empty(len(cost), int)
    for number, own in enumerate(clusters):
        labels[own] = number
    return by_first_appearance(labels)


@pytest.mark.parametrize("seed", range(10))
def test_pairs_that_stay_apart_never_meet(seed):
    rng, cost = np.random.default_rng(seed), costs(18, seed)
    apart = np.triu(rng.random(cost.shape) < 0.15, 1)
    cost[apart | apart.T] = np.inf
    labels = average_linkage(cost.astype(np.float32), 3.0)
    assert labels.tolist() == slow(cost, 3.0).tolist()
    assert not (apart & (labels[:, None] == labels[None])).any()


@pytest.mark.parametrize("groups", [1, 7])
def test_ties_join_in_few_rounds(groups, monkeypatch):
    rounds, member = [], np.arange(160) % groups
    monkeypatch.setattr(module, "join", lambda *given, join=module.join: (rounds.append(1), join(*given)))
    cost = np.where(member[:, None] == member[None], -12.0, 5.0).astype(np.float32)
    assert average_linkage(cost, 0.0).tolist() == member.tolist()
    assert len(rounds) <= 8


def test_a_circle_of_nearest_neighbours_is_broken_at_its_least_cost():
    cost = np.full((3, 3), np.inf, np.float32)
    cost[0, 1], cost[1, 2], cost[2, 0] = 0.30, 0.28, 0.29  # the other directions differ in their last bits
    nearest, least = np.array([1, 2, 0]), np.array([0.30, 0.28, 0.29], np.float32)
    first, second = mutual_neighbours(cost, nearest, least, 1.0)
    assert first.tolist() == [1] and second.tolist() == [2]


@pytest.mark.parametrize("block", [3, 256])
@pytest.mark.parametrize("seed", range(4))
def test_components_change_nothing(seed, block, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", block)
    rng = np.random.default_rng(seed)
    people = rng.normal(size=(12, 6))[rng.integers(0, 12, 50)]
    feats = people + 0.35 * rng.normal(size=people.shape)
    feats = (feats / np.linalg.norm(feats, axis=1, keepdims=True)).astype(np.float32)
    times = rng.integers(0, 30, 50)

    def apart(some, others):
        return (times[some][:, None] == times[others][None]) & (some[:, None] != others[None])

    odds = LogOdds.line(4.0, -9.0)
    parts = components(feats, odds, apart, 0.0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(50)) and len(parts) > 3
    cost = -odds(np.maximum(2 - 2 * feats @ feats.T, 0))
    cost[apart(np.arange(50), np.arange(50))] = np.inf
    assert cluster(feats, odds, apart).tolist() == slow(cost, 0.0).tolist()


@pytest.mark.parametrize(("cosine", "limit", "parts"), [(0.25, 0, 1), (0.25, 1, 2), (-0.25, 0, 2), (-0.25, -1, 1)])
def test_components_join_what_is_above_the_limit(cosine, limit, parts):
    """The log-odds of the two images are 0.5 and -0.5."""
    feats = np.array([[1, 0], [cosine, (1 - cosine**2) ** 0.5]], np.float32)
    assert len(components(feats, LogOdds.line(2.0, -1.0), nothing, limit)) == parts


def test_limits():
    assert cluster(np.zeros((0, 4), np.float32), LogOdds.line(1, -1), nothing).tolist() == []
    same = np.ones((5, 4), np.float32) / 2
    assert cluster(same, LogOdds.line(1, -1), nothing).tolist() == [0] * 5
    assert cluster(same, LogOdds.line(1, -1), lambda a, b: ~nothing(a, b)).tolist() == [0, 1, 2, 3, 4]


def test_log_odds_are_those_of_the_probability():
    probability = Probability(np.array([0.2, 0.6, 1.5]), np.array([np.inf, 3.0, 0.0]), 0.2)
    odds, distances = LogOdds.of(probability), np.array([0.1, 0.5, 0.6, 1.0, 2.0])
    share = probability(distances)
    wanted = np.clip(np.log(np.clip(share, 1e-12, 1)) - np.log1p(-np.clip(share, 0, 1 - 1e-12)), -MOST, MOST)
    np.testing.assert_allclose(odds(distances), wanted, atol=0.02)
    np.testing.assert_allclose(LogOdds.of(probability, 2.0)(2 * distances), wanted, atol=0.05)
    assert LogOdds.threshold(0.7)(np.array([0.7])) == pytest.approx(0) and LogOdds.threshold(0.7)(np.array([0.6])) > 0


def test_a_fit_recovers_the_line_and_another_prior_moves_it():
    rng = np.random.default_rng(0)
    distances = rng.uniform(0, 2, 40_000)
    same = rng.random(40_000) < 1 / (1 + np.exp(-(3 - 5 * distances)))
    odds = LogOdds.fit(distances, same, float(same.mean()))
    np.testing.assert_allclose(odds(np.array([0.2, 0.6, 1.0])), [2.0, 0.0, -2.0], atol=0.15)
    moved = LogOdds.fit(distances, same, 0.01)
    shift = np.log(0.01 / 0.99) - np.log(same.mean() / (1 - same.mean()))
    np.testing.assert_allclose(moved(np.array([0.6])) - odds(np.array([0.6])), shift, atol=1e-2)
    with pytest.raises(UserError, match="a fit needs 5 pairs of one identity and of two at least, got 40000 and 0"):
        LogOdds.fit(distances, np.ones(40_000, bool), 0.5)
    with pytest.raises(UserError, match="pairs of one identity are not nearer than others"):
        LogOdds.fit(distances, ~same, 0.5)


@pytest.mark.parametrize("seed", range(4))
def test_the_matrix_of_joined_pairs_holds_the_means_and_is_symmetric(seed, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 7)
    rng = np.random.default_rng(seed)
    people = rng.normal(size=(10, 6))[rng.integers(0, 10, 40)]
    feats = people + 0.35 * rng.normal(size=people.shape)
    feats = (feats / np.linalg.norm(feats, axis=1, keepdims=True)).astype(np.float32)
    odds, rows = LogOdds.line(4.0, -9.0), np.arange(40)
    first, second = nearest_pairs(feats, odds, nothing, rows, 0.0)
    members = [[a] if b < 0 else [a, b] for a, b in zip(first.tolist(), second.tolist(), strict=True)]
    assert sorted(sum(members, [])) == list(range(40)) and 4 < len(members) < 40
    found = module.costs(feats, odds, nothing, first, second)
    assert np.array_equal(found, found.T)
    cost = -odds(np.maximum(2 - 2 * feats @ feats.T, 0))
    wanted = [[cost[np.ix_(a, b)].mean() for b in members] for a in members]
    off = ~np.eye(len(members), dtype=bool)
    np.testing.assert_allclose(found[off], np.array(wanted)[off], atol=1e-4)
