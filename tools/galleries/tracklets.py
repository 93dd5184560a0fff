"""One query per tracklet: the mean of its images' features."""

from __future__ import annotations

import numpy as np
import torch

from processor.tracklet_features import TrackletSums
from tools.search import SearchQueries
from utils.errors import UserError
from utils.scoring.distances import unit_rows


def by_tracklet(queries: SearchQueries) -> SearchQueries:
    """Returns a query for each ``seq`` of the queries; image files, which have none, are one tracklet together.

    Raises ``UserError`` for features of which some have no ``seq``.
    """
    names = [str(columns.get("seq", "")) for columns in queries.columns]
    of_features = "row" in queries.columns[0]
    if of_features and not all(names):
        raise UserError(
            f"--tracklets: row {names.index('')} of the queries has no seq; extract a table with that column"
        )
    number_of = {name: number for number, name in enumerate(dict.fromkeys(names))}
    numbers = np.array([number_of[name] for name in names])
    sums = TrackletSums(numbers, len(number_of))
    sums.add(torch.arange(len(names)), torch.from_numpy(np.array(queries.feats, np.float32)))
    columns = []
    for name, i in number_of.items():
        first = int(np.flatnonzero(numbers == i)[0])
        images = int((numbers == i).sum())
        columns.append(queries.columns[first] | ({"seq": name} if name else {}) | {"images": images})
    return SearchQueries(unit_rows(sums.features().numpy()), columns, queries.skipped)
