"""Journals and labels of other tools: sound ones to damage and what reads them."""

from __future__ import annotations

import io
import json
import zipfile
from functools import lru_cache
from pathlib import Path
from typing import Any

from tools.labelling.constraints import Constraints
from tools.labelling.exchange import matched, read_labels
from tools.labelling.journal import Decision, Journal, list_digest
from tools.labelling.session import Images

NAMES = [f"{i}.jpg" for i in range(12)]


@lru_cache
def journals() -> list[tuple[str, bytes]]:
    header = {"format": "lineup labels", "version": 1, "images": len(NAMES), "list": list_digest(NAMES)}
    decisions = [
        Decision(1, "clusters", same=((0, 1, 2),), name=((0, "anna"),)), Decision(2, "pairs", differ=((2, 3),)),
        Decision(3, "pairs", unsure=((4, 5),)), Decision(4, "suspects", nobody=(6,), keep=("far 7 1",)),
        Decision(5, "suspects", set=((8, "7"),), why="its nearest are of 7"), Decision(6, "undo", undo=2),
    ]  # fmt: skip
    return [("journal.jsonl", json.dumps(header).encode() + b"\n" + b"".join(one.line() for one in decisions))]


def read_journal(path: Path) -> Any:
    journal = Journal.open(path, NAMES)
    try:
        return Constraints.of(len(NAMES), journal.active()).members
    finally:
        journal.close()


@lru_cache
def exports() -> list[tuple[str, bytes]]:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("bounding_box_default/7_c1s1_000000_003.jpg", "query/0012_c2s3_000015_004.jpg"):
            archive.writestr(name, b"")
        archive.writestr("images_default.txt", "bounding_box_default/0007_c1s1_000000_005.jpg\n" * 3)
    tasks = [
        {
            "data": {"image": f"/data/upload/1/0a1b2c3d-{name}"},
            "annotations": [{"result": [{"value": {"choices": ["anna"]}}]}, {"result": [{"value": {"text": ["bob"]}}]}],
        }
        for name in NAMES[:4]
    ]
    classes = {"classes": ["anna", "bob"], "labels": {name[:-4]: i % 2 for i, name in enumerate(NAMES[:6])}}
    texts = [("a.json", json.dumps(content).encode()) for content in (tasks, classes)]
    return [("a.zip", out.getvalue()), *texts]


def read_export(path: Path) -> Any:
    return matched(read_labels(path), Images(NAMES, NAMES))
