"""What is told of the data before any work: lists that look wrong, and what cannot be trained or tested on."""

from __future__ import annotations

import logging

from datasets.catalogue import ReIDDataset, find_spec
from datasets.findings import findings, missing, missing_line
from datasets.options import names_of
from datasets.records import Records
from utils.errors import UserError
from utils.matching import Matching

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
