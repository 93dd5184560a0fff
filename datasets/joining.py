"""Several datasets as one training list, tests numbered alongside, and identities held out of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from datasets.dataset import ReIDDataset
from datasets.records import Records, join
from utils.errors import UserError


def join_training(parts: list[ReIDDataset]) -> Records:
    """Several training lists as one: identities, cameras and views of each shifted past those before it."""
    shifted, pids, cams, views = [], 0, 0, 0
    for i, part in enumerate(parts):
        r = part.train
        shifted.append(
            replace(
                r, pids=np.where(r.pids < 0, -1, r.pids + pids), camids=r.camids + cams, viewids=r.viewids + views,
                domain=np.full(len(r), i),
            )  # fmt: skip
        )
        pids, cams = pids + part.num_classes, cams + part.num_cameras
        views += part.num_views
    return join(shifted)


def as_trained(records: Records, name: str, sources: list[ReIDDataset]) -> Records:
    """A test list with cameras and views numbered as ``join_training`` numbers them, unknown ones after all others.

    So side information is looked up in the rows that were trained for a camera. name: of the dataset tested.
    """
    names = [part.spec.name for part in sources]

    def numbered(labels: np.ndarray, counts: list[int]) -> np.ndarray:
        if name not in names:
            return labels + sum(counts)
        i = names.index(name)
        return labels + np.where(labels < counts[i], sum(counts[:i]), sum(counts))

    camids = numbered(records.camids, [part.num_cameras for part in sources])
    viewids = numbered(records.viewids, [part.num_views for part in sources])
    return replace(records, camids=camids, viewids=viewids)


def hold_out(records: Records, share: float, seed: int) -> tuple[Records, Records, Records]:
    """Splits training identities: (train with dense labels, query, gallery); one query per identity and camera.

    With one camera for all training images the gallery gets another number, which switches the camera filter off.
    """
    if not 0 < share < 1:
        raise UserError(f"DATASETS.VAL_SHARE: {share} is no share of the training identities")
    ids = np.unique(records.pids)
    held = np.random.default_rng(seed).permutation(ids)[: max(1, round(share * len(ids)))]
    apart = np.isin(records.pids, held)
    train, rest = records.take(~apart), records.take(apart)
    _, first = np.unique(rest.pids * (rest.camids.max(initial=0) + 1) + rest.camids, return_index=True)
    chosen = np.zeros(len(rest), bool)
    chosen[first] = True
    query, gallery = rest.take(chosen), rest.take(~chosen)
    if not records.camids.any():
        gallery.camids[:] = 1
    labels = np.unique(train.pids, return_inverse=True)[1]
    return replace(train, pids=labels), query, gallery
