"""What is told of the data before any work: lists that look wrong, and what cannot be trained or tested on."""

from __future__ import annotations

import logging
import os
import time
from dataclasses import dataclass

import numpy as np

from datasets.catalogue import find_spec
from datasets.dataset import ReIDDataset
from datasets.options import names_of
from datasets.readers.scan import is_image
from datasets.records import LONG, SPLITS, Records
from utils.errors import UserError
from utils.scoring.matching import Matching

log = logging.getLogger("lineup")


def refuse_trained_targets(cfg) -> None:
    """Raises ``UserError`` where a source is a target too."""
    sources = {find_spec(name).name for name in names_of(cfg.DATASETS.NAMES)}
    both = sources & {find_spec(name, "DATASETS.TARGETS").name for name in names_of(cfg.DATASETS.TARGETS)}
    if both:
        raise UserError(f"DATASETS.TARGETS: {', '.join(sorted(both))} is source and target at once")


def refuse_hopeless(name: str, query: Records, gallery: Records, same_list: bool) -> None:
    """Raises ``UserError`` before any work when no query of a test set can have a match."""
    try:
        seqs = (None, None) if query.seqs is None or gallery.seqs is None else (query.seqs, gallery.seqs)
        Matching(query.pids, gallery.pids, query.camids, gallery.camids, *seqs, same_list=same_list)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def tell_findings(dataset: ReIDDataset) -> None:
    """Logs what looks wrong with the lists of a dataset."""
    if dataset.use_all:
        log.warning("%s: trains on its query and gallery images too (DATASETS.USE_ALL)", dataset.spec.name)
    for finding in findings(dataset):
        log.log(logging.WARNING if finding.serious else logging.INFO, "%s: %s", dataset.spec.name, finding.text)


def refuse_missing(dataset: ReIDDataset, splits: tuple[str, ...], skip: bool) -> None:
    """Raises ``UserError`` where a list names images that are not there. skip: training goes on without such images."""
    name = dataset.spec.name
    for split in splits if dataset.listed else ():
        records = getattr(dataset, split)
        absent, looked = missing(records)
        if looked < len(records):
            log.info("%s: looked for %d of the %d images of the %s list in the time", name, looked, len(records), split)
        if not len(absent):
            continue
        line = f"{name}: {missing_line(split, records, absent, looked)}"
        if split == "train" and skip:
            log.warning(line)
        else:
            raise UserError(line + ("; DATALOADER.BAD_IMAGES 'skip' trains without" if split == "train" else ""))


def refuse_unlabelled(cfg, train: Records) -> None:
    """Raises ``UserError`` where labels are needed and some training images have none."""
    without = int((train.pids < 0).sum())
    if without and (cfg.PROCESSOR.NAME in ("supervised", "prompt", "self_distill") or cfg.DATASETS.VAL_SHARE):
        raise UserError(
            f"{without} training images have no pid; only clustering and pre-training do without, and not with "
            "DATASETS.VAL_SHARE (PROCESSOR.NAME is "
            f"{cfg.PROCESSOR.NAME!r})"
        )


def refuse_skipping(cfg) -> None:
    """Raises ``UserError`` where images may not be left out: the method takes a feature of every training image."""
    if cfg.DATALOADER.BAD_IMAGES == "skip":
        raise UserError(
            f"DATALOADER.BAD_IMAGES 'skip' and PROCESSOR.NAME {cfg.PROCESSOR.NAME!r} cannot go together: it takes a "
            "feature of every training image"
        )


@dataclass(frozen=True)
class Finding:
    """A line. serious: worth a warning; otherwise just to be known."""

    text: str
    serious: bool = True


def findings(dataset: ReIDDataset) -> list[Finding]:
    """What the lists alone tell, without looking at a file."""
    found = []
    if dataset.shared_ids:
        found.append(Finding(f"{dataset.shared_ids} identities are in training and in the test: it measures memory"))
    single = int((np.bincount(dataset.train.pids[dataset.train.pids >= 0]) == 1).sum())
    if single and dataset.num_classes > 1:
        text = f"{single} training identities have a single image; samplers of P x K images repeat it"
        found.append(Finding(text, serious=False))
    if len(dataset.query) and len(dataset.gallery) and dataset.protocol != "classification":
        found += [Finding(text) for text in hopeless_queries(dataset)]
    short = [part for split in SPLITS if dataset.listed and len(part := getattr(dataset, split)) <= LONG]
    strange = sorted({path for part in short for path in part.paths if not is_image(path.rpartition("/")[2])})
    if strange:
        found.append(Finding(f"{len(strange)} files have no image's ending, such as {strange[0]}"))
    for split in SPLITS:
        names = keys(getattr(dataset, split))
        twice = len(names) - len(set(names))
        if twice:
            found.append(Finding(f"{split}: {twice} images are listed more than once, such as {repeated(names)}"))
    if not dataset.same_list:
        found += [Finding(text) for text in copies_of_queries(dataset.query, dataset.gallery)]
    return found


def keys(records: Records) -> list:
    """What tells images apart: path and crop box."""
    if len(records) > LONG:
        return []
    if records.boxes is None:
        return list(records.paths)
    return list(zip(records.paths, map(tuple, records.boxes.tolist()), strict=True))


def repeated(names: list) -> str:
    seen: set = set()
    for name in names:
        if name in seen:
            return name if isinstance(name, str) else name[0]
        seen.add(name)
    return ""


def hopeless_queries(dataset: ReIDDataset) -> list[str]:
    """Queries that nothing in the gallery can match, counted by cause."""
    query, gallery = dataset.query, dataset.gallery
    _, codes = np.unique(np.concatenate([query.pids, gallery.pids]), return_inverse=True)
    own, theirs = codes[: len(query)], codes[len(query) :]
    same = np.bincount(theirs, minlength=codes.max() + 1)[own]
    if dataset.same_list:
        alone = int((same == 1).sum())
        return [f"{alone} test images are the only one of their identity and cannot be found"] if alone else []
    cameras = 1 + max(query.camids.max(), gallery.camids.max())
    here, there = own * cameras + query.camids, theirs * cameras + gallery.camids
    filtered = np.bincount(there, minlength=(codes.max() + 1) * cameras)[here]
    lines = []
    if absent := int((same == 0).sum()):
        lines.append(f"{absent} of {len(query)} queries have an identity that is absent from the gallery")
    if blind := int(((same > 0) & (same == filtered)).sum()):
        lines.append(
            f"{blind} of {len(query)} queries are found under their own camera only, which does not count: give other "
            "cameras, or leave the cameras out"
        )
    return lines


def copies_of_queries(query: Records, gallery: Records) -> list[str]:
    """Images on both sides that the camera filter leaves: each is its own perfect match."""
    where = {key: i for i, key in enumerate(keys(gallery))}
    pairs = [(i, where[key]) for i, key in enumerate(keys(query)) if key in where]
    left = [
        i for i, j in pairs
        if (query.pids[i], query.camids[i]) != (gallery.pids[j], gallery.camids[j])
        and (query.seqs is None or gallery.seqs is None or query.seqs[i] != gallery.seqs[j])
    ]  # fmt: skip
    if not left:
        return []
    return [f"{len(left)} images are query and gallery at once, such as {query.paths[left[0]]}: a perfect match each"]


def missing(records: Records, seconds: float = 2.0) -> tuple[np.ndarray, int]:
    """(rows of a list whose images are not there, ascending; how many were looked for until the time was over).

    In random order, so that what was looked for stands for the rest.
    """
    until, absent, looked = time.monotonic() + seconds, [], 0
    for looked, i in enumerate(np.random.default_rng(0).permutation(len(records)), 1):
        if not os.path.exists(records.paths[i]):
            absent.append(i)
        if looked % 256 == 0 and time.monotonic() > until:
            break
    return np.sort(np.array(absent, np.int64)), looked


def missing_line(split: str, records: Records, absent: np.ndarray, looked: int, shown: int = 5) -> str:
    """What to say of the missing images of a split, naming the first."""
    count = f"{len(absent):,} of {looked:,}" + (" looked for" if looked < len(records) else "")
    names = ", ".join(records.paths[i] for i in absent[:shown]) + (", ..." if len(absent) > shown else "")
    return (
        f"images of the {split} list are missing, {count}: {names}; unpack everything, or make the paths begin in the "
        "right folder"
    )
