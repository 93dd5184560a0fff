"""What a store holds: a unit feature per image with its columns, and what the store itself says about its features."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np

from utils.errors import UserError

VERSION = 1
"""Of the layout. A store of a later version is refused; earlier ones are read."""
TEXT = ("identity", "camid", "seq", "path", "box", "source")
"""Columns of text; '' where unknown. box: four numbers in pixels. source: what was added together, by name."""
TIMES = ("time", "added")
"""Columns of seconds. time: of the image, NaN where unknown. added: since the epoch, when the row was written."""
UNIT_SLACK = 1e-3
"""Of the length of a feature. Features in half precision are off by as much."""
ROW_BITS = 32
"""A row's number in its source is the low half of its id, the source's number the high half."""


def source_number(source: str) -> int:
    """Returns the number of a source, from its name alone, so that writers need not agree on one: 31 bits."""
    return int.from_bytes(hashlib.sha256(source.encode(errors="surrogateescape")).digest()[:4]) >> 1


def first_id(source: str) -> int:
    """Returns the id of row 0 of a source; those of its other rows follow in order."""
    return source_number(source) << ROW_BITS


def row_of(number: int) -> int:
    """Returns the row in its source of an id."""
    return number & (2**ROW_BITS - 1)


@dataclass(frozen=True)
class StoreMeta:
    """What every feature of a store has in common.

    model_hash: of the extractor. width: of a feature. space: ``image`` or ``text``. distance: as TEST.METRIC.
    settings: what else the features depend on, '' of nothing. commit: of the code that created the store.
    """

    model_hash: str
    width: int
    space: str = "image"
    distance: str = "euclidean"
    settings: dict[str, Any] | None = None
    commit: str = ""
    version: int = VERSION

    def content(self) -> dict[str, Any]:
        """Returns it in JSON's types."""
        return asdict(self)

    @classmethod
    def of(cls, content: Any, address: str) -> StoreMeta:
        """Returns what a store says about itself. Raises ``UserError`` if it is damaged or of a later version."""
        kinds = {"model_hash": str, "width": int, "space": str, "distance": str, "commit": str, "version": int}
        if not isinstance(content, dict) or any(type(content.get(name)) is not kind for name, kind in kinds.items()):
            raise UserError(f"{address}: does not say what its features are; it was not created by tools.gallery")
        if content["version"] > VERSION:
            raise UserError(
                f"{address}: written by a newer Lineup (layout {content['version']}, this one reads up to {VERSION}); "
                "update Lineup"
            )
        if not 1 <= content["width"] <= 2**20 or not isinstance(content.get("settings"), dict | None):
            raise UserError(f"{address}: what it says about its features is damaged")
        return cls(**{f.name: content[f.name] for f in fields(cls) if f.name in content})

    def refuse_other(self, model_hash: str, width: int, what: str, address: str, force: bool = False) -> None:
        """Raises ``UserError`` unless features are of this store's model. what: whose they are. force: any model's."""
        if width != self.width:
            raise UserError(f"{what}: features are {width} wide, those of {address} {self.width}")
        if force or model_hash == self.model_hash:
            return
        if not model_hash:
            raise UserError(f"{what}: does not say which model its features are of (--force adds them all the same)")
        raise UserError(
            f"{what}: made with another model or setting ({model_hash[:12]}) than {address} ({self.model_hash[:12]}); "
            "extract the images again with the store's model, or create another store"
        )


@dataclass
class StoreRows:
    """Rows to write: ids (n,) int64, features (n, D) float32, columns of ``TEXT`` and ``TIMES`` by name, n each."""

    ids: np.ndarray
    feats: np.ndarray
    columns: dict[str, Any]

    def __len__(self) -> int:
        return len(self.ids)

    def only(self, kept: np.ndarray) -> StoreRows:
        """Returns some of the rows. kept: (n,) bool."""
        columns = {
            name: values[kept] if isinstance(values, np.ndarray) else [values[i] for i in np.flatnonzero(kept)]
            for name, values in self.columns.items()
        }
        return StoreRows(self.ids[kept], self.feats[kept], columns)


def checked_features(feats: np.ndarray, first: int, what: str) -> np.ndarray:
    """Returns features (n, D) as float32. Raises ``UserError`` for one that is not finite or not of unit length.

    first: number of the first row, in the message. what: whose features they are.
    """
    feats = np.ascontiguousarray(feats, np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.sqrt(np.einsum("ij,ij->i", feats, feats))
    bad = np.flatnonzero(~(np.abs(lengths - 1) <= UNIT_SLACK))
    if not len(bad):
        return feats
    row, length = first + int(bad[0]), float(lengths[bad[0]])
    if not np.isfinite(feats[bad[0]]).all():
        raise UserError(f"{what}: the feature of row {row} holds NaN or infinity; nothing of its batch was added")
    raise UserError(
        f"{what}: the feature of row {row} has length {length:.4g}, and a store holds features of unit length; extract "
        "with TEST.FEAT_NORM 'yes'"
    )
