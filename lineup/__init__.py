"""Object re-identification: train, test and use models. ``from lineup import Extractor`` is where most programs start.

The names below are imported when they are first used, so that ``import lineup`` takes no time. Everything else stands
in the packages beside this file once the wheel is installed: ``lineup.utils.metrics``, ``lineup.loss`` and so on. In a
checkout these packages stand at its top.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from configs import load_config
    from datasets import make_dataset
    from model import make_model
    from processor.extractor import Extractor

__version__ = "0.2.0"
__all__ = ["Extractor", "__version__", "load_config", "make_dataset", "make_model"]

INSTALLED = (Path(__file__).parent / "train.py").is_file()
"""Whether the packages stand below this one."""
HOMES = {
    "Extractor": "processor.extractor",
    "load_config": "configs",
    "make_dataset": "datasets",
    "make_model": "model",
}
"""Name -> the module that has it, as a checkout names it."""


def module_name(name: str) -> str:
    """Returns the name of one of our modules here. name: as a checkout names it."""
    return f"{__name__}.{name}" if INSTALLED else name


def __getattr__(name: str) -> object:
    """Imports an exported name (PEP 562)."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(module_name(HOMES[name])), name)
