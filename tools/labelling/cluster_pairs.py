"""Questions about whole clusters: is the one the same identity as the other, wherever their nearest images lie?

The graph holds pairs of near images. Front and back of one identity may have no such pair, so two clusters are compared
by the means of their features, too, and asked about by the image of each that is nearest to its mean. What the
probability of "same" is at a distance of two means is learned from the answers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Set

import numpy as np

from tools.labelling.clustering import Clusters, walk

MOST = 1000
"""Clusters that are compared with each other, the largest ones."""
PRIOR = 10.0
"""Weight, in answers, of each of two assumptions: the nearest cluster is the same with even odds, a drawn one not."""
DRAWN = 1000
"""Drawn pairs of clusters that stand for "not the same"."""
FIRST_FITS, GROWTH = 5, 1.1
"""Probabilities are fitted again after so many more answers at first, and after a tenth more later."""
NO_SLOT = -1


def fit_logistic(x: np.ndarray, y: np.ndarray, weight: np.ndarray, start: np.ndarray, ridge: float) -> np.ndarray:
    """Returns the coefficients of a logistic regression, the constant last.

    x: (n, k). y: (n,) 0 to 1. weight: (n,). start: (k + 1,) where the search begins. ridge: for small coefficients.
    """
    design = np.concatenate([x, np.ones((len(x), 1))], 1)
    beta = start.astype(np.float64)
    penalty = ridge * np.eye(len(beta))
    penalty[-1, -1] = 1e-9
    for _ in range(30):
        p = 1 / (1 + np.exp(-np.clip(design @ beta, -30, 30)))
        hessian = design.T @ (design * (weight * p * (1 - p))[:, None]) + penalty
        step = np.linalg.solve(hessian, design.T @ (weight * (y - p)) - penalty @ beta)
        beta = beta + np.clip(step, -5, 5)
        if np.abs(step).max() < 1e-5:
            break
    return beta


class ClusterPairs:
    """The pairs of clusters that no decision keeps apart, each with what its answer is expected to change.

    clusters: they are followed by ``refresh``. feats: (n, D) features of the images in ``rows`` (n,);
    the others are in no pair. order: the worth of pairs, as in ``pairs``.
    """

    def __init__(
        self, clusters: Clusters, feats: np.ndarray, rows: np.ndarray, order: Callable[..., np.ndarray],
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
        self.answers: dict[tuple[int, int], tuple[float, float, bool]] = {}
        self._next_fit = 0
        self.beta = np.zeros(3)
        self._choose()
        self._measure_links(np.unique(clusters.labels).tolist())

    def refresh(self, changed: Set[int]) -> bool:
        """Follows the clusters, given by the labels of those that changed; returns whether all is measured again."""
        again = len(self.answers) >= self._next_fit
        if changed:
            self._labels = self.clusters.labels.copy()
            for label in changed & self.slot_of.keys():
                if not self._eligible(label):
                    self._release(label)
            waiting = [label for label in changed - self.slot_of.keys() if self._eligible(label)]
            for label in sorted(waiting, key=lambda label: (-self.clusters.sizes[label], label)):
                if self.free:
                    slot = self.free.pop()
                    self.slots[slot], self.slot_of[label] = label, slot
                else:
                    self._left_out = True
            if self._left_out and len(self.free) > self.most // 20:
                self._choose()
                again = True
            else:
                self._measure([self.slot_of[label] for label in changed & self.slot_of.keys()])
            self._measure_links(changed)
        if again:
            self._fit()
        return again

    def _eligible(self, label: int) -> bool:
        return bool(
            self.clusters.sizes[label] > 0 and self.place[label] >= 0 and label not in self.clusters.constraints.nobody
        )

    def _release(self, label: int) -> None:
        """Frees the slot of a label that is no cluster's any more."""
        slot = self.slot_of.pop(label)
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
        self._fit()

    def _centre(self, slot: int) -> None:
        """Computes the mean of a cluster's features, and the image that stands for it."""
        label = self.slots[slot]
        members = np.array([label]) if self.clusters.sizes[label] == 1 else self.clusters.members(label)
        members = members[self.place[members] >= 0]
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
            self.worth[slot] = self.worth[:, slot] = self._worth(slot)[0]

    def _measure_links(self, labels: Iterable[int]) -> None:
        """Computes the columns of the links that hold clusters together: how alike their two sides are as a whole."""
        more = len(self.clusters.graph.first) - len(self.links)
        self.links = np.append(self.links, np.full((more, 2), np.nan, np.float32), 0)
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

    def of_links(self, edges: np.ndarray) -> np.ndarray:
        """Returns the probabilities that links are right, (n,), NaN where it is not known."""
        return self._same(self.links[edges])

    def of_pairs(self, one: np.ndarray, other: np.ndarray) -> np.ndarray:
        """Returns the probabilities that clusters, given by their labels, are the same, (n,), NaN if not compared."""
        slot = self.slot_of
        a, b = (np.array([slot.get(label, NO_SLOT) for label in ends.tolist()], np.int64) for ends in (one, other))
        p = self._same(np.stack([1 - self.cosine[a, b], 1 - self.cosine[a, b] * self.length[a] * self.length[b]], 1))
        return np.where((a < 0) | (b < 0), np.nan, p)

    def _same(self, columns: np.ndarray) -> np.ndarray:
        """Returns the probabilities of "same" for columns (..., 2)."""
        odds = columns @ self.beta[:2].astype(np.float32) + np.float32(self.beta[2])
        return 1 / (1 + np.exp(-np.clip(odds, -30, 30)))

    def columns(self, rows: slice | list[int]) -> np.ndarray:
        """Returns what probabilities are fitted to, (n, M, 2): distance of the means, and mean distance of images."""
        cosine = self.cosine[rows]
        return np.stack([1 - cosine, 1 - cosine * self.length[rows, None] * self.length], -1)

    def probability(self, rows: slice | list[int]) -> np.ndarray:
        """Returns the probabilities of "same", (n, M)."""
        return self._same(self.columns(rows))

    def _worth(self, slot: int | None = None) -> np.ndarray:
        """Returns the worth of all pairs of a slot, (1, M), or of all slots, (M, M)."""
        rows = slice(None) if slot is None else [slot]
        stake = (self.sizes[rows, None] * self.sizes).astype(np.float32)
        room = len(self.sizes)
        one, other = np.arange(room)[rows, None], np.arange(room)
        number = np.minimum(one, other) * room + np.maximum(one, other)
        worth = self.order(self.probability(rows), stake, number)
        used = np.array(self.slots) != NO_SLOT
        return np.where(self.apart[rows] | ~used[rows, None] | ~used, 0, worth).astype(np.float32)

    def _fit(self) -> None:
        """Fits the probabilities to the answers, and computes the worth of all pairs again."""
        self._next_fit = max(len(self.answers) + FIRST_FITS, int(len(self.answers) * GROWTH))
        used = np.flatnonzero(np.array(self.slots) != NO_SLOT)
        if len(used) < 2:
            self.worth[:] = 0
            return
        cosine = self.cosine[np.ix_(used, used)].copy()
        np.fill_diagonal(cosine, -2)
        nearest = used[cosine.argmax(1)]
        rng = np.random.default_rng(0)
        drawn = rng.choice(used, (DRAWN, 2))
        drawn = drawn[drawn[:, 0] != drawn[:, 1]]
        pairs = np.concatenate([np.stack([used, nearest], 1), drawn])
        close = self.cosine[pairs[:, 0], pairs[:, 1]]
        assumed = np.stack([1 - close, 1 - close * self.length[pairs[:, 0]] * self.length[pairs[:, 1]]], 1)
        answered = np.array(list(self.answers.values()), np.float64).reshape(-1, 3)
        x = np.concatenate([answered[:, :2], assumed])
        y = np.concatenate([answered[:, 2], np.full(len(used), 0.5), np.zeros(len(drawn))])
        weight = np.concatenate([
            np.ones(len(answered)), np.full(len(used), PRIOR / len(used)), np.full(len(drawn), PRIOR / len(drawn)),
        ])  # fmt: skip
        beta = fit_logistic(x, y, weight, np.zeros(3), ridge=0.02)
        self.beta = np.minimum(beta, [0, 0, np.inf])  # nearer is never less likely the same
        self.worth[:] = self._worth()

    def answer(self, a: int, b: int, same: bool) -> None:
        """Learns from an answer about two images, from how near their clusters were before it."""
        one, other = (self.slot_of.get(int(self._labels[row]), NO_SLOT) for row in (a, b))
        edge = self.clusters.graph.edge(a, b)
        if (a, b) in self.answers:
            self.answers[a, b] = (*self.answers[a, b][:2], same)
        elif one != other and NO_SLOT not in (one, other):
            x, y = self.columns([one])[0, other].tolist()
            self.answers[a, b] = x, y, same
        elif self._labels[a] == self._labels[b] and 0 <= edge < len(self.links) and not np.isnan(self.links[edge, 0]):
            x, y = self.links[edge].tolist()
            self.answers[a, b] = x, y, same

    def forget(self, answers: Iterable[tuple[int, int, bool]]) -> None:
        """Begins again, after decisions were taken back, with what was learned from those that still count."""
        said = {(a, b): same for a, b, same in answers}
        self.answers = {two: (x, y, said[two]) for two, (x, y, _) in self.answers.items() if two in said}
        self._choose()
        self._measure_links(np.unique(self.clusters.labels).tolist())

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
