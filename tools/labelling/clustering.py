"""Clusters that obey the decisions: DBSCAN on sparse Jaccard distances, as in training, with must-link and cannot-link.

Without decisions the clusters are those of ``processor.methods.pseudo_labels.cluster``: images within ``eps`` of each
other are linked if both are cores, and any other image joins the nearest core. Links are made from the nearest
pair on; must-links come first, and a link that would bring two groups together that must not be is left out. One
"different" therefore cuts a cluster at its longest link.

A decision changes only the connected part of the graph that its images are in, and only that is computed again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from tools.labelling.constraints import Constraints

FIRST_STEP = 256
"""Edges that are looked at one by one before those inside a set are left out, the first time."""
REACH = 0.9
"""Jaccard distances up to here are computed; beyond, a pair's distance is 1 and more by that of its features."""
FARTHEST = 2.0
"""The largest distance of two images: that of opposite features."""
PER_IMAGE = 20
"""Nearest neighbours of each image that are kept beside those within eps, for a person to be asked about."""


@dataclass
class Graph:
    """Pairs of images that are near each other. first < second: (E,) int32, distance: (E,) float32, ascending.

    count: images. rank: (E,) float32, the better of the two places that the images have among each other's neighbours,
    0 for the nearest, 1 for none. Equal distances are ordered by their images. ``add`` appends pairs that are not near.
    """

    count: int
    first: np.ndarray
    second: np.ndarray
    distance: np.ndarray
    rank: np.ndarray

    @classmethod
    def of(cls, distances: csr_array, eps: float, near: np.ndarray, beyond: np.ndarray) -> Graph:
        """Returns the pairs within eps and each image's nearest.

        distances: (N, N) distances, of which some may be missing. near: (N, k) nearest images, itself perhaps among
        them. beyond: (N, k) their distances where ``distances`` has none, 0 to ``FARTHEST``.
        """
        count, width = near.shape
        rows = np.repeat(np.arange(count, dtype=np.int64), np.diff(distances.indptr))
        keys, known = pair_keys(rows, distances.indices, count), distances.data
        order = np.lexsort((known, keys))
        keys, known = keys[order], known[order]
        once = np.flatnonzero(np.diff(keys, prepend=-1))
        keys, known = keys[once], known[once]
        listed = pair_keys(np.repeat(np.arange(count), width), near.ravel(), count)
        place = np.tile(np.log2(1 + np.arange(width)) / np.log2(1 + width), count).astype(np.float32)
        order = np.lexsort((place, listed))
        listed, place, apart = listed[order], place[order], beyond.ravel()[order]
        once = np.flatnonzero(np.diff(listed, prepend=-1))
        listed, place, apart = listed[once], place[once], apart[once]
        every = np.union1d(keys[known <= eps], listed)
        every = every[every // count != every % count]
        distance, rank = np.full(len(every), FARTHEST, np.float32), np.ones(len(every), np.float32)
        at = np.searchsorted(listed, every).clip(max=len(listed) - 1)
        found = listed[at] == every
        distance[found], rank[found] = apart[at[found]], place[at[found]]
        if len(keys):
            at = np.searchsorted(keys, every).clip(max=len(keys) - 1)
            found = keys[at] == every
            distance[found] = known[at[found]]
        order = np.argsort(distance, kind="stable")
        every = every[order]
        first, second = (every // count).astype(np.int32), (every % count).astype(np.int32)
        return cls(count, first, second, distance[order], rank[order])

    @cached_property
    def _keys(self) -> tuple[np.ndarray, np.ndarray]:
        keys = self.first.astype(np.int64) * self.count + self.second
        order = np.argsort(keys)
        return keys[order], order

    @cached_property
    def near(self) -> int:
        """Returns the number of pairs that are near each other; pairs that were added come behind them."""
        return len(self.first)

    @cached_property
    def _added(self) -> dict[int, int]:
        return {}

    def edge(self, a: int, b: int) -> int:
        """Returns the edge of a pair of images, -1 if they are not near each other and were not added."""
        return int(self.edges(np.array([[a, b]]))[0])

    def edges(self, pairs: np.ndarray) -> np.ndarray:
        """Returns the edges of pairs of images (n, 2), (n,), -1 where they are not near each other and not added."""
        keys, order = self._keys
        wanted = pair_keys(pairs[:, 0], pairs[:, 1], self.count)
        at = np.searchsorted(keys, wanted)
        found = at < len(keys)
        found[found] = keys[at[found]] == wanted[found]
        out = np.full(len(pairs), -1, np.int64)
        out[found] = order[at[found]]
        if self._added:
            out[~found] = [self._added.get(key, -1) for key in wanted[~found].tolist()]
        return out

    def add(self, pairs: np.ndarray) -> np.ndarray:
        """Adds pairs of images (n, 2) at the largest distance, but for those that are there; returns their edges."""
        out, _ = self.edges(pairs), self.near  # which look at the pairs before any was added
        missing = pairs[out < 0]
        new = np.unique(pair_keys(missing[:, 0], missing[:, 1], self.count))
        if len(new):
            behind = range(len(self.first), len(self.first) + len(new))
            self._added.update(zip(new.tolist(), behind, strict=True))
            self.first = np.append(self.first, (new // self.count).astype(np.int32))
            self.second = np.append(self.second, (new % self.count).astype(np.int32))
            self.distance = np.append(self.distance, np.full(len(new), FARTHEST, np.float32))
            self.rank = np.append(self.rank, np.ones(len(new), np.float32))
            out = self.edges(pairs)
        return out

    def within(self, eps: float) -> int:
        """Returns how many pairs are not farther than eps; they come first."""
        return int(np.searchsorted(self.distance, np.float32(eps), side="right"))


def pair_keys(one: np.ndarray, other: np.ndarray, count: int) -> np.ndarray:
    """Returns a number for each pair of images, the same in both orders."""
    return np.minimum(one, other).astype(np.int64) * count + np.maximum(one, other)


def by_group(groups: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns places (n,) in the order of their groups (n,), and in that of themselves, and where each group begins.

    groups: from 0 to count - 1. The second result has count + 1 entries. It counts, which beats sorting.
    """
    size = len(groups)
    rows = csr_array((np.ones(size, np.int8), (groups, np.arange(size))), shape=(count, size))
    return rows.indices, rows.indptr


@dataclass
class Parts:
    """The connected parts of the links within eps. of: (N,) part of each image; joined by must-links as they come."""

    of: np.ndarray
    images: list[np.ndarray]
    edges: list[np.ndarray]
    parent: dict[int, int] = field(default_factory=dict)
    children: dict[int, list[int]] = field(default_factory=dict)

    @classmethod
    def split(cls, count: int, first: np.ndarray, second: np.ndarray) -> Parts:
        """Returns the connected parts of a graph."""
        ones = np.ones(len(first), np.int8)
        number, of = connected_components(csr_array((ones, (first, second)), shape=(count, count)), directed=False)
        images, edges = (np.split(order, begin[1:-1]) for order, begin in (
            by_group(of, number), by_group(of[first], number)))  # fmt: skip
        return cls(of, images, edges)

    def root(self, part: int) -> int:
        """Returns the part that stands for all that are joined with it."""
        while (above := self.parent.get(part, part)) != part:
            part = above
        return part

    def join(self, images: Iterable[int]) -> None:
        """Joins the parts of images that one decision is about."""
        roots = list(dict.fromkeys(self.root(int(self.of[row])) for row in images))
        for other in roots[1:]:
            self.parent[other] = roots[0]
            self.children.setdefault(roots[0], [roots[0]]).extend(self.children.pop(other, [other]))

    def scope(self, images: Iterable[int]) -> tuple[np.ndarray, np.ndarray]:
        """Returns the images and the edges of the parts that images are in, edges in their order."""
        roots = dict.fromkeys(self.root(int(self.of[row])) for row in images)
        parts = [part for root in roots for part in self.children.get(root, [root])]
        rows = np.concatenate([self.images[part] for part in parts])
        edges = np.concatenate([self.edges[part] for part in parts])
        edges.sort()
        return rows, edges


class Clusters:
    """The clusters that the graph and the decisions give.

    labels: (N,) int64, the smallest image of each image's cluster; an image in none is alone. sizes: (N,) images in the
    cluster of that label, 0 if unlabelled. at_stake: (E,) float32, for a link that holds a cluster together, by
    nearness or by a decision about that pair, the pairs of images that would come apart without it; else 0. tree: image
    -> what it is linked with and by which edge, -1 for a decision about images that are not near. changed: labels of
    clusters that have changed, or of which something was decided, since it was emptied.
    """

    def __init__(self, graph: Graph, constraints: Constraints, eps: float, min_samples: int):
        self.graph, self.constraints, self.eps, self.min_samples = graph, constraints, eps, min_samples
        near = self._near = graph.within(eps)
        ends = np.concatenate([graph.first[:near], graph.second[:near]])
        self.core = np.bincount(ends, minlength=graph.count) + 1 >= min_samples
        linking = np.flatnonzero(self.core[graph.first[:near]] | self.core[graph.second[:near]])
        self.parts = Parts.split(graph.count, graph.first[linking], graph.second[linking])
        self.parts.edges = [linking[edges] for edges in self.parts.edges]
        self.labels = np.arange(graph.count)
        self.sizes = np.ones(graph.count, np.int64)
        self.at_stake = np.zeros(len(graph.first), np.float32)
        self.tree: dict[int, list[tuple[int, int]]] = {}
        self.changed: set[int] = set()
        self._beyond: set[int] = set()
        for group in constraints.members.values():
            self.parts.join(group)
        self._link(np.arange(graph.count), linking)

    def update(self, constraints: Constraints, changed: Iterable[int]) -> None:
        """Computes the clusters again around images whose facts changed. constraints: all facts that count now."""
        self.constraints = constraints
        changed = list(changed)
        if not changed:
            return
        for row in changed:
            self.parts.join(constraints.group(row))
        self._link(*self.parts.scope(changed))
        self.changed.update(self.labels[changed].tolist())

    def members(self, label: int) -> np.ndarray:
        """Returns the images of a cluster, ascending."""
        return np.flatnonzero(self.labels == label)

    def _link(self, rows: np.ndarray, edges: np.ndarray) -> None:
        """Clusters some images, given with all edges among them in order."""
        graph, constraints = self.graph, self.constraints
        node = {row: constraints.root(row) for row in rows.tolist()} if constraints.touched else {}
        forest = Forest(constraints, set(node.values()))
        self.grow()
        self.at_stake[edges] = 0
        if self._beyond:
            inside = set(rows.tolist())
            stale = [edge for edge in self._beyond if int(graph.first[edge]) in inside]
            self.at_stake[stale] = 0
            self._beyond.difference_update(stale)
        standing = np.array([node[row] for row in rows.tolist()]) if node else rows
        links = self._joined(rows, edges, node, forest, standing)
        links += [(a, b, graph.edge(a, b)) for a, b in constraints.links_of(node)]
        for row in rows.tolist():
            self.tree.pop(row, None)
        for a, b, edge in links:
            self.tree.setdefault(a, []).append((b, edge))
            self.tree.setdefault(b, []).append((a, edge))
        for edge, stake in stakes(self.tree, rows.tolist()):
            if edge >= 0:
                self.at_stake[edge] = stake
                if edge >= self._near:
                    self._beyond.add(edge)
        self._number(rows, forest.tops(standing, graph.count))

    def _joined(
        self, rows: np.ndarray, edges: np.ndarray, node: dict[int, int], forest: Forest, standing: np.ndarray
    ) -> list[tuple[int, int, int]]:
        """Unites what the edges link, the nearest first, and returns the links: pairs of images and their edges.

        node: image -> what stands for it in the forest, empty for itself. standing: the same for the rows (n,). Edges
        inside a set are left out by the thousand between two steps, as nothing follows from them.
        """
        graph, core, nobody = self.graph, self.core, self.constraints.nobody
        if nobody:
            out = np.fromiter(nobody, np.int64, len(nobody))
            edges = edges[~(np.isin(graph.first[edges], out) | np.isin(graph.second[edges], out))]
        first, second = graph.first[edges], graph.second[edges]
        plain = core[first] & core[second]
        border = np.where(plain, -1, np.where(core[first], second, first))
        attached: set[int] = set()
        links: list[tuple[int, int, int]] = []
        top = np.zeros(graph.count, np.int64)
        size = FIRST_STEP
        while len(edges):
            top[rows] = forest.tops(standing, graph.count)
            kept = (top[first] != top[second]) | ~plain
            edges, first, second, plain, border = (x[kept] for x in (edges, first, second, plain, border))
            columns = (x[:size].tolist() for x in (edges, first, second, border))
            for edge, a, b, at in zip(*columns, strict=True):
                if at in attached:
                    continue
                one, other = (node[a], node[b]) if node else (a, b)
                if one != other and forest.unite(one, other):
                    links.append((a, b, edge))
                elif one != other and forest.find(one) != forest.find(other):
                    continue
                if at >= 0:
                    attached.add(at)
            edges, first, second, plain, border = (x[size:] for x in (edges, first, second, plain, border))
            size = 2 * size
        return links

    def grow(self) -> None:
        """Makes room for pairs that were added to the graph."""
        more = len(self.graph.first) - len(self.at_stake)
        if more:
            self.at_stake = np.append(self.at_stake, np.zeros(more, np.float32))

    def _number(self, rows: np.ndarray, roots: np.ndarray) -> None:
        """Labels images by the smallest of each cluster. roots: (n,) what their clusters have in common."""
        _, which = np.unique(roots, return_inverse=True)
        smallest = np.full(which.max(initial=-1) + 1, self.graph.count)
        np.minimum.at(smallest, which, rows)
        moved = self.labels[rows] != smallest[which]
        self.changed.update(self.labels[rows[moved]].tolist(), smallest[which[moved]].tolist())
        self.sizes[rows] = 0
        self.labels[rows] = smallest[which]
        self.sizes[smallest] = np.bincount(which)


class Forest:
    """Disjoint sets of nodes (roots of must-links), some of which must stay apart."""

    def __init__(self, constraints: Constraints, nodes: set[int]):
        self.parent: dict[int, int] = {}
        self.foes = {n: set(constraints.enemies[n]) & nodes for n in nodes & constraints.enemies.keys()}
        self.names = {n: constraints.names[n] for n in nodes & constraints.names.keys()}
        self.sizes: dict[int, int] = {}

    def find(self, node: int) -> int:
        """Returns the node that stands for a set."""
        parent = self.parent
        top = node
        while (above := parent.get(top, top)) != top:
            top = above
        while node != top:
            parent[node], node = top, parent[node]
        return top

    def tops(self, nodes: np.ndarray, count: int) -> np.ndarray:
        """Returns the nodes that stand for the sets of nodes (n,), which are below ``count``."""
        top = np.arange(count)
        top[list(self.parent)] = list(self.parent.values())
        while (above := top[top]).tobytes() != top.tobytes():
            top = above
        return top[nodes]

    def unite(self, a: int, b: int) -> bool:
        """Unites the sets of two nodes; returns False if they are one already or must stay apart."""
        a, b = self.find(a), self.find(b)
        if a == b or b in self.foes.get(a, ()):
            return False
        if a in self.names and b in self.names and self.names[a] != self.names[b]:
            return False
        size_a, size_b = self.sizes.get(a, 1), self.sizes.get(b, 1)
        if size_a < size_b:
            a, b = b, a
        self.parent[b], self.sizes[a] = a, size_a + size_b
        if b in self.foes:
            mine = self.foes.setdefault(a, set())
            for foe in self.foes.pop(b):
                self.foes[foe].discard(b)
                self.foes[foe].add(a)
                mine.add(foe)
        if b in self.names:
            self.names[a] = self.names.pop(b)
        return True


def stakes(tree: dict[int, list[tuple[int, int]]], rows: Iterable[int]) -> Iterator[tuple[int, float]]:
    """Yields the edges of a forest, each with the product of the numbers of images on its two sides.

    tree: see ``Clusters``. rows: the images whose trees are looked at.
    """
    seen: set[int] = set()
    for start in rows:
        if start in seen or start not in tree:
            continue
        order, above = walk(tree, start)
        seen.update(order)
        below = dict.fromkeys(order, 1)
        for here in reversed(order[1:]):
            below[above[here][0]] += below[here]
        for here in order[1:]:
            yield above[here][1], float(below[here]) * (len(order) - below[here])


def walk(tree: dict[int, list[tuple[int, int]]], start: int) -> tuple[list[int], dict[int, tuple[int, int]]]:
    """Returns the images of a tree from one on, each behind the one above it, and that one with the edge to it."""
    order, above = [start], {start: (start, -1)}
    for here in order:  # grows while it is walked
        for other, edge in tree.get(here, ()):
            if other not in above:
                above[other] = (here, edge)
                order.append(other)
    return order, above
