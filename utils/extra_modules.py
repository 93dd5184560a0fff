"""Imports the user's own modules, by name or by file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError, reason_of


def import_extras(names: str | Sequence[str]) -> None:
    """Imports the modules of EXTRA_MODULES: names on the path or in the working directory, or files.

    Raises ``UserError`` for what is neither, or is not there. What a module itself raises is left as it is.
    """
    for name in [names] if isinstance(names, str) else names:
        if not name.endswith(".py") and not all(part.isidentifier() for part in name.split(".")):
            raise UserError(
                f"EXTRA_MODULES: {name!r} is neither the name of a module, such as mine or mine.heads, nor a .py file"
            )
        try:
            import_one(name)
        except (ModuleNotFoundError, OSError) as error:
            raise UserError(f"EXTRA_MODULES: {name!r} cannot be imported ({reason_of(error)})") from None


def import_one(name: str) -> None:
    if not name.endswith(".py"):
        if "" not in sys.path:
            sys.path.insert(0, "")
        importlib.import_module(name)
        return
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    assert spec is not None and spec.loader is not None, "a .py file has a loader"
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
