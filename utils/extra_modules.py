"""The user's own modules, imported by name or by file."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path

from utils.errors import UserError


def import_extras(names) -> None:
    """Imports the user's modules (EXTRA_MODULES): names on the path or in the working directory, or files."""
    for name in [names] if isinstance(names, str) else names:
        try:
            if str(name).endswith(".py"):
                spec = importlib.util.spec_from_file_location(Path(name).stem, name)
                module = importlib.util.module_from_spec(spec)
                sys.modules[spec.name] = module
                spec.loader.exec_module(module)
            else:
                if "" not in sys.path:
                    sys.path.insert(0, "")
                importlib.import_module(name)
        except (ModuleNotFoundError, FileNotFoundError) as error:
            raise UserError(f"EXTRA_MODULES: {name!r} cannot be imported ({error})") from None
