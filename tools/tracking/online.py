"""Identities while tracklets arrive: each gets a number at once, and numbers that prove to be one person are merged."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

import numpy as np

from tools.tracking.constraints import Schedule
from utils.scoring.linkage import Odds

REMEMBERED = 32
"""Last tracklets of an identity whose times are kept: no tracklet overlaps with older ones."""
CANDIDATES = 16
"""Most likely identities that are tried where time forbids the first."""


@dataclass(eq=False)
class Identity:
    """A person of the gallery. total: sum of the unit features of its tracklets. recent: numbers of the last ones."""

    number: int
    total: np.ndarray
    count: int
    last_seen: float
    recent: deque[int] = field(default_factory=lambda: deque(maxlen=REMEMBERED))


@dataclass(frozen=True)
class Merge:
    """Two numbers that proved to be one person. gone: was given before, and is ``kept`` from now on. time: when."""

    kept: int
    gone: int
    time: float


class OnlineIdentities:
    """Numbers tracklets in the order in which they end.

    A tracklet joins the identity whose tracklets are, in the mean, most likely of the same person, if the log-odds are
    above ``limit`` and time does not forbid it. After each one the identity is compared with all others, and merged by
    the same rule. The gallery holds at most ``most`` identities; the one that was seen longest ago leaves first.

    odds: see ``utils.scoring.linkage``, at the mean distance. schedule: of all tracklets that will come, by number.
    """

    def __init__(self, width: int, odds: Odds, schedule: Schedule, limit: float = 0.0, most: int = 5000):
        self.odds, self.schedule, self.limit, self.most = odds, schedule, limit, most
        self.means = np.zeros((most + 1, width), np.float32)
        self.people: list[Identity] = []
        self.count = 0
        self.merges: list[Merge] = []

    def add(self, tracklet: int, feat: np.ndarray) -> int:
        """Returns the identity of a tracklet, a new one if it is nobody's. feat: (D,) of unit length."""
        time = float(self.schedule.end[tracklet])
        place = self.likeliest(feat, np.array([tracklet]))
        if place is None:
            place = self.enter(feat)
        else:
            person = self.people[place]
            person.total = person.total + feat
            person.count += 1
        person = self.people[place]
        person.recent.append(tracklet)
        person.last_seen = time
        self.means[place] = person.total / person.count
        number = self.merged(place, time)
        if len(self.people) > self.most:
            self.leave(min(range(len(self.people)), key=lambda i: self.people[i].last_seen))
        return number

    def likeliest(self, feat: np.ndarray, tracklets: np.ndarray, besides: int = -1) -> int | None:
        """Returns the place of the likeliest identity above the limit that time allows, None if there is none.

        feat: (D,) mean of unit features. tracklets: numbers that it is of. besides: a place that does not count.
        """
        if not self.people:
            return None
        values = self.odds(np.maximum(2 - 2 * (self.means[: len(self.people)] @ feat), 0))
        if besides >= 0:
            values[besides] = -np.inf
        count = min(CANDIDATES, len(values))
        nearest = np.argpartition(-values, count - 1)[:count]
        for place in nearest[np.argsort(-values[nearest], kind="stable")].tolist():
            if values[place] <= self.limit:
                break
            if not self.schedule.apart(tracklets, np.array(self.people[place].recent)).any():
                return place
        return None

    def enter(self, feat: np.ndarray) -> int:
        """Adds an identity and returns its place."""
        self.people.append(Identity(self.count, np.array(feat, np.float64), 1, -np.inf))
        self.count += 1
        return len(self.people) - 1

    def leave(self, place: int) -> None:
        """Removes an identity from the gallery; the last one takes its place."""
        last = len(self.people) - 1
        self.people[place], self.means[place] = self.people[last], self.means[last]
        self.people.pop()

    def merged(self, place: int, time: float) -> int:
        """Merges an identity with others that prove to be the same, and returns its number then: the older one."""
        while True:
            person = self.people[place]
            other = self.likeliest(self.means[place], np.array(person.recent), besides=place)
            if other is None:
                return person.number
            first, second = sorted((person, self.people[other]), key=lambda one: one.number)
            first.total, first.count = first.total + second.total, first.count + second.count
            first.last_seen = max(first.last_seen, second.last_seen)
            recent = sorted({*first.recent, *second.recent}, key=lambda i: float(self.schedule.end[i]))
            first.recent = deque(recent, maxlen=REMEMBERED)
            self.merges.append(Merge(first.number, second.number, time))
            self.leave(self.people.index(second))
            place = self.people.index(first)
            self.means[place] = first.total / first.count

    def final(self) -> dict[int, int]:
        """Returns each number that was merged away, and the one that it is in the end."""
        ends: dict[int, int] = {}
        for merge in reversed(self.merges):
            ends[merge.gone] = ends.get(merge.kept, merge.kept)
        return ends


def run_online(
    feats: np.ndarray, schedule: Schedule, odds: Odds, limit: float = 0.0, most: int = 5000
) -> tuple[np.ndarray, np.ndarray, list[Merge]]:
    """Returns the identity that each tracklet got when it ended, the one in the end, (T,) each, and the merges."""
    online = OnlineIdentities(feats.shape[1], odds, schedule, limit, most)
    at_once = np.full(len(feats), -1, np.int64)
    for tracklet in np.argsort(schedule.end, kind="stable").tolist():
        at_once[tracklet] = online.add(tracklet, feats[tracklet])
    ends = online.final()
    return at_once, np.array([ends.get(number, number) for number in at_once.tolist()], np.int64), online.merges
