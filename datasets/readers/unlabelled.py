"""Reads images without labels: LUPerson, and any folder or list."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from datasets.catalogue.spec import DatasetSpec
from datasets.paths import Paths
from datasets.readers.filter_list import listed_names
from datasets.readers.scan import first_of, require, walk_images
from datasets.records import RawSplits, Records
from utils.errors import UserError

NO_LIST = "no"
LIST_FOLDERS = {"luperson": "images", "images": ""}
"""Where in a dataset's folder the names of its filter list begin."""


def read_luperson(
    spec: DatasetSpec, folder: Path, keep_num: int | None = None, filter_path: str = "", **options: Any
) -> RawSplits:
    """Reads LUPerson (Fu, CVPR 2021), for pre-training: every image of ``images/``, label 0, camera 0.

    With a list, ``filter_path`` or else ``CFS_list.pkl`` (or ``CFS_list.txt``) of the dataset's folder, the first
    ``keep_num`` of its names instead, None: all of them. filter_path ``no`` ignores the folder's own list.
    """
    images = require(folder / LIST_FOLDERS["luperson"], "folder", spec)
    lists = [folder / "CFS_list.pkl", folder / "CFS_list.txt"] if not filter_path else []
    path = Path(filter_path) if filter_path not in ("", NO_LIST) else first_of(lists)
    if path is None and keep_num is not None:
        raise UserError(
            f"DATASETS.KEEP_NUM: {spec.name} has no CFS_list.pkl nor CFS_list.txt in {folder} to keep from, and "
            "DATASETS.FILTER_PATH names no list"
        )
    return listed_or_all(spec, images, path, keep_num, label=0)


def read_images(
    spec: DatasetSpec, folder: Path, keep_num: int | None = None, filter_path: str = "", **options: Any
) -> RawSplits:
    """Reads every image at any depth below the folder, or the first ``keep_num`` of a list; no labels, camera 0."""
    if keep_num is not None and not filter_path:
        raise UserError("DATASETS.KEEP_NUM: DATASETS.FILTER_PATH is empty, there is no list to keep from")
    return listed_or_all(spec, folder, Path(filter_path) if filter_path else None, keep_num, label=-1)


def find_images(root: str | Path, **options: Any) -> Path:
    """Returns DATASETS.ROOT_DIR, which is the dataset; raises ``UserError`` if it is not a folder."""
    if not Path(root).is_dir():
        raise UserError(f"images: DATASETS.ROOT_DIR {str(root)!r} is not a folder")
    return Path(root)


def listed_or_all(spec: DatasetSpec, folder: Path, path: Path | None, keep_num: int | None, label: int) -> RawSplits:
    """Reads all images below ``folder``, or the first ``keep_num`` that the list at ``path`` names, sorted by name."""
    notes = []
    if path is None:
        names = walk_images(folder)
    else:
        names = listed_names(path, keep_num)
        names.sort()
        if keep_num is not None and len(names) < keep_num:
            notes.append(f"{path} lists {len(names):,} images, {keep_num:,} were asked for: all are used")
    if not len(names):
        raise UserError(f"{spec.name}: no images in {folder}")
    train = Records.of(Paths.of_names(names, str(folder)), np.full(len(names), label))
    return RawSplits(train, notes=notes, listed=path is not None)
