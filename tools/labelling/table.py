"""The table that a training reads, from the clusters and the decisions."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from datasets.identifiers import JUNK
from tools.labelling.clustering import Clusters
from tools.labelling.constraints import Constraints
from utils.files import write_csv

if TYPE_CHECKING:
    from tools.labelling.session import Session

DECIDED = "decided"
"""The further column: ``yes`` where a decision of the person stands behind the identity, else ``no``."""


def decided(constraints: Constraints) -> np.ndarray:
    """Returns which images' identities somebody decided, (N,) bool: in a set of two or more, named, or of nobody."""
    yes = np.zeros(constraints.count, bool)
    for root, group in constraints.members.items():
        yes[root] = True
        yes[group] = True
    for root in constraints.names:
        yes[constraints.group(root)] = True
    yes[list(constraints.nobody)] = True
    return yes


def identities(clusters: Clusters, constraints: Constraints, only_decided: bool = False) -> list[str]:
    """Returns the identity of each image, (N,): a name, a number, '' for an unlabelled one, '-1' for nobody.

    An image alone in its cluster is unlabelled unless it has a name. Numbers count the clusters by their first images,
    and leave out those that are somebody's name. only_decided: images that nobody decided about are unlabelled.
    """
    names = {int(clusters.labels[root]): name for root, name in constraints.names.items()}
    taken = set(constraints.names.values())
    sure = decided(constraints) if only_decided else np.ones(constraints.count, bool)
    labels = clusters.labels
    kept = sure & (clusters.sizes[labels] > 1)
    if only_decided:  # a cluster that was decided in part
        kept &= np.bincount(labels[sure], minlength=len(labels))[labels] > 1
    numbers, number = {}, 0
    for label in np.unique(labels[kept]).tolist():
        if label not in names:
            number += 1
            while str(number) in taken:
                number += 1
            numbers[label] = str(number)
    out = []
    for row, label in enumerate(labels.tolist()):
        if row in constraints.nobody:
            out.append(JUNK)
        elif label in names and sure[row]:
            out.append(names[label])
        else:
            out.append(numbers.get(label, "") if kept[row] else "")
    return out


def write_table(
    path: Path, paths: Sequence[str], pids: Sequence[str], sure: np.ndarray, columns: dict[str, list[str]]
) -> None:
    """Writes the table. columns: further ones of the images' own table, such as ``camid`` and crop boxes.

    Paths below the table's folder are relative to it. Every image is for training.
    """
    folder = os.path.abspath(path.parent)
    names = [name for name in columns if name != "pid"]
    rows = (
        (relative(one, folder), pid, "train", "yes" if yes else "no", *more)
        for one, pid, yes, *more in zip(paths, pids, sure.tolist(), *(columns[name] for name in names), strict=True)
    )
    write_csv(path, ("path", "pid", "split", DECIDED, *names), rows)


def relative(path: str, folder: str) -> str:
    """Returns a path relative to the folder if it lies below it."""
    return path[len(folder) + 1 :] if path.startswith(folder + os.sep) else path


def write_split(path: Path, session: Session) -> int:
    """Writes a table of what is decided, a tenth of its identities to test on, and returns how many there are."""
    with session.lock:
        pids = np.array(session.identities(only_decided=True))
    kept = [row for row in range(len(pids)) if pids[row] not in ("", JUNK) and row not in session.images.bad]
    names, counts = np.unique(pids[kept], return_counts=True)
    several = names[counts > 1]
    trained = set(several.tolist())
    tested = set(several[:: max(1, min(10, len(several) // 2))].tolist()) if len(several) > 1 else set()
    columns = {name: values for name, values in session.images.columns.items() if name != "pid"}
    rows = (
        (session.images.paths[row], pids[row], "test" if pids[row] in tested else "train",
         *(values[row] for values in columns.values()))
        for row in kept if pids[row] in trained
    )  # fmt: skip
    write_csv(path, ("path", "pid", "split", *columns), rows)
    return len(several)
