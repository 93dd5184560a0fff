"""Reader of CUHK03 (Li, CVPR 2014): the raw ``.mat`` or its extracted images, classic and new protocol."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from datasets.catalogue.spec import DatasetSpec
from datasets.readers.scan import first_of, note_read
from datasets.records import RawRow, RawSplits
from utils.errors import UserError

log = logging.getLogger("lineup")

LEVELS = ("", "cuhk03_release", "cuhk03")


def read_cuhk03(
    spec: DatasetSpec, folder: Path, labeled: bool = True, classic: bool = False, split_id: int = 0, **options: Any
) -> RawSplits:
    """Reads the lists of a split.

    labeled: hand-drawn boxes rather than a detector's. classic: 20 splits (split_id) of 1,367 / 100 persons, single
    gallery shots, query and gallery the same images; otherwise the new protocol, 767 / 700 persons. Cameras are the
    views in the file names, 1 and 2.

    Images are taken from the raw file once, into ``images_labeled`` or ``images_detected`` beside it.
    """
    kind = "labeled" if labeled else "detected"
    images = first_of([folder / level / f"images_{kind}" for level in LEVELS]) or extract(spec, folder, kind)
    splits = stored_splits(spec, folder, kind, classic) or made_splits(spec, folder, kind, classic, images)
    if not 0 <= split_id < len(splits):
        raise UserError(
            f"DATASETS.SPLIT_ID: {split_id}; the {'classic' if classic else 'new'} protocol has {len(splits)} splits, "
            "counted from 0"
        )
    train, query, gallery = (
        [RawRow(f"{images}/{name}", pid, int(name.split("_")[2])) for name, pid in splits[split_id][split]]
        for split in ("train", "query", "gallery")
    )
    train.sort(key=lambda row: row.path)
    return RawSplits(train, query, gallery, protocol="cuhk03" if classic else "", listed=True)


def stored_splits(spec: DatasetSpec, folder: Path, kind: str, classic: bool) -> list[dict] | None:
    """Returns the splits of ``splits_{classic,new}_{kind}.json``, ours or upstream's (whose paths are cut to the base
    name), or None if there is no such file."""
    name = f"splits_{'classic' if classic else 'new'}_{kind}.json"
    path = first_of([folder / level / name for level in LEVELS])
    if path is None:
        return None
    try:
        return [
            {
                name: [(entry[0].replace("\\", "/").rpartition("/")[2], entry[1]) for entry in split[name]]
                for name in ("train", "query", "gallery")
            }
            for split in json.loads(path.read_text())
        ]
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        raise UserError(f"{spec.name}: {path} is not a list of splits with train, query and gallery") from None


def made_splits(spec: DatasetSpec, folder: Path, kind: str, classic: bool, images: Path) -> list[dict]:
    """Returns the splits that the ``.mat`` files give."""
    if not classic:
        return [new_split(spec, folder, kind)]
    with raw_file(spec, folder) as raw:
        tests = [{(int(pair), int(person)) for pair, person in raw[ref][:].T} for ref in raw["testsets"][0]]
    with os.scandir(note_read(images)) as entries:
        names = sorted((tuple(map(int, e.name[:-4].split("_"))), e.name) for e in entries if e.name.endswith(".png"))
    return [classic_split(names, test) for test in tests]


def classic_split(names: list[tuple[tuple[int, ...], str]], test: set[tuple[int, int]]) -> dict:
    """Returns a split with persons numbered in file order; query and gallery are all images of the test persons."""
    images: dict[bool, list] = {True: [], False: []}
    numbers: dict[bool, dict] = {True: {}, False: {}}
    for key, name in names:
        person = key[:2]
        tested = person in test
        images[tested].append((name, numbers[tested].setdefault(person, len(numbers[tested]))))
    return {"train": images[False], "query": images[True], "gallery": images[True]}


def new_split(spec: DatasetSpec, folder: Path, kind: str) -> dict:
    """Returns the 767 / 700 split of ``cuhk03_new_protocol_config_{kind}.mat`` (Zhong, CVPR 2017)."""
    from scipy.io import loadmat

    name = f"cuhk03_new_protocol_config_{kind}.mat"
    path = first_of([folder / level / name for level in LEVELS])
    if path is None:
        tried = ", ".join(str(folder / level / name) for level in LEVELS)
        raise UserError(f"{spec.name}: no split of the new protocol; looked for {tried} and splits_new_{kind}.json")
    try:
        config = loadmat(path, squeeze_me=True)
        labels, files = np.atleast_1d(config["labels"]).astype(int), np.atleast_1d(config["filelist"])
        return {
            split: [(str(files[i - 1]), int(labels[i - 1])) for i in np.atleast_1d(config[f"{split}_idx"])]
            for split in ("train", "query", "gallery")
        }
    except (KeyError, IndexError, ValueError, TypeError, NotImplementedError):
        raise UserError(f"{spec.name}: {path} holds no split (filelist, labels, train_idx, ...)") from None


def raw_file(spec: DatasetSpec, folder: Path) -> Any:
    """Returns ``cuhk-03.mat`` as an open ``h5py.File``."""
    candidates = [folder / level / "cuhk-03.mat" for level in LEVELS]
    path = first_of(candidates)
    if path is None:
        raise UserError(
            f"{spec.name}: neither extracted images (images_labeled, images_detected) nor the raw file in {folder}; "
            f"looked for {', '.join(map(str, candidates))}"
        )
    try:
        import h5py
    except ModuleNotFoundError:
        raise UserError(f"{spec.name}: {path} needs h5py: pip install -r requirements-extra.txt") from None
    return h5py.File(path, "r")


def extract(spec: DatasetSpec, folder: Path, kind: str) -> Path:
    """Writes ``images_{kind}`` beside the raw file, whole or not at all: ``{pair}_{person:03}_{view}_{image:02}.png``.

    The file holds five cells of persons x 10 references, transposed; columns 1-5 are the pair's first view.
    """
    with raw_file(spec, folder) as raw:
        parent = Path(raw.filename).parent
        out, partial = parent / f"images_{kind}", parent / f"images_{kind}.{os.getpid()}.partial"
        log.info("%s: taking the %s images out of %s, once", spec.name, kind, raw.filename)
        try:
            partial.mkdir()
            for pair, pair_reference in enumerate(raw[kind][0], 1):
                for person, references in enumerate(raw[pair_reference][:].T, 1):
                    for image, reference in enumerate(references, 1):
                        pixels = raw[reference][:].T
                        if pixels.size and pixels.ndim == 3:  # an absent image is an empty cell
                            name = f"{pair}_{person:03d}_{1 if image <= 5 else 2}_{image:02d}.png"
                            Image.fromarray(pixels.astype(np.uint8)).save(partial / name)
            partial.rename(out)
        except OSError as error:
            shutil.rmtree(partial, ignore_errors=True)
            if not out.is_dir():  # another process may have been first
                raise UserError(f"{spec.name}: {out} cannot be written ({error.strerror or error})") from None
    return out
