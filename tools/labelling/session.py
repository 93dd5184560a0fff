"""A labelling session: the images, the decisions about them and what follows, for the page and for the command.

Every method may be called from several threads; a decision is on the disk when ``decide`` returns.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from tools.labelling.clustering import Clusters, Graph
from tools.labelling.constraints import Constraints
from tools.labelling.journal import Decision, Journal
from tools.labelling.pairs import PairOrder, pairs_of
from tools.labelling.proposals import Proposal, Proposals
from tools.labelling.table import decided, identities, write_table
from utils.errors import UserError

ROWS, HISTORY = 50, 100
"""Clusters of one answer to the page, and decisions of its history, at most."""
PAIRS_VIEW = "pairs"
OTHERS = 4
"""Images of further clusters beside a question about two, at most: as many as a screen shows large."""


@dataclass(frozen=True)
class Images:
    """The images that are labelled. N rows.

    paths: absolute. names: as the journal and the page call them. boxes: (N, 4) crops, or None. bad: row -> why the
    image cannot be read. columns: of the images' table.
    """

    paths: Sequence[str]
    names: Sequence[str]
    boxes: np.ndarray | None = None
    bad: dict[int, str] = field(default_factory=dict)
    columns: dict[str, list[str]] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.paths)

    def box(self, row: int) -> tuple[int, ...] | None:
        """Returns the crop of an image, None for the whole of it."""
        return None if self.boxes is None else tuple(self.boxes[row].tolist())


class Session:
    """The state of the labelling of some images.

    out: the table. eps, min_samples: of the clusters. proposals: what looks wrong, computed when it is asked for.
    feats: (n, D) features of the images in ``rows`` (n,), None to ask about near images alone.
    """

    def __init__(
        self, images: Images, graph: Graph, journal: Journal, out: Path, *, eps: float, min_samples: int,
        proposals: Proposals | None = None, feats: np.ndarray | None = None, rows: np.ndarray | None = None,
    ):  # fmt: skip
        self.images, self.graph, self.journal, self.out = images, graph, journal, out
        self.lock = threading.RLock()
        self.constraints = Constraints.of(len(images), journal.active())
        graph.add(pairs_of(answers(journal.active())))
        self.clusters = Clusters(graph, self.constraints, eps, min_samples)
        self._feats, self._rows = feats, rows
        self.proposals = proposals or Proposals()
        self.saved = -1
        self._members: tuple[int, np.ndarray, np.ndarray, np.ndarray] | None = None

    @cached_property
    def pairs(self) -> PairOrder:
        """The order of the questions. It is made for the first of them: clusters are shown without."""
        pairs = PairOrder(self.clusters, feats=self._feats, rows=self._rows)
        pairs.forget(answers(self.journal.active()))
        return pairs

    @property
    def version(self) -> int:
        """Returns the number of decisions, which only grows."""
        return len(self.journal.decisions)

    def decide(self, content: dict[str, Any]) -> dict[str, Any]:
        """Adds a decision, and returns the state that it leads to. Raises ``UserError`` for what is none."""
        with self.lock:
            if content.get("view") == PAIRS_VIEW:
                _ = self.pairs  # made later, they would count this decision twice
            content = {name: value for name, value in content.items() if name != "undo"} | self._replaced(content)
            decision = self.journal.append(content)
            before = len(self.constraints.contradictions)
            if decision.undo:
                self._begin_again(decision)
            else:
                answered = answers([decision])
                self.graph.add(pairs_of(answered))
                changed = self.constraints.add(decision)
                self.clusters.update(self.constraints, changed)
                for a, b, same in answered:
                    self.pairs.answer(a, b, same)
            return self.state() | {"contradicts": len(self.constraints.contradictions) - before}

    def undo(self, number: int = 0) -> dict[str, Any]:
        """Takes a decision back, the last one that counts unless a number is given, and returns the state."""
        with self.lock:
            counting = {decision.number: decision for decision in self.journal.active()}
            if not number:
                number = max(counting, default=0)
            if number not in counting:
                raise UserError("nothing to undo" if not number else f"decision {number} does not count any more")
            self._begin_again(self.journal.append({"view": "undo", "undo": number}), counting[number])
            return self.state()

    def redo(self) -> dict[str, Any]:
        """Takes the last undo back, if no other decision came after it, and returns the state."""
        with self.lock:
            gone: set[int] = set()
            for decision in reversed(self.journal.decisions):
                if decision.number in gone:
                    continue
                if decision.undo and not decision.facts():
                    taken = self.journal.decisions[decision.undo - 1]
                    if taken.undo and not taken.facts():  # a redo
                        gone.add(taken.number)
                        continue
                    self._begin_again(self.journal.append({"view": "undo", "undo": decision.number}), taken)
                    return self.state()
                break
            raise UserError("nothing to redo")

    def _replaced(self, content: dict[str, Any]) -> dict[str, int]:
        """Returns the undo that belongs to a second, different answer to one question."""
        if content.get("view") != PAIRS_VIEW:
            return {}
        for name, other in (("same", "differ"), ("differ", "same")):
            pairs = content.get(name)
            for two in pairs if isinstance(pairs, list) else ():
                for decision in reversed(self.journal.active()) if self._asked(two) else ():
                    if decision.view == PAIRS_VIEW and any(set(two) == set(old) for old in getattr(decision, other)):
                        return {"undo": decision.number}
        return {}

    def _asked(self, two: object) -> bool:
        """Returns whether a question was answered before."""
        if not isinstance(two, list) or len(two) != 2 or not all(type(row) is int for row in two):
            return False
        edge = self.graph.edge(two[0], two[1])
        return edge >= 0 and self.pairs.said[edge] != 0

    def _begin_again(self, *decisions: Decision) -> None:
        """Computes what follows from the decisions that count, after one of these took something back."""
        counting = self.journal.active()
        rows = set[int]()
        for decision in decisions:
            rows |= rows_of(decision)
            if decision.undo:
                rows |= rows_of(self.journal.decisions[decision.undo - 1])
        names = {name for decision in decisions for _, name in decision.name}
        for decision in counting:
            rows |= {row for row, name in decision.name if name in names}
        answered = answers(counting)
        self.graph.add(pairs_of(answered))
        self.constraints = Constraints.of(len(self.images), counting)
        self.clusters.update(self.constraints, sorted(rows))
        self.pairs.forget(answered)

    def state(self) -> dict[str, Any]:
        """Returns the counts that the page shows, and what contradicts."""
        with self.lock:
            sizes, constraints = self.clusters.sizes, self.constraints
            yes = decided(constraints)
            readable = len(self.images) - len(self.images.bad)
            return {
                "version": self.version,
                "images": readable,
                "unreadable": len(self.images.bad),
                "clusters": int((sizes > 1).sum()),
                "alone": int((sizes == 1).sum()) - len(self.images.bad),
                "decided": int(yes.sum()),
                "decisions": len(self.journal.active()),
                "names": len(constraints.names),
                "nobody": len(constraints.nobody),
                **self.proposals.state(self),
                "contradictions": [
                    {"number": c.number, "pair": c.pair, "same": c.same, "against": c.against}
                    for c in constraints.contradictions[-20:]
                ],
            }

    def _grouped(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Returns the clusters' labels, largest first, and by these the images of each: where they begin, and they."""
        if self._members is None or self._members[0] != self.version:
            labels = self.clusters.labels
            by_label = np.argsort(labels, kind="stable")
            shown, begin = np.unique(labels[by_label], return_index=True)
            sizes = self.clusters.sizes[shown]
            bad = np.zeros(len(labels), bool)
            bad[list(self.images.bad)] = True
            order = np.lexsort((shown, -sizes))
            order = order[~bad[shown[order]]]
            self._members = self.version, shown[order], begin[order], by_label
        return self._members[1:]

    def rows(self, offset: int = 0, limit: int = ROWS) -> dict[str, Any]:
        """Returns some clusters with their images, the largest first; images that are alone come last."""
        with self.lock:
            labels, begin, by_label = self._grouped()
            yes = decided(self.constraints)
            some = slice(max(0, offset), max(0, offset) + min(limit, 4 * ROWS))
            rows = []
            for label, first in zip(labels[some].tolist(), begin[some].tolist(), strict=True):
                images = by_label[first : first + int(self.clusters.sizes[label])]
                rows.append(self._row(label, images, yes))
            return {"version": self.version, "total": len(labels), "offset": some.start, "rows": rows}

    def _row(self, label: int, images: np.ndarray, yes: np.ndarray) -> dict[str, Any]:
        constraints = self.constraints
        roots = {constraints.root(row) for row in images.tolist()} if constraints.touched else {label}
        largest = max(roots, key=lambda root: (len(constraints.members.get(root, (0,))), -root))
        name = next((constraints.names[root] for root in roots if root in constraints.names), "")
        return {
            "label": label,
            "name": name,
            "stand": largest if constraints.touched else label,
            "confirmed": len(roots) == 1 and len(images) > 1,
            "images": images.tolist(),
            "decided": np.flatnonzero(yes[images]).tolist(),
        }

    def pair(self, count: int = 2) -> dict[str, Any]:
        """Returns the next questions.

        pair: two images. p: the probability that they are the same. said: the answer so far. others: images of further
        clusters that the first of the pair may be of instead.
        """
        with self.lock:
            questions = []
            for a, b, p in self.pairs.next(min(count, 10)):
                said = int(self.pairs.said[self.graph.edge(a, b)])
                asked, others = self.pairs.others(a, b, OTHERS)
                questions.append({
                    "pair": [asked, b if asked == a else a], "p": round(p, 3), "others": [c for c, _ in others],
                    "said": "same" if said > 0 else "differ" if said else "",
                })  # fmt: skip
            return {"version": self.version, "pairs": questions}

    def suspects(self, limit: int = ROWS) -> dict[str, Any]:
        """Returns what looks wrong and was not refused, the gravest first."""
        with self.lock:
            refused = {key for decision in self.journal.active() for key in decision.keep}
            open_ones = [one for one in self.proposals.of(self) if one.key not in refused and self._open(one)]
            return {
                "version": self.version, "total": len(open_ones), "pending": self.proposals.pending,
                "rows": [one.content() for one in open_ones[:limit]],
            }  # fmt: skip

    def _open(self, proposal: Proposal) -> bool:
        """Returns whether a proposal says what the decisions do not say yet."""
        constraints, accept = self.constraints, proposal.accept
        if accept.get("set"):
            return self.proposals.open(self, proposal)
        known = [constraints.known(*two) for two in (*accept.get("same", ()), *accept.get("differ", ()))]
        return all(answer is None for answer in known) and not set(accept.get("nobody", ())) & constraints.nobody

    def history(self) -> dict[str, Any]:
        """Returns the last decisions, the latest first, and whether each counts."""
        with self.lock:
            counting = {decision.number for decision in self.journal.active()}
            last = self.journal.decisions[: -HISTORY - 1 : -1]
            rows = [
                {
                    "number": d.number,
                    "view": d.view,
                    "text": in_words(d),
                    "counts": d.number in counting,
                    "undo": d.undo,
                }
                for d in last
            ]
            return {"version": self.version, "rows": rows}

    def identities(self, only_decided: bool = False) -> list[str]:
        """Returns the identity of each image; see ``table.identities``."""
        with self.lock:
            return identities(self.clusters, self.constraints, only_decided)

    def save(self, path: Path | None = None, only_decided: bool = False) -> None:
        """Writes the table, unless it is that of the present decisions already. path: another one than ``out``."""
        with self.lock:
            if path is None and self.saved == self.version:
                return
            version = self.version
            if self.proposals.save(self, path or self.out):
                self.saved = version
                return
            pids, yes = self.identities(only_decided), decided(self.constraints)
        good = [row for row in range(len(self.images)) if row not in self.images.bad]
        write_table(
            path or self.out,
            [self.images.paths[row] for row in good],
            [pids[row] for row in good],
            yes[good],
            {name: [column[row] for row in good] for name, column in self.images.columns.items()},
        )
        if path is None:
            self.saved = version


def answers(decisions: Sequence[Decision]) -> list[tuple[int, int, bool]]:
    """Returns the questions that decisions answer: pairs of images and whether they are the same."""
    out = []
    for decision in decisions:
        if decision.view == PAIRS_VIEW:
            out += [(group[0], group[1], True) for group in decision.same if len(group) == 2]
            out += [(a, b, False) for a, b in decision.differ]
    return out


def rows_of(decision: Decision) -> set[int]:
    """Returns the images that a decision is about."""
    rows = {row for group in (*decision.same, *decision.differ) for row in group}
    return rows | {row for row, _ in (*decision.name, *decision.set)} | set(decision.nobody)


def in_words(decision: Decision) -> str:
    """Returns a decision as the history shows it."""
    words = [f"{len(group)} images are the same" for group in decision.same]
    words += [counted(len(decision.differ), "pair") + " of different identities"] if decision.differ else []
    words += [f"named {name}" for _, name in decision.name]
    words += [counted(len(decision.nobody), "image") + " of nobody"] if decision.nobody else []
    words += [counted(len(decision.unsure), "pair") + " unclear"] if decision.unsure else []
    words += [counted(len(decision.set), "label") + " corrected"] if decision.set else []
    words += [counted(len(decision.keep), "proposal") + " refused"] if decision.keep else []
    words += [f"took back decision {decision.undo}"] if decision.undo else []
    return ", ".join(words[:6])


def counted(number: int, word: str) -> str:
    """Returns a number and a word in the right form."""
    return f"{number:,} {word}{'' if number == 1 else 's'}"
