"""Which pair to ask about next: the one whose answer is expected to change the clustering most.

A pair in two clusters of m and n images would, answered "same", bring m * n pairs of images together; a link inside a
cluster would, answered "different", bring those on its two sides apart. Each counts with its probability, which comes
from the pair's distance, or from that of two clusters as a whole (``cluster_pairs``), and is fitted to the answers as
they come. Pairs whose answer follows from others are not asked. People err: an answer that the distances speak against,
and on which much depends, is asked for once more, and so are those that contradict each other.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from tools.labelling.cluster_pairs import ClusterPairs, beyond
from tools.labelling.clustering import Clusters, by_group
from tools.labelling.odds import Answer, Odds

MISTAKES = 0.02
"""Share of wrong answers before the person's own are known."""
SEEN = 50
"""Weight of that share, in questions asked twice."""
SPOKEN = 10.0
"""Weight, in answers, of the assumption that clusters that a decision keeps apart are so as a whole."""
RECENT = 10
"""Last answers that are not doubted yet: nobody wants to hear the same question twice in a row."""
AT_ONCE = 2**17
"""Pairs whose worth is computed again with one question: those of 12,000 images."""
TOGETHER = 2**13
"""Pairs whose worth is computed together: few enough for a processor's cache."""
BATCH = 512
"""Pairs of the greatest worth that are looked at together."""


def expected_change(doubt: np.ndarray, at_stake: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns what an answer is expected to change, with a preference for questions that are soon settled.

    doubt: (E,) probability of the answer that is not what the clusters say. at_stake: (E,) pairs that it changes.
    edges: (E,) their numbers. The product alone would ask long series of hopeless questions about the largest clusters,
    which answer themselves better once more images are together, so what is at stake counts little. Of the exponents
    that were tried on drawn pedestrians (``python -m benchmarks.label --simulate``), 1/8 of the doubt's took the fewest
    answers to a pairwise F1 of 0.95.
    """
    return doubt * doubt * np.sqrt(np.sqrt(at_stake))


def uncertainty(doubt: np.ndarray, at_stake: np.ndarray, edges: np.ndarray) -> np.ndarray:
    """Returns how even the odds are, whatever depends on them: the usual order, to compare with."""
    return np.where(at_stake > 0, 0.5 - np.abs(doubt - 0.5) + 1e-9, 0)


Order = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class PairOrder:
    """Finds the next pair to ask about.

    order: the worth of pairs. mistakes: share of answers that are expected to be wrong before anything is known about
    the person; 0: an answer is asked for again only where answers contradict each other. feats, rows: (n, D) features
    of the images in rows (n,), to ask about pairs of clusters that have no near images; None: near images alone.
    """

    def __init__(
        self, clusters: Clusters, order: Order = expected_change, mistakes: float = MISTAKES,
        feats: np.ndarray | None = None, rows: np.ndarray | None = None,
    ):  # fmt: skip
        self.clusters, self.graph, self.order, self.mistakes = clusters, clusters.graph, order, mistakes
        self.wholes: ClusterPairs | None = None
        if feats is not None and len(feats):
            rows = np.arange(len(feats)) if rows is None else rows
            self.wholes = ClusterPairs(clusters, feats, rows, clusters.eps, order)
        count = len(self.graph.first)
        self.closed = np.zeros(count, bool)
        self.most = np.full(count, np.inf, np.float32)
        self.apart = np.zeros(count, bool)
        self.said = np.zeros(count, np.int8)
        self.reviews, self.changed = 0, 0
        self.spoken = [0, 0]
        self.recent: deque[int] = deque(maxlen=RECENT)
        self._blamed: dict[int, tuple[float, float]] = {}
        self._value, self._stale = np.zeros(count, np.float32), True
        self._from, self._left = 0, 0
        ends = np.concatenate([self.graph.first[:count], self.graph.second[:count]])
        places, self._begin = by_group(ends, self.graph.count)
        self._edges = (places % max(count, 1)).astype(np.int32)
        self.odds = Odds(clusters.eps, np.zeros(2)) if self.wholes is None else self.wholes.odds
        self.p = self.odds(self.columns(np.arange(count)))

    def columns(self, edges: np.ndarray) -> np.ndarray:
        """Returns what the odds of pairs depend on, (n, 4), see ``Odds``."""
        graph = self.graph
        whole = np.zeros((len(edges), 2), np.float32) if self.wholes is None else self.wholes.columns(edges)
        apart = np.where(edges < graph.near, graph.distance[edges], beyond(whole[:, 1]))
        return np.concatenate([whole, apart[:, None], graph.rank[edges, None]], 1)

    def answer(self, a: int, b: int, same: bool) -> None:
        """Counts an answer to a question. A second one to the same question shows how often the person errs."""
        edge = self._count([(a, b, same)])
        if self.wholes is not None:
            self.wholes.grow()
        self.odds.learn((a, b), self.columns(edge)[0], same)

    def _count(self, answers: Sequence[Answer]) -> np.ndarray:
        """Counts answers, and returns their edges."""
        edges = self.graph.add(pairs_of(answers))
        self._grow()
        for edge, (_, _, same) in zip(edges.tolist(), answers, strict=True):
            before = int(self.said[edge])
            if before:
                self.reviews += 1
                self.changed += (before > 0) != same
            elif self.apart[edge]:
                self.spoken[same] += 1
            self.recent.append(edge)
            agreed = before != 0 and (before > 0) == same
            self.said[edge] = (min(abs(before) + 1, 100) if agreed else 1) * (1 if same else -1)
        return edges

    def _grow(self) -> None:
        """Makes room for pairs that were added to the graph."""
        self.clusters.grow()
        more = len(self.graph.first) - len(self.said)
        if more:
            self.said = np.append(self.said, np.zeros(more, np.int8))
            self.most = np.append(self.most, np.full(more, np.inf, np.float32))
            self.closed, self.apart = (np.append(flags, [False] * more) for flags in (self.closed, self.apart))
            self.p = np.append(self.p, np.full(more, 0.5, np.float32))
            self._value = np.append(self._value, np.zeros(more, np.float32))

    def forget(self, answers: Sequence[Answer]) -> None:
        """Begins again with these answers, after decisions were taken back.

        Of those that it did not see, as after a restart, only how near the images are now is known.
        """
        self.closed[:], self.apart[:] = False, False
        self.said[:] = 0
        self.reviews, self.changed, self._stale = 0, 0, True
        self.spoken = [0, 0]
        self.recent.clear()
        edges = self._count(answers)
        if self.wholes is not None:
            self.wholes.grow()
        new = self.odds.keep(answers)
        for (a, b, same), columns in zip(answers, self.columns(edges), strict=True):
            if (a, b) in new:
                self.odds.learn((a, b), columns, same)

    @property
    def error_rate(self) -> float:
        """Returns the share of answers that are taken to be wrong."""
        if not self.mistakes:
            return 0.0
        return (self.mistakes * SEEN + self.changed / 2) / (SEEN + self.reviews)

    def doubts(self, edges: np.ndarray, inside: np.ndarray) -> np.ndarray:
        """Returns the probability of the opposite of what the clusters say of pairs. edges, inside: (n,)."""
        p, said = self.p[edges], self.said[edges]
        spoken = self.apart[edges] & (said == 0)
        if spoken.any():
            p[spoken] *= (self.spoken[True] + 0.5) / (sum(self.spoken) + SPOKEN)
        doubt, asked = np.where(inside, 1 - p, p), said != 0
        if asked.any():
            wrong = np.float32(self.error_rate) ** np.abs(said[asked])
            against = doubt[asked] * wrong
            doubt[asked] = against / (against + (1 - doubt[asked]) * (1 - wrong) + 1e-12)
            doubt[np.isin(edges, list(self.recent))] = 0
        return doubt

    def blamed(self) -> dict[int, tuple[float, float]]:
        """Returns the answers that contradict each other and were given once: edge -> their doubt and what depends.

        One of each such chain is wrong. Where all of a chain were confirmed, the person insists, and nothing is asked.
        """
        constraints, found = self.clusters.constraints, dict[int, tuple[float, float]]()
        for one in constraints.contradictions:
            pairs = [constraints.pair_of[n] for n in (*one.against, one.number) if n in constraints.pair_of]
            edges = [edge for a, b in pairs if (edge := self.graph.edge(a, b)) >= 0]
            once = [edge for edge in edges if abs(int(self.said[edge])) == 1]
            stake = max((float(self.clusters.at_stake[edge]) for edge in edges), default=1.0)
            for edge in once:
                before = found.get(edge, (0.0, 1.0))
                found[edge] = max(before[0], 1 / len(once)), max(before[1], stake)
        return found

    def worths(self) -> np.ndarray:
        """Returns what each pair of the graph is worth, (E,); 0 for pairs that need not be asked.

        It is computed again for the pairs of clusters that changed and for those that were answered; once probabilities
        were fitted again, for all, ``AT_ONCE`` of them with each question, so that none has to be waited for.
        """
        self._grow()
        changed, self.clusters.changed = self.clusters.changed, set()
        count, fitted = len(self.graph.first), self.odds.fit()
        if self.wholes is not None:
            self.wholes.refresh(changed, fitted or self._stale)
        if fitted or self._stale:
            self._left = count
        some = (self._from + np.arange(self._left if self._stale else min(self._left, AT_ONCE))) % max(count, 1)
        self._from, self._left, self._stale = self._from + len(some), self._left - len(some), False
        self.most[some], self.apart[some] = np.inf, False
        for edges in (self._touched(changed), some):
            for top in range(0, len(edges), TOGETHER):
                here = edges[top : top + TOGETHER]
                self.p[here] = self.odds(self.columns(here))
                self._value[here] = self._worths(here)
        worth = self._value.copy()
        self._blamed = self.blamed()
        for edge, (doubt, at_stake) in self._blamed.items():
            worth[edge] = self._order_of(doubt, at_stake, edge)
        return worth

    def _touched(self, changed: Iterable[int]) -> np.ndarray:
        """Returns the edges of images in some clusters, and all that were answered or added."""
        members = [self.clusters.members(label) for label in changed if self.clusters.sizes[label]]
        rows = np.concatenate(members).tolist() if members else []
        parts = [self._edges[self._begin[row] : self._begin[row + 1]] for row in rows]
        return np.unique(np.concatenate([np.flatnonzero(self.said), *parts]))

    def _worths(self, edges: np.ndarray) -> np.ndarray:
        """Returns what edges (n,) are worth."""
        clusters = self.clusters
        one, other = (clusters.labels[ends[edges]] for ends in (self.graph.first, self.graph.second))
        inside = one == other
        stake = np.where(inside, clusters.at_stake[edges], clusters.sizes[one] * clusters.sizes[other])
        stake = np.minimum(stake, self.most[edges]).astype(np.float32)
        worth = self.order(self.doubts(edges, inside), stake, edges)
        return np.where(self.closed[edges] | ((edges >= self.graph.near) & (self.said[edges] == 0)), 0, worth)

    def next(self, count: int = 1) -> list[tuple[int, int, float]]:
        """Returns the pairs worth most, each with the probability that it is the same: fewer if fewer are open."""
        found = self._near(count)
        if self.wholes is not None:
            found = sorted([*found, *self.wholes.best(count)], key=lambda pair: -pair[0])
        pairs: dict[tuple[int, int], float] = {}
        for _, a, b, p in found:
            pairs.setdefault((min(a, b), max(a, b)), p)
        asked = np.array(list(pairs)[:count], np.int64).reshape(-1, 2)
        self.graph.add(asked)  # so that what depends on an answer is known as soon as it is there
        self._grow()
        return [(a, b, p) for (a, b), p in pairs.items()][:count]

    def others(self, a: int, b: int, count: int) -> tuple[int, list[tuple[int, float]]]:
        """Returns which image of a question about two clusters is asked about, that of the smaller one, and the images
        of up to ``count`` further clusters that may be its own, with their probabilities.

        So one answer says which of a row it is, or that nothing there matches. A question that was answered before, or
        is about one cluster, has no further images.
        """
        labels, sizes, edge = self.clusters.labels, self.clusters.sizes, self.graph.edge(a, b)
        if self.wholes is None or labels[a] == labels[b] or self.said[edge]:
            return a, []
        a, b = (a, b) if sizes[labels[a]] <= sizes[labels[b]] else (b, a)
        found = self.wholes.others(a, b, count)
        self.graph.add(np.array([(min(a, c), max(a, c)) for c, _ in found], np.int64).reshape(-1, 2))
        self._grow()
        return a, [(c, p) for c, p in found if not self.said[self.graph.edge(a, c)]]

    def _near(self, count: int) -> list[tuple[float, int, int, float]]:
        """Returns the pairs of the graph that are worth most: worth, the two images, and the probability of "same"."""
        worth = self.worths()
        found: list[tuple[float, int]] = []
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
                    worth[edge] = self._value[edge] = now
                    if now > 0:
                        heapq.heappush(heap, (-now, edge))
                else:
                    found.append((float(worth[edge]), edge))
                    worth[edge] = 0
        first, second, p = self.graph.first, self.graph.second, self.p
        return [(value, int(first[edge]), int(second[edge]), float(p[edge])) for value, edge in found]

    def _worth(self, edge: int) -> float:
        """Returns what a pair is worth in the light of the decisions, and remembers it."""
        a, b = int(self.graph.first[edge]), int(self.graph.second[edge])
        if edge in self._blamed:
            return self._order_of(*self._blamed[edge], edge)
        if self.is_closed(edge, a, b):
            self.closed[edge] = True
            return 0.0
        clusters = self.clusters
        one, other = clusters.labels[a], clusters.labels[b]
        if one == other:
            stake = clusters.at_stake[edge]
        else:
            if not self.said[edge]:
                self._bound(edge, a, b)
            stake = min(float(clusters.sizes[one] * clusters.sizes[other]), float(self.most[edge]))
        edges = np.array([edge])
        doubt = self.doubts(edges, np.array([one == other]))
        return float(self.order(doubt, np.array([stake], np.float32), edges)[0])

    def _order_of(self, doubt: float, at_stake: float, edge: int) -> float:
        """Returns what one pair is worth by the order."""
        return float(self.order(np.array([doubt], np.float32), np.array([at_stake], np.float32), np.array([edge]))[0])

    def is_closed(self, edge: int, a: int, b: int) -> bool:
        """Returns whether a pair need not be asked: the answer follows from others, or the person could not tell."""
        constraints = self.clusters.constraints
        if (a, b) in constraints.unsure or a in constraints.nobody or b in constraints.nobody:
            return True
        if self.said[edge]:
            return not self.mistakes
        return constraints.known(a, b) is not None

    def _bound(self, edge: int, a: int, b: int) -> None:
        """Notes where two clusters must stay apart: "same" is rarer there, and moves only the images' own groups."""
        clusters, constraints = self.clusters, self.clusters.constraints
        one, other = int(clusters.labels[a]), int(clusters.labels[b])
        if one == other or not constraints.touched or not self._kept_apart(one, other):
            return
        mine, theirs = len(constraints.group(a)), len(constraints.group(b))
        self.most[edge] = min(self.most[edge], max(mine * clusters.sizes[other], theirs * clusters.sizes[one]))
        self.apart[edge] = True

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


def pairs_of(answers: Sequence[Answer]) -> np.ndarray:
    """Returns the images that answers are about, (n, 2) int64."""
    return np.array([(a, b) for a, b, _ in answers], np.int64).reshape(-1, 2)
