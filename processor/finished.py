"""What an evaluation leaves to be looked at: ``ranked.npz`` beside ``per_query.csv`` in the run's folder.

``per_query.csv`` holds a row per query. ``ranked.npz`` (with TEST.REPORT) holds what the pages and pictures show of the
rankings: the first places of every query, the paths of the gallery images in them, the CMC curve, mAP from camera to
camera, and a map of some features. Both are a few megabytes at MSMT17's size; pages are made from them alone.
"""

from __future__ import annotations

import csv
import re
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from datasets.records import Records
from utils.errors import UserError
from utils.files import write_atomically
from utils.scoring.embedding import in_plane, rows_to_show
from utils.scoring.matching import Pairs
from utils.scoring.watching import JUNK, CameraScores, TopLists

MOST_CAMERAS = 40
"""Of query or gallery, in the table from camera to camera: a larger one nobody reads."""

PLACES = 20
"""Length of the stored lists: ten kept images and some room for junk among them."""


@dataclass(frozen=True)
class Ranked:
    """What ``ranked.npz`` holds. Q queries, K places, S images that stand in some list.

    lists: (Q, K) rows of the images below. judged: (Q, K) 1 right, 0 wrong, -1 junk (left out of the scores).
    distances: (Q, K). paths, pids, camids (the dataset's own, numbers or text), boxes (S, 4): the images; q_boxes
    (Q, 4): the queries' crops, all 0 for whole images. cmc: (R,) or empty. q_cameras (A,), g_cameras (C,), camera_map
    (A, C) with NaN for none, and camera_count (A, C); empty where cameras are not known or too many. map_xy (M, 2),
    map_pids, map_camids (M,), map_query (M,): the map's points, and whether each is a query.
    """

    lists: np.ndarray
    judged: np.ndarray
    distances: np.ndarray
    paths: list[str]
    pids: np.ndarray
    camids: np.ndarray
    boxes: np.ndarray
    q_boxes: np.ndarray
    cmc: np.ndarray
    q_cameras: np.ndarray
    g_cameras: np.ndarray
    camera_map: np.ndarray
    camera_count: np.ndarray
    map_xy: np.ndarray
    map_pids: np.ndarray
    map_camids: np.ndarray
    map_query: np.ndarray

    def save(self, path: Path) -> None:
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays["paths"] = np.frombuffer("\0".join(self.paths).encode(), np.uint8)
        write_atomically(path, lambda handle: np.savez_compressed(handle, **arrays))

    @classmethod
    def load(cls, path: Path) -> Ranked:
        """Raises ``UserError`` when the file is damaged or of another version."""
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {f.name: stored[f.name] for f in fields(cls)}
            paths = arrays["paths"].tobytes().decode().split("\0")
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            reason = " ".join(str(error).split())[:100]
            raise UserError(f"{path}: damaged or of another version ({reason}); test the model again") from None
        return cls(**arrays | {"paths": paths})


def camera_names(records: Records, camids: np.ndarray) -> np.ndarray:
    """Returns the cameras as the dataset spells them, in the order of ``camids``."""
    return camids if records.cameras is None else records.cameras[camids]


def boxes_of(records: Records) -> np.ndarray:
    return np.zeros((len(records), 4), np.int32) if records.boxes is None else np.asarray(records.boxes, np.int32)


class Watch:
    """Watches an evaluation of ``query`` in ``gallery`` (``utils.scoring.watching``) and gives what is to be stored.

    ap: the kind of average precision for the scores by camera; empty: without them.
    """

    def __init__(self, query: Records, gallery: Records, same_list: bool, ap: str = ""):
        self.query, self.gallery, self.same_list = query, gallery, same_list
        self.top = TopLists(len(query), len(gallery), PLACES)
        numbers = [len(np.unique(records.camids)) for records in (query, gallery)]
        several = ap and 1 < max(numbers) <= MOST_CAMERAS
        self.cameras = CameraScores(len(query), gallery.camids, ap) if several else None

    def __call__(self, start: int, block: Tensor, pairs: Pairs) -> None:
        self.top(start, block, pairs)
        if self.cameras:
            self.cameras(start, block, pairs)

    def ranked(self, qf: Tensor, gf: Tensor, cmc: np.ndarray | None = None) -> Ranked:
        """qf: (Q, D), gf: (G, D): the features that were ranked."""
        rows, lists = np.unique(self.top.indices, return_inverse=True)
        shown = self.gallery.take(rows)
        none, q_cameras, means, numbers = np.zeros(0, np.int64), np.zeros(0), np.zeros((0, 0)), np.zeros((0, 0))
        if self.cameras:
            q_cameras, means, numbers = self.cameras.table(self.query.camids)
            q_cameras = camera_names(self.query, q_cameras)
        return Ranked(
            lists=lists.reshape(self.top.indices.shape).astype(np.int32),
            judged=self.top.judged,
            distances=self.top.distances,
            paths=[str(path) for path in shown.paths],
            pids=shown.original_pids(),
            camids=shown.original_camids(),
            boxes=boxes_of(shown),
            q_boxes=boxes_of(self.query),
            cmc=none if cmc is None else cmc,
            q_cameras=q_cameras,
            g_cameras=camera_names(self.gallery, self.cameras.cameras) if self.cameras else none,
            camera_map=means,
            camera_count=numbers,
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


def numbers_or_text(words: list[str]) -> np.ndarray:
    """Returns ids as integers when all of them are whole numbers, else as text."""
    try:
        return np.array([int(word) for word in words], np.int64)
    except ValueError:
        return np.array(words)


@dataclass(frozen=True)
class Queries:
    """What ``per_query.csv`` holds, (Q,) each; AP and INP are NaN where the protocol has none or nothing matches.

    pids, camids: the dataset's own, numbers or text. first: rank of the first match from 1, 0 for none. valid: whether
    there is one.
    """

    paths: list[str]
    pids: np.ndarray
    camids: np.ndarray
    ap: np.ndarray
    inp: np.ndarray
    first: np.ndarray
    valid: np.ndarray

    @classmethod
    def load(cls, path: Path) -> Queries:
        """Raises ``UserError`` when the file is missing or is no such table."""
        try:
            with open(path, newline="", encoding="utf-8") as handle:
                rows = list(csv.DictReader(handle))
            number = {name: [float(r[name] or "nan") for r in rows] for name in ("AP", "INP")}
            whole = {n: np.array([int(r[n] or 0) for r in rows]) for n in ("first_match_rank", "valid")}
            pids, camids = (numbers_or_text([row[name] for row in rows]) for name in ("pid", "camid"))
            paths = [row["path"] for row in rows]
        except (OSError, KeyError, ValueError, TypeError, csv.Error):
            raise UserError(f"{path}: missing or damaged; test the model again to have it written") from None
        return cls(
            paths, pids, camids, np.array(number["AP"]), np.array(number["INP"]),
            whole["first_match_rank"], whole["valid"].astype(bool),
        )  # fmt: skip

    def scores(self, metrics: dict[str, float]) -> dict[str, np.ndarray]:
        """Name of a figure -> (Q,) each query's share in it, NaN where the query does not count.

        Only figures that are the mean of such shares, as their values in ``metrics`` show: Rank-k with drawn galleries
        is not, nor is a mean over draws.
        """
        found = {"mAP": self.ap, "mINP": self.inp}
        for name in metrics:
            rank = re.fullmatch(r"(Rank|Recall|Top)[-@](\d+)", name)
            if rank:
                hit = self.valid & (self.first <= int(rank[2]))
                counts_misses = rank[1] != "Rank"
                found[name] = np.where(self.valid | counts_misses, hit, np.nan).astype(float)
        close = {
            name: share for name, share in found.items()
            if name in metrics and not np.isnan(share).all() and abs(np.nanmean(share) - metrics[name]) < 1e-5
        }  # fmt: skip
        return {name: close[name] for name in metrics if name in close}

    @property
    def quality(self) -> np.ndarray:
        """What queries are ordered by, 1 the best: AP, or where there is none 1 / rank of the first match; or NaN."""
        if not np.isnan(self.ap).all():
            return self.ap
        return np.where(self.valid, 1 / np.maximum(self.first, 1), np.nan)


def file_name(stem: str, test: str, several: bool) -> str:
    """The name of a test set's file: ``per_query.csv``, or ``per_query_NAME.csv`` where there are several sets."""
    path = Path(stem)
    return f"{path.stem}_{re.sub(r'[^A-Za-z0-9._-]', '_', test)}{path.suffix}" if several else stem


def kept_places(judged: np.ndarray, count: int) -> int:
    """How many places of one list (K,) to show: up to the ``count``-th image that is not junk."""
    kept = np.flatnonzero(np.cumsum(judged != JUNK) == count)
    return int(kept[0]) + 1 if len(kept) else len(judged)
