"""A simulated annotator: a person who knows the truth, and sometimes presses the wrong key.

It answers the questions of an order of pairs until the clusters are right, and is compared with naming every image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tools.labelling.constraints import Constraints
from tools.labelling.journal import Decision, active
from tools.labelling.pairs import PairOrder
from tools.labelling.session import answers

TARGETS = (0.95, 0.99)


def random_order(count: int, seed: int) -> Callable:
    """Returns the order that draws among the pairs that are worth anything."""
    drawn = np.random.default_rng(seed).random(count)
    return lambda doubt, at_stake, edges: np.where(at_stake > 0, drawn[edges % count] + 1e-9, 0)


def f1(truth: np.ndarray, labels: np.ndarray) -> float:
    """Returns the F1 of pairs in one cluster against pairs of one identity. (N,), (N,), numbers from 0."""

    def pairs(keys: np.ndarray) -> int:
        counts = np.unique(keys, return_counts=True)[1].astype(np.int64)
        return int((counts * (counts - 1) // 2).sum())

    both = pairs(labels * (int(truth.max()) + 1) + truth)
    return 2 * both / max(pairs(labels) + pairs(truth), 1)


@dataclass
class Outcome:
    """How a simulated labelling went. reached: target -> decisions until it. first, last: F1 at the beginning and the
    end. decisions: in all."""

    reached: dict[float, int]
    first: float
    last: float
    decisions: int


def simulate(
    pairs: PairOrder, truth: np.ndarray, wrong: float, seed: int, most: int, targets: Sequence[float] = TARGETS,
    others: int = 0,
) -> Outcome:  # fmt: skip
    """Answers questions until the clusters reach all targets, none is left, or there were ``most`` decisions.

    wrong: share of the answers that are drawn to be wrong, each time independently. others: images beside a pair's
    second one that the first may match instead.
    """
    rng = np.random.default_rng(seed)
    clusters = pairs.clusters
    constraints = clusters.constraints
    decisions: list[Decision] = []
    of_pair: dict[tuple[int, int], tuple[int, bool]] = {}
    first = score = f1(truth, clusters.labels)
    reached = {target: 0 for target in targets if score >= target}
    while len(decisions) < most and len(reached) < len(targets) and (found := pairs.next()):
        a, b, _ = found[0]
        asked, further = pairs.others(a, b, others)
        row = [b if asked == a else a, *(c for c, _ in further)]
        choice = next((i for i, c in enumerate(row) if truth[asked] == truth[c]), len(row))  # after the row: none
        if rng.random() < wrong:
            choice = int(rng.choice([i for i in range(len(row) + 1) if i != choice]))
        said = [ordered(asked, c) for c in (row[choice : choice + 1] or row)]
        same, number = choice < len(row), len(decisions) + 1
        before, earlier = of_pair.get(said[0], (0, same))
        undo = before if earlier != same else 0  # a second answer takes the first one back, as in a session
        given = tuple(said)
        decisions.append(Decision(number, "pairs", same=given if same else (), differ=() if same else given, undo=undo))
        of_pair |= dict.fromkeys(said, (number, same))
        changed = [row for two in said for row in two]
        if undo:
            counting = active(decisions)
            constraints = Constraints.of(clusters.graph.count, counting)
            clusters.update(constraints, changed)
            pairs.forget(answers(counting))
        else:
            constraints.add(decisions[-1])
            clusters.update(constraints, changed)
            for one, other in said:
                pairs.answer(one, other, same)
        score = f1(truth, clusters.labels)
        reached |= {target: number for target in targets if score >= target and target not in reached}
    return Outcome(reached, first, score, len(decisions))


def ordered(a: int, b: int) -> tuple[int, int]:
    """Returns two numbers, the smaller first."""
    return min(a, b), max(a, b)


def by_hand(truth: np.ndarray, seed: int) -> dict[float, int]:
    """Returns the names that it takes to reach each of ``TARGETS`` in a random order, one image a decision."""
    order = np.random.default_rng(seed).permutation(len(truth))
    sizes: dict[int, int] = {}
    pairs = np.unique(truth, return_counts=True)[1].astype(np.int64) * 1.0
    total = float((pairs * (pairs - 1) / 2).sum())
    together, reached = 0.0, {}
    for number, row in enumerate(order, 1):
        size = sizes.get(int(truth[row]), 0)
        together += size
        sizes[int(truth[row])] = size + 1
        recall = together / total
        for target in TARGETS:
            if 2 * recall / (1 + recall) >= target and target not in reached:
                reached[target] = number
    return reached
