"""The catalogue of datasets, the built-in data, transforms, samplers and loaders.

The names below are imported when they are first used, so that modules of this package that need no torch start fast.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from utils.former_names import redirect_former_commands

if TYPE_CHECKING:
    from datasets.catalogue import CATALOGUE, register_dataset
    from datasets.catalogue.spec import DatasetSpec
    from datasets.dataset import make_dataset
    from datasets.loaders import make_dataloader
    from datasets.transforms.pipelines import build_transforms

redirect_former_commands()

__all__ = ["CATALOGUE", "DatasetSpec", "build_transforms", "make_dataloader", "make_dataset", "register_dataset"]

HOMES = {
    "CATALOGUE": "catalogue",
    "DatasetSpec": "catalogue.spec",
    "build_transforms": "transforms.pipelines",
    "make_dataloader": "loaders",
    "make_dataset": "dataset",
    "register_dataset": "catalogue",
}
"""Name -> the module of this package that has it."""


def __getattr__(name: str) -> object:
    """Imports an exported name (PEP 562)."""
    if name not in HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{HOMES[name]}"), name)
