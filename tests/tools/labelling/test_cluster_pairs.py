"""Questions about whole clusters: where near images lead nowhere, what is never asked, updates as a fresh start."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from sklearn.linear_model import LogisticRegression

from benchmarks.annotator import by_hand, f1, random_order, simulate
from tools.labelling import pairs as pairs_module
from tools.labelling.cluster_pairs import NO_SLOT, ClusterPairs
from tools.labelling.clustering import Clusters, Graph
from tools.labelling.constraints import Constraints
from tools.labelling.journal import Decision
from tools.labelling.odds import Odds, fit_logistic
from tools.labelling.pairs import PairOrder, expected_change, uncertainty

NEAR = 2
COUNT = 30


def views(ids: int = 5, each: int = 6, seed: int = 0) -> tuple[np.ndarray, np.ndarray, Graph]:
    """Features of identities that are seen from two sides, the truth, and a graph of pairs from one side alone."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(ids, 1, 24)) + 0.9 * rng.normal(size=(ids, 2, 24))
    truth = np.repeat(np.arange(ids), each)
    side = np.arange(ids * each) % 2
    feats = centres[truth, side] + 0.3 * rng.normal(size=(ids * each, 24))
    feats = (feats / np.linalg.norm(feats, axis=1, keepdims=True)).astype(np.float32)
    cosine = np.where(np.eye(len(feats)) + (side[:, None] != side) > 0, -2, feats @ feats.T)
    near = np.argsort(-cosine, 1)[:, :NEAR]
    pairs = sorted({(min(i, int(j)), max(i, int(j))) for i in range(len(feats)) for j in near[i]},
                   key=lambda two: -cosine[two])  # fmt: skip
    first, second = np.array(pairs, np.int32).T
    distance = (1 - cosine[first, second]).astype(np.float32)
    return feats, truth, Graph(len(feats), first, second, distance, np.zeros(len(first), np.float32))


def pair_order(order=expected_change, mistakes: float = 0.02, with_feats: bool = True) -> tuple[PairOrder, np.ndarray]:
    feats, truth, graph = views()
    clusters = Clusters(graph, Constraints(graph.count), 0.3, 2)
    return PairOrder(clusters, order, mistakes, feats if with_feats else None), truth


def test_two_sides_of_an_identity_are_found_though_no_near_images_lead_there():
    pairs, truth = pair_order(with_feats=False)
    alone = simulate(pairs, truth, 0.0, 0, 300)
    assert alone.last < 0.7 and not alone.reached and not pairs.next()  # the pairs of the graph ran out
    pairs, truth = pair_order()
    assert simulate(pairs, truth, 0.0, 0, 300).reached.keys() == {0.95, 0.99}


@pytest.mark.parametrize("order", [expected_change, uncertainty, random_order(COUNT, 0)])
def test_every_order_reaches_the_truth_and_every_question_ends(order):
    pairs, truth = pair_order(order, mistakes=0.0)
    outcome = simulate(pairs, truth, 0.0, 0, 1000, targets=(1.01,))
    assert outcome.last == 1 and outcome.decisions < len(truth) * (len(truth) - 1) / 2 and not pairs.next()


@pytest.mark.parametrize("seed", [0, 1])
def test_wrong_answers_are_found(seed):
    pairs, truth = pair_order()
    outcome = simulate(pairs, truth, 0.05, seed, 400, targets=(0.95,))
    assert outcome.reached.keys() == {0.95}


@pytest.mark.parametrize("at_once", [3, 7, 10**6])
def test_what_is_computed_a_few_pairs_at_a_time_becomes_what_all_at_once_are(at_once, monkeypatch):
    monkeypatch.setattr(pairs_module, "AT_ONCE", at_once)
    pairs, truth = pair_order()
    pairs.worths()
    clusters, fits = pairs.clusters, 0
    for number in range(1, 13):
        a, b = int(pairs.graph.first[number]), int(pairs.graph.second[number])
        same = bool(truth[a] == truth[b])
        decision = Decision(number, "pairs", same=((a, b),) if same else (), differ=() if same else ((a, b),))
        clusters.update(clusters.constraints, clusters.constraints.add(decision))
        pairs.answer(a, b, same)
        before = pairs.odds.beta
        pairs.worths()
        fits += pairs.odds.beta is not before
    count = len(pairs.graph.first)
    parts = -(-count // at_once)
    assert fits >= 2 and count > 7
    for _ in range(parts):
        found = pairs.worths()
    monkeypatch.setattr(pairs_module, "AT_ONCE", count)
    pairs._stale = True
    np.testing.assert_array_equal(found, pairs.worths())


def test_answers_that_contradict_each_other_are_asked_for_again():
    pairs, _ = pair_order(mistakes=0.0)
    clusters = pairs.clusters
    for number, (a, b, same) in enumerate([(0, 2, True), (2, 4, True), (0, 4, False)], 1):
        pairs.graph.add(np.array([[a, b]]))
        decision = Decision(number, "pairs", same=((a, b),) if same else (), differ=() if same else ((a, b),))
        clusters.update(clusters.constraints, clusters.constraints.add(decision))
        pairs.answer(a, b, same)
    assert len(clusters.constraints.contradictions) == 1
    assert {pairs.graph.edge(a, b) for a, b in ((0, 2), (2, 4), (0, 4))} == pairs.blamed().keys()
    assert {two[:2] for two in pairs.next(3)} == {(0, 2), (2, 4), (0, 4)}
    for a, b, same in ((0, 2, True), (2, 4, True), (0, 4, False)):
        pairs.answer(a, b, same)
    assert not pairs.blamed()  # the person insists


IMAGE = st.integers(0, COUNT - 1)
FACT = st.tuples(st.sampled_from(["same", "differ", "nobody", "unsure"]), IMAGE, IMAGE).filter(lambda f: f[1] != f[2])


@given(st.lists(FACT, min_size=1, max_size=10), st.sampled_from([8, 100]))
@example([("same", 9, 11), ("nobody", 7, 0), ("nobody", 11, 0)], 8)
@settings(max_examples=10, deadline=None)
def test_an_update_is_a_fresh_start_and_what_is_known_is_not_asked(facts, most):
    feats, _, graph = views()
    constraints = Constraints(graph.count)
    clusters = Clusters(graph, constraints, 0.3, 2)
    pairs = ClusterPairs(clusters, feats, np.arange(COUNT), 0.3, expected_change, most)
    for number, (kind, a, b) in enumerate(facts, 1):
        decision = Decision(number, **{kind: (a,) if kind == "nobody" else ((a, b),)})
        clusters.update(constraints, constraints.add(decision))
        pairs.refresh(clusters.changed, False)
        clusters.changed = set()
    fresh = ClusterPairs(clusters, feats, np.arange(COUNT), 0.3, expected_change, most)

    def worths(one: ClusterPairs) -> dict[tuple[int, int], float]:
        used = [(label, slot) for slot, label in enumerate(one.slots) if label != NO_SLOT]
        return {(a, b): float(one.worth[i, j]) for a, i in used for b, j in used}

    if most == 100:
        ours, theirs = worths(pairs), worths(fresh)
        assert ours.keys() == theirs.keys() and np.allclose([ours[two] - theirs[two] for two in ours], 0, atol=1e-4)
        known = ~np.isnan(fresh.links[:, 0]) & (clusters.at_stake > 0)
        assert np.allclose(pairs.links[known], fresh.links[known], atol=1e-5)
    for worth, a, b, p in pairs.best(500):
        assert worth > 0 and 0 < p < 1 and constraints.known(a, b) is None and clusters.labels[a] != clusters.labels[b]
        assert not {a, b} & constraints.nobody and (min(a, b), max(a, b)) not in constraints.unsure


def test_a_probability_follows_the_answers_as_scikit_learn_has_it():
    rng = np.random.default_rng(0)
    x = rng.random((300, 2))
    y = (rng.random(300) < 1 / (1 + np.exp(8 * x[:, 0] + 3 * x[:, 1] - 5))).astype(float)
    ours = fit_logistic(x, y, np.zeros(3), np.array([0.5, 0.5, 0]))
    theirs = LogisticRegression(C=2, tol=1e-8).fit(x, y)
    np.testing.assert_allclose(ours, [*theirs.coef_[0], *theirs.intercept_], rtol=1e-3)
    prior = np.array([-3.0, 2.0, 1.0])
    np.testing.assert_allclose(fit_logistic(x, y, prior, np.full(3, 1e9)), prior, atol=1e-5)


def test_odds_are_even_at_eps_and_learn_from_answers():
    odds = Odds(0.4, np.zeros(2))
    at = np.zeros((3, 4), np.float32)
    at[:, 2] = 0.1, 0.4, 0.7
    near, even, far = odds(at)
    assert near > 0.9 and abs(even - 0.5) < 1e-6 and far < 0.1
    for number in range(40):  # the same up to 0.55
        distance = number / 40
        odds.learn((number, 100), np.array([0, 0, distance, 0]), distance < 0.55)
    assert odds.fit() and not odds.fit()
    assert odds(at)[1] > 0.6 and abs(odds(np.float32([[0, 0, 0.55, 0]]))[0] - 0.5) < 0.2
    assert odds.keep([(1, 100, False), (7, 8, True)]) == {(7, 8)} and odds.answers[1, 100][1] is False


def test_f1_of_pairs_against_a_slow_count():
    truth, labels = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 3, 3, 4, 5])
    same = [(truth[i] == truth[j], labels[i] == labels[j]) for i in range(6) for j in range(i)]
    both = sum(a and b for a, b in same)
    assert f1(truth, labels) == 2 * both / (sum(a for a, _ in same) + sum(b for _, b in same))
    assert by_hand(np.zeros(10, int), 0) == {0.95: 10, 0.99: 10}
