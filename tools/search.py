"""The nearest gallery images of queries: ``python -m tools.search --query Q --gallery G --out found.jsonl``.

G is a folder of tools.extract, or a .npy file of features (images, width); it is memory-mapped, so it may be larger
than the memory. Q is the same, or image files, whose features TEST.WEIGHT gives. With a prompt model and a gallery
extracted with --for_text, ``--text`` searches with sentences. The result is JSON lines (a query each, nearest first;
on standard output without --out) or an .npz (``indices`` and ``distances``, (queries, k)), and a page with thumbnails.
"""

from __future__ import annotations

import io
import json
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from configs import load_config
from datasets.storage.decoding import BadImage, load_image
from processor.extractor import IMAGE, TEXT, make_extractor
from tools.pages.page import shot, with_pixels, write_page
from utils.commands import make_parser, run_command
from utils.errors import UserError
from utils.feature_files import META, PLAN, Features
from utils.files import write_atomically
from utils.scoring.approximate import approximate_search, make_index, recall
from utils.scoring.blocks import free_memory
from utils.scoring.search import METRICS, search

log = logging.getLogger("lineup")

ON_PAGE = (100, 20)
"""Queries, and images of each, that a page shows at most."""

BOX = ("x1", "y1", "x2", "y2")

Told = dict[str, Any]


@dataclass
class Queries:
    """Features (Q, D), and what each is: ``path`` and columns, ``text``, or ``row``; a message per bad image."""

    feats: np.ndarray
    told: list[Told]
    skipped: list[str] = field(default_factory=list)


def refuse_other_model(ours: str, gallery: Features, force: bool) -> None:
    theirs = gallery.meta.get("model_hash", "")
    if ours and theirs and ours != theirs and not force:
        raise UserError(
            f"{gallery.path}: made with another model or setting ({theirs[:12]}) than the query ({ours[:12]}); their "
            "distances mean nothing (--force searches all the same)"
        )


def from_features(path: Path, gallery: Features, force: bool) -> Queries:
    """Queries that were extracted before."""
    given = Features(path)
    refuse_other_model(given.meta.get("model_hash", ""), gallery, force)
    rows = given.rows(range(len(given)))
    return Queries(given.array, [{"row": i} | rows[i] for i in range(len(given))])


def from_images(cfg, paths: list[str], gallery: Features, force: bool) -> Queries:
    """Queries from image files; those that cannot be read are skipped. Raises ``UserError`` where none is left."""

    extractor = make_extractor(cfg, gallery.meta.get("space", IMAGE))
    refuse_other_model(extractor.model_hash, gallery, force)
    feats, told, skipped = [], [], []
    for start in range(0, len(paths), extractor.batch_size):
        images = []
        for path in paths[start : start + extractor.batch_size]:
            try:
                images.append(load_image(path))
            except BadImage as error:
                skipped.append(str(error))
            else:
                told.append({"path": path})
        feats.append(extractor(images))
    if not told:
        raise UserError(f"--query: none of the {len(paths)} images could be read; the first: {skipped[0]}")
    return Queries(np.concatenate(feats), told, skipped)


def from_sentences(cfg, sentences: list[str], gallery: Features, force: bool) -> Queries:
    """Queries from sentences. Raises ``UserError`` for models and galleries that know no text."""

    extractor = make_extractor(cfg, TEXT)
    if gallery.meta.get("space", TEXT) != TEXT:
        raise UserError(f"{gallery.path}: no sentence compares with its features; extract them with --for_text")
    refuse_other_model(extractor.model_hash, gallery, force)
    return Queries(extractor.sentences(sentences), [{"text": words} for words in sentences])


def make_queries(args, gallery: Features) -> Queries:
    """What --query or --text names."""
    if bool(args.query) == bool(args.text):
        raise UserError("give either --query or --text")
    first = Path(args.query[0]) if args.query else None
    if first and (first.suffix in (".npy", ".npz") or first.is_dir()):
        if len(args.query) > 1:
            raise UserError(f"--query: {first} holds features; give it alone, or image files")
        if first.is_dir() and not any((first / name).exists() for name in (META, PLAN)):
            raise UserError(f"--query: {first} is a folder without features; run tools.extract on it first")
        return from_features(first, gallery, args.force)
    if not args.config_file:
        raise UserError("--config_file and TEST.WEIGHT must name the model for images and sentences as queries")

    cfg = load_config(args.config_file, args.opts)
    if args.text:
        return from_sentences(cfg, args.text, gallery, args.force)
    return from_images(cfg, args.query, gallery, args.force)


def hits(indices: np.ndarray, distances: np.ndarray, rows: dict[int, dict[str, str]]) -> list[Told]:
    """One query's list, (k,) each, as JSON has it. rows: columns by gallery row."""
    pairs = ((int(row), float(value)) for row, value in zip(indices, distances, strict=True) if row >= 0)
    return [{"rank": n, "distance": value, "row": row} | rows[row] for n, (row, value) in enumerate(pairs, 1)]


def lines(queries: Queries, indices: np.ndarray, distances: np.ndarray, gallery: Features) -> Iterator[str]:
    """A line of JSON for each query."""
    rows = gallery.rows(np.unique(indices).tolist())
    for told, places, values in zip(queries.told, indices, distances, strict=True):
        yield json.dumps({"query": told, "found": hits(places, values, rows)}) + "\n"


def box_of(told: Told) -> np.ndarray | None:
    return np.array([int(float(told[name])) for name in BOX]) if all(told.get(name) for name in BOX) else None


def write_search_page(
    path: Path, queries: Queries, indices: np.ndarray, distances: np.ndarray, gallery: Features, how: str
) -> int:
    """A page of the first queries and places; returns how many thumbnails could not be read."""

    count, places = ON_PAGE
    indices, distances = indices[:count, :places], distances[:count, :places]
    rows = gallery.rows(np.unique(indices).tolist())

    def found(told: Told, hit: Told):
        known = told.get("pid") and hit.get("pid")
        judged = int(told["pid"] == hit["pid"]) if known else 3
        label = f"{hit['distance']:.3f}" if hit.get("path") else f"row {hit['row']}, {hit['distance']:.3f}"
        words = f"place {hit['rank']}, distance {hit['distance']:.3f}"
        return shot(hit.get("path", ""), judged, label, words, box_of(hit))

    shown = []
    for told, *places in zip(queries.told, indices, distances, strict=False):
        title = told.get("text") or told.get("path") or f"row {told['row']}"
        title = title.encode(errors="replace").decode()  # file names need not be UTF-8
        query = shot(told.get("path", ""), 2, "", title, box_of(told))
        one = [found(told, hit) for hit in hits(*places, rows)]
        shown.append({"title": title, "query": query, "lists": [{"name": f"nearest to {title}", "shots": one}]})
    failed = with_pixels(shown)
    lead = (
        f"{len(queries.told)} queries in {len(gallery)} images of {gallery.path}, the first {len(shown)} shown. {how}"
    )
    judged = any(one["kind"] in ("right", "wrong") for row in shown for one in row["lists"][0]["shots"])
    write_page(path, "search.html", title="Search", lead=lead, rows=shown, judged=judged)
    return failed


def output(args, queries: Queries, indices: np.ndarray, distances: np.ndarray, gallery: Features) -> None:
    """Writes --out, or the lines on standard output where no file was asked for."""
    if args.out and args.out.suffix == ".npz":
        write_atomically(args.out, lambda handle: np.savez(handle, indices=indices, distances=distances))
    elif args.out:

        def write(handle) -> None:
            text = io.TextIOWrapper(handle, "utf-8", write_through=True)
            text.writelines(lines(queries, indices, distances, gallery))
            text.detach()

        write_atomically(args.out, write)
    elif not args.page:
        sys.stdout.writelines(lines(queries, indices, distances, gallery))


def index_file(gallery: Features) -> Path | None:
    """Where the index of an extraction is kept, by what it was made of."""
    if not gallery.meta:
        return None
    return gallery.path / f"ivf_{gallery.meta['model_hash'][:8]}_{gallery.meta['list_hash'][:8]}.faiss"


def run(args) -> None:
    """The search that the arguments ask for."""
    gallery = Features(args.gallery)
    queries = make_queries(args, gallery)
    metric = args.metric or gallery.meta.get("distance", METRICS[0])
    as_they_are = args.raw or gallery.meta.get("unit_length") is False
    unit = bool(args.text) or metric == "cosine" or not as_they_are
    memory = int(args.memory * 1e9) or free_memory() // 4
    told, how = sys.stdout if args.out or args.page else sys.stderr, "Exact."
    for message in queries.skipped:
        print(f"skipped: {message}", file=sys.stderr)
    if args.index:

        index = make_index(gallery.array, unit, index_file(gallery) if unit else None)
        indices, distances = approximate_search(queries.feats, index, args.k, metric, unit)
        share = recall(queries.feats, gallery.array, indices, metric, unit, memory)
        how = (
            f"FAISS, {index.nprobe} of {index.nlist} lists: recall {share:.4f} of the exact {indices.shape[1]} nearest."
        )
        print(how, file=told)
    else:
        indices, distances = search(queries.feats, gallery.array, args.k, metric, unit, memory)
    output(args, queries, indices, distances, gallery)
    if args.page:
        failed = write_search_page(args.page, queries, indices, distances, gallery, f"{how} Distances are {metric}.")
        print(f"{args.page}" + (f": {failed} images could not be read" if failed else ""), file=told)
    skipped = f", {len(queries.skipped)} skipped" if queries.skipped else ""
    where = f"{args.out}: " if args.out else ""
    print(
        f"{where}the {indices.shape[1]} nearest of {len(gallery)} images for {len(queries.told)} queries{skipped}",
        file=told,
    )


def main(argv: list[str] | None = None) -> None:
    """The command."""
    model = "--config_file configs/quickstart.yml TEST.WEIGHT runs/quickstart/resnet10_12.pth"
    parser = make_parser(
        "python -m tools.search", __doc__, "--query q.npy --gallery g.npy --k 100 --out topk.npz",
        f"--query a.jpg b.jpg --gallery features --page found.html {model}",
        '--text "a red car" --gallery features --config_file configs/clip_reid/veri_vit_prom.yml TEST.WEIGHT W',
        settings=True,
    )  # fmt: skip
    parser.add_argument("--query", nargs="+", metavar="Q", help="image files, a folder of features, or a .npy file")
    parser.add_argument("--text", nargs="+", metavar="SENTENCE", help="sentences instead")
    parser.add_argument("--gallery", type=Path, required=True, help="folder of features, or .npy file (images, width)")
    parser.add_argument("--out", type=Path, help=".jsonl or .npz file to write")
    parser.add_argument("--page", type=Path, help="page to write, .html")
    parser.add_argument("--k", type=int, default=100, help="length of the lists (100)")
    parser.add_argument("--metric", choices=METRICS, help="the gallery's, else euclidean, which is squared")
    parser.add_argument("--raw", action="store_true", help="take features as they are, not scaled to unit length")
    parser.add_argument("--memory", type=float, default=0, metavar="GB", help="working memory (a quarter of the free)")
    parser.add_argument("--index", choices=("faiss",), help="approximate, in memory; prints its recall")
    parser.add_argument("--force", action="store_true", help="search also where query and gallery are of other models")
    args = parser.parse_args(argv)
    if args.memory < 0:
        raise UserError(f"--memory: {args.memory} is negative")
    if args.k < 1:
        raise UserError(f"--k: {args.k} is no number of images")
    if args.out and args.out.suffix not in (".npz", ".jsonl"):
        raise UserError(f"--out: {args.out} does not end in .npz or .jsonl")
    if args.page and args.page.suffix != ".html":
        raise UserError(f"--page: {args.page} does not end in .html")
    run(args)


if __name__ == "__main__":
    run_command(main)
