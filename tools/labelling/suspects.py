"""Suspects among the clusters: crops far from theirs, clusters that touch, near-duplicates, blurred crops."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import numpy as np

from datasets.quality import BLURRED, ImageQuality, examine, near_duplicates
from datasets.storage.pillow_decoding import BadImage, load_image
from datasets.storage.pixels import PLAIN, PixelRules
from tools.labelling.proposals import Proposal, Proposals
from tools.labelling.table import decided

if TYPE_CHECKING:
    from tools.labelling.session import Images, Session

MOST = 200
"""Suspects of each kind that are shown, at most."""
TOUCHING = 0.2
"""Probability of "same" from which on two clusters touch."""


class Quality(threading.Thread):
    """Measures blur and likeness of images beside everything else. images: readable ones are measured."""

    def __init__(self, images: Images, rules: PixelRules = PLAIN):
        super().__init__(daemon=True)
        self.images, self.rules, self.done, self.finished = images, rules, 0, False
        self.blurred: list[tuple[float, int]] = []
        self.duplicates: list[tuple[float, int, int]] = []

    def run(self) -> None:
        measured: list[tuple[int, ImageQuality]] = []
        for row in range(len(self.images)):
            self.done = row
            if row in self.images.bad:
                continue
            try:
                measured.append((row, examine(load_image(self.images.paths[row], self.images.box(row), self.rules))))
            except BadImage:  # gone since its features were extracted
                continue
        self.blurred = sorted(((q.blur, row) for row, q in measured if q.blur > BLURRED), reverse=True)
        rows = [row for row, _ in measured]
        self.duplicates = [(s, rows[i], rows[j]) for s, i, j in near_duplicates([q.thumbnail for _, q in measured])]
        self.finished = True


class Suspects(Proposals):
    """What looks wrong in the clusters that the decisions give. quality: measured when suspects are first asked for."""

    def __init__(self, quality: Quality | None = None):
        self.quality = quality
        self._known: tuple[int, bool, list[Proposal]] | None = None

    @property
    def pending(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        quality = self.quality
        if quality is None or quality.finished or quality.ident is None:
            return ""
        return f"blur and likeness: {quality.done:,} of {len(quality.images):,} crops measured"

    def of(self, session: Session) -> list[Proposal]:
        quality = self.quality
        if quality is not None and quality.ident is None:
            quality.start()
        measured = quality is not None and quality.finished
        if self._known is None or self._known[:2] != (session.version, measured):
            found = [*far_crops(session), *touching(session)]
            if measured and quality is not None:
                found += [*duplicates(session, quality), *blurred(session, quality)]
            found.sort(key=lambda one: (-one.weight, one.key))
            self._known = session.version, measured, found
        return self._known[2]


def nearness(session: Session) -> tuple[np.ndarray, np.ndarray]:
    """Returns how strongly each image is tied to its own cluster, and to others of two or more images, (N,) each."""
    graph, labels, sizes = session.graph, session.clusters.labels, session.clusters.sizes
    one, other = labels[graph.first], labels[graph.second]
    weight = np.maximum(1 - graph.distance, 0)
    same = one == other
    own = both_ends(graph.first, graph.second, np.where(same, weight, 0), graph.count)
    away = np.bincount(graph.first, np.where(~same & (sizes[other] > 1), weight, 0), graph.count)
    away += np.bincount(graph.second, np.where(~same & (sizes[one] > 1), weight, 0), graph.count)
    return own, away


def both_ends(first: np.ndarray, second: np.ndarray, weight: np.ndarray, count: int) -> np.ndarray:
    """Returns the sum of the weights of each image's edges, (N,)."""
    return np.bincount(first, weight, count) + np.bincount(second, weight, count)


def far_crops(session: Session) -> list[Proposal]:
    """Proposes to take out the crops whose neighbours are mostly in other clusters."""
    labels, sizes = session.clusters.labels, session.clusters.sizes
    own, away = nearness(session)
    rows = np.flatnonzero((away > own) & (sizes[labels] > 2) & ~decided(session.constraints))
    share = away[rows] / np.maximum(own[rows] + away[rows], 1e-9)
    out = []
    for i in np.argsort(-share, kind="stable")[:MOST].tolist():
        row = int(rows[i])
        rest = [int(one) for one in session.clusters.members(int(labels[row])) if one != row]
        out.append(
            Proposal(
                key=f"far {row} {rest[0]}",
                kind="far from its cluster",
                reason=f"{share[i]:.0%} of what is near crop {row} lies in other clusters",
                images=(row,),
                beside=tuple(rest[:8]),
                accept={"differ": [[row, rest[0]]]},
                weight=float(share[i]),
            )
        )
    return out


def touching(session: Session) -> list[Proposal]:
    """Proposes to merge clusters of two or more whose nearest crops may well be the same."""
    graph, labels, sizes = session.graph, session.clusters.labels, session.clusters.sizes
    one, other, p = labels[graph.first[: graph.near]], labels[graph.second[: graph.near]], session.pairs.p[: graph.near]
    edges = np.flatnonzero((one != other) & (sizes[one] > 1) & (sizes[other] > 1) & (p > TOUCHING))
    low, high = np.minimum(one[edges], other[edges]), np.maximum(one[edges], other[edges])
    _, first = np.unique(low * graph.count + high, return_index=True)  # edges are sorted: the nearest of each pair
    edges = edges[np.sort(first)][:MOST]
    out = []
    for edge in edges.tolist():
        a, b, share = int(graph.first[edge]), int(graph.second[edge]), float(p[edge])
        out.append(
            Proposal(
                key=f"touching {a} {b}",
                kind="clusters that touch",
                reason=f"crops {a} and {b} are the same with a probability of {share:.0%}",
                images=shown_first(a, session.clusters.members(int(labels[a]))),
                beside=shown_first(b, session.clusters.members(int(labels[b]))),
                accept={"same": [[a, b]]},
                weight=share,
            )
        )
    return out


def shown_first(row: int, members: np.ndarray) -> tuple[int, ...]:
    """Returns some images of a cluster, one of them first."""
    return (row, *(int(one) for one in members[:8] if one != row))


def duplicates(session: Session, quality: Quality) -> list[Proposal]:
    """Proposes to put near-duplicates that are in two clusters into one."""
    labels = session.clusters.labels
    return [
        Proposal(
            key=f"duplicate {a} {b}",
            kind="near-duplicates",
            reason=f"crops {a} and {b} look the same (structural similarity {similarity:.3f}) and are in two clusters",
            images=(a,),
            beside=(b,),
            accept={"same": [[a, b]]},
            weight=similarity,
        )
        for similarity, a, b in quality.duplicates
        if labels[a] != labels[b]
    ][:MOST]


def blurred(session: Session, quality: Quality) -> list[Proposal]:
    """Proposes to leave out blurred crops that nobody decided about."""
    yes = decided(session.constraints)
    return [
        Proposal(
            key=f"blurred {row}",
            kind="blurred",
            reason=f"crop {row}: blur {blur:.2f}, 0 is sharp and 1 is blurred; accepted, it shows nobody",
            images=(row,),
            accept={"nobody": [row]},
            weight=blur - 0.5,
        )
        for blur, row in quality.blurred
        if not yes[row]
    ][:MOST]
