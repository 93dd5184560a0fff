"""What the service can do, without a word of HTTP: embed, search, compare two images, add to the store and erase."""

from __future__ import annotations

import io
import secrets
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from datasets.storage.pillow_decoding import decode, load_image
from processor.extractor import Extractor, finite
from tools.galleries.erasing import erase
from tools.galleries.filters import RowFilter
from tools.galleries.schema import ROW_BITS, StoreRows, checked_features, first_id
from tools.galleries.searching import as_line, refuse_unknown_columns, search_store
from tools.galleries.sources import SOURCE, Source, claim_source
from tools.galleries.store import Store
from utils.calibration import Calibration
from utils.errors import UserError

THUMBNAIL = (128, 192)
LONGEST_TEXT = 200
"""Letters of an identity, a camera or a tracklet that is added."""


class Service:
    """A model and a store. calibration: None where nothing decides. far: the false accept rate whose threshold does."""

    def __init__(
        self,
        extractor: Extractor,
        store: Store | None,
        calibration: Calibration | None = None,
        far: float | None = None,
    ):
        self.extractor, self._store, self._calibration = extractor, store, calibration
        self.limit = calibration.threshold(far).distance if calibration else None
        if store is not None:
            store.meta.refuse_other(extractor.model_hash, extractor.width, "--run", store.address)
        self.writing = threading.Lock()
        self.source = f"service-{secrets.token_hex(4)}"
        """Of the rows that this process adds: no other process has the name, so ids need no agreement."""
        self.added = 0

    @property
    def store(self) -> Store:
        """The store. Raises ``UserError`` without one."""
        if self._store is None:
            raise UserError("this service has no store; start it with --gallery")
        return self._store

    @property
    def calibration(self) -> Calibration:
        """The calibration. Raises ``UserError`` without one."""
        if self._calibration is None:
            raise UserError("this service has no calibration; start it with TEST.CALIBRATION")
        return self._calibration

    def without_address(self, words: str) -> str:
        """Returns a message as clients may read it, without the store's address."""
        return words if self._store is None else words.replace(self._store.address, "the gallery")

    def prepared(self, images: list[bytes]) -> Tensor:
        """Returns uploaded images as the model takes them, (n, 3, H, W). Raises ``BadImage`` with its number."""
        rules = self.extractor.rules
        tensors = [self.extractor.transform(decode(raw, f"image {i}", rules=rules)) for i, raw in enumerate(images)]
        return torch.stack(tensors) if tensors else torch.empty(0, 3, *self.extractor.size)

    def embed(self, images: Tensor) -> np.ndarray:
        """Returns features (B, D) of images (B, 3, H, W)."""
        return finite(self.extractor.features(images).cpu().numpy(), "uploaded images")

    def search(self, feats: np.ndarray, k: int, where: RowFilter, exact: bool) -> dict[str, Any]:
        """Returns the nearest rows of each feature (n, D), and how exact they are."""
        store = self.store
        refuse_unknown_columns(store, where, store.facts(SOURCE))
        ids, distances, how = search_store(store, feats, k, where, exact)
        columns = store.rows([number for number in np.unique(ids).tolist() if number >= 0])
        return {"how": how, "results": [self.matches(*pair, columns) for pair in zip(ids, distances, strict=True)]}

    def matches(self, ids: np.ndarray, distances: np.ndarray, columns: dict[int, dict[str, Any]]) -> dict[str, Any]:
        """Returns the matches of one query. columns: of the rows by id; one that was erased meanwhile is left out."""
        kept = [i for i, number in enumerate(ids.tolist()) if number in columns]
        found = [
            {
                "rank": rank,
                "distance": float(distances[i]),
                "id": str(ids[i]),
                **as_line(int(ids[i]), columns[int(ids[i])]),
            }
            for rank, i in enumerate(kept, 1)
        ]
        for match in found:
            match["has_image"] = bool(match.pop("path", ""))
        if self._calibration is None:
            return {"matches": found}
        shares = self._calibration.probability(distances[kept])
        for match, share in zip(found, shares, strict=True):
            match["probability"] = round(float(share), 6)
        return {"matches": found, "known": bool(found) and found[0]["distance"] <= self.limit}

    def same(self, feats: np.ndarray) -> dict[str, Any]:
        """Returns whether two features (2, D) are of one identity, with the probability."""
        calibration = self.calibration
        distance = float(calibration.distances(feats[:1], feats[1:])[0, 0])
        probability = float(calibration.probability(np.array([distance]))[0])
        return {"distance": distance, "probability": round(probability, 6), "same": distance <= float(self.limit or 0)}

    def add(self, feats: np.ndarray, columns: dict[str, Any]) -> dict[str, Any]:
        """Adds features (n, D) with ``identity``, ``camid``, ``seq`` (n texts each) and ``time`` (n seconds)."""
        count, store = len(feats), self.store
        texts = {name: texts_of(columns, name, count) for name in ("identity", "camid", "seq")}
        times = times_of(columns, count)
        with self.writing, store.writing():
            if not self.added:
                source = Source(self.source, self.source, 2**ROW_BITS - 1, 2**ROW_BITS - 1)
                claim_source(store, source, {"identity", "camid", "seq", "time"})
            ids = first_id(self.source) + np.arange(self.added, self.added + count)
            empty = [""] * count
            rows = {**texts, "path": empty, "box": empty, "source": [self.source] * count}
            rows |= {"time": times, "added": np.full(count, time.time())}
            store.add(StoreRows(ids, checked_features(feats, 0, "uploaded images"), rows))
            self.added += count
        return {"added": count, "ids": [str(number) for number in ids.tolist()]}

    def erase(self, where: RowFilter) -> dict[str, Any]:
        """Erases rows from answers and files."""
        used = [name for name in vars(where) if getattr(where, name)]
        with self.writing:
            erased = erase(self.store, where, " and ".join(used))
        return {"erased": erased.rows, "left": erased.left}

    def thumbnail(self, number: int) -> bytes | None:
        """Returns a small JPEG of a row's image, None if the row has none that can be read here."""
        columns = self.store.rows([number]).get(number)
        path = columns["path"] if columns else ""
        if not columns or not path or not Path(path).is_file():
            return None
        box = np.array([int(float(word)) for word in columns["box"].split()]) if columns["box"] else None
        picture = load_image(path, box, self.extractor.rules)
        picture.thumbnail(THUMBNAIL)
        out = io.BytesIO()
        picture.save(out, "JPEG", quality=80)
        return out.getvalue()


def texts_of(columns: dict[str, Any], name: str, count: int) -> list[str]:
    """Returns a column of texts. Raises ``UserError`` for one of another length or kind."""
    values = columns.get(name, [""] * count)
    if not isinstance(values, list) or len(values) != count or not all(isinstance(value, str) for value in values):
        raise UserError(f"{name}: expected a list of {count} texts")
    if any(len(value) > LONGEST_TEXT for value in values):
        raise UserError(f"{name}: a text has more than {LONGEST_TEXT} letters")
    return values


def times_of(columns: dict[str, Any], count: int) -> np.ndarray:
    """Returns the column of times, NaN where unknown. Raises ``UserError`` for one of another length or kind."""
    values = columns.get("time", [None] * count)
    known = isinstance(values, list) and len(values) == count
    if not known or not all(value is None or type(value) in (int, float) for value in values):
        raise UserError(f"time: expected a list of {count} numbers, in seconds, or nulls")
    return np.array([np.nan if value is None else float(value) for value in values])
