"""Labels that are made wrong for the benchmark of clean mode, and how its proposals are judged."""

from __future__ import annotations

import numpy as np

from benchmarks.mislabelled import JOINED, KINDS, TWICE, WRONG, accepted, corrupted, judged
from tools.labelling.clean import propose
from tools.labelling.neighbours import make_graph
from tools.labelling.proposals import Proposal

TRUTH = np.repeat(np.arange(30), 12)


def perfect(wrong) -> list[Proposal]:
    """The proposals that correct every mistake."""
    out = []
    for kind, cases in wrong.cases.items():
        for rows in cases:
            pid = TRUTH[rows[0]]
            out.append(
                Proposal(
                    f"{kind} {rows}",
                    kind,
                    "",
                    (),
                    accept={"set": [[row, f"{pid}" if kind != JOINED else f"new {pid}"] for row in rows]},
                )
            )
    return out


def test_about_the_share_is_wrong_a_third_of_each_kind():
    wrong = corrupted(TRUTH, 0.05, 0)
    assert all(6 <= sum(map(len, wrong.cases[kind])) <= 12 for kind in KINDS)
    changed = [row for row, label in enumerate(wrong.labels) if label != str(TRUTH[row])]
    assert sorted(changed) == sorted(row for cases in wrong.cases.values() for rows in cases for row in rows)
    assert len(changed) == wrong.changed and corrupted(TRUTH, 0.05, 0) == wrong != corrupted(TRUTH, 0.05, 1)


def test_perfect_proposals_are_right_and_find_everything_and_others_are_not():
    wrong = corrupted(TRUTH, 0.05, 3)
    proposals = perfect(wrong)
    for kind, (mistakes, proposed, right, found) in judged(proposals, TRUTH, wrong).items():
        assert mistakes == proposed == right == found == len(wrong.cases[kind])
    assert all(found == 0 for *_, found in judged([], TRUTH, wrong).values())
    labels = np.array(accepted(proposals, wrong.labels))
    assert np.array_equal(labels[:, None] == labels, TRUTH[:, None] == TRUTH)
    row = next(row for row in range(len(TRUTH)) if wrong.labels[row] == str(TRUTH[row]))
    others = [
        Proposal("a", WRONG, "", (), accept={"set": [[row, str((TRUTH[row] + 1) % 30)]]}),
        Proposal("b", TWICE, "", (), accept={"set": [[int(i), "0"] for i in np.flatnonzero(TRUTH == 1)]}),
        Proposal(
            "c", JOINED, "", (), accept={"set": [[int(i), "new"] for i in np.flatnonzero(TRUTH[row] == TRUTH)[:3]]}
        ),
    ]
    counts = judged(others, TRUTH, corrupted(TRUTH, 0.0, 4))
    assert [right for _, _, right, _ in counts.values()] == [0, 0, 0]


def test_first_proposals_find_most_mistakes_where_identities_lie_apart():
    rng = np.random.default_rng(0)
    feats = rng.normal(size=(30, 16))[TRUTH] + 0.3 * rng.normal(size=(len(TRUTH), 16))
    wrong = corrupted(TRUTH, 0.05, 0)
    proposals = propose(make_graph(feats, 14, 4, 0.6, np.arange(len(TRUTH)), len(TRUTH)), wrong.labels, 0.6)
    for mistakes, proposed, right, found in judged(proposals, TRUTH, wrong).values():
        assert found >= 0.8 * mistakes and right >= 0.8 * proposed
