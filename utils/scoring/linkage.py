"""Average-linkage clustering with pairs that must stay apart, exact and in bounded memory.

Two clusters join while the mean log-odds over their pairs is above a limit; a cluster never holds a pair that must stay
apart. A mean above the limit needs at least one pair above it, so clusters never cross the connected components of the
graph of such pairs, and only one component's matrix is in memory at a time. Within it, all clusters that are each
other's nearest join at once, which gives the same as joining the best pair again and again (Murtagh, 1983). Rows that
are each other's nearest join before the matrix is made, which makes it up to four times smaller.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

Apart = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""(rows (a,), rows (b,)) -> (a, b) bool: which pairs must stay apart."""
Odds = Callable[[np.ndarray], np.ndarray]
"""Squared distances -> log-odds of the same shape."""

BLOCK = 256


def cluster(feats: np.ndarray, odds: Odds, apart: Apart, limit: float = 0.0) -> np.ndarray:
    """Returns the cluster of each row of unit features (N, D), (N,) int64, numbered by first appearance.

    odds: see ``Odds``. apart: see ``Apart``. limit: mean log-odds that two clusters must exceed to join.
    """
    labels = np.full(len(feats), -1, np.int64)
    count = 0
    for rows in components(feats, odds, apart, limit):
        if len(rows) == 1:
            own = np.zeros(1, np.int64)
        else:
            first, second = nearest_pairs(feats, odds, apart, rows, -limit)
            sizes = np.where(second < 0, 1, 2).astype(np.float32)
            matrix = costs(feats, odds, apart, rows[first], np.where(second < 0, -1, rows[second]))
            linked = average_linkage(matrix, -limit, sizes)
            own = np.empty(len(rows), np.int64)
            own[first], own[second[second >= 0]] = linked, linked[second >= 0]
        labels[rows] = count + own
        count += int(own.max()) + 1
    return by_first_appearance(labels)


def by_first_appearance(labels: np.ndarray) -> np.ndarray:
    """Returns the same clusters, numbered from 0 in the order of their first rows."""
    _, first, inverse = np.unique(labels, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[inverse.reshape(-1)]


def block_costs(feats: np.ndarray, odds: Odds, apart: Apart, some: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Returns minus the log-odds of rows (a,) and rows (b,), (a, b) float32; inf for a pair that must stay apart."""
    cost = -odds(np.maximum(2 - 2 * (feats[some] @ feats[others].T), 0)).astype(np.float32)
    cost[apart(some, others)] = np.inf
    return cost


def nearest_pairs(
    feats: np.ndarray, odds: Odds, apart: Apart, rows: np.ndarray, limit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the members of clusters of one or two of the rows (m,): places in ``rows``, first (c,) and second (c,).

    Two rows are a cluster if each is the other's nearest and their cost is below ``limit``. second: -1 for a lone row.
    """
    nearest, least = np.empty(len(rows), np.int64), np.empty(len(rows), np.float32)
    for start in range(0, len(rows), BLOCK):
        some = np.arange(start, min(start + BLOCK, len(rows)))
        block = block_costs(feats, odds, apart, rows[some], rows)
        block[some - start, some] = np.inf
        nearest[some], least[some] = block.argmin(1), block.min(1)
    places = np.arange(len(rows))
    paired = (least < limit) & (least[nearest] < limit) & (nearest[nearest] == places)
    first = np.flatnonzero(~paired | (places < nearest))
    return first, np.where(paired[first], nearest[first], -1)


def costs(feats: np.ndarray, odds: Odds, apart: Apart, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Returns the mean costs of clusters of one or two rows, first (c,) and second (c,), as (c, c) float32.

    second: -1 where a cluster has one row. The matrix is symmetric to the bit; its diagonal means nothing.
    """
    matrix = np.empty((len(first), len(first)), np.float32)
    for start in range(0, len(first), BLOCK):
        some = slice(start, start + BLOCK)
        block = mean_columns(feats, odds, apart, first[some], first[start:], second[start:])
        two = np.flatnonzero(second[some] >= 0)
        more = mean_columns(feats, odds, apart, second[some][two], first[start:], second[start:])
        block[two] = (block[two] + more) / 2
        square = block[:, : len(block)]
        square[:] = np.triu(square) + np.triu(square, 1).T  # the order of sums shows in the last bits
        matrix[some, start:], matrix[start:, some] = block, block.T
    return matrix


def mean_columns(
    feats: np.ndarray, odds: Odds, apart: Apart, some: np.ndarray, first: np.ndarray, second: np.ndarray
) -> np.ndarray:
    """Returns the mean costs of rows (a,) and clusters of one or two rows, first (c,) and second (c,), as (a, c)."""
    block, two = block_costs(feats, odds, apart, some, first), np.flatnonzero(second >= 0)
    block[:, two] = (block[:, two] + block_costs(feats, odds, apart, some, second[two])) / 2
    return block


def components(feats: np.ndarray, odds: Odds, apart: Apart, limit: float) -> list[np.ndarray]:
    """Returns the rows of each connected component of the graph of pairs above the limit."""
    count = len(feats)
    labels = np.arange(count)
    for start in range(0, count, BLOCK):
        some = np.arange(start, min(start + BLOCK, count))
        others = np.arange(start, count)
        near = block_costs(feats, odds, apart, some, others) < -limit
        a, b = np.nonzero(near)
        a, b = labels[some[a]], labels[others[b]]
        new = a != b
        if new.any():
            graph = coo_array((np.ones(int(new.sum()), bool), (a[new], b[new])), (count, count))
            _, merged = connected_components(graph, directed=False)
            labels = merged[labels]
    order = np.argsort(labels, kind="stable")
    return np.split(order, np.flatnonzero(np.diff(labels[order])) + 1) if count else []


def average_linkage(cost: np.ndarray, limit: float, sizes: np.ndarray | None = None) -> np.ndarray:
    """Returns clusters, (m,) int64 from 0, of costs (m, m), symmetric; the array is overwritten.

    Clusters join while the mean cost over their pairs is below ``limit``; a pair of cost inf never joins. sizes: (m,)
    float32, how many members each has that the costs are means over; one by default.
    """
    np.fill_diagonal(cost, np.inf)
    owner, number = np.arange(len(cost)), np.arange(len(cost))  # number: the first member of each row's cluster
    sizes, nearest = np.ones(len(cost), np.float32) if sizes is None else sizes, np.empty(len(cost), np.int64)
    least, stale = np.empty(len(cost), np.float32), np.arange(len(cost))
    while True:
        for rows in in_blocks(stale):
            some = cost[rows]
            nearest[rows] = some.argmin(1)
            least[rows] = some[np.arange(len(rows)), nearest[rows]]
        unfinished = least < limit  # no later joining brings anything nearer to a cluster without such a neighbour
        if not unfinished.any():
            break
        if 2 * unfinished.sum() < len(cost):
            kept = np.flatnonzero(unfinished)
            cost, place = compact(cost, kept), np.cumsum(unfinished) - 1
            stale = np.flatnonzero(~unfinished[nearest[kept]])  # its cost was below the limit in one direction alone
            number, sizes, least, nearest = number[kept], sizes[kept], least[kept], place[nearest[kept]]
            if len(stale):
                continue
        first, second = mutual_neighbours(cost, nearest, least, limit)
        join(cost, sizes, first, second)
        owner[number[second]], least[second] = number[first], np.inf
        changed = np.zeros(len(cost), bool)
        changed[first] = changed[second] = True
        stale = np.flatnonzero((changed | changed[nearest]) & (least < limit))
    while (owner[owner] != owner).any():
        owner = owner[owner]
    return by_first_appearance(owner)


def in_blocks(rows: np.ndarray) -> list[np.ndarray]:
    """Returns the rows in blocks, so that copies of them stay small."""
    return [rows[start : start + BLOCK] for start in range(0, len(rows), BLOCK)]


def compact(cost: np.ndarray, kept: np.ndarray) -> np.ndarray:
    """Returns the rows and columns ``kept``, ascending, in the memory of the matrix, which is lost."""
    small = cost.reshape(-1)[: len(kept) ** 2].reshape(len(kept), len(kept))
    for start, rows in zip(range(0, len(kept), BLOCK), in_blocks(kept), strict=True):
        small[start : start + BLOCK] = cost[np.ix_(rows, kept)]  # a copy, and later rows lie behind what is written
    return small


def mutual_neighbours(
    cost: np.ndarray, nearest: np.ndarray, least: np.ndarray, limit: float
) -> tuple[np.ndarray, np.ndarray]:
    """Returns pairs of rows that are each other's nearest, each row in one of them at most; one pair at least.

    nearest: (m,) the first nearest of each row. least: (m,) its cost, below ``limit`` in one of them at least.
    """
    rows = np.arange(len(cost))
    good = (least < limit) & (nearest[nearest] == rows)
    first = np.flatnonzero(good & (rows < nearest))
    pairs = dict(zip(first.tolist(), nearest[first].tolist(), strict=True))
    free = (least < limit) & ~good
    for row in np.flatnonzero(free & (least[nearest] == least)):  # one of several that are equally near
        if free[row]:
            free[row] = False
            others = np.flatnonzero(free & (cost[row] == least[row]) & (least == least[row]))
            if len(others):
                pairs[int(row)] = int(others[0])
                free[others[0]] = False
    if not pairs:  # the last bits of means that differ by their order make a circle of nearest neighbours
        row = int(least.argmin())
        pairs[row] = int(nearest[row])
    return np.array([*pairs]), np.array([*pairs.values()])


def join(cost: np.ndarray, sizes: np.ndarray, first: np.ndarray, second: np.ndarray) -> None:
    """Joins pairs of clusters: the rows ``first`` get the mean costs of both, ``second`` are nobody's neighbours."""
    total = sizes[first] + sizes[second]
    one, two = sizes[first] / total, sizes[second] / total
    sizes[first] = total
    for some in in_blocks(np.arange(len(first))):
        cost[first[some]] = one[some, None] * cost[first[some]] + two[some, None] * cost[second[some]]
    for start in range(0, len(cost), BLOCK):
        rows = cost[start : start + BLOCK]
        rows[:, first] = one * rows[:, first] + two * rows[:, second]
        rows[:, second] = np.inf
    cost[first, first] = np.inf
