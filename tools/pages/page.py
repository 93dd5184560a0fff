"""Pages that need no network: a template filled in, with pictures and thumbnails inside the file."""

from __future__ import annotations

import base64
import io
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from PIL import Image

from datasets.storage.decoding import BadImage, load_image
from utils.files import write_atomically

THUMBNAIL = (96, 144)
"""Width and height that a thumbnail fits in: twice what the pages show, for sharp screens."""

MARKS = {1: ("right", "✓"), 0: ("wrong", "✗"), -1: ("junk", "–"), 2: ("query", "query"), 3: ("found", "")}
"""Judgement (``scoring.watching``; 2: the query, 3: not known) -> its name and its sign: told by more than colour."""


def write_page(path: Path, template: str, **values: Any) -> int:
    """Fills in a file of ``processor/templates`` and writes it; returns its size in bytes.

    Values are escaped but for ``Markup``, as charts are. Raises ``UserError`` where it cannot be written.
    """
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True)
    page = environment.get_template(template).render(**values).encode()
    write_atomically(path, lambda handle: handle.write(page))
    return len(page)


def data_uri(raw: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"


def thumbnail(path: str, box: np.ndarray | None = None) -> str:
    """A small JPEG of an image, or of its box, as a data URI; '' where it cannot be read."""
    try:
        image = load_image(path, box)
    except BadImage:
        return ""
    image.thumbnail(THUMBNAIL)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=78)
    return data_uri(out.getvalue(), "jpeg")


def embedded(path: Path, most: int = 400_000) -> str:
    """A picture's file as a data URI; as JPEG where it is over ``most`` bytes."""
    raw = path.read_bytes()
    if len(raw) <= most:
        return data_uri(raw, "png")
    out = io.BytesIO()
    with Image.open(io.BytesIO(raw)) as image:
        image = image.convert("RGB")
        image.thumbnail((1600, 1600))
        image.save(out, "JPEG", quality=80)
    return data_uri(out.getvalue(), "jpeg")


def shot(path: str, judged: int, label: str, told: str, box: np.ndarray | None = None) -> dict[str, Any]:
    """One image of a row, without its pixels. path: '' for what is no image. label: below it.

    told: what it is, for those who do not see it.
    """
    kind, mark = MARKS[judged]
    return {"path": path, "box": box, "kind": kind, "mark": mark, "label": label, "alt": f"{kind}, {told}"}


def with_pixels(rows: list[dict[str, Any]]) -> int:
    """Reads the thumbnails of all shots of rankings, each file once, in a few threads; returns how many failed.

    rows: ``{"title", "query": shot, "lists": [{"name", "shots": [shot, ...]}, ...]}`` each.
    """
    shots = [one for row in rows for one in [row["query"], *(s for part in row["lists"] for s in part["shots"])]]
    keys = [(one["path"], tuple(one["box"]) if one["box"] is not None else None) for one in shots]
    wanted = [key for key in dict.fromkeys(keys) if key[0]]
    with ThreadPoolExecutor(4) as pool:
        found = dict(zip(wanted, pool.map(lambda key: thumbnail(*key), wanted), strict=True))
    for one, key in zip(shots, keys, strict=True):
        one["data"] = found.get(key, "")
    return sum(not data for data in found.values())
