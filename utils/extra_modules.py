"""Imports the user's own modules, by name or by file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from pathlib import Path

from utils.errors import UserError


def import_extras(names: str | Sequence[str]) -> None:
    """Imports the modules of EXTRA_MODULES: names on the path or in the working directory, or files."""
    for name in [names] if isinstance(names, str) else names:
        try:
            if str(name).endswith(".py"):
                spec = importlib.util.spec_from_file_location(Path(name).stem, name)
                assert spec is not None and spec.loader is not None, "a .py file has a loader"
                module = importlib.util.module_from_spec(spec)
                sys.modules[spec.name] = module
                spec.loader.exec_module(module)
            else:
                if "" not in sys.path:
                    sys.path.insert(0, "")
                importlib.import_module(name)
        except (ModuleNotFoundError, FileNotFoundError) as error:
            raise UserError(f"EXTRA_MODULES: {name!r} cannot be imported ({error})") from None
