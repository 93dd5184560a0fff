"""What looks wrong with lists before training, a line each: cheap enough for every start."""

from __future__ import annotations

import os
from dataclasses import dataclass

import numpy as np

from datasets.catalogue import ReIDDataset
from datasets.readers import SPLITS
from datasets.records import Records
from utils.errors import UserError

LONG = 1_000_000
"""From here on names are not compared: a list of this length comes from a folder, which has each name once."""


@dataclass(frozen=True)
class Finding:
    """A line. serious: worth a warning; otherwise just to be known."""

    text: str
    serious: bool = True


def findings(dataset: ReIDDataset) -> list[Finding]:
    """What the lists alone tell, without looking at a file."""
    found = []
    if dataset.shared_ids:
        found.append(Finding(f"{dataset.shared_ids} identities are in training and in the test: it measures memory"))
    single = int((np.bincount(dataset.train.pids[dataset.train.pids >= 0]) == 1).sum())
    if single and dataset.num_classes > 1:
        text = f"{single} training identities have a single image; samplers of P x K images repeat it"
        found.append(Finding(text, serious=False))
    if len(dataset.query) and len(dataset.gallery) and dataset.protocol != "classification":
        found += [Finding(text) for text in hopeless_queries(dataset)]
    for split in SPLITS:
        names = keys(getattr(dataset, split))
        twice = len(names) - len(set(names))
        if twice:
            found.append(Finding(f"{split}: {twice} images are listed more than once, such as {repeated(names)}"))
    if not dataset.same_list:
        found += [Finding(text) for text in copies_of_queries(dataset.query, dataset.gallery)]
    return found


def keys(records: Records) -> list:
    """What tells images apart: path and crop box."""
    if len(records) > LONG:
        return []
    if records.boxes is None:
        return list(records.paths)
    return list(zip(records.paths, map(tuple, records.boxes.tolist()), strict=True))


def repeated(names: list) -> str:
    seen: set = set()
    for name in names:
        if name in seen:
            return name if isinstance(name, str) else name[0]
        seen.add(name)
    return ""


def hopeless_queries(dataset: ReIDDataset) -> list[str]:
    """Queries that nothing in the gallery can match, counted by cause."""
    query, gallery = dataset.query, dataset.gallery
    _, codes = np.unique(np.concatenate([query.pids, gallery.pids]), return_inverse=True)
    own, theirs = codes[: len(query)], codes[len(query) :]
    same = np.bincount(theirs, minlength=codes.max() + 1)[own]
    if dataset.same_list:
        alone = int((same == 1).sum())
        return [f"{alone} test images are the only one of their identity and cannot be found"] if alone else []
    cameras = 1 + max(query.camids.max(), gallery.camids.max())
    here, there = own * cameras + query.camids, theirs * cameras + gallery.camids
    filtered = np.bincount(there, minlength=(codes.max() + 1) * cameras)[here]
    lines = []
    if absent := int((same == 0).sum()):
        lines.append(f"{absent} of {len(query)} queries have an identity that is absent from the gallery")
    if blind := int(((same > 0) & (same == filtered)).sum()):
        lines.append(
            f"{blind} of {len(query)} queries are found under their own camera only, which does not count: give other "
            "cameras, or leave the cameras out"
        )
    return lines


def copies_of_queries(query: Records, gallery: Records) -> list[str]:
    """Images on both sides that the camera filter leaves: each is its own perfect match."""
    where = {key: i for i, key in enumerate(keys(gallery))}
    pairs = [(i, where[key]) for i, key in enumerate(keys(query)) if key in where]
    left = [
        i for i, j in pairs
        if (query.pids[i], query.camids[i]) != (gallery.pids[j], gallery.camids[j])
        and (query.seqs is None or gallery.seqs is None or query.seqs[i] != gallery.seqs[j])
    ]  # fmt: skip
    if not left:
        return []
    return [f"{len(left)} images are query and gallery at once, such as {query.paths[left[0]]}: a perfect match each"]


def missing_of_a_few(name: str, records: Records, few: int = 32) -> Finding | None:
    """Looks for some files, evenly spaced. Raises ``UserError`` when none of them is there."""
    rows = np.unique(np.linspace(0, len(records) - 1, min(few, len(records))).astype(int))
    absent = [records.paths[i] for i in rows if not os.path.exists(records.paths[i])]
    if not absent:
        return None
    if len(absent) == len(rows):
        raise UserError(
            f"{name}: the list names images that are not there, such as {absent[0]} ({len(absent)} of {len(rows)} "
            "looked for are missing); is it unpacked, do the paths begin in the right folder?"
        )
    return Finding(
        f"{len(absent)} of {len(rows)} images looked for are missing, such as {absent[0]}; python -m datasets.check "
        "looks for all"
    )
