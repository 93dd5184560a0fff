"""Clean mode: what is probably wrong with given labels, as proposals, and the corrected table.

The given labels are the start; a decision ``set`` replaces some of them. Three kinds of mistakes are looked for: an
image under the wrong identity, one identity under two numbers, and two identities under one number.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.sparse import csr_array
from scipy.sparse.csgraph import connected_components

from datasets.identifiers import canonical
from datasets.readers.text_table import read_lines_of, require_columns
from tools.labelling.clustering import Graph
from tools.labelling.proposals import Proposal, Proposals
from utils.files import write_csv

if TYPE_CHECKING:
    from tools.labelling.session import Session

NEAREST = 3
"""Images of an identity that are compared with an image to say how well it fits: its nearest."""
MARGIN = 0.15
"""An image is proposed for another identity if it fits there better by so much, of at most 1."""
FITS = 0.25
"""How well images must fit another identity at least, on average, for two to be one."""
SHARE = 0.7
"""Two identities may be one if their images fit the other at least by this share of how they fit their own."""


@dataclass(frozen=True)
class Fit:
    """How well images fit identities: the mean nearness (1 - Jaccard distance) of an image's ``NEAREST`` images there.

    rows, labels, values: (F,) one entry per image and identity with a near image. own: (N,) for its own identity.
    """

    rows: np.ndarray
    labels: np.ndarray
    values: np.ndarray
    own: np.ndarray

    @classmethod
    def of(cls, graph: Graph, labels: np.ndarray) -> Fit:
        """Returns the fits. labels: (N,) numbers from 0, -1 for an image without identity."""
        rows = np.concatenate([graph.first, graph.second])
        others = np.concatenate([graph.second, graph.first])
        near = np.maximum(1 - np.concatenate([graph.distance, graph.distance]), 0)
        target = labels[others]
        kept = target >= 0
        rows, target, near = rows[kept], target[kept], near[kept]
        order = np.lexsort((-near, target, rows))
        rows, target, near = rows[order], target[order], near[order]
        new = np.ones(len(rows), bool)
        new[1:] = (rows[1:] != rows[:-1]) | (target[1:] != target[:-1])
        start = np.flatnonzero(new)
        group = np.cumsum(new) - 1
        rank = np.arange(len(rows)) - start[group]
        top = rank < NEAREST
        total = np.bincount(group[top], near[top], len(start))
        sizes = np.bincount(labels[labels >= 0], minlength=int(labels.max(initial=-1)) + 1)
        at, to = rows[start], target[start]
        available = np.minimum(NEAREST, sizes[to] - (labels[at] == to))
        values = total / np.maximum(available, 1)
        own = np.zeros(graph.count)
        mine = labels[at] == to
        own[at[mine]] = values[mine]
        return cls(at, to, values, own)


class Cleaning(Proposals):
    """Proposals about given labels.

    table: that they are from. given: (N,) identities of its rows, '' for a row that is left alone. eps: of
    ``CLUSTER.EPS``.
    """

    def __init__(self, table: Path, given: Sequence[str], eps: float):
        self.path, self.given, self.eps = table, list(given), eps
        self._known: tuple[int, list[Proposal]] | None = None

    def labels(self, session: Session) -> list[str]:
        """Returns the labels with what was decided, (N,)."""
        labels = list(self.given)
        for decision in session.journal.active():
            for row, name in decision.set:
                labels[row] = name
            for row in decision.nobody:
                labels[row] = "-1"
        return labels

    @classmethod
    def of_table(cls, table: Path, eps: float) -> Cleaning:
        """Returns the proposals about a table's training rows. Raises ``UserError`` if it is none."""
        header, lines, _ = read_lines_of(table)
        require_columns(table, header, ("path", "pid"))
        given = [line["pid"] if line.get("split", "train").lower() == "train" else "" for _, line in lines]
        return cls(table, [canonical(pid) for pid in given], eps)

    def save(self, session: Session, path: Path) -> bool:
        """Writes the corrected table with all of its columns, and the list of changes beside it."""
        labels = self.labels(session)
        header, lines, _ = read_lines_of(self.path)
        rows = []
        for (_, line), before, now in zip(lines, self.given, labels, strict=True):
            if before != now:
                line["pid"] = now
            line["path"] = moved(line["path"], self.path, path)
            rows.append([line.get(name, "") for name in header])
        write_csv(path, header, rows)
        write_changes(path.with_suffix(".changes.csv"), session, self)
        return True

    def state(self, session: Session) -> dict[str, Any]:
        return {"given": True, "changed": sum(a != b for a, b in zip(self.given, self.labels(session), strict=True))}

    def open(self, session: Session, proposal: Proposal) -> bool:
        labels = self.labels(session)
        return any(labels[row] != name for row, name in proposal.accept["set"])

    def of(self, session: Session) -> list[Proposal]:
        if self._known is None or self._known[0] != session.version:
            self._known = session.version, propose(session.graph, self.labels(session), self.eps)
        return self._known[1]


def propose(graph: Graph, labels: Sequence[str], eps: float) -> list[Proposal]:
    """Returns what looks wrong with labels, the gravest first. labels: (N,), '' and '-1' are no identities."""
    names = sorted({name for name in labels if name not in ("", "-1")})
    if not names:
        return []
    number = {name: i for i, name in enumerate(names)}
    numbers = np.array([number.get(name, -1) for name in labels])
    fit = Fit.of(graph, numbers)
    merged = two_numbers(fit, numbers, names)
    joined = {row for one in merged for row in (*one.images, *one.beside)}
    split = two_under_one(graph, numbers, names, eps)
    moved = {row for one in split for row, _ in one.accept["set"]}
    wrong = [one for one in wrong_labels(fit, numbers, names) if not {one.images[0]} & (joined | moved)]
    return sorted([*merged, *split, *wrong], key=lambda one: (-one.weight, one.key))


def wrong_labels(fit: Fit, numbers: np.ndarray, names: Sequence[str]) -> list[Proposal]:
    """Proposes the images that fit another identity better than their own."""
    other = (numbers[fit.rows] >= 0) & (numbers[fit.rows] != fit.labels)
    rows, labels, values = fit.rows[other], fit.labels[other], fit.values[other]
    order = np.lexsort((labels, -values, rows))
    rows, labels, values = rows[order], labels[order], values[order]
    best = np.ones(len(rows), bool)
    best[1:] = rows[1:] != rows[:-1]
    gain = values - fit.own[rows]
    out = []
    for i in np.flatnonzero(best & (gain > MARGIN)).tolist():
        row, label = int(rows[i]), int(labels[i])
        out.append(
            Proposal(
                key=f"wrong {row} {names[label]}",
                kind="wrong label",
                reason=f"labelled {names[numbers[row]]}, and its nearest are of {names[label]} (fit {values[i]:.2f} "
                f"there, {fit.own[row]:.2f} here)",
                images=(row, *(int(one) for one in np.flatnonzero(numbers == numbers[row])[:5] if one != row)),
                beside=tuple(int(one) for one in np.flatnonzero(numbers == label)[:6]),
                accept={"set": [[row, names[label]]]},
                weight=float(gain[i]),
            )
        )
    return out


def two_numbers(fit: Fit, numbers: np.ndarray, names: Sequence[str]) -> list[Proposal]:
    """Proposes the identities whose images fit each other as they fit their own."""
    count = len(names)
    labelled = numbers[fit.rows] >= 0
    cross = csr_array(
        (fit.values[labelled], (numbers[fit.rows[labelled]], fit.labels[labelled])), shape=(count, count)
    ).tocoo()
    sizes = np.bincount(numbers[numbers >= 0], minlength=count)
    mean = {(int(a), int(b)): v / sizes[a] for a, b, v in zip(*cross.coords, cross.data, strict=True)}
    out, used = [], set()
    pairs = sorted(((min(v, mean.get((b, a), 0.0)), a, b) for (a, b), v in mean.items() if a < b), reverse=True)
    for value, a, b in pairs:
        own = min(mean.get((a, a), 0.0) if sizes[a] > 1 else value, mean.get((b, b), 0.0) if sizes[b] > 1 else value)
        if value < FITS or value < SHARE * own or {a, b} & used:
            continue
        used |= {a, b}
        small, large = (a, b) if sizes[a] < sizes[b] else (b, a)
        rows = [int(row) for row in np.flatnonzero(numbers == small)]
        out.append(
            Proposal(
                key=f"one {names[small]} {names[large]}",
                kind="one identity under two numbers",
                reason=f"the images of {names[small]} and {names[large]} fit each other ({value:.2f}) as they fit "
                f"their own ({own:.2f})",
                images=tuple(rows),
                beside=tuple(int(row) for row in np.flatnonzero(numbers == large)),
                accept={"set": [[row, names[large]] for row in rows]},
                weight=float(value),
            )
        )
    return out


def two_under_one(graph: Graph, numbers: np.ndarray, names: Sequence[str], eps: float) -> list[Proposal]:
    """Proposes the identities that fall apart into groups of two or more images with nothing near between them."""
    near = graph.within(eps)
    first, second = graph.first[:near], graph.second[:near]
    same = (numbers[first] == numbers[second]) & (numbers[first] >= 0)
    matrix = csr_array((np.ones(int(same.sum())), (first[same], second[same])), shape=(graph.count, graph.count))
    _, parts = connected_components(matrix, directed=False)
    free, out = free_names(names), []
    order = np.argsort(numbers, kind="stable")
    for rows in np.split(order, np.flatnonzero(np.diff(numbers[order])) + 1):
        if numbers[rows[0]] < 0 or len(rows) < 4:
            continue
        groups = sorted((rows[parts[rows] == part] for part in np.unique(parts[rows])), key=len, reverse=True)
        groups = [group for group in groups if len(group) > 1]
        if len(groups) != 2 or len(groups[1]) < len(rows) / 5:
            continue
        name = names[int(numbers[rows[0]])]
        away, new = [int(row) for row in groups[1]], next(free)
        out.append(
            Proposal(
                key=f"two {name} {away[0]}",
                kind="two identities under one number",
                reason=f"the images of {name} are {len(groups[0])} and {len(away)} with none near between them",
                images=tuple(away),
                beside=tuple(int(row) for row in groups[0]),
                accept={"set": [[row, new] for row in away]},
                weight=0.5 * len(away) / len(rows),
            )
        )
    return out


def moved(name: str, table: Path, out: Path) -> str:
    """Returns a path of a table as it stands in one in another folder."""
    here, there = os.path.abspath(table.parent), os.path.abspath(out.parent)
    return name if here == there or os.path.isabs(name) else os.path.join(here, name)


def free_names(names: Sequence[str]) -> Iterator[str]:
    """Yields identities that are not taken: numbers above all that are there."""
    number = max((int(name) for name in names if name.isascii() and name.isdecimal()), default=0)
    while True:
        number += 1
        yield str(number)


def write_changes(path: Path, session: Session, cleaning: Cleaning) -> int:
    """Writes which labels were changed, from what to what and why; returns how many."""
    why: dict[int, str] = {}
    for decision in session.journal.active():
        why |= {row: decision.why for row, _ in decision.set} | dict.fromkeys(decision.nobody, decision.why or "nobody")
    labels = cleaning.labels(session)
    changed = [row for row, (a, b) in enumerate(zip(cleaning.given, labels, strict=True)) if a != b]
    rows = ((session.images.paths[row], cleaning.given[row], labels[row], why.get(row, "")) for row in changed)
    write_csv(path, ("path", "from", "to", "reason"), rows)
    return len(changed)
