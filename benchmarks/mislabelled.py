"""Wrong labels of three kinds, put into right ones, and how many of them clean mode proposes to correct."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from tools.labelling.proposals import Proposal

WRONG, TWICE, JOINED = "wrong label", "one identity under two numbers", "two identities under one number"
KINDS = (WRONG, TWICE, JOINED)


@dataclass
class Corrupted:
    """Labels with mistakes. labels: (N,). cases: kind -> the mistakes, each the rows whose label was changed."""

    labels: list[str]
    cases: dict[str, list[list[int]]] = field(default_factory=lambda: {kind: [] for kind in KINDS})

    @property
    def changed(self) -> int:
        """Returns how many labels are changed."""
        return sum(len(rows) for cases in self.cases.values() for rows in cases)


def corrupted(truth: np.ndarray, share: float, seed: int) -> Corrupted:
    """Returns labels of which about ``share`` are wrong, a third of them of each kind.

    truth: (N,) identities. An identity is in one mistake at most, so that each can be judged by itself.
    """
    rng = np.random.default_rng(seed)
    out = Corrupted([str(pid) for pid in truth.tolist()])
    wanted = max(1, round(share * len(truth) / 3))
    free = rng.permutation(np.unique(truth)).tolist()
    new = int(truth.max()) + 1
    while sum(map(len, out.cases[TWICE])) < wanted and len(free) > 3:  # half of an identity gets a number of its own
        rows = rng.permutation(np.flatnonzero(truth == free.pop()))
        rows = rows[: len(rows) // 2].tolist()
        out.cases[TWICE].append(rows)
        for row in rows:
            out.labels[row] = str(new)
        new += 1
    while sum(map(len, out.cases[JOINED])) < wanted and len(free) > 3:  # an identity gets another one's number
        rows, other = np.flatnonzero(truth == free.pop()).tolist(), free.pop()
        out.cases[JOINED].append(rows)
        for row in rows:
            out.labels[row] = str(other)
    rest = np.flatnonzero(np.isin(truth, free))
    for row in rng.choice(rest, min(wanted, len(rest)), replace=False).tolist():
        out.cases[WRONG].append([row])
        out.labels[row] = str(rng.choice([pid for pid in free if pid != truth[row]]))
    return out


def majority(values: Sequence[int]) -> int:
    """Returns the most frequent value."""
    return Counter(values).most_common(1)[0][0]


def right_rows(proposal: Proposal, truth: np.ndarray, labels: Sequence[str]) -> list[int]:
    """Returns the rows that a proposal rightly gives another label; none if it is wrong.

    truth: (N,). labels: (N,) those that it is about.
    """
    rows = [row for row, _ in proposal.accept["set"]]
    mine = majority(truth[rows].tolist())
    left = {row for row in range(len(labels)) if labels[row] == labels[rows[0]]} - set(rows)
    if proposal.kind == JOINED:
        return rows if left and majority(truth[sorted(left)].tolist()) != mine else []
    target = [row for row, label in enumerate(labels) if label == proposal.accept["set"][0][1]]
    if not target or majority(truth[target].tolist()) != mine:
        return []
    if proposal.kind == WRONG and left and majority(truth[sorted(left)].tolist()) == mine:
        return []
    return rows


def judged(proposals: Sequence[Proposal], truth: np.ndarray, wrong: Corrupted) -> dict[str, tuple[int, int, int, int]]:
    """Returns for each kind: mistakes, proposals, right ones, and mistakes that some right proposal corrects.

    A mistake counts as found if a right proposal of any kind gives most of its rows, or of the rest of its identity,
    another label.
    """
    right = {i: right_rows(one, truth, wrong.labels) for i, one in enumerate(proposals)}
    moved = {row for rows in right.values() for row in rows}
    out = {}
    for kind in KINDS:
        mine = [i for i, one in enumerate(proposals) if one.kind == kind]
        found = 0
        for rows in wrong.cases[kind]:
            label, pid = wrong.labels[rows[0]], truth[rows[0]]
            sides = [rows]
            if kind == TWICE:  # its two halves may be joined either way
                sides.append([row for row in np.flatnonzero(truth == pid).tolist() if row not in rows])
            elif kind == JOINED:  # either of the two identities may get the new number
                sides.append([row for row, name in enumerate(wrong.labels) if name == label and row not in rows])
            found += any(2 * len(moved & set(side)) > len(side) for side in sides)
        out[kind] = len(wrong.cases[kind]), len(mine), sum(bool(right[i]) for i in mine), found
    return out


def accepted(proposals: Sequence[Proposal], labels: Sequence[str]) -> list[str]:
    """Returns labels after every proposal was accepted."""
    labels = list(labels)
    for one in proposals:
        for row, name in one.accept["set"]:
            labels[row] = name
    return labels
