"""What follows from the decisions: images that must be together, and groups that must not.

Must-link is an equivalence, kept as a forest of disjoint sets; cannot-link holds between whole sets. A decision that
contradicts earlier ones is not applied; it is kept as a ``Contradiction``, with the decisions that it contradicts.
"""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tools.labelling.journal import Decision, collector_paused


@dataclass(frozen=True)
class Contradiction:
    """A fact that the earlier ones exclude. number: its decision. pair: its images. same: what it says of them.

    against: numbers of the decisions from which the opposite follows.
    """

    number: int
    pair: tuple[int, int]
    same: bool
    against: tuple[int, ...]


class Constraints:
    """The facts about ``count`` images, added decision by decision.

    members: root -> images of its set, for sets of two or more. enemies: root -> root -> the decision that says that
    the two sets are of different identities. names: root -> name. nobody: images of no identity. unsure: pairs that
    the person could not tell. touched: images whose facts were named in a decision, whatever it said. pair_of: decision
    -> its images, for decisions about one pair.
    """

    def __init__(self, count: int):
        self.count = count
        self._parent: dict[int, int] = {}
        self._links: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self._named: dict[int, tuple[int, int]] = {}
        self._holder: dict[str, int] = {}
        self.members: dict[int, list[int]] = {}
        self.enemies: dict[int, dict[int, tuple[int, int, int]]] = {}
        self.names: dict[int, str] = {}
        self.nobody: set[int] = set()
        self.unsure: set[tuple[int, int]] = set()
        self.touched: set[int] = set()
        self.contradictions: list[Contradiction] = []
        self.pair_of: dict[int, tuple[int, int]] = {}

    @classmethod
    def of(cls, count: int, decisions: Iterable[Decision]) -> Constraints:
        """Returns what follows from decisions that count, in their order."""
        constraints = cls(count)
        with collector_paused():
            for decision in decisions:
                constraints.add(decision)
        return constraints

    def add(self, decision: Decision) -> list[int]:
        """Adds a decision, and returns the images whose clusters may change by it."""
        n = decision.number
        changed: list[int] = []
        if len(decision.same) + len(decision.differ) == 1:
            (fact,) = decision.same or decision.differ
            if len(fact) == 2:
                self.pair_of[n] = fact[0], fact[1]
        for group in decision.same:
            for other in group[1:]:
                self._same(group[0], other, n)
            changed += group
        for a, b in decision.differ:
            self._differ(a, b, n)
            changed += (a, b)
        for row, name in decision.name:
            self._name(row, name, n)
            changed.append(row)
            changed.append(self._holder.get(name, row))
        for row in decision.nobody:
            self.nobody.add(row)
            changed.append(row)
        self.touched.update(changed)
        for a, b in decision.unsure:
            self.unsure.add((min(a, b), max(a, b)))
        return changed

    def root(self, row: int) -> int:
        """Returns the image that stands for the set of an image: itself, if nothing is known of it."""
        parent = self._parent
        top = parent.get(row, row)
        if top == row:
            return row
        while (above := parent[top]) != top:
            top = above
        while (above := parent[row]) != top:  # the way becomes short
            parent[row] = top
            row = above
        return top

    def group(self, row: int) -> list[int]:
        """Returns the images that must be with an image, itself among them."""
        root = self.root(row)
        return self.members.get(root, [root])

    def links_of(self, rows: Iterable[int]) -> Iterator[tuple[int, int]]:
        """Yields the must-links among images, as pairs that form a forest."""
        for row in rows:
            for other, _ in self._links.get(row, ()):
                if row < other:
                    yield row, other

    def apart(self, a: int, b: int) -> bool:
        """Returns whether two images must not be together."""
        return self._opposed(self.root(a), self.root(b))

    def known(self, a: int, b: int) -> bool | None:
        """Returns whether two images are of one identity; None if it does not follow from the decisions."""
        first, second = self.root(a), self.root(b)
        if first == second:
            return True
        return False if self._opposed(first, second) else None

    def _opposed(self, first: int, second: int) -> bool:
        return second in self.enemies.get(first, ()) or self._named_apart(first, second)

    def _named_apart(self, first: int, second: int) -> bool:
        names = self.names
        return first in names and second in names and names[first] != names[second]

    def _same(self, a: int, b: int, number: int) -> None:
        first, second = self.root(a), self.root(b)
        if first == second:
            return
        if second in self.enemies.get(first, ()):
            self._contradict(number, (a, b), True, self._why_apart(a, b))
            return
        if self._named_apart(first, second):
            against = {self._named[first][1], self._named[second][1], *self._way(self._named[first][0], a)}
            self._contradict(number, (a, b), True, tuple(sorted(against | set(self._way(b, self._named[second][0])))))
            return
        self._links[a].append((b, number))
        self._links[b].append((a, number))
        mine, theirs = self.members.get(first) or [first], self.members.pop(second, None) or [second]
        if len(mine) < len(theirs):
            self.members.pop(first, None)
            first, second, mine, theirs = second, first, theirs, mine
        mine += theirs
        self.members[first] = mine
        self._parent[first] = self._parent[second] = first
        if second in self.enemies:
            for enemy, why in self.enemies.pop(second).items():
                del self.enemies[enemy][second]
                self.enemies.setdefault(first, {}).setdefault(enemy, why)
                self.enemies[enemy].setdefault(first, why)
        if second in self.names:
            self.names[first], self._named[first] = self.names.pop(second), self._named.pop(second)

    def _differ(self, a: int, b: int, number: int) -> None:
        first, second = self.root(a), self.root(b)
        if first == second:
            self._contradict(number, (a, b), False, self._way(a, b))
            return
        self.enemies.setdefault(first, {}).setdefault(second, (a, b, number))
        self.enemies.setdefault(second, {}).setdefault(first, (a, b, number))

    def _name(self, row: int, name: str, number: int) -> None:
        """Names the whole set of an image; the last name counts, and one name is one identity."""
        root = self.root(row)
        before = self.names.pop(root, None)
        if before is not None and before != name:
            self._holder.pop(before, None)
        holder = self._holder.get(name)
        if holder is not None and self.root(holder) != root:
            self._same(row, holder, number)
            if self.root(row) != self.root(holder):  # contradicted: the set has no name
                return
        root = self.root(row)
        self.names[root], self._named[root], self._holder[name] = name, (row, number), row

    def _contradict(self, number: int, pair: tuple[int, int], same: bool, against: tuple[int, ...]) -> None:
        self.contradictions.append(Contradiction(number, pair, same, against))

    def _why_apart(self, a: int, b: int) -> tuple[int, ...]:
        """Returns the decisions from which it follows that two images are of different identities."""
        x, y, number = self.enemies[self.root(a)][self.root(b)]
        if self.root(x) != self.root(a):
            x, y = y, x
        return tuple(sorted({number, *self._way(a, x), *self._way(y, b)}))

    def _way(self, a: int, b: int) -> tuple[int, ...]:
        """Returns the decisions of a shortest chain of must-links between two images of one set."""
        came: dict[int, tuple[int, int]] = {a: (a, 0)}
        waiting = deque([a])
        while waiting and b not in came:
            row = waiting.popleft()
            for other, number in self._links[row]:
                if other not in came:
                    came[other] = (row, number)
                    waiting.append(other)
        numbers = set()
        while b != a:
            b, number = came[b]
            numbers.add(number)
        return tuple(sorted(numbers))
