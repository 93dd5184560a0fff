"""Joins several training lists into one, labels tests as the network knows them, and holds identities out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

import numpy as np

from datasets.records import Records, join
from utils.errors import UserError


def join_training(lists: Sequence[Records]) -> Records:
    """Returns several training lists as one: identities, cameras and views of each follow those before it.

    lists: of one dataset each, with dense labels from 0. The original ids come along.
    """
    offsets = _offsets(lists)
    shifted = []
    for i, (records, (pids, cams, views)) in enumerate(zip(lists, offsets, strict=False)):
        camids, viewids = records.camids + cams, records.viewids + views
        shifted.append(
            replace(
                records,
                pids=np.where(records.pids < 0, -1, records.pids + pids),
                camids=camids,
                viewids=viewids,
                cam_labels=camids,
                view_labels=viewids,
                domain=np.full(len(records), i),
            )
        )
    counts = [_counts(records) for records in lists]
    return replace(
        join(shifted),
        identities=_joined([r.identities for r in lists], [c[0] for c in counts]),
        cameras=_joined([r.cameras for r in lists], [c[1] for c in counts]),
        views=_joined([r.views for r in lists], [c[2] for c in counts]),
    )


def _counts(records: Records) -> tuple[int, int, int]:
    """Returns the numbers of identities, cameras and views."""
    pids, _, cams = records.counts()
    return pids, cams, len(np.unique(records.viewids))


def _offsets(lists: Sequence[Records]) -> list[tuple[int, int, int]]:
    """Returns where the identities, cameras and views of each list begin, and as the last entry where all end."""
    counts = [_counts(records) for records in lists]
    return [(0, 0, 0), *accumulate(counts, lambda a, b: (a[0] + b[0], a[1] + b[1], a[2] + b[2]))]


def _joined(names: Sequence[np.ndarray | None], counts: Sequence[int]) -> np.ndarray | None:
    """Returns the original ids of the joined numbers; None for one list whose numbers are the original ids."""
    if len(names) == 1 and names[0] is None:
        return None
    return np.concatenate(
        [np.arange(count) if own is None else own[:count] for own, count in zip(names, counts, strict=True)]
    )


def label_as_trained(records: Records, name: str, sources: dict[str, Records]) -> Records:
    """Returns a test list with the network's labels that ``join_training`` gave to its cameras and views.

    So side information is looked up in the rows that were trained for a camera; cameras that were not trained get
    labels after all others. The dataset's own camids and viewids stay. name: of the dataset tested. sources: training
    lists by name of the dataset, in the order in which they were joined.
    """
    offsets = _offsets(list(sources.values()))
    _, all_cams, all_views = offsets[-1]
    if name not in sources:
        return replace(records, cam_labels=records.camids + all_cams, view_labels=records.viewids + all_views)
    _, own_cams, own_views = _counts(sources[name])
    _, cams, views = offsets[list(sources).index(name)]

    def label(numbers: np.ndarray, trained: int, offset: int, untrained: int) -> np.ndarray:
        return np.where(numbers < trained, numbers + offset, numbers - trained + untrained)

    return replace(
        records,
        cam_labels=label(records.camids, own_cams, cams, all_cams),
        view_labels=label(records.viewids, own_views, views, all_views),
    )


def hold_out(records: Records, share: float, seed: int) -> tuple[Records, Records, Records]:
    """Splits training identities: (train with dense labels, query, gallery); one query per identity and camera.

    With one camera for all training images the gallery gets another number, which switches the camera filter off.
    """
    if not 0 < share < 1:
        raise UserError(f"DATASETS.VAL_SHARE: must be above 0 and below 1 to hold identities out, got {share}")
    ids = np.unique(records.pids)
    drawn = np.random.default_rng(seed).permutation(ids)[: max(1, round(share * len(ids)))]
    is_held_out = np.isin(records.pids, drawn)
    train, rest = records.take(~is_held_out), records.take(is_held_out)
    _, first = np.unique(rest.pids * (rest.camids.max(initial=0) + 1) + rest.camids, return_index=True)
    is_query = np.zeros(len(rest), bool)
    is_query[first] = True
    query, gallery = rest.take(is_query), rest.take(~is_query)
    if not records.camids.any():
        gallery = replace(gallery, camids=np.ones_like(gallery.camids))
    return train.relabelled(), query, gallery
