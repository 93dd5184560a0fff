"""The files of identities: a table of tracklets, MOT-challenge's files with one number over all cameras, and a page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datasets.storage.pixels import PixelRules
from tools.pages.page import write_page
from tools.pages.shots import RIGHT, UNKNOWN, WRONG, load_shots, shot
from tools.tracking.online import Merge
from tools.tracking.tracklet_set import TrackletSet
from utils.files import write_csv, write_lines

ON_PAGE = (60, 24)
"""Identities, and tracklets of each, on a page, at most."""


def write_table(path: Path, tracklets: TrackletSet, numbers: np.ndarray, at_once: np.ndarray | None) -> None:
    """Writes a row for each tracklet. numbers: (T,) identities. at_once: those that an online run gave first."""
    columns = ["seq", "camid", "start", "end", "images", "identity"]
    first = [] if at_once is None else ["first_identity"]

    def rows() -> Iterator[list[Any]]:
        for i, name in enumerate(tracklets.names):
            row = [name, tracklets.cameras[i], f"{tracklets.start[i]:g}", f"{tracklets.end[i]:g}"]
            row += [len(tracklets.rows[i]), int(numbers[i])]
            yield [*row, *([] if at_once is None else [int(at_once[i])]), tracklets.path(i)]

    write_csv(path, [*columns, *first, "path"], rows())


def write_merges(path: Path, merges: Sequence[Merge]) -> None:
    """Writes which numbers an online run merged, and when."""
    write_csv(path, ("time", "kept", "gone"), ((f"{merge.time:g}", merge.kept + 1, merge.gone + 1) for merge in merges))


def boxes_by_frame(tracklets: TrackletSet, numbers: np.ndarray) -> dict[str, dict[int, list[tuple[int, tuple]]]]:
    """Returns camera -> frame -> (identity, box) of each image; empty where the table has no boxes."""
    out: dict[str, dict[int, list[tuple[int, tuple]]]] = {}
    for i, camera in enumerate(tracklets.cameras):
        for frame, box in tracklets.frame_boxes(i):
            out.setdefault(camera, {}).setdefault(frame, []).append((int(numbers[i]), box))
    return out


def write_mot(folder: Path, found: dict[str, dict[int, list[tuple[int, tuple]]]]) -> None:
    """Writes a file in MOT-challenge's columns for each camera, with identities as numbers."""
    for camera, frames in found.items():
        lines = (
            f"{frame},{number},{left:g},{top:g},{right - left:g},{bottom - top:g},1,-1,-1,-1\n"
            for frame in sorted(frames) for number, (left, top, right, bottom) in sorted(frames[frame])
        )  # fmt: skip
        write_lines(folder / f"{camera}.txt", lines)


def page_rows(tracklets: TrackletSet, numbers: np.ndarray) -> list[dict[str, Any]]:
    """Returns the rows of a page, the identities with most tracklets first, without the pixels."""
    most, places = ON_PAGE
    rows = []
    for number, count in Counter(numbers.tolist()).most_common(most):
        own = np.flatnonzero(numbers == number)
        known = Counter(tracklets.pids[i] for i in own.tolist() if tracklets.pids[i])
        majority = known.most_common(1)[0][0] if known else ""
        shots = []
        for i in own[:places].tolist():
            kind = UNKNOWN if not tracklets.pids[i] else RIGHT if tracklets.pids[i] == majority else WRONG
            when = f"{tracklets.start[i]:g} to {tracklets.end[i]:g}"
            label = f"{tracklets.cameras[i]} · {tracklets.names[i]} · {when}"
            alt = f"camera {tracklets.cameras[i]}, tracklet {tracklets.names[i]}, {when}"
            shots.append(shot(tracklets.path(i), kind, label, alt, tracklets.box(i)))
        cameras = len({tracklets.cameras[i] for i in own.tolist()})
        more = f", the first {places} shown" if count > places else ""
        title = f"identity {number}: {counted(count, 'tracklet')} under {counted(cameras, 'camera')}{more}"
        rows.append({"title": title, "shots": shots})
    return rows


def counted(count: int, what: str) -> str:
    """Returns a number of things in words."""
    return f"{count} {what}{'' if count == 1 else 's'}"


def write_identity_page(
    path: Path, tracklets: TrackletSet, numbers: np.ndarray, scores: dict[str, str], rules: PixelRules, how: str
) -> int:
    """Writes the page; returns how many thumbnails could not be read. how: what made the identities, in words."""
    rows = page_rows(tracklets, numbers)
    failed = load_shots([one for row in rows for one in row["shots"]], rules)
    identities = len(set(numbers.tolist()))
    lead = (
        f"{counted(len(tracklets), 'tracklet')} of {counted(len(set(tracklets.cameras)), 'camera')}: "
        f"{identities} identities, those with most tracklets first{'' if identities <= ON_PAGE[0] else ', '}"
        f"{'' if identities <= ON_PAGE[0] else f'{ON_PAGE[0]} shown'}. {how}"
    )
    judged = any(one["kind"] in ("right", "wrong") for row in rows for one in row["shots"])
    write_page(
        path, "identities.html", title="Identities", lead=lead, rows=rows, judged=judged, scores=list(scores.items())
    )
    return failed
