"""Former names of commands: running one prints the new name and ends with exit code 2."""

from __future__ import annotations

import sys
from importlib.abc import InspectLoader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import spec_from_loader

FORMER = {
    "datasets.check": "tools.check_data",
    "datasets.shards": "tools.make_shards",
    "model.describe": "tools.describe",
    "processor.text_query": "tools.search --text",
    **{
        f"processor.{name}": f"tools.{name}"
        for name in ("average", "cfs", "compare", "export", "extract", "pictures", "record", "report", "search")
    },
}
"""Module that ``python -m`` used to start -> what replaces it."""


class FormerCommands(MetaPathFinder, InspectLoader):
    """Finds the former names if nothing else does; running one prints the line."""

    def find_spec(self, fullname: str, path: object, target: object = None) -> ModuleSpec | None:
        return spec_from_loader(fullname, self) if fullname in FORMER else None

    def get_source(self, fullname: str) -> str:
        line = f"error: python -m {fullname} is now: python -m {FORMER[fullname]}"
        return f"import sys\nprint({line!r}, file=sys.stderr)\nsys.exit(2)\n"


def redirect_former_commands() -> None:
    """Registers the former names with the import system. Called by the packages that had them."""
    if not any(isinstance(finder, FormerCommands) for finder in sys.meta_path):
        sys.meta_path.append(FormerCommands())
