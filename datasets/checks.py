"""Checks of lists before any work: what looks wrong with them, and what cannot be trained or tested on."""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from yacs.config import CfgNode

from datasets.catalogue import find_spec
from datasets.dataset import ReIDDataset
from datasets.options import names_of
from datasets.readers.scan import is_image
from datasets.records import LONG, SPLITS, Records
from datasets.storage.files import image_exists
from datasets.storage.pillow_decoding import decode, open_image, read_image
from datasets.storage.pixels import KINDS, kinds_of, unused_depth, used_levels
from utils.errors import UserError
from utils.methods import Method
from utils.scoring.matching import Matching

log = logging.getLogger("lineup")


def refuse_trained_targets(cfg: CfgNode) -> None:
    """Raises ``UserError`` where a dataset is both a source and a target."""
    sources = {find_spec(name).name for name in names_of(cfg.DATASETS.NAMES)}
    both = sources & {find_spec(name, "DATASETS.TARGETS").name for name in names_of(cfg.DATASETS.TARGETS)}
    if both:
        raise UserError(f"DATASETS.TARGETS: {', '.join(sorted(both))} is source and target at once")


def refuse_hopeless(name: str, query: Records, gallery: Records, same_list: bool) -> None:
    """Raises ``UserError`` when no query of a test set can have a match. name: of the test set."""
    try:
        seqs = (None, None) if query.seqs is None or gallery.seqs is None else (query.seqs, gallery.seqs)
        Matching(query.pids, gallery.pids, query.camids, gallery.camids, *seqs, same_list=same_list)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def filter_line(name: str, protocol: str, query: Records, gallery: Records, same_list: bool) -> str:
    """Returns the log line of a test set: its size, and which gallery images do not count for a query."""
    ignored = []
    if protocol in ("market1501", "cuhk03") and not same_list:
        if set(np.unique(query.camids)) & set(np.unique(gallery.camids)):
            ignored.append("camera")
        if query.seqs is not None and gallery.seqs is not None and np.isin(query.seqs, gallery.seqs).any():
            ignored.append("sequence")
    if protocol == "classification":
        rule = "images are classified, nothing is left out"
    elif ignored:
        rule = f"matches of the same identity and {' or '.join(ignored)} are left out"
    elif protocol == "vehicleid":
        rule = "no camera filter, the gallery is drawn"
    else:
        rule = "no camera filter" + (", an image is never its own match" if same_list else "")
    return f"{name}: {len(query):,} queries, gallery {len(gallery):,}; {rule}"


def log_findings(dataset: ReIDDataset) -> None:
    """Logs what looks wrong with the lists of a dataset."""
    if dataset.use_all:
        log.warning("%s: trains on its query and gallery images too (DATASETS.USE_ALL)", dataset.spec.name)
    for finding in findings(dataset):
        log.log(logging.WARNING if finding.serious else logging.INFO, "%s: %s", dataset.spec.name, finding.text)


def log_kinds(name: str, split: str, paths: Sequence[str], looked_at: int = 32) -> None:
    """Logs what some images of a list need beyond decoding. name: of the dataset; split: of the list.

    By their headers alone, but for images of 16 bits, which may use few of them.
    """
    rows = np.unique(np.linspace(0, len(paths) - 1, min(looked_at, len(paths))).astype(int))
    counts: Counter[str] = Counter()
    levels = []
    for row in map(int, rows):
        with suppress(Exception):  # what cannot be read is reported when the loader reaches it
            path = paths[row]
            raw = read_image(path)
            kinds = kinds_of(open_image(raw))
            counts.update(kinds)
            if "deep" in kinds:
                levels.append(used_levels(decode(raw, path)))
    for kind, count in counts.items():
        log.warning("%s: of %d images of the %s list, %d: %s", name, len(rows), split, count, KINDS[kind])
    if line := unused_depth(levels):
        log.warning("%s: of %d images of the %s list, %s", name, len(rows), split, line)


def refuse_missing(dataset: ReIDDataset, splits: Sequence[str], skip: bool) -> None:
    """Raises ``UserError`` where a list names images that are not there. skip: training leaves such images out."""
    name = dataset.spec.name
    for split in splits if dataset.listed else ():
        records = dataset.split(split)
        absent, searched = missing(records)
        if searched < len(records):
            total = len(records)
            log.info("%s: looked for %d of the %d images of the %s list in the time", name, searched, total, split)
        if not len(absent):
            continue
        line = f"{name}: {missing_line(split, records, absent, searched)}"
        if split == "train" and skip:
            log.warning(line)
        else:
            raise UserError(line + ("; DATALOADER.BAD_IMAGES 'skip' trains without" if split == "train" else ""))


def refuse_unlabelled(cfg: CfgNode, method: Method, train: Records) -> None:
    """Raises ``UserError`` where labels are needed and some training images have none."""
    without = int((train.pids < 0).sum())
    if without and method.unlabelled_too and cfg.DATALOADER.SAMPLER != "softmax":
        raise UserError(
            f"DATALOADER.SAMPLER {cfg.DATALOADER.SAMPLER!r}: {without} training images have no pid, and it draws by "
            "identity; use 'softmax'"
        )
    if without and ((method.labels and not method.unlabelled_too) or cfg.DATASETS.VAL_SHARE):
        raise UserError(
            f"{without} training images have no pid; only methods without labels, such as clustering and pre-training, "
            f"accept that, and not with DATASETS.VAL_SHARE (PROCESSOR.NAME is {method.name!r})"
        )


@dataclass(frozen=True)
class Finding:
    """A line about a dataset. serious: worth a warning, not just a notice."""

    text: str
    serious: bool = True


def findings(dataset: ReIDDataset) -> list[Finding]:
    """Returns what looks wrong by the lists alone, without opening a file."""
    notices = []
    if dataset.shared_ids:
        notices.append(Finding(f"{dataset.shared_ids} identities are in training and in the test: it measures memory"))
    single = int((np.bincount(dataset.train.pids[dataset.train.pids >= 0]) == 1).sum())
    if single and dataset.num_classes > 1:
        text = f"{single} training identities have a single image; samplers of P x K images repeat it"
        notices.append(Finding(text, serious=False))
    if lonely := seen_by_one_camera(dataset.train):
        text = f"{lonely} of {dataset.num_classes} training identities have all their images from one camera"
        notices.append(Finding(text, serious=False))
    without = int((dataset.train.pids < 0).sum())
    if without and dataset.num_classes:
        notices.append(Finding(f"{without:,} training images have no identity"))
    if bool(len(dataset.query)) != bool(len(dataset.gallery)):
        present, absent = ("query", "gallery") if len(dataset.query) else ("gallery", "query")
        count = len(dataset.split(present))
        notices.append(Finding(f"the {absent} is empty, and the {present} has {count:,} images: nothing to test"))
    if len(dataset.query) and len(dataset.gallery) and dataset.protocol != "classification":
        notices += [Finding(text) for text in hopeless_queries(dataset)]
    lists = {name: dataset.split(name) for name in SPLITS}
    if dataset.listed:
        short = [records for records in lists.values() if len(records) <= LONG]
        strange = sorted({path for r in short for path in r.paths if not is_image(path.rpartition("/")[2])})
        if strange:
            notices.append(Finding(f"{len(strange)} files have no image's ending, such as {strange[0]}"))
    for name, records in lists.items():
        images = image_keys(records)
        repeats = len(images) - len(set(images))
        if repeats:
            example = first_repeated(images)
            notices.append(Finding(f"{name}: {repeats} images are listed more than once, such as {example}"))
    if not dataset.same_list:
        notices += [Finding(text) for text in copies_of_queries(dataset.query, dataset.gallery)]
    return notices


def seen_by_one_camera(train: Records) -> int:
    """Returns how many identities have several images, all of one camera; 0 if there is only one camera."""
    pids, camids = (column[train.pids >= 0] for column in (train.pids, train.camids))
    if len(np.unique(camids)) < 2:
        return 0
    cameras = np.bincount(np.unique(np.stack([pids, camids]), axis=1)[0])
    return int(((cameras == 1) & (np.bincount(pids) > 1)).sum())


def image_keys(records: Records) -> list:
    """Returns what distinguishes images: the path, and the crop box where there are boxes."""
    if len(records) > LONG:
        return []
    if records.boxes is None:
        return list(records.paths)
    return list(zip(records.paths, map(tuple, records.boxes.tolist()), strict=True))


def same_images(query: Records, gallery: Records) -> bool:
    """Returns whether two lists are of the same images in the same order, as those of ``test`` rows of a table."""
    return len(query) == len(gallery) and query.paths == gallery.paths and image_keys(query) == image_keys(gallery)


def first_repeated(images: list) -> str:
    """Returns the path of the first image that comes a second time; empty when none does."""
    seen: set = set()
    for image in images:
        if image in seen:
            return image if isinstance(image, str) else image[0]
        seen.add(image)
    return ""


def hopeless_queries(dataset: ReIDDataset) -> list[str]:
    """Returns lines that count the queries that nothing in the gallery can match, by cause."""
    query, gallery = dataset.query, dataset.gallery
    _, codes = np.unique(np.concatenate([query.pids, gallery.pids]), return_inverse=True)
    q_codes, g_codes = codes[: len(query)], codes[len(query) :]
    matches = np.bincount(g_codes, minlength=codes.max() + 1)[q_codes]
    if dataset.same_list:
        alone = int((matches == 1).sum())
        return [f"{alone} test images are the only one of their identity and cannot be found"] if alone else []
    cameras = 1 + max(query.camids.max(), gallery.camids.max())
    q_pairs, g_pairs = q_codes * cameras + query.camids, g_codes * cameras + gallery.camids
    left_out = np.bincount(g_pairs, minlength=(codes.max() + 1) * cameras)[q_pairs]
    lines = []
    if absent := int((matches == 0).sum()):
        lines.append(f"{absent} of {len(query)} queries have an identity that is absent from the gallery")
    if blind := int(((matches > 0) & (matches == left_out)).sum()):
        lines.append(
            f"{blind} of {len(query)} queries are found under their own camera only, which does not count: give other "
            "cameras, or leave the cameras out"
        )
    return lines


def copies_of_queries(query: Records, gallery: Records) -> list[str]:
    """Returns a line on images on both sides that no filter leaves out: each is its own perfect match."""
    rows = {key: i for i, key in enumerate(image_keys(gallery))}
    pairs = [(i, rows[key]) for i, key in enumerate(image_keys(query)) if key in rows]
    counted = [
        i for i, j in pairs
        if (query.pids[i], query.camids[i]) != (gallery.pids[j], gallery.camids[j])
        and (query.seqs is None or gallery.seqs is None or query.seqs[i] != gallery.seqs[j])
    ]  # fmt: skip
    if not counted:
        return []
    first = query.paths[counted[0]]
    return [f"{len(counted)} images are query and gallery at once, such as {first}: a perfect match each"]


def missing(records: Records, seconds: float = 2.0) -> tuple[np.ndarray, int]:
    """Returns (rows of a list whose images are not there, ascending; how many were looked for).

    seconds: the time after which the search ends. In random order, so that the images that were looked for represent
    the rest.
    """
    until, absent, searched = time.monotonic() + seconds, [], 0
    for searched, i in enumerate(np.random.default_rng(0).permutation(len(records)), 1):
        if not image_exists(records.paths[i]):
            absent.append(i)
        if searched % 256 == 0 and time.monotonic() > until:
            break
    return np.sort(np.array(absent, np.int64)), searched


def missing_line(split: str, records: Records, absent: np.ndarray, searched: int, shown: int = 5) -> str:
    """Returns the line on the missing images of a split. shown: how many are named."""
    count = f"{len(absent):,} of {searched:,}" + (" looked for" if searched < len(records) else "")
    names = ", ".join(records.paths[i] for i in absent[:shown]) + (", ..." if len(absent) > shown else "")
    return (
        f"images of the {split} list are missing, {count}: {names}; unpack everything, or make the paths begin in the "
        "right folder"
    )
