"""Pages that need no network: a template filled in, with pictures and thumbnails inside the file."""

from __future__ import annotations

import base64
import io
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from datasets.storage.pillow_decoding import BadImage, load_image
from datasets.storage.pixels import PLAIN, PixelRules
from utils.errors import LONGEST_WORD, cut
from utils.files import write_atomically

THUMBNAIL = (96, 144)
"""Width and height that a thumbnail fits in: twice what the pages show, for sharp screens."""

PNG = b"\x89PNG\r\n"
"""How a PNG file begins."""

Box = Sequence[int] | np.ndarray
"""Left, top, right, bottom of a crop in pixels; all 0: the whole image."""


def write_page(path: Path, template: str, **values: Any) -> int:
    """Fills in a file of ``tools/pages/templates``, writes the page, and returns its size in bytes.

    Values are escaped except ``Markup``, which charts are. Raises ``UserError`` if the page cannot be written.
    """
    loader = FileSystemLoader(Path(__file__).parent / "templates")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, finalize=with_short_words
    )
    page = environment.get_template(template).render(**values).encode(errors="backslashreplace")
    write_atomically(path, lambda handle: handle.write(page))
    return len(page)


def with_short_words(value: Any) -> Any:
    """Returns what a page shows of a value: no word of a text is longer than a line, but for pictures."""
    if not isinstance(value, str) or isinstance(value, Markup) or value.startswith("data:image/"):
        return value
    return re.sub(rf"\S{{{LONGEST_WORD + 1},}}", lambda word: cut(word[0], LONGEST_WORD), value)


def data_uri(raw: bytes, kind: str) -> str:
    """Returns an image file's bytes as a data URI. kind: ``jpeg`` or ``png``."""
    return f"data:image/{kind};base64,{base64.b64encode(raw).decode()}"


def thumbnail(path: str, box: Box | None = None, rules: PixelRules = PLAIN) -> str:
    """Returns a small JPEG of an image, or of its box, as a data URI; '' if it cannot be read."""
    try:
        image = load_image(path, box, rules)
    except BadImage:
        return ""
    image.thumbnail(THUMBNAIL)
    out = io.BytesIO()
    image.save(out, "JPEG", quality=78)
    return data_uri(out.getvalue(), "jpeg")


def embedded(path: Path, most: int = 400_000) -> str:
    """Returns a picture's file as a data URI; as JPEG if it is over ``most`` bytes."""
    raw = path.read_bytes()
    if not raw.startswith(PNG):
        raise ValueError(f"{path.name} is not a PNG file")
    if len(raw) <= most:
        return data_uri(raw, "png")
    out = io.BytesIO()
    with Image.open(io.BytesIO(raw)) as image:
        image = image.convert("RGB")
        image.thumbnail((1600, 1600))
        image.save(out, "JPEG", quality=80)
    return data_uri(out.getvalue(), "jpeg")
