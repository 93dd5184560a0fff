"""Average-linkage clustering with pairs that must stay apart, exact and in bounded memory.

Two clusters join while the mean log-odds over their pairs is above a limit; a cluster never holds a pair that must stay
apart. A mean above the limit needs at least one pair above it, so clusters never cross the connected components of the
graph of such pairs, and only one component's matrix is in memory at a time. Within it, chains of nearest neighbours
give the same clusters as joining the best pair again and again (Murtagh, 1983), in time that grows with the square.
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
            own = average_linkage(costs(feats, odds, apart, rows), -limit)
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


def costs(feats: np.ndarray, odds: Odds, apart: Apart, rows: np.ndarray) -> np.ndarray:
    """Returns ``block_costs`` of rows (m,) with each other, (m, m)."""
    matrix = np.empty((len(rows), len(rows)), np.float32)
    for start in range(0, len(rows), BLOCK):
        matrix[start : start + BLOCK] = block_costs(feats, odds, apart, rows[start : start + BLOCK], rows)
    return matrix


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


def average_linkage(cost: np.ndarray, limit: float) -> np.ndarray:
    """Returns clusters, (m,) int64 from 0, of costs (m, m), symmetric; the array is overwritten.

    Clusters join while the mean cost over their pairs is below ``limit``; a pair of cost inf never joins.
    """
    count = len(cost)
    np.fill_diagonal(cost, np.inf)
    sizes, open_rows = np.ones(count), np.ones(count, bool)
    owner = np.arange(count)
    chain: list[int] = []
    following = 0
    while True:
        if not chain:
            while following < count and not open_rows[following]:
                following += 1
            if following == count:
                break
            chain.append(following)
        top = chain[-1]
        nearest = int(cost[top].argmin())
        if cost[top, nearest] >= limit:  # and no later joining brings anything nearer: this cluster is finished
            open_rows[top] = False
            chain.pop()
        elif len(chain) > 1 and cost[top, chain[-2]] <= cost[top, nearest]:
            chain.pop()
            kept = chain.pop()
            join(cost, sizes, kept, top)
            open_rows[top], owner[top] = False, kept
        else:
            chain.append(nearest)
    while (owner[owner] != owner).any():
        owner = owner[owner]
    return by_first_appearance(owner)


def join(cost: np.ndarray, sizes: np.ndarray, kept: int, gone: int) -> None:
    """Joins two clusters in the matrix: ``kept`` gets the mean costs of both, ``gone`` is nobody's neighbour."""
    total = sizes[kept] + sizes[gone]
    row = (cost[kept] * np.float32(sizes[kept] / total)) + (cost[gone] * np.float32(sizes[gone] / total))
    sizes[kept] = total
    cost[kept] = row
    cost[:, kept] = row
    cost[kept, kept] = np.inf
    cost[gone] = np.inf
    cost[:, gone] = np.inf
