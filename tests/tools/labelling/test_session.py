"""A session: undo of any depth, the next pair, suspects, what the command writes and what it refuses."""

from __future__ import annotations

import csv
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageFilter

from tests.tools.labelling.sessions import make_session, write_crops
from tools.labelling.clustering import Clusters, Graph
from tools.labelling.constraints import Constraints
from tools.labelling.journal import Decision
from tools.labelling.pairs import PairOrder, uncertainty
from tools.labelling.session import answers
from tools.labelling.suspects import Quality, Suspects, duplicates, far_crops, touching
from utils.errors import UserError


@pytest.fixture(scope="module")
def crops(tmp_path_factory):
    return write_crops(tmp_path_factory.mktemp("crops"))


@pytest.fixture
def session(crops, tmp_path):
    session = make_session(crops, tmp_path / "labels.csv", Suspects())
    yield session
    session.journal.close()


IMAGE = st.integers(0, 19)
STEP = st.one_of(
    st.tuples(st.sampled_from(["same", "differ"]), IMAGE, IMAGE).filter(lambda s: s[1] != s[2]),
    st.tuples(st.sampled_from(["name", "nobody"]), IMAGE, IMAGE),
    st.tuples(st.sampled_from(["undo", "redo"]), st.just(0), st.just(0)),
)


@given(st.lists(STEP, min_size=1, max_size=18), st.booleans())
@example([("same", 0, 1), ("same", 13, 14), ("undo", 0, 0)], True)  # what was taken back is asked again
@settings(max_examples=12, deadline=None)
def test_undo_and_redo_of_any_depth_end_where_a_fresh_start_ends(crops, tmp_path_factory, steps, from_pairs):
    folder = tmp_path_factory.mktemp("session")
    session = make_session(crops, folder / "labels.csv")
    line: list[tuple] = []  # what counts, and what a redo would bring back: as every editor does it
    back: list[tuple] = []
    view = "pairs" if from_pairs else "clusters"
    for kind, a, b in steps:
        if kind in ("undo", "redo"):
            source, target = (line, back) if kind == "undo" else (back, line)
            if source:
                getattr(session, kind)()
                target.append(source.pop())
            else:
                with pytest.raises(UserError, match="nothing to"):
                    getattr(session, kind)()
            continue
        content = {"name": {"name": [[a, f"p{b % 3}"]]}, "nobody": {"nobody": [a]}}.get(kind, {kind: [[a, b]]})
        session.decide({"view": view} | content)
        line.append(session.journal.decisions[-1])
        back.clear()
    facts = list(session.journal.active())
    if not from_pairs:  # a second answer to a question takes the first one back
        assert facts == line
    fresh = Clusters(session.graph, Constraints.of(20, facts), 0.5, 2)
    assert np.array_equal(session.clusters.labels, fresh.labels)
    assert np.allclose(session.clusters.at_stake, fresh.at_stake)
    session.journal.close()
    again = make_session(crops, folder / "labels.csv")
    assert np.array_equal(again.clusters.labels, session.clusters.labels)
    session.pairs.forget(answers(facts))  # probabilities are fitted now and then, and at the start
    assert again.state() == session.state() and again.pair() == session.pair()
    again.journal.close()


def test_a_second_answer_to_a_question_replaces_the_first(session):
    a, b = session.pair()["pairs"][0]["pair"]
    session.decide({"view": "pairs", "same": [[a, b]]})
    session.decide({"view": "pairs", "differ": [[a, b]]})
    assert session.constraints.known(a, b) is False and not session.constraints.contradictions
    assert len(session.journal.active()) == 1
    assert session.decide({"view": "clusters", "same": [[a, b]]})["contradicts"] == 1
    session.undo()
    session.undo()
    assert session.constraints.known(a, b) is True


def test_the_table_follows_and_says_what_is_decided(session):
    row = session.rows()["rows"][0]
    session.decide({"view": "clusters", "same": [row["images"]], "name": [[row["images"][0], "zoe"]]})
    session.decide({"view": "clusters", "nobody": [19]})
    session.save()
    with open(session.out, newline="") as handle:
        rows = list(csv.DictReader(handle))
    assert [r["pid"] for r in rows].count("zoe") == len(row["images"]) and rows[19]["pid"] == "-1"
    assert all((r["decided"] == "yes") == (i in row["images"] or i == 19) for i, r in enumerate(rows))
    session.save(session.out.with_name("decided.csv"), only_decided=True)
    with open(session.out.with_name("decided.csv"), newline="") as handle:
        assert {r["pid"] for r in csv.DictReader(handle)} == {"zoe", "-1", ""}


# ---------------------------------------------------------------- the next pair


def two_blocks() -> Graph:
    """Two groups of four and a lone pair: a doubtful link between the groups, a sure one between the pair."""
    near = [(0, 1), (1, 2), (2, 3), (4, 5), (5, 6), (6, 7), (8, 9)]
    first, second = np.array([*near, (3, 4), (7, 8)], np.int32).T
    return Graph(10, first, second, *np.float32([[0.05] * 7 + [0.55, 0.66], [0] * 9]))


def test_the_next_pair_is_the_one_on_which_most_depends():
    clusters = Clusters(two_blocks(), Constraints(10), 0.6, 1)
    assert clusters.labels.tolist() == [0] * 8 + [8, 8]
    a, b, p = PairOrder(clusters).next()[0]
    assert (a, b) == (3, 4) and 0.6 < p < 0.7  # 16 pairs come apart with 0.35
    assert PairOrder(clusters, uncertainty).next()[0][:2] != (0, 1)
    clusters.update(clusters.constraints, clusters.constraints.add(Decision(1, differ=((3, 4),))))
    pairs = PairOrder(clusters)
    pairs.answer(3, 4, False)
    assert pairs.next()[0][:2] == (7, 8)


def test_what_follows_is_not_asked_and_every_question_ends():
    clusters = Clusters(two_blocks(), Constraints(10), 0.6, 1)
    pairs, asked = PairOrder(clusters, mistakes=0.0), []
    while found := pairs.next():
        a, b, _ = found[0]
        assert clusters.constraints.known(a, b) is None
        asked.append((a, b))
        decision = Decision(len(asked), same=((a, b),))
        clusters.update(clusters.constraints, clusters.constraints.add(decision))
        pairs.answer(a, b, True)
    assert len(asked) == 9 and len(set(clusters.labels.tolist())) == 1


def test_an_answer_that_the_distances_contradict_is_asked_for_once_more():
    clusters = Clusters(two_blocks(), Constraints(10), 0.6, 1)
    pairs = PairOrder(clusters)
    clusters.update(clusters.constraints, clusters.constraints.add(Decision(1, differ=((1, 2),))))
    pairs.answer(1, 2, False)
    assert (1, 2) not in [found[:2] for found in pairs.next(3)]
    pairs.recent.clear()  # as it is ten answers later
    assert (1, 2) in [found[:2] for found in pairs.next(3)]
    worth = pairs.worths()[pairs.graph.edge(1, 2)]
    pairs.answer(1, 2, False)
    pairs.recent.clear()
    assert pairs.worths()[pairs.graph.edge(1, 2)] < worth / 2 and pairs.reviews == 1 and pairs.changed == 0


def test_a_question_about_two_clusters_has_the_clusters_that_it_may_be_instead():
    feats = np.eye(6, dtype=np.float32)[[0, 0, 0, 1, 1, 2, 3]] + 0.02
    feats[5] += 0.5 * feats[0] + 0.7 * feats[3]  # a lone image between the two clusters, nearer to the second
    near = np.array([(0, 1), (1, 2), (3, 4)], np.int32).T
    graph = Graph(7, *near, *np.zeros((2, 3), np.float32))
    clusters = Clusters(graph, Constraints(7), 0.6, 1)
    pairs = PairOrder(clusters, feats=feats)
    graph.add(np.array([(0, 5), (3, 5), (0, 1)]))
    pairs._grow()
    asked, others = pairs.others(0, 5, 4)
    assert asked == 5 and [clusters.labels[c] for c, _ in others][0] == 3
    assert [p for _, p in others] == sorted((p for _, p in others), reverse=True)
    assert not {5, 0, 1, 2} & {c for c, _ in others}  # neither its own cluster nor the one of the pair
    assert pairs.others(0, 1, 4) == (0, [])  # a question about one cluster
    clusters.update(clusters.constraints, clusters.constraints.add(Decision(1, differ=((3, 5),))))
    pairs.answer(3, 5, False)
    pairs.worths()
    assert 3 not in [clusters.labels[c] for c, _ in pairs.others(0, 5, 4)[1]]
    assert pairs.others(3, 5, 4)[1] == []  # a second look is about that answer alone


# ---------------------------------------------------------------- suspects


def test_suspects_are_found_accepted_and_refused(crops, tmp_path):
    folder = tmp_path / "crops"
    folder.mkdir()
    for path in crops.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    (folder / "3_9.png").write_bytes((crops / "2_0.png").read_bytes())  # a copy under another name
    with Image.open(crops / "4_0.png") as picture:
        picture.filter(ImageFilter.GaussianBlur(6)).save(folder / "4_0.png")
    session = make_session(folder, tmp_path / "labels.csv")
    quality = Quality(session.images)
    session.proposals = Suspects(quality)
    copy, original = session.images.names.index("3_9.png"), session.images.names.index("2_0.png")
    session.suspects()
    quality.join(60)
    assert (original, copy) in [(a, b) for _, a, b in quality.duplicates]
    assert not duplicates(session, quality)  # they are in one cluster
    session.clusters.labels[copy] = copy
    (twins,) = duplicates(session, quality)
    assert twins.accept == {"same": [[original, copy]]}
    session.clusters.labels[copy] = session.clusters.labels[original]
    rows, total = session.suspects()["rows"], session.suspects()["total"]
    (one,) = [row for row in rows if row["kind"] == "blurred"]
    assert one["images"] == (session.images.names.index("4_0.png"),)
    session.decide({"view": "suspects", "keep": [one["key"]]})
    assert session.suspects()["total"] == total - 1
    session.undo()
    assert session.suspects()["total"] == total
    session.decide({"view": "suspects", **one["accept"]})
    assert one["key"] not in [row["key"] for row in session.suspects()["rows"]]
    session.journal.close()


def test_a_crop_among_strangers_and_touching_clusters_are_suspects():
    near = [(0, 1), (1, 2), (0, 2), (3, 4), (4, 5), (3, 5), (3, 6), (4, 6), (5, 6), (2, 6)]
    first, second = np.array(near, np.int32).T
    distance = np.array([0.1] * 6 + [0.4] * 3 + [0.45], np.float32)
    constraints = Constraints.of(7, [Decision(1, same=((3, 4, 5),), differ=((3, 6),))])
    clusters = Clusters(Graph(7, first, second, distance, np.zeros(10, np.float32)), constraints, 0.5, 2)
    assert clusters.labels.tolist() == [0, 0, 0, 3, 3, 3, 0]
    session = SimpleNamespace(
        graph=clusters.graph, clusters=clusters, constraints=constraints, pairs=PairOrder(clusters)
    )
    constraints = Constraints.of(7, [Decision(1, same=((3, 4, 5),))])
    clusters.labels[:] = [0, 0, 0, 3, 3, 3, 0]
    session.constraints = constraints
    (far,) = far_crops(session)  # pyright: ignore[reportArgumentType]
    assert far.images == (6,) and far.accept == {"differ": [[6, 0]]} and far.reason.startswith("77%")
    (pair,) = touching(session)  # pyright: ignore[reportArgumentType]
    assert set(pair.accept["same"][0]) == {3, 6} and pair.images[0] in (3, 6)
