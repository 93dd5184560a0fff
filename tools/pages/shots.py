"""Rows of images on a page: a query and its ranked gallery, each image with its judgement in words and signs."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

from datasets.storage.pixels import PLAIN, PixelRules
from processor.query_files import Queries, Ranked, kept_places
from tools.pages.page import Box, thumbnail
from utils.scoring.judgements import JUNK, RIGHT, WRONG

QUERY, UNKNOWN = 2, 3
"""Kinds of images beside the judgements of a ranked one: the query itself, and a match whose identity is not known."""

MARKS = {
    RIGHT: ("right", "✓"),
    WRONG: ("wrong", "✗"),
    JUNK: ("junk", "–"),
    QUERY: ("query", "query"),
    UNKNOWN: ("match", ""),
}
"""Kind -> its name and its sign: colour alone would not reach everyone."""


def shot(path: str, kind: int, label: str, description: str, box: Box | None = None) -> dict[str, Any]:
    """Returns one image of a row, without its pixels. path: '' if it is not an image. label: the text below it.

    description: what it is, as alternative text.
    """
    name, mark = MARKS[kind]
    return {"path": path, "box": box, "kind": name, "mark": mark, "label": label, "alt": f"{name}, {description}"}


def query_shot(queries: Queries, ranked: Ranked | None, row: int) -> dict[str, Any]:
    """Returns the shot of a query."""
    description = f"identity {queries.pids[row]}, camera {queries.camids[row]}"
    box = None if ranked is None else ranked.q_boxes[row]
    return shot(queries.paths[row], QUERY, f"id {queries.pids[row]}", description, box)


def gallery_shots(ranked: Ranked, row: int, kept: int) -> list[dict[str, Any]]:
    """Returns a query's list up to its ``kept``-th image that is not junk; junk has no rank."""
    shots, rank = [], 0
    for position in range(kept_places(ranked.judged[row], kept)):
        image, judged = ranked.lists[row, position], int(ranked.judged[row, position])
        rank += judged != JUNK
        where = f"rank {rank}" if judged != JUNK else "no rank"
        label = f"{rank} · id {ranked.pids[image]}" if judged != JUNK else "junk"
        description = (
            f"{where}: identity {ranked.pids[image]}, camera {ranked.camids[image]}, "
            f"distance {ranked.distances[row, position]:.3f}"
        )
        shots.append(shot(ranked.paths[image], judged, label, description, ranked.boxes[image]))
    return shots


def load_thumbnails(rows: list[dict[str, Any]], rules: PixelRules = PLAIN) -> int:
    """Adds the thumbnails of all shots, reading each file once, in a few threads; returns how many failed.

    rows: ``{"title", "query": shot, "lists": [{"name", "shots": [shot, ...]}, ...]}`` each. rules: how files become
    pixels.
    """
    shots = [one for row in rows for one in [row["query"], *(s for ranking in row["lists"] for s in ranking["shots"])]]
    return load_shots(shots, rules)


def load_shots(shots: list[dict[str, Any]], rules: PixelRules = PLAIN) -> int:
    """Adds the thumbnails of some shots, reading each file once, in a few threads; returns how many failed."""
    keys = [(one["path"], tuple(one["box"]) if one["box"] is not None else None) for one in shots]
    images = [key for key in dict.fromkeys(keys) if key[0]]
    with ThreadPoolExecutor(4) as pool:
        data = dict(zip(images, pool.map(lambda key: thumbnail(key[0], key[1], rules), images), strict=True))
    for one, key in zip(shots, keys, strict=True):
        one["data"] = data.get(key, "")
    return sum(not uri for uri in data.values())
