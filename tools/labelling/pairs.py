"""Which pair to ask about next: the one whose answer is expected to change the clustering most.

A pair in two clusters of m and n images would, answered "same", bring m * n pairs of images together; a link inside a
cluster would, answered "different", bring those on its two sides apart. Each counts with its probability, which comes
from the pair's distance and is fitted to the answers as they come. Pairs whose answer follows from others are not
asked. An answer that the distances speak against, and on which much depends, is asked for once more: people err.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterable

import numpy as np

from tools.labelling.clustering import Clusters

REFIT = 20
"""Answers after which probabilities are fitted again."""
PRIOR = 20.0
"""Weight, in answers, of the assumption that a pair at eps is the same or not with equal probability."""
STEEPNESS = 12.0
"""Of that assumption: the log odds fall by as much from a distance of 0 to 1."""
MISTAKES = 0.02
"""Share of wrong answers before the person's own are known."""
SEEN = 50
"""Weight of that share, in questions asked twice."""
BATCH = 512
"""Pairs of the greatest worth that are looked at together."""


def fit_probability(columns: np.ndarray, answers: np.ndarray, eps: float) -> np.ndarray:
    """Returns the coefficients of the log odds of "same": a logistic regression with a prior.

    columns: (A, 2) distance and rank of the pairs that were answered. answers: (A,) bool. eps: the distance at which
    the prior has even odds, whatever the rank. Returns (3,): of distance and rank, and the constant.
    """
    grid = np.linspace(0, 1.2, 13)
    believed = 1 / (1 + np.exp(STEEPNESS * (grid - eps)))
    assumed = np.stack([np.tile(grid, 2), np.repeat([0.0, 1.0], len(grid))], 1)
    x = np.concatenate([columns, assumed])
    y = np.concatenate([answers.astype(np.float64), np.tile(believed, 2)])
    weight = np.concatenate([np.ones(len(columns)), np.full(len(assumed), PRIOR / len(assumed))])
    design = np.concatenate([x, np.ones((len(x), 1))], 1)
    beta = np.array([-STEEPNESS, 0.0, STEEPNESS * eps])
    for _ in range(25):
        p = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        hessian = design.T @ (design * (weight * p * (1 - p))[:, None]) + 1e-9 * np.eye(3)
        step = np.linalg.solve(hessian, design.T @ (weight * (y - p)))
        beta = beta + np.clip(step, -5, 5)
        if np.abs(step).max() < 1e-6:
            break
    return np.minimum(beta, [-1.0, 0.0, np.inf])  # nearer is never less likely the same


def expected_change(doubt: np.ndarray, at_stake: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns the pairs of images whose being together an answer is expected to change.

    doubt: (E,) probability of the answer that is not what the clusters say. at_stake: (E,) pairs that it changes.
    edges: (E,) their numbers.
    """
    return doubt * at_stake


def uncertainty(doubt: np.ndarray, at_stake: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns how even the odds are, whatever depends on them: the usual order, to compare with."""
    return np.where(at_stake > 0, 0.5 - np.abs(doubt - 0.5) + 1e-9, 0)


Order = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class PairOrder:
    """Finds the next pair to ask about.

    order: the worth of pairs. mistakes: share of answers that are expected to be wrong before anything is known about
    the person; 0: no answer is asked for again.
    """

    def __init__(self, clusters: Clusters, order: Order = expected_change, mistakes: float = MISTAKES):
        self.clusters, self.graph, self.order, self.mistakes = clusters, clusters.graph, order, mistakes
        count = len(self.graph.first)
        self.closed = np.zeros(count, bool)
        self.most = np.full(count, np.inf, np.float32)
        self.said = np.zeros(count, np.int8)
        self.reviews, self.changed = 0, 0
        self._fitted = -1
        self.p = np.empty(0, np.float32)
        self.fit()

    def fit(self) -> None:
        """Fits the probabilities to the answers, if there are enough new ones."""
        answered = np.flatnonzero(self.said)
        if self._fitted >= 0 and len(answered) // REFIT == self._fitted // REFIT:
            return
        self._fitted = len(answered)
        self.most[:] = np.inf
        columns = np.stack([self.graph.distance[answered], self.graph.rank[answered]], 1).astype(np.float64)
        slope, by_rank, offset = fit_probability(columns, self.said[answered] > 0, self.clusters.eps).astype(np.float32)
        self.p = 1 / (1 + np.exp(-(slope * self.graph.distance + by_rank * self.graph.rank + offset)))

    def answer(self, a: int, b: int, same: bool) -> None:
        """Counts an answer to a question. A second one to the same question shows how often the person errs."""
        self._count(a, b, same)
        self.fit()

    def _count(self, a: int, b: int, same: bool) -> None:
        edge = self.graph.edge(a, b)
        if edge < 0:
            return
        before = int(self.said[edge])
        if before:
            self.reviews += 1
            self.changed += (before > 0) != same
        agreed = before != 0 and (before > 0) == same
        self.said[edge] = (min(abs(before) + 1, 100) if agreed else 1) * (1 if same else -1)

    def forget(self, answers: Iterable[tuple[int, int, bool]]) -> None:
        """Begins again with these answers, after decisions were taken back."""
        self.closed[:] = False
        self.said[:] = 0
        self.reviews, self.changed, self._fitted = 0, 0, -2
        for a, b, same in answers:
            self._count(a, b, same)
        self.fit()

    @property
    def error_rate(self) -> float:
        """Returns the share of answers that are taken to be wrong."""
        if not self.mistakes:
            return 0.0
        return (self.mistakes * SEEN + self.changed / 2) / (SEEN + self.reviews)

    def doubts(self, edges: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Returns the probability of the opposite of what the clusters say of pairs. edges, inside: (n,)."""
        p, said = self.p[edges], self.said[edges]
        doubt = np.where(inside, 1 - p, p)
        asked = said != 0
        if asked.any():
            wrong = np.float32(self.error_rate) ** np.abs(said[asked])
            against = doubt[asked] * wrong
            doubt[asked] = against / (against + (1 - doubt[asked]) * (1 - wrong) + 1e-12)
        return doubt

    def worths(self) -> np.ndarray:
        """Returns what each pair of the graph is worth, (E,); 0 for pairs that need not be asked."""
        clusters, first, second = self.clusters, self.graph.first, self.graph.second
        one, other = clusters.labels[first], clusters.labels[second]
        inside = one == other
        stake = np.where(inside, clusters.at_stake, clusters.sizes[one] * clusters.sizes[other]).astype(np.float32)
        edges = np.arange(len(first))
        worth = self.order(self.doubts(edges, inside), np.minimum(stake, self.most), edges)
        worth[self.closed] = 0
        return worth

    def next(self, count: int = 1) -> list[tuple[int, int, float]]:
        """Returns the pairs worth most, each with the probability that it is the same: fewer if fewer are open."""
        worth = self.worths()
        found: list[int] = []
        while len(found) < count and len(worth):
            top = np.argpartition(-worth, min(BATCH, len(worth) - 1))[:BATCH]
            if worth[top].max() <= 0:
                break
            least = worth[top].min() if len(worth) > BATCH else 0.0
            heap = [(-float(worth[edge]), int(edge)) for edge in top if worth[edge] > 0]
            heapq.heapify(heap)
            while heap and len(found) < count and -heap[0][0] >= least:
                _, edge = heapq.heappop(heap)
                now = self._worth(edge)
                if now < worth[edge] * (1 - 1e-6):
                    worth[edge] = now
                    if now > 0:
                        heapq.heappush(heap, (-now, edge))
                else:
                    worth[edge] = 0
                    found.append(edge)
        first, second, p = (column[found].tolist() for column in (self.graph.first, self.graph.second, self.p))
        return list(zip(first, second, p, strict=True))

    def _worth(self, edge: int) -> float:
        """Returns what a pair is worth in the light of the decisions, and remembers it."""
        a, b = int(self.graph.first[edge]), int(self.graph.second[edge])
        if self.is_closed(edge, a, b):
            self.closed[edge] = True
            return 0.0
        clusters = self.clusters
        one, other = clusters.labels[a], clusters.labels[b]
        if one == other:
            stake = clusters.at_stake[edge]
        else:
            if not self.said[edge]:
                self.most[edge] = min(float(self.most[edge]), self.bound(a, b))
            stake = min(float(clusters.sizes[one] * clusters.sizes[other]), float(self.most[edge]))
        edges = np.array([edge])
        doubt = self.doubts(edges, np.array([one == other]))
        return float(self.order(doubt, np.array([stake], np.float32), edges)[0])

    def is_closed(self, edge: int, a: int, b: int) -> bool:
        """Returns whether a pair need not be asked: the answer follows from others, or the person could not tell."""
        constraints = self.clusters.constraints
        if (a, b) in constraints.unsure or a in constraints.nobody or b in constraints.nobody:
            return True
        if self.said[edge]:
            return not self.mistakes
        return constraints.known(a, b) is not None

    def bound(self, a: int, b: int) -> float:
        """Returns what "same" can change at most: where two clusters must stay apart, only the images' groups move."""
        clusters, constraints = self.clusters, self.clusters.constraints
        one, other = int(clusters.labels[a]), int(clusters.labels[b])
        if one == other or not constraints.touched:
            return float("inf")
        if not self._kept_apart(one, other):
            return float("inf")
        sizes = clusters.sizes
        mine, theirs = len(constraints.group(a)), len(constraints.group(b))
        return float(max(mine * sizes[other], theirs * sizes[one]))

    def _kept_apart(self, one: int, other: int) -> bool:
        """Returns whether a decision keeps two clusters apart, looking at the groups of the smaller one's images."""
        clusters, constraints = self.clusters, self.clusters.constraints
        if clusters.sizes[one] > clusters.sizes[other]:
            one, other = other, one
        roots = {constraints.root(int(row)) for row in clusters.members(one)}
        for root in roots & constraints.enemies.keys():
            if any(clusters.labels[enemy] == other for enemy in constraints.enemies[root]):
                return True
        named = {constraints.names[root] for root in roots & constraints.names.keys()}
        if not named or len(constraints.names) < 2:
            return False
        theirs = {constraints.root(int(row)) for row in clusters.members(other)} & constraints.names.keys()
        return bool({constraints.names[root] for root in theirs} - named)
