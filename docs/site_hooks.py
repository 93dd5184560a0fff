"""What MkDocs does to the pages on their way into the site."""

from __future__ import annotations

import re
from typing import Any

OUTSIDE = re.compile(r"\[([^\]]+)\]\(\.\./[^)]+\)")
"""Links to files of the repository that are no pages, such as sources."""


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Returns a page without links out of ``docs/``, which lead nowhere in the site; their texts stay.

    Pages of the API link each other across folders, and keep their links.
    """
    return markdown if page.file.src_uri.startswith("api/") else OUTSIDE.sub(r"\1", markdown)
