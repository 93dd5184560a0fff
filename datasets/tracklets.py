"""Lists of tracklets: which images show one person without a break under one camera, checked, a row for each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from datasets.crop_quality import hidden_in_frames
from datasets.records import Records
from utils.errors import UserError


@dataclass(frozen=True)
class Tracklets:
    """The tracklets of a list. of_image: (N,) int64, the tracklet of each image, 0 to T - 1.

    records: T rows, in the order in which the tracklets appear in the list; each stands for its first image.
    """

    of_image: np.ndarray
    records: Records

    def __len__(self) -> int:
        return len(self.records)


@dataclass(frozen=True)
class TestTracklets:
    """The tracklets of a set to be searched, queries first. of_image: (N,) of the loader's list, 0 to T - 1.

    query, gallery: a row for each tracklet. hidden: (N,) share of each image that a neighbour covers, where images are
    weighted by quality; None: all weigh the same.
    """

    of_image: np.ndarray
    query: Records
    gallery: Records
    hidden: np.ndarray | None = None

    __test__ = False  # not a test class, whatever its name says to pytest


def tracklets_of(records: Records, name: str) -> Tracklets:
    """Returns the tracklets of a list. name: of the dataset, in messages.

    An image without one is a tracklet by itself. Raises ``UserError`` for a list without tracklets, for one that spans
    cameras or identities or has two images of one frame (two tracklets with one number), and for time that runs
    backwards in one.
    """
    if records.seqs is None:
        raise UserError(
            f"{name}: TEST.TRACKLETS needs tracklets, and this set names none; in a table the column 'seq' does"
        )
    order = order_of(records)
    starts = starts_of(records.seqs[order])
    for column, what in ((records.camids, "cameras"), (records.pids, "identities")):
        refuse_mixed(records, order, column, what, name)
    refuse_disorder(records, order, name)
    first_rows = np.minimum.reduceat(order, starts) if len(order) else order  # by first appearance in the list
    rank = np.argsort(np.argsort(first_rows))
    of_image = np.empty(len(records), np.int64)
    of_image[order] = np.repeat(rank, np.diff([*starts, len(order)]))
    return Tracklets(of_image, records.take(order[starts][np.argsort(rank)]))


def order_of(records: Records) -> np.ndarray:
    """Returns the rows by tracklet, and by frame, time and place in the list within one."""
    assert records.seqs is not None
    keys = [np.arange(len(records))]
    keys += [column for column in (records.times, records.frames) if column is not None]
    return np.lexsort([*keys, records.seqs])


def starts_of(values: np.ndarray) -> np.ndarray:
    """Returns where the runs of equal values start."""
    return np.flatnonzero(np.r_[True, values[1:] != values[:-1]]) if len(values) else np.empty(0, np.int64)


def neighbours(records: Records, order: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows that follow each other in a tracklet: the earlier and the later of each pair."""
    assert records.seqs is not None
    before, after = order[:-1], order[1:]
    same = records.seqs[before] == records.seqs[after]
    return before[same], after[same]


def refuse_mixed(records: Records, order: np.ndarray, column: np.ndarray, what: str, name: str) -> None:
    """Raises ``UserError`` for a tracklet whose images differ in a column."""
    before, after = neighbours(records, order)
    wrong = np.flatnonzero(column[before] != column[after])
    if len(wrong):
        a, b = (int(rows[wrong[0]]) for rows in (before, after))
        names = records.original_camids() if what == "cameras" else records.original_pids()
        raise UserError(
            f"{name}: a tracklet (seq) spans {what} {names[a]} and {names[b]}: {records.paths[a]} and "
            f"{records.paths[b]}; a tracklet is one person without a break under one camera, so number them apart"
        )


def refuse_disorder(records: Records, order: np.ndarray, name: str) -> None:
    """Raises ``UserError`` for two images of one frame in a tracklet, and for time that runs against its frames."""
    before, after = neighbours(records, order)
    if records.frames is not None:
        twice = np.flatnonzero((records.frames[before] == records.frames[after]) & (records.frames[before] >= 0))
        if len(twice):
            row = int(before[twice[0]])
            raise UserError(
                f"{name}: two images of one tracklet (seq) are of frame {records.frames[row]}, the one is "
                f"{records.paths[row]}; two tracklets have one number, so number them apart"
            )
    if records.times is not None and records.frames is not None:
        back = np.flatnonzero(records.times[before] > records.times[after])
        if len(back):
            a, b = int(before[back[0]]), int(after[back[0]])
            raise UserError(
                f"{name}: time runs backwards in a tracklet, from {records.times[a]:g} s in frame {records.frames[a]} "
                f"to {records.times[b]:g} s in frame {records.frames[b]} ({records.paths[b]})"
            )


def tracklets_of_test(
    query: Records, gallery: Records, same_list: bool, name: str, by_quality: bool = False
) -> TestTracklets:
    """Returns the tracklets of a set to be searched; see ``tracklets_of``. same_list: query and gallery are one."""
    of_query = tracklets_of(query, name)
    of_gallery = of_query if same_list else tracklets_of(gallery, name)
    lists = [query] if same_list else [query, gallery]
    index = [of_query.of_image] if same_list else [of_query.of_image, of_gallery.of_image + len(of_query)]
    hidden = np.concatenate([hidden_by_neighbours(records) for records in lists]) if by_quality else None
    return TestTracklets(np.concatenate(index), of_query.records, of_gallery.records, hidden)


def hidden_by_neighbours(records: Records) -> np.ndarray:
    """Returns the share of each image that another box of its frame covers, (N,); 0 without boxes or frames."""
    if records.boxes is None or records.frames is None:
        return np.zeros(len(records))
    return hidden_in_frames(records.boxes, records.camids, records.frames)
