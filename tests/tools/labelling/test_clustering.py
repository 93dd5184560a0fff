"""Decisions are obeyed: closures against a slow version, clusters against DBSCAN, updates against a fresh start."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from processor.methods.pseudo_labels import cluster
from tools.labelling.clustering import Clusters, Graph
from tools.labelling.constraints import Constraints
from tools.labelling.journal import Decision
from tools.labelling.neighbours import make_graph, read_graph, write_graph
from tools.labelling.table import decided, identities
from utils.reranking import jaccard_distance

COUNT = 7
IMAGE = st.integers(0, COUNT - 1)
FACT = st.tuples(st.sampled_from(["same", "differ", "name"]), IMAGE, IMAGE).filter(lambda f: f[1] != f[2])


def decisions_of(facts) -> list[Decision]:
    rows = []
    for n, (kind, a, b) in enumerate(facts, 1):
        if kind == "name":
            rows.append(Decision(n, name=((a, "anna" if b % 2 else "bob"),)))
        else:
            rows.append(Decision(n, **{kind: ((a, b),)}))
    return rows


def slow_known(facts, count=COUNT) -> np.ndarray:
    """(N, N) of 1 same, -1 different, 0 unknown; a fact that what is known excludes is left out."""
    known = np.eye(count, dtype=int)
    for same, a, b in facts:
        if known[a, b]:
            continue
        known[a, b] = known[b, a] = 1 if same else -1
        for _ in range(count):  # closure
            together = (known == 1).astype(int)
            known = np.where(together @ together > 0, 1, known)
            together = (known == 1).astype(int)
            known = np.where(together @ (known == -1) @ together > 0, -1, known)
    return known


@given(st.lists(FACT.filter(lambda f: f[0] != "name"), max_size=16))
@settings(max_examples=60, deadline=None)
def test_what_follows_is_what_a_slow_closure_says(facts):
    constraints = Constraints.of(COUNT, decisions_of(facts))
    slow = slow_known([(kind == "same", a, b) for kind, a, b in facts])
    words = {True: 1, False: -1, None: 0}
    fast = [[words[constraints.known(a, b)] for b in range(COUNT)] for a in range(COUNT)]
    assert np.array_equal(fast, slow)
    for wrong in constraints.contradictions:  # the decisions that are named say the opposite by themselves
        kind, a, b = facts[wrong.number - 1]
        assert (a, b) == wrong.pair and (kind == "same") == wrong.same
        alone = [facts[number - 1] for number in wrong.against]
        assert slow_known([(k == "same", x, y) for k, x, y in alone])[a, b] == (-1 if wrong.same else 1)


def test_contradictions_are_shown_with_what_they_contradict():
    facts = [("same", 0, 1), ("same", 1, 2), ("differ", 2, 3), ("same", 3, 4), ("same", 4, 0), ("differ", 0, 2)]
    wrong = Constraints.of(COUNT, decisions_of(facts)).contradictions
    assert [(c.number, c.against) for c in wrong] == [(5, (1, 2, 3, 4)), (6, (1, 2))]


def test_one_name_is_one_identity_and_two_names_are_two():
    first = Decision(1, name=((0, "anna"), (1, "bob")))
    constraints = Constraints.of(COUNT, [first, Decision(2, name=((2, "anna"),)), Decision(3, same=((2, 3),))])
    assert constraints.known(0, 3) is True and constraints.known(1, 3) is False
    constraints.add(Decision(4, same=((1, 3),)))
    assert [(c.number, c.pair) for c in constraints.contradictions] == [(4, (1, 3))]
    constraints.add(Decision(5, name=((3, "carl"),)))
    assert {constraints.names[constraints.root(row)] for row in (0, 2, 3)} == {"carl"}
    constraints.add(Decision(6, name=((5, "anna"),)))  # nobody has that name any more
    assert constraints.known(0, 5) is False


@pytest.fixture(scope="module")
def feats() -> torch.Tensor:
    torch.manual_seed(0)
    centres = torch.randn(9, 16)
    crowd = centres.repeat_interleave(8, 0)[:64] + 0.55 * torch.randn(64, 16)
    return F.normalize(torch.cat([crowd, torch.randn(8, 16)]), dim=1)  # and eight strangers


@pytest.mark.parametrize("min_samples", [1, 2, 4])
@pytest.mark.parametrize("eps", [0.3, 0.5, 0.7])
def test_without_decisions_the_clusters_are_those_of_training(feats, eps, min_samples):
    distances = jaccard_distance(feats, 10, 3)
    graph = make_graph(feats.numpy(), 10, 3, eps, np.arange(72), 72)
    ours = Clusters(graph, Constraints(72), eps, min_samples)
    theirs = cluster(feats, 10, 3, eps, min_samples)
    noise = theirs < 0
    assert np.array_equal(ours.sizes[ours.labels] == 1, noise | (np.bincount(theirs[~noise])[theirs] == 1))
    core = ours.core
    together = ours.labels[:, None] == ours.labels[None]
    assert np.array_equal(together[core][:, core], (theirs[:, None] == theirs[None])[core][:, core])
    dense = np.ones((72, 72))
    dense[np.repeat(np.arange(72), np.diff(distances.indptr)), distances.indices] = distances.data
    for row in np.flatnonzero(~noise & ~core):  # a border image is in its nearest core's cluster
        near = np.where(core, dense[row], 9)
        assert ours.labels[row] in ours.labels[near == near.min()]
    assert ours.sizes.sum() == 72 and (noise.any() or (eps, min_samples) != (0.3, 4))


BIG = st.integers(0, 71)
BIG_FACT = st.tuples(st.sampled_from(["same", "differ", "name", "nobody"]), BIG, BIG).filter(lambda f: f[1] != f[2])


@given(st.lists(BIG_FACT, min_size=1, max_size=25))
@settings(max_examples=20, deadline=None)
def test_clusters_obey_every_decision_and_an_update_is_a_fresh_start(feats, facts):
    graph = make_graph(feats.numpy(), 10, 3, 0.6, np.arange(72), 72)
    constraints = Constraints(72)
    clusters = Clusters(graph, constraints, 0.6, 2)
    for n, (kind, a, b) in enumerate(facts, 1):
        rows = {"name": {"name": ((a, f"person {b % 3}"),)}, "nobody": {"nobody": (a,)}}
        decision = Decision(n, **rows.get(kind, {kind: ((a, b),)}))
        clusters.update(constraints, constraints.add(decision))
    fresh = Clusters(graph, constraints, 0.6, 2)
    assert np.array_equal(clusters.labels, fresh.labels) and np.array_equal(clusters.sizes, fresh.sizes)
    assert np.allclose(clusters.at_stake, fresh.at_stake)
    for a in range(72):
        for b in range(a):
            known = constraints.known(a, b)
            assert known is None or (clusters.labels[a] == clusters.labels[b]) == known, (a, b)
    assert np.array_equal(np.bincount(clusters.labels, minlength=72), clusters.sizes)
    pids = identities(clusters, constraints)
    assert all((pids[a] == "-1") == (a in constraints.nobody) for a in range(72))
    for only in (False, True):
        pids = np.array(identities(clusters, constraints, only))
        labelled = (pids != "") & (pids != "-1")
        assert not labelled.any() or np.array_equal(
            pids[labelled][:, None] == pids[labelled], clusters.labels[labelled][:, None] == clusters.labels[labelled]
        )
        assert not only or decided(constraints)[labelled].all()


def test_one_different_cuts_a_cluster_at_its_longest_link():
    first, second = np.array([0, 3, 1, 4, 2]), np.array([1, 4, 2, 5, 3])
    graph = Graph(6, first, second, np.array([0.1, 0.1, 0.2, 0.2, 0.5], np.float32), np.zeros(5, np.float32))
    constraints = Constraints(6)
    clusters = Clusters(graph, constraints, 0.6, 2)
    assert clusters.labels.tolist() == [0] * 6
    assert clusters.at_stake.tolist() == [5, 8, 8, 5, 9]
    clusters.update(constraints, constraints.add(Decision(1, differ=((0, 5),))))
    assert clusters.labels.tolist() == [0, 0, 0, 3, 3, 3]


def test_numbers_leave_out_those_that_are_names():
    graph = Graph(5, np.array([0, 2]), np.array([1, 3]), *np.float32([[0.1, 0.1], [0, 0]]))
    constraints = Constraints.of(5, [Decision(1, name=((0, "2"),)), Decision(2, nobody=(4,))])
    assert identities(Clusters(graph, constraints, 0.5, 2), constraints) == ["2", "2", "1", "1", "-1"]
    constraints = Constraints.of(5, [Decision(1, name=((0, "1"),))])
    assert identities(Clusters(graph, constraints, 0.5, 2), constraints) == ["1", "1", "2", "2", ""]
    assert identities(Clusters(graph, constraints, 0.5, 2), constraints, True) == ["1", "", "", "", ""]


def test_the_graph_has_what_is_within_eps_and_the_nearest_of_each_image(feats, tmp_path):
    graph = make_graph(feats.numpy(), 10, 3, 0.5, np.arange(72), 72)
    distances = jaccard_distance(feats, 10, 3)
    pairs = set(zip(graph.first.tolist(), graph.second.tolist(), strict=True))
    assert (
        len(pairs) == len(graph.first) and (graph.first < graph.second).all() and (np.diff(graph.distance) >= 0).all()
    )
    gaps = torch.cdist(feats, feats)
    near = gaps.argsort(1)[:, 1:21]
    wanted = {(min(i, j), max(i, j)) for i in range(72) for j in near[i].tolist()}
    values = distances.tocoo()
    inside = {(i, j): d for i, j, d in zip(*values.coords, values.data, strict=True) if i < j and d <= 0.9}
    wanted |= {pair for pair, d in inside.items() if d <= 0.5}
    assert pairs == wanted
    for a, b, d, rank in zip(graph.first, graph.second, graph.distance, graph.rank, strict=True):
        assert np.isclose(d, inside.get((a, b), 1 + gaps[a, b] ** 2 / 4), atol=1e-5) and 0 <= rank <= 1
        assert graph.edge(b, a) == graph.edge(a, b) >= 0
    assert graph.edge(0, 0) == -1
    stamp = np.arange(32, dtype=np.uint8)
    write_graph(tmp_path / "graph.npz", stamp, graph)
    again = read_graph(tmp_path / "graph.npz", stamp, 72)
    assert again is not None and np.array_equal(again.first, graph.first) and np.array_equal(again.rank, graph.rank)
    assert read_graph(tmp_path / "graph.npz", stamp[::-1], 72) is None and read_graph(tmp_path / "x", stamp, 72) is None
    assert read_graph(tmp_path / "graph.npz", stamp, 60) is None
    raw = (tmp_path / "graph.npz").read_bytes()
    (tmp_path / "graph.npz").write_bytes(raw[: len(raw) // 2])
    assert read_graph(tmp_path / "graph.npz", stamp, 72) is None
