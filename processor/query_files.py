"""The files of single queries, written and read back: those of a folder's last evaluation.

``per_query.csv`` holds a row per query; ``ranked.npz`` (with TEST.REPORT) holds what pages show of the rankings: the
nearest images of every query, the paths of these images, the CMC curve, mAP from camera to camera, and a map of some
features. Both are a few megabytes at MSMT17's size.
"""

from __future__ import annotations

import csv
import re
import zipfile
import zlib
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np

from processor.metrics_files import LONGEST, SLACK
from utils.errors import UserError, reason_of
from utils.files import write_atomically
from utils.safe_zip import check_archive
from utils.scoring.judgements import JUNK, RIGHT

PER_QUERY, RANKED = "per_query.csv", "ranked.npz"

TEST_AGAIN = "test the model again to have it written"


@dataclass(frozen=True)
class Queries:
    """The content of ``per_query.csv``, (Q,) each; AP and INP are NaN if the protocol has none or nothing matches.

    pids, camids: the dataset's own, numbers or text. first: rank of the first match from 1, 0 without a match. valid:
    whether there is a match.
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
        """Raises ``UserError`` if the file is missing or damaged."""
        try:
            with open(path, newline="", encoding="utf-8", errors="surrogateescape") as handle:
                rows = list(csv.DictReader(handle, strict=True))
            queries = cls(
                paths=[row["path"] for row in rows],
                pids=_numbers_or_text(rows, "pid"),
                camids=_numbers_or_text(rows, "camid"),
                ap=_shares(rows, "AP"),
                inp=_shares(rows, "INP"),
                first=np.array([int(row["first_match_rank"] or 0) for row in rows], np.int64),
                valid=np.array([{"0": False, "1": True}[row["valid"]] for row in rows], bool),
            )
            if not rows or ((queries.first > 0) != queries.valid).any():
                raise ValueError("no rows, or a rank that does not fit 'valid'")
        except (OSError, KeyError, ValueError, TypeError, OverflowError, csv.Error) as error:
            reason = "missing" if isinstance(error, FileNotFoundError) else f"damaged ({reason_of(error)})"
            raise UserError(f"{path}: {reason}; {TEST_AGAIN}") from None
        return queries

    def scores(self, metrics: dict[str, float]) -> dict[str, np.ndarray]:
        """Returns each query's share in a figure, by the figure's name: (Q,), NaN if the query does not count.

        Only for figures that are the mean of such shares, as their values in ``metrics`` show: Rank-k with drawn
        galleries is not, nor is a mean over draws.
        """
        shares = {"mAP": self.ap, "mINP": self.inp}
        for name in metrics:
            rank = re.fullmatch(r"(Rank|Recall|Top)[-@](\d+)", name)
            if rank:
                hit = self.valid & (self.first <= int(rank[2]))
                counts_misses = rank[1] != "Rank"
                shares[name] = np.where(self.valid | counts_misses, hit, np.nan).astype(float)
        return {
            name: shares[name] for name in metrics
            if name in shares and not np.isnan(shares[name]).all()
            and abs(np.nanmean(shares[name]) - metrics[name]) < 1e-5
        }  # fmt: skip

    @property
    def quality(self) -> np.ndarray:
        """What queries are ordered by, 1 is best: AP, or 1 / rank of the first match without one; or NaN."""
        if not np.isnan(self.ap).all():
            return self.ap
        return np.where(self.valid, 1 / np.maximum(self.first, 1), np.nan)


def _numbers_or_text(rows: list[dict[str, str]], name: str) -> np.ndarray:
    """Returns a column as integers if all its values are whole numbers, else as text."""
    values = [_text(row[name]) for row in rows]
    try:
        return np.array([int(value) for value in values], np.int64)
    except (ValueError, OverflowError):
        return np.array(values, dtype=object if max(map(len, values)) > LONGEST else None)  # not Q times the longest


def _text(value: str | None) -> str:
    if value is None:
        raise ValueError("a row is cut off")
    return value


def _shares(rows: list[dict[str, str]], name: str) -> np.ndarray:
    values = np.array([float(_text(row[name]) or "nan") for row in rows], np.float64)
    if ((values < 0) | (values > 1)).any() or np.isinf(values).any():
        raise ValueError(f"{name} outside of 0 to 1")
    return values


DAMAGE = (
    OSError, ValueError, KeyError, IndexError, EOFError, TypeError, AttributeError, OverflowError, SyntaxError,
    NotImplementedError, RuntimeError, zipfile.BadZipFile, zlib.error,
)  # fmt: skip
"""What NumPy and zipfile raise for damaged files."""


@dataclass(frozen=True)
class Ranked:
    """The content of ``ranked.npz``. Q queries, K images in each list, S images that are in some list.

    lists: (Q, K) rows of the images below. judged: (Q, K) 1 right, 0 wrong, -1 junk (left out of the scores).
    distances: (Q, K). paths, pids, camids, boxes (S, 4): the images; q_boxes (Q, 4): the queries' crops, all 0 for
    whole images. cmc: (R,) or empty. q_cameras (A,), g_cameras (C,), camera_map (A, C) with NaN for no match, and
    camera_count (A, C); empty if cameras are not known or too many. map_xy (M, 2), map_pids, map_camids (M,),
    map_query (M,): the map's points, and whether each is a query. open_curve: (2, P) false positive identification
    rates, and detection and identification rates; P 0 without absent queries. Identities and cameras are the dataset's
    own, numbers or text.
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
    open_curve: np.ndarray

    def save(self, path: Path) -> None:
        """Writes the file."""
        arrays = {f.name: getattr(self, f.name) for f in fields(self)}
        arrays["paths"] = np.frombuffer("\0".join(self.paths).encode(errors="surrogateescape"), np.uint8)
        write_atomically(path, lambda handle: np.savez_compressed(handle, **arrays))

    @classmethod
    def load(cls, path: Path) -> Ranked:
        """Raises ``UserError`` if the file is damaged or of another version."""
        check_archive(path)
        if not zipfile.is_zipfile(path):  # NumPy would advise to read it as a pickle
            raise UserError(f"{path}: damaged, not an archive of arrays; {TEST_AGAIN}")
        try:
            with np.load(path, allow_pickle=False) as stored:
                arrays = {f.name: stored[f.name] for f in fields(cls)}
            paths = arrays["paths"].tobytes().decode(errors="surrogateescape").split("\0")
            ranked = cls(**arrays | {"paths": paths})
            ranked._check()
        except (MemoryError, *DAMAGE) as error:
            raise UserError(
                f"{path}: damaged or of another version ({reason_of(error)}); {TEST_AGAIN}"
            ) from None
        return ranked

    def _check(self) -> None:
        """Raises ``ValueError`` for an array of another shape, type or range."""
        images, (queries, places) = len(self.paths), self.lists.shape
        cameras, points = (len(self.q_cameras), len(self.g_cameras)), len(self.map_xy)
        shapes = {
            "judged": (queries, places), "distances": (queries, places), "q_boxes": (queries, 4), "pids": (images,),
            "camids": (images,), "boxes": (images, 4), "camera_map": cameras, "camera_count": cameras,
            "map_xy": (points, 2), "map_pids": (points,), "map_camids": (points,), "map_query": (points,),
            "open_curve": (2, self.open_curve.size // 2),
            "cmc": (self.cmc.size,), "q_cameras": (cameras[0],), "g_cameras": (cameras[1],),
        }  # fmt: skip
        for name, shape in shapes.items():
            array = getattr(self, name)
            if array.shape != shape:
                raise ValueError(f"{name} has shape {array.shape}, expected {shape}")
            names = name.endswith(("pids", "camids", "_cameras"))
            numbers = "biu" if name in ("judged", "boxes", "q_boxes", "map_query") else "biuf"
            if array.dtype.kind not in ("biufU" if names else numbers):
                raise ValueError(f"{name} holds {array.dtype}")
        if self.lists.dtype.kind not in "iu":
            raise ValueError(f"lists holds {self.lists.dtype}")
        within = {
            "lists": (self.lists, 0, images - 1), "judged": (self.judged, JUNK, RIGHT), "cmc": (self.cmc, 0, 1 + SLACK),
            "distances": (self.distances, -np.inf, np.inf), "map_xy": (self.map_xy, -SLACK, 1 + SLACK),
            "camera_map": (self.camera_map[~np.isnan(self.camera_map)], -SLACK, 1 + SLACK),
            "camera_count": (self.camera_count, 0, 2**53), "open_curve": (self.open_curve, 0, 1 + SLACK),
        }  # fmt: skip
        for name, (array, low, high) in within.items():
            if array.size and not ((array >= low) & (array <= high)).all():  # a NaN is outside too
                raise ValueError(f"{name} outside of {low:g} to {high:g}")


def file_name(stem: str, test: str, several: bool) -> str:
    """Returns the name of a test set's file: ``per_query.csv``, or ``per_query_NAME.csv`` with several sets."""
    path = Path(stem)
    return f"{path.stem}_{re.sub(r'[^A-Za-z0-9._-]', '_', test)}{path.suffix}" if several else stem


def kept_places(judged: np.ndarray, count: int) -> int:
    """Returns how many places of one list (K,) to show: up to the ``count``-th image that is not junk."""
    kept = np.flatnonzero(np.cumsum(judged != JUNK) == count)
    return int(kept[0]) + 1 if len(kept) else len(judged)
