"""Extracts features of any images: ``python -m tools.extract --config_file F --images I --out DIR TEST.WEIGHT W``.

I is a folder, a text file with a path per line, or a .csv or .tsv table with a column ``path`` and, if known, ``pid``,
``camid``, ``viewid`` (numbers from 0, as training counted them, where the model uses side information) and a crop box
``x1``, ``y1``, ``x2``, ``y2``. DIR gets ``features.npy`` (images, width) float32, ``rows.csv``, ``meta.json``, and
``skipped.csv`` with what could not be read. After a kill the same command continues, to the same bytes. Several
processes (torchrun) share the batches. ``--runtime auto`` takes the fastest of torch, onnxruntime and OpenVINO that is
installed and gives torch's features. ``--to STORE`` in place of ``--out`` writes into a store of tools.gallery.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from yacs.config import CfgNode

from configs import load_config
from datasets.batches import batches_of, one_thread
from datasets.checks import log_kinds
from datasets.images import Batch, ImageList
from datasets.loaders import num_workers, pinned
from datasets.readers.image_list import CARRIED, Carried, read_image_list
from datasets.records import Records
from datasets.storage.decoding import make_decoder
from datasets.storage.pillow_decoding import BadImage, load_image
from datasets.storage.pixels import PixelRules
from processor.exported import is_exported
from processor.extractor import IMAGE, TEXT, Extractor, finite, make_extractor
from processor.fastest import in_fastest_runtime
from processor.run import prepared
from processor.runtimes import RUNTIMES, TORCH
from processor.trained import weight_file
from tools.galleries.adding import known_columns
from tools.galleries.opening import open_store
from tools.galleries.sink import StoreSink
from tools.galleries.sources import Source, claim_source, finish_source, shards_done
from tools.galleries.store import Store
from utils.commands import make_parser, run_command
from utils.distributed import barrier, broadcast_object, gather_objects, is_main, rank, world_size
from utils.errors import UserError
from utils.feature_files import META, OPEN, RUNTIME, FeatureWriter, begun_in, read_json
from utils.provenance import commit
from utils.scoring.blocks import Progress

log = logging.getLogger("lineup")

AUTO = "auto"
TRIED = 32
"""Images of the first batch, at most, on which ``--runtime auto`` compares runtimes."""

FLUSH_SECONDS = 5.0
"""How much work a kill can cost, at most."""
SHARD_ROWS = 4096
"""Images of a shard of a list, about: a process has it to itself. A kill costs less, see ``StoreSink``."""


def list_hash(records: Records, carried: Carried) -> str:
    """Returns the SHA-256 of a list's paths and columns, which must not change when an extraction continues."""
    digest = hashlib.sha256()
    for row in table_rows(records, carried):
        digest.update("\0".join(row).encode(errors="surrogateescape") + b"\n")
    return digest.hexdigest()


def table_rows(records: Records, carried: Carried) -> Iterator[tuple[str, ...]]:
    """Yields the path of each image and its columns, as ``rows.csv`` has them."""
    yield from zip(records.paths, *(carried[name] for name in CARRIED if name in carried), strict=True)


def loaded(
    records: Records, extractor: Extractor, batches: list[np.ndarray], workers: int, pin: bool
) -> Iterator[tuple[np.ndarray, Batch]]:
    """Yields the rows of each batch, and the ``Batch`` of those that can be read."""
    images = ImageList(records, extractor.transform, decoder=make_decoder(extractor.rules))
    loader = DataLoader(
        images, batch_sampler=[rows.tolist() for rows in batches], num_workers=workers, collate_fn=images.collate,
        pin_memory=pin, worker_init_fn=one_thread, generator=torch.Generator(),
    )  # fmt: skip
    return zip(batches, batches_of(loader, extractor.batch_size), strict=True)


def fill(
    writer: FeatureWriter, records: Records, extractor: Extractor, workers: int = 0, pin: bool = False
) -> tuple[int, float]:
    """Extracts what is left of this process's batches; returns the number of images and the seconds that it took.

    Batches are rows in order, the same for any number of processes and after any kill.
    """
    size = extractor.batch_size
    batches = [np.arange(top, min(top + size, len(records))) for top in range(0, len(records), size)]
    batches = [rows for rows in batches[rank() :: world_size()] if (writer.done[rows] == OPEN).any()]
    began = flushed = time.monotonic()
    previous: tuple[Batch, torch.Tensor] | None = None
    with Progress(sum(map(len, batches)), "features", "image") as progress:
        for rows, batch in loaded(records, extractor, batches, workers, pin):
            feats = extractor.features(batch.images, batch.cam_labels, batch.view_labels) if len(batch) else None
            for message in batch.broken:
                log.warning("skipped: %s", message)
            writer.write(np.empty(0, np.int64), np.empty((0, extractor.width)), np.setdiff1d(rows, batch.rows.numpy()))
            if previous:  # written while a GPU works on this batch
                keep(writer, records, *previous)
            previous = None if feats is None else (batch, feats)
            if time.monotonic() - flushed > FLUSH_SECONDS:
                writer.flush()
                flushed = time.monotonic()
            progress.add(len(rows))
        if previous:
            keep(writer, records, *previous)
    writer.flush()
    return sum(map(len, batches)), time.monotonic() - began


def keep(writer: FeatureWriter, records: Records, batch: Batch, feats: torch.Tensor) -> None:
    """Writes the features of a batch. Raises ``UserError`` if one is not finite."""
    rows, values = batch.rows.numpy(), feats.cpu().numpy()
    finite(values, f"{records.paths[int(rows[0])]} or one of the {len(rows) - 1} after it")
    writer.write(rows, values, np.empty(0, np.int64))


def extract_to_store(
    cfg: CfgNode, images: str | Path, address: str, name: str = "", config_file: str = "", space: str = IMAGE
) -> dict[str, Any]:
    """Extracts features into a store of tools.gallery, as source ``name`` (the list's own name); returns its fact.

    The processes of a fleet share the shards of the list. Continues what was killed; what is finished is left alone.
    """
    records, carried = read_image_list(images)
    name = name or Path(images).stem
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = cfg.OUTPUT_DIR or f"runs/extract-{name}"
    with prepared(cfg, config_file, [], "extract_log.txt"), closing(open_store(address)) as store:
        if world_size() > 1 and not store.shared:
            raise UserError(f"--to: {address} serves one process at a time; use a folder, or a server, milvus://HOST")
        extractor = make_extractor(cfg, space)
        if not extractor.unit:
            raise UserError("a store holds features of unit length; set TEST.FEAT_NORM 'yes'")
        store.meta.refuse_other(extractor.model_hash, extractor.width, str(weight_file(cfg)), store.address)
        with store.writing() if is_main() else nullcontext():
            return _extract_to_store(cfg, extractor, store, records, carried, name)


def _extract_to_store(
    cfg: CfgNode, extractor: Extractor, store: Store, records: Records, carried: Carried, name: str
) -> dict[str, Any]:
    size = max(SHARD_ROWS // extractor.batch_size, 1) * extractor.batch_size
    source = Source(name, f"{extractor.model_hash[:16]} {list_hash(records, carried)[:16]}", len(records), size)
    columns = known_columns(dict.fromkeys(("path", *carried), ""))
    known = broadcast_object(claim_source(store, source, columns) if is_main() else None)
    if known["finished"]:
        log.info("finished already: source %s of %s", name, store.address)
        return known
    barrier()
    sink = StoreSink(store, source, list(shards_done(store, source)))
    if is_main():
        log.info("%d of %d shards were done before", len(sink.done), source.shards)
    barrier()  # every process has counted before one writes
    count, seconds = stream(sink, records, carried, extractor, num_workers(cfg), pinned(cfg))
    done = gather_objects((count, seconds))
    if is_main():
        known = finish_source(store, source)
        log.info("%s: %d images as source %s, %d skipped", store.address, known["kept"], name, known["skipped"])
        count, seconds = sum(n for n, _ in done), max(s for _, s in done)
        if count:
            log.info("%d images in %.1f s: %.1f images/s", count, seconds, count / seconds)
    barrier()
    return broadcast_object(known)


def stream(
    sink: StoreSink, records: Records, carried: Carried, extractor: Extractor, workers: int, pin: bool
) -> tuple[int, float]:
    """Extracts what is left of this process's shards; returns the number of images and the seconds that it took."""
    size, began = extractor.batch_size, time.monotonic()
    batches = [
        np.arange(top, min(top + size, stop))
        for start, stop in sink.spans(rank(), world_size()) for top in range(start, stop, size)
    ]  # fmt: skip
    lines = [dict(zip(("path", *(n for n in CARRIED if n in carried)), row, strict=True))
             for row in table_rows(records, carried)] if batches else []  # fmt: skip
    with Progress(sum(map(len, batches)), "features", "image") as progress:
        for rows, batch in loaded(records, extractor, batches, workers, pin):
            for message in batch.broken:
                log.warning("skipped: %s", message)
            if len(batch):
                feats = extractor.features(batch.images, batch.cam_labels, batch.view_labels).cpu().numpy()
                kept = batch.rows.numpy()
                finite(feats, f"{records.paths[int(kept[0])]} or one of the {len(kept) - 1} after it")
                sink.take(rows, kept, feats, [lines[row] for row in kept])
            else:
                sink.take(rows, batch.rows.numpy(), np.empty((0, extractor.width), np.float32), [])
            progress.add(len(rows))
    return sum(map(len, batches)), time.monotonic() - began


def reason(records: Records, row: int, rules: PixelRules) -> str:
    """Returns why an image was skipped."""
    try:
        load_image(records.paths[row], None if records.boxes is None else records.boxes[row], rules)
    except BadImage as error:
        return str(error)
    return "could not be read during the extraction"


def extract_to_folder(
    cfg: CfgNode, images: str | Path, out: Path, config_file: str = "", space: str = IMAGE, auto: bool = False
) -> dict[str, Any]:
    """Extracts features, or continues an extraction that was stopped; returns the content of ``meta.json``.

    auto: in the fastest runtime, or in that of the extraction that is continued, in place of TEST.RUNTIME.
    """
    if is_exported(weight_file(cfg)) and auto:  # before any work
        raise UserError(
            f"--runtime auto: compares runtimes with torch, and {cfg.TEST.WEIGHT} is an exported file; name its "
            "weights (model.safetensors), or the runtime"
        )
    records, carried = read_image_list(images)
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file, not a folder")
    cfg = cfg.clone()
    cfg.defrost()
    cfg.OUTPUT_DIR = str(out)
    with prepared(cfg, config_file, [], "extract_log.txt"):
        extractor = make_fastest(cfg, records, out, space) if auto else make_extractor(cfg, space)
        return _extract(cfg, extractor, images, records, carried, out, config_file)


def make_fastest(cfg: CfgNode, records: Records, out: Path, space: str) -> Extractor:
    """Makes the extractor in the runtime in which the folder's extraction was begun, else in the fastest.

    cfg: not frozen. The first process decides for all.
    """
    begun = broadcast_object(begun_in(out) if is_main() else None)
    cfg.TEST.RUNTIME = begun or TORCH
    extractor = make_extractor(cfg, space)
    if begun or space == TEXT:
        log.info("--runtime auto: %s, %s", extractor.model.runs_in, "as before" if begun else "which alone embeds text")
        return extractor
    batch = first_batch(records, extractor) if is_main() else None
    if batch is not None:
        extractor = in_fastest_runtime(extractor, batch.images, batch.cam_labels, batch.view_labels)
    cfg.TEST.RUNTIME = broadcast_object(extractor.model.runs_in if is_main() else None)
    return extractor if extractor.model.runs_in == cfg.TEST.RUNTIME else make_extractor(cfg, space)


def first_batch(records: Records, extractor: Extractor) -> Batch | None:
    """Returns the first images that can be read, of at most one batch; None if no batch has any."""
    size = min(extractor.batch_size, TRIED)
    batches = [np.arange(top, min(top + size, len(records))) for top in range(0, len(records), size)]
    return next((batch for _, batch in loaded(records, extractor, batches, 0, False) if len(batch)), None)


def _extract(
    cfg: CfgNode, extractor: Extractor, images: str | Path, records: Records, carried: Carried, out: Path,
    config_file: str,
) -> dict[str, Any]:  # fmt: skip
    plan = {
        "model_hash": extractor.model_hash, "list_hash": list_hash(records, carried), "batch": extractor.batch_size,
        RUNTIME: extractor.model.runs_in,
    }  # fmt: skip
    writer = FeatureWriter(out, plan, len(records), extractor.width)
    finished = broadcast_object(writer.begin() if is_main() else None)
    if finished:
        log.info("finished already: %s", out)
        return read_json(out / META)
    barrier()
    writer.open()
    before = int((writer.done != OPEN).sum())
    if before:
        log.info("%d of %d images were done before", before, len(records))
    elif is_main():
        log_kinds(str(images), "image", records.paths)
    barrier()  # every process has counted before one writes
    count, seconds = fill(writer, records, extractor, num_workers(cfg), pinned(cfg))
    done = gather_objects((count, seconds))
    if is_main():
        columns = ["path", *(name for name in CARRIED if name in carried)]
        kept = writer.finish(
            table_rows(records, carried), columns, lambda row: reason(records, row, extractor.rules),
            space=extractor.space,
            unit_length=extractor.unit, distance=cfg.TEST.METRIC, settings=extractor.settings, weight=cfg.TEST.WEIGHT,
            config_file=config_file, commit=commit(),
        )  # fmt: skip
        count, seconds = sum(n for n, _ in done), max(s for _, s in done)
        log.info("%s: features of %d images, %d wide; %d skipped", out, kept, extractor.width, len(records) - kept)
        if count:
            log.info("%d images in %.1f s: %.1f images/s", count, seconds, count / seconds)
    barrier()
    return read_json(out / META)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    example = "--config_file configs/quickstart.yml --images photos/ --out features TEST.WEIGHT resnet10_12.pth"
    parser = make_parser("python -m tools.extract", __doc__, example, settings=True)
    parser.add_argument("--images", type=Path, required=True, metavar="FOLDER|LIST.txt|TABLE.csv")
    parser.add_argument("--out", type=Path, metavar="DIR", help="where the files go")
    parser.add_argument("--to", metavar="STORE", help="instead: a store that tools.gallery created")
    parser.add_argument("--source", default="", metavar="NAME", help="of the images in the store (the list's name)")
    parser.add_argument(
        "--for_text", "--for-text", action="store_true",
        help="prompt models: features that sentences are compared with, for tools.search --text",
    )  # fmt: skip
    parser.add_argument(
        "--runtime", choices=(TORCH, *RUNTIMES, AUTO), default=None,
        help="what computes (TEST.RUNTIME); auto: the fastest whose features are torch's",
    )  # fmt: skip
    args = parser.parse_args(argv)
    auto = args.runtime == AUTO
    runtime = [] if auto or not args.runtime else ["TEST.RUNTIME", args.runtime]
    if bool(args.out) == bool(args.to):
        raise UserError("give either --out DIR or --to STORE")
    if args.to and auto:
        raise UserError("--runtime auto: needs --out; name the runtime for --to")
    cfg = load_config(args.config_file, [*args.opts, *runtime])
    if args.to:
        extract_to_store(cfg, args.images, args.to, args.source, args.config_file, TEXT if args.for_text else IMAGE)
        return
    extract_to_folder(cfg, args.images, args.out, args.config_file, TEXT if args.for_text else IMAGE, auto)


if __name__ == "__main__":
    run_command(main)
