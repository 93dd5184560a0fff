"""Collects what ``ranked.npz`` holds while an evaluation computes its distances."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from datasets.records import Records
from processor.query_files import Ranked
from utils.scoring.embedding import in_plane, rows_to_show
from utils.scoring.matching import PairBlock
from utils.scoring.watching import CameraScores, TopLists

MOST_CAMERAS = 40
"""Cameras of query or gallery in the table from camera to camera, at most: a larger one cannot be read."""

PLACES = 20
"""Length of the stored lists: ten images that count, and room for junk among them."""


class RankingRecorder:
    """Records the rankings of ``query`` in ``gallery``; a watcher of an evaluation (``utils.scoring.watching``).

    same_list: query and gallery are one list. ap: the kind of average precision for the scores by camera; '' for none.
    """

    def __init__(self, query: Records, gallery: Records, same_list: bool, ap: str = ""):
        self.query, self.gallery, self.same_list = query, gallery, same_list
        self.top = TopLists(len(query), len(gallery), PLACES)
        numbers = [len(np.unique(records.camids)) for records in (query, gallery)]
        several = ap and 1 < max(numbers) <= MOST_CAMERAS
        self.cameras = CameraScores(len(query), gallery.camids, ap) if several else None

    def __call__(self, start: int, block: Tensor, pairs: PairBlock) -> None:
        self.top(start, block, pairs)
        if self.cameras:
            self.cameras(start, block, pairs)

    def ranked(
        self, qf: Tensor, gf: Tensor, cmc: np.ndarray | None = None, open_curve: np.ndarray | None = None
    ) -> Ranked:
        """Returns the recorded rankings. qf: (Q, D), gf: (G, D): the features that were ranked."""
        rows, lists = np.unique(self.top.indices, return_inverse=True)
        listed = self.gallery.take(rows)
        none, q_cameras, means, numbers = np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 0)), np.zeros((0, 0))
        if self.cameras:
            numbered, means, numbers = self.cameras.table(self.query.camids)
            q_cameras = camera_names(self.query, numbered)
        return Ranked(
            lists=lists.reshape(self.top.indices.shape).astype(np.int32),
            judged=self.top.judged,
            distances=self.top.distances,
            paths=[str(path) for path in listed.paths],
            pids=listed.original_pids(),
            camids=listed.original_camids(),
            boxes=boxes_of(listed),
            q_boxes=boxes_of(self.query),
            cmc=none if cmc is None else cmc,
            q_cameras=q_cameras,
            g_cameras=camera_names(self.gallery, self.cameras.cameras) if self.cameras else none,
            camera_map=means,
            camera_count=numbers,
            open_curve=np.zeros((2, 0)) if open_curve is None else open_curve,
            **self._map(qf, gf),
        )

    def _map(self, qf: Tensor, gf: Tensor) -> dict[str, np.ndarray]:
        lists = [self.query] if self.same_list else [self.query, self.gallery]
        pids = np.concatenate([records.original_pids() for records in lists])
        camids = np.concatenate([records.original_camids() for records in lists])
        numbers = np.concatenate([records.pids for records in lists])
        rows = rows_to_show(numbers, np.unique(self.query.pids))
        rows = rows if len(rows) >= 4 else rows[:0]
        of_query = rows < len(self.query)
        feats = [qf[rows[of_query]], gf[rows[~of_query] - len(self.query)]]
        plane = in_plane(torch.cat(feats).float().cpu().numpy()) if len(rows) else np.zeros((0, 2))
        return {"map_xy": plane, "map_pids": pids[rows], "map_camids": camids[rows], "map_query": of_query}


def camera_names(records: Records, camids: np.ndarray) -> np.ndarray:
    """Returns the cameras as the dataset spells them, in the order of ``camids``."""
    return camids if records.cameras is None else records.cameras[camids]


def boxes_of(records: Records) -> np.ndarray:
    """Returns the crop box of every image, (N, 4) int32; all 0 for whole images."""
    return np.zeros((len(records), 4), np.int32) if records.boxes is None else np.asarray(records.boxes, np.int32)
