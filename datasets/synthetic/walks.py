"""Who walks past which camera when: the plan behind ``synthetic_tracks``, in frames and without a pixel.

A pedestrian crosses one camera's view after the other. Between two cameras lies a way that takes a time of its own, so
a table of shortest travel times goes with the plan; some come back to the camera that they have just left.
"""

from __future__ import annotations

from dataclasses import dataclass

from datasets.synthetic.raster import between, chance, generator, pick

KEY = "synthetic_tracks"
FPS = 5
"""Frames per second of every camera; all start at the same moment."""
SHORTEST = 8
"""Frames of the shortest visit that is drawn."""


@dataclass(frozen=True)
class Visit:
    """One crossing of a camera's view.

    number: of the visits of its pedestrian, from 0. start: first frame, from 0. frames: shown. length: frames of the
    whole crossing, of which a recording that ends shows fewer. heading: steps of 5 degrees, see ``Pose``. lane: how
    near to the camera, 0 (far) to 100.
    """

    pid: int
    number: int
    camid: int
    start: int
    frames: int
    length: int
    heading: int
    lane: int

    @property
    def rightwards(self) -> bool:
        """Whether the pedestrian walks to the right."""
        return 0 < self.heading % 72 < 36

    def shows(self, frame: int) -> bool:
        """Returns whether the visit is on in a frame."""
        return self.start <= frame < self.start + self.frames


def travel_frames(first: int, second: int, seed: int) -> int:
    """Returns the frames that the way between two cameras takes at least; 0 from a camera to itself."""
    if first == second:
        return 0
    return between(generator(KEY, "travel", *sorted((first, second)), seed), 8, 30)


def visits_of(pid: int, cameras: int, frames: int, seed: int) -> list[Visit]:
    """Returns the visits of one pedestrian, in order. pid, cameras: from 1. frames: of the recording.

    They depend on these four alone. There is at least one visit of ``SHORTEST`` frames.
    """
    rng = generator(KEY, "walk", pid, cameras, frames, seed)
    camid, time, visits = between(rng, 1, cameras), between(rng, 0, frames // 2), []
    while frames - time >= SHORTEST:
        length = between(rng, 16, 30)
        heading = pick(rng, (18, 54)) + between(rng, -14, 14)
        shown = min(length, frames - time)
        visits.append(Visit(pid, len(visits), camid, time, shown, length, heading, between(rng, 0, 100)))
        time += length
        if chance(rng, 25):
            time += between(rng, 10, 40)  # comes back
        else:
            following = pick(rng, [c for c in range(1, cameras + 1) if c != camid])
            time += travel_frames(camid, following, seed) * between(rng, 100, 160) // 100
            camid = following
    return visits


def plan(ids: int, cameras: int, frames: int, seed: int) -> dict[int, list[Visit]]:
    """Returns camera -> its visits, by first frame. ids: pedestrians 1..ids. cameras: numbered from 1."""
    visits = [visit for pid in range(1, ids + 1) for visit in visits_of(pid, cameras, frames, seed)]
    visits.sort(key=lambda visit: (visit.start, visit.pid))
    return {camid: [visit for visit in visits if visit.camid == camid] for camid in range(1, cameras + 1)}
