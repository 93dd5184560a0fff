"""Where the reference cases are and how a parity test walks them.

``LINEUP_GOLDEN`` names the folder of cases (default ``../shared/golden`` beside the checkout), ``LINEUP_DATA`` the
data folder, ``LINEUP_WEIGHTS`` the folder of published weights. If they are absent the parity tests skip with the
reason, so that a user's clone passes too; ``LINEUP_REQUIRE_GOLDEN=1`` (set by continuous integration) turns that skip
into a failure.
"""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
GOLDEN = Path(os.environ.get("LINEUP_GOLDEN") or ROOT.parent / "shared" / "golden")
DATA = Path(os.environ.get("LINEUP_DATA") or ROOT.parent / "shared" / "data")
WEIGHTS = Path(os.environ.get("LINEUP_WEIGHTS") or ROOT.parent / "shared" / "weights")
REQUIRED = os.environ.get("LINEUP_REQUIRE_GOLDEN", "") not in ("", "0")


def reader():
    """The module ``golden.py`` that every folder of cases holds."""
    spec = importlib.util.spec_from_file_location("golden", GOLDEN / "golden.py")
    module = importlib.util.module_from_spec(spec)
    import sys

    sys.modules["golden"] = module
    spec.loader.exec_module(module)
    return module


def names(prefix: str = "") -> list[str]:
    """The cases of the folder whose name starts with ``prefix``; none when the folder is absent."""
    return sorted(p.stem for p in GOLDEN.glob(f"{prefix}*.json")) if (GOLDEN / "golden.py").exists() else []


def load(name: str):
    """One case: ``.params``, ``.inputs()``, ``.outputs()``, ``.state_dict()``, ``.rtol``, ``.atol``."""
    return reader().load(name, GOLDEN)
