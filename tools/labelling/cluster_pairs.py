"""Questions about whole clusters: is the one the same identity as the other, wherever their nearest images lie?

The graph holds pairs of near images. Front and back of one identity may have no such pair, so two clusters are compared
by the means of their features, too, and asked about by the image of each that is nearest to its mean. What the
probability of "same" is at a distance of two means is learned from the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set

import numpy as np

from tools.labelling.clustering import Clusters, walk
from tools.labelling.odds import Odds

MOST = 1000
"""Clusters that are compared with each other, the largest ones."""
NO_SLOT = -1
EVERY = slice(None)
BLOCK = 32
"""Clusters whose worth with all others is computed together."""


class ClusterPairs:
    """The pairs of clusters that no decision keeps apart, each with what its answer is expected to change.

    clusters: they are followed by ``refresh``. feats: (n, D) features of the images in ``rows`` (n,);
    the others are in no pair. order: the worth of pairs, as in ``pairs``.
    """

    def __init__(
        self, clusters: Clusters, feats: np.ndarray, rows: np.ndarray, eps: float, order: Callable[..., np.ndarray],
        most: int = MOST,
    ):  # fmt: skip
        self.clusters, self.feats, self.order, self.most = clusters, feats, order, most
        self.place = np.full(clusters.graph.count, -1, np.int64)
        self.place[rows] = np.arange(len(rows))
        self.scale = 1 / np.maximum(np.concatenate([
            np.linalg.norm(np.asarray(feats[top : top + 4096], np.float32), axis=1)
            for top in range(0, len(feats), 4096)
        ] or [np.empty(0, np.float32)]), 1e-12)  # fmt: skip
        self.links = np.full((len(clusters.graph.first), 2), np.nan, np.float32)
        self.own = np.empty(0, np.float32)
        self.grow()
        centre = self.own[self.own < 2]
        self.odds = Odds(eps, np.full(2, centre.mean() if len(centre) else 1.0))
        self._choose()
        self._measure_links(np.unique(clusters.labels).tolist())

    def grow(self) -> None:
        """Makes room for pairs that were added to the graph, and compares their images."""
        graph, known = self.clusters.graph, len(self.own)
        self.links = np.append(self.links, np.full((len(graph.first) - len(self.links), 2), np.nan, np.float32), 0)
        parts = [self.own]
        for top in range(known, len(graph.first), 4096):
            one, other = (self.place[ends[top : top + 4096]] for ends in (graph.first, graph.second))
            left, right = (np.asarray(self.feats[at], np.float32) * self.scale[at, None] for at in (one, other))
            cosine = (left * right).sum(1)
            parts.append(np.where((one < 0) | (other < 0), 2, 1 - cosine).astype(np.float32))
        self.own = np.concatenate(parts)

    def refresh(self, changed: Set[int], again: bool) -> None:
        """Follows the clusters, given by the labels of those that changed. again: the odds are others, too."""
        self.grow()
        if changed:
            self._labels = self.clusters.labels.copy()
            for label in changed & self.slot_of.keys():
                if not self._eligible(label):
                    self._release(label)
            waiting = [label for label in changed - self.slot_of.keys() if self._eligible(label)]
            for label in sorted(waiting, key=lambda label: (-self.clusters.sizes[label], label)):
                if self.free:
                    slot = self.free.pop()
                    self.slots[slot], self.slot_of[label], self.slot_at[label] = label, slot, slot
                else:
                    self._left_out = True
            if self._left_out and len(self.free) > self.most // 20:
                self._choose()
                again = True
            else:
                self._measure([self.slot_of[label] for label in changed & self.slot_of.keys()])
            self._measure_links(changed)
        if again:
            self._measure_worth()

    def _eligible(self, label: int) -> bool:
        return bool(
            self.clusters.sizes[label] > 0 and self.place[label] >= 0 and label not in self.clusters.constraints.nobody
        )

    def _release(self, label: int) -> None:
        """Frees the slot of a label that no cluster has any more."""
        slot = self.slot_of.pop(label)
        self.slot_at[label] = NO_SLOT
        self.slots[slot] = NO_SLOT
        self.free.append(slot)
        self.worth[slot], self.worth[:, slot] = 0, 0

    def _choose(self) -> None:
        """Chooses the clusters that are compared, the largest ones, and measures them."""
        sizes = self.clusters.sizes
        sound = (sizes > 0) & (self.place >= 0)
        sound[list(self.clusters.constraints.nobody)] = False
        labels = np.flatnonzero(sound)
        self._left_out = len(labels) > self.most
        labels = labels[np.argsort(-sizes[labels], kind="stable")[: self.most]]
        self._labels = self.clusters.labels.copy()
        room = min(self.most, int((self.place >= 0).sum()))
        self.slots: list[int] = labels.tolist() + [NO_SLOT] * (room - len(labels))
        self.slot_of = {label: slot for slot, label in enumerate(labels.tolist())}
        self.slot_at = np.full(len(sizes), NO_SLOT, np.int64)
        self.slot_at[labels] = np.arange(len(labels))
        self.free = list(range(len(labels), room))
        self.centres = np.zeros((room, self.feats.shape[1]), np.float32)
        self.length, self.sizes, self.stands = np.zeros(room, np.float32), np.zeros(room, np.int64), [0] * room
        self.cosine = np.zeros((room, room), np.float32)
        self.apart = np.zeros((room, room), bool)
        self.worth = np.zeros((room, room), np.float32)
        for slot in range(len(labels)):
            self._centre(slot)
        self.cosine[:] = self.centres @ self.centres.T
        for slot in range(len(labels)):
            self._apart(slot)
        self._measure_worth()

    def _centre(self, slot: int) -> None:
        """Computes the mean of a cluster's features, and the image that stands for it."""
        label = self.slots[slot]
        members = np.array([label]) if self.clusters.sizes[label] == 1 else self.clusters.members(label)
        members = members[self.place[members] >= 0]
        if nobody := self.clusters.constraints.nobody:  # such an image may be held by an earlier "same"
            members = members[[row not in nobody for row in members.tolist()]]
        at = self.place[members]
        feats = np.asarray(self.feats[at], np.float32) * self.scale[at, None]
        mean = feats.mean(0)
        self.length[slot] = np.linalg.norm(mean)
        self.centres[slot] = mean / max(self.length[slot], 1e-12)
        self.sizes[slot], self.stands[slot] = len(members), int(members[np.argmax(feats @ mean)])

    def _apart(self, slot: int) -> None:
        """Marks the clusters that decisions keep apart from one."""
        constraints, labels = self.clusters.constraints, self.clusters.labels
        self.apart[slot], self.apart[:, slot] = False, False
        self.apart[slot, slot] = True
        label = self.slots[slot]
        if constraints.touched:
            members = [label] if self.clusters.sizes[label] == 1 else self.clusters.members(label).tolist()
            roots = {constraints.root(row) for row in members}
            enemies = constraints.enemies
            foes = {int(labels[foe]) for root in roots & enemies.keys() for foe in enemies[root]}
            mine = {constraints.names[root] for root in roots & constraints.names.keys()}
            if mine:
                foes |= {int(labels[root]) for root, name in constraints.names.items() if name not in mine}
            away = [self.slot_of[foe] for foe in foes if foe in self.slot_of]
            self.apart[slot, away], self.apart[away, slot] = True, True

    def _measure(self, slots: list[int]) -> None:
        """Computes everything again that is about some slots."""
        for slot in slots:
            self._centre(slot)
        if slots:
            self.cosine[slots] = self.centres[slots] @ self.centres.T
            self.cosine[:, slots] = self.cosine[slots].T
        for slot in slots:
            self._apart(slot)
            self.worth[slot] = self.worth[:, slot] = self._worth([slot])[0]

    def _measure_links(self, labels: Iterable[int]) -> None:
        """Computes the columns of the links that hold clusters together: how near their two sides are as a whole."""
        for label in labels:
            if self.clusters.sizes[label] < 2 or label not in self.clusters.tree:
                continue
            order, above = walk(self.clusters.tree, label)
            at = self.place[order]
            if (at < 0).any():
                continue
            below = np.asarray(self.feats[at], np.float32) * self.scale[at, None]
            place = {row: i for i, row in enumerate(order)}
            up = [place[above[row][0]] for row in order]
            count = np.ones(len(order), np.float32)
            for here in range(len(order) - 1, 0, -1):
                below[up[here]] += below[here]
                count[up[here]] += count[here]
            edges = np.array([above[row][1] for row in order])
            kept = np.flatnonzero(edges >= 0)
            one, other = below[kept], below[0] - below[kept]
            product = (one * other).sum(1)
            lengths = np.linalg.norm(one, axis=1) * np.linalg.norm(other, axis=1)
            self.links[edges[kept], 0] = 1 - product / np.maximum(lengths, 1e-12)
            self.links[edges[kept], 1] = 1 - product / (count[kept] * (len(order) - count[kept]))

    def columns(self, edges: np.ndarray) -> np.ndarray:
        """Returns the first two columns of ``Odds`` for pairs of the graph, (n, 2): of links, their sides."""
        graph = self.clusters.graph
        one, other = (self._labels[ends[edges]] for ends in (graph.first, graph.second))
        out = np.repeat(self.own[edges, None], 2, 1)
        linked = (one == other) & ~np.isnan(self.links[edges, 0])
        out[linked] = self.links[edges[linked]]
        a, b = self.slot_at[one], self.slot_at[other]
        compared = (one != other) & (a != NO_SLOT) & (b != NO_SLOT)
        a, b = a[compared], b[compared]
        cosine = self.cosine[a, b]
        out[compared] = np.stack([1 - cosine, 1 - cosine * self.length[a] * self.length[b]], 1)
        return out

    def probability(self, rows: slice | list[int], columns: slice = EVERY) -> np.ndarray:
        """Returns the probabilities of "same" of slots and others, (n, m)."""
        cosine, beta, origin = self.cosine[rows, columns], self.odds.beta, self.odds.origin
        mean = 1 - cosine * self.length[rows, None] * self.length[columns]
        logits = beta[0] * (1 - cosine - origin[0]) + beta[1] * (mean - origin[1])
        return self.odds.of_logits(logits + beta[2] * (beyond(mean) - origin[2]) + (beta[3] + beta[4]))

    def _worth(self, rows: slice | list[int], columns: slice = EVERY) -> np.ndarray:
        """Returns the worth of slots' pairs with others, (n, m), 0 where it is known that they are not the same."""
        room = len(self.sizes)
        one, other = np.arange(room)[rows, None], np.arange(room)[columns]
        stake = (self.sizes[rows, None] * self.sizes[columns]).astype(np.float32)
        edges = np.minimum(one, other) * room + np.maximum(one, other)
        worth = self.order(self.probability(rows, columns), stake, edges)
        used = np.array(self.slots) != NO_SLOT
        return np.where(self.apart[rows, columns] | ~used[rows, None] | ~used[columns], 0, worth)

    def _measure_worth(self) -> None:
        """Computes the worth of all pairs, in blocks that a processor's cache holds, each pair in one order."""
        for top in range(0, len(self.worth), BLOCK):
            rows = slice(top, top + BLOCK)
            self.worth[rows, top:] = self._worth(rows, slice(top, None))
            self.worth[top:, rows] = self.worth[rows, top:].T

    def best(self, count: int) -> list[tuple[float, int, int, float]]:
        """Returns the pairs worth most: worth, the two images that are asked about, and the probability of "same"."""
        found: list[tuple[float, int, int, float]] = []
        taken: list[tuple[int, int, float]] = []
        while self.worth.size and len(found) < count:
            one, other = divmod(int(self.worth.argmax()), len(self.worth))
            worth = float(self.worth[one, other])
            if worth <= 0:
                break
            self.worth[one, other] = self.worth[other, one] = 0
            a, b = self.stands[one], self.stands[other]
            if (min(a, b), max(a, b)) in self.clusters.constraints.unsure:
                continue
            taken.append((one, other, worth))
            found.append((worth, a, b, float(self.probability([one])[0, other])))
        for one, other, worth in taken:
            self.worth[one, other] = self.worth[other, one] = worth
        return found

    def others(self, a: int, b: int, count: int) -> list[tuple[int, float]]:
        """Returns the images that stand for further clusters which may be image a's, and the probabilities.

        The most probable first, ``count`` at most; neither a's own cluster nor that of b is one.
        """
        labels = self.clusters.labels
        one, other = int(self.slot_at[labels[a]]), int(self.slot_at[labels[b]])
        if one == NO_SLOT:
            return []
        p = np.where(self.apart[one] | (np.array(self.slots) == NO_SLOT), 0, self.probability([one])[0])
        if other != NO_SLOT:
            p[other] = 0
        unsure = self.clusters.constraints.unsure
        found = [(self.stands[slot], float(p[slot])) for slot in np.argsort(-p, kind="stable")[:count].tolist()]
        return [(c, share) for c, share in found if share and (min(a, c), max(a, c)) not in unsure]


def beyond(gap: np.ndarray) -> np.ndarray:
    """Returns distances as ``Graph`` has them for images that are not near, from 1 - cosine of their features."""
    return 1 + gap / 2
