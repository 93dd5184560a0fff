"""Finds the nearest gallery images of queries: ``python -m tools.search --query Q --gallery G --out found.jsonl``.

G is a folder of tools.extract, or a .npy file of features (images, width); it is memory-mapped, so it may be larger
than the memory. Q is the same, or image files, whose features TEST.WEIGHT gives. With a prompt model, ``--text``
searches with sentences: in a gallery extracted with --for_text or, without --gallery, in that of the configuration's
test sets. The search is exact unless an index is asked for. The result is JSON lines (a query each, nearest first; on
standard output without --out), an .npz (``indices`` and ``distances``, (queries, k)) or a .csv, and a page with
thumbnails.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from yacs.config import CfgNode

from configs import load_config
from datasets.checks import log_kinds
from datasets.loaders import TestSet, make_dataloader
from datasets.storage.pillow_decoding import BadImage, load_image
from datasets.storage.pixels import PixelRules
from processor.extractor import IMAGE, TEXT, Extractor, make_extractor
from tools.pages.page import write_page
from tools.pages.shots import QUERY, RIGHT, UNKNOWN, WRONG, load_thumbnails, shot
from utils.calibration import Calibration
from utils.commands import make_parser, run_command
from utils.errors import UserError
from utils.feature_files import META, PLAN, Features
from utils.files import write_atomically, write_csv, write_lines
from utils.scoring.approximate import approximate_search, make_index, recall
from utils.scoring.blocks import free_memory
from utils.scoring.search import METRICS, search

log = logging.getLogger("lineup")

ON_PAGE = (100, 20)
"""Queries, and images of each, on a page, at most."""

BOX = ("x1", "y1", "x2", "y2")

Columns = dict[str, Any]
"""What is known of an image or a query, by column."""


class Searched(Protocol):
    """What is searched: what each row is, and how the features were made. path: what messages call it."""

    meta: dict[str, Any]

    @property
    def path(self) -> Path | str: ...

    def __len__(self) -> int: ...

    def rows(self, numbers: Iterable[int]) -> Mapping[int, Columns]: ...


class Gallery(Searched, Protocol):
    """A gallery in one array: features (G, D)."""

    path: Path
    array: np.ndarray


class TestSetGallery:
    """The gallery images of the configuration's test sets, in the space that a prompt model's text and images share."""

    __test__ = False

    def __init__(self, cfg: CfgNode, extractor: Extractor):
        tests = make_dataloader(cfg, training=False).tests
        self.path = Path(", ".join(test.name for test in tests))
        self.array = np.concatenate([gallery_features(test, extractor) for test in tests])
        self.columns = [columns for test in tests for columns in gallery_columns(test)]
        self.meta = {"model_hash": extractor.model_hash, "space": TEXT, "distance": "cosine"}

    def __len__(self) -> int:
        return len(self.array)

    def rows(self, numbers: Iterable[int]) -> dict[int, dict[str, str]]:
        """Returns the columns of some rows by number."""
        return {number: self.columns[number] for number in numbers if number >= 0}


def gallery_features(test: TestSet, extractor: Extractor) -> np.ndarray:
    """Returns the features of a test set's gallery, (G, D)."""
    batches = (extractor.features(batch.images, batch.cam_labels, batch.view_labels) for batch in test.loader)
    feats = np.concatenate([batch.cpu().numpy() for batch in batches])
    return feats if test.same_list else feats[len(test.query) :]


def gallery_columns(test: TestSet) -> list[dict[str, str]]:
    """Returns what is known of each image of a test set's gallery."""
    records = test.query if test.same_list else test.gallery
    return [
        {"path": str(path), "pid": str(pid), "camid": str(camid), "dataset": test.name}
        for path, pid, camid in zip(records.paths, records.original_pids(), records.original_camids(), strict=True)
    ]


@dataclass
class SearchQueries:
    """Features (Q, D), and what each is: ``path`` and columns, ``text``, or ``row``; a message per bad image."""

    feats: np.ndarray
    columns: list[Columns]
    skipped: list[str] = field(default_factory=list)


def refuse_other_model(query_hash: str, gallery: Searched, force: bool) -> None:
    """Raises ``UserError`` if query and gallery are known to be of different models, unless forced."""
    gallery_hash = gallery.meta.get("model_hash", "")
    if query_hash and gallery_hash and query_hash != gallery_hash and not force:
        raise UserError(
            f"{gallery.path}: made with another model or setting ({gallery_hash[:12]}) than the query "
            f"({query_hash[:12]}); their distances mean nothing (--force searches all the same)"
        )


def from_features(path: Path, gallery: Searched, force: bool) -> SearchQueries:
    """Reads queries that were extracted before."""
    features = Features(path)
    refuse_other_model(features.meta.get("model_hash", ""), gallery, force)
    rows = features.rows(range(len(features)))
    return SearchQueries(features.array, [{"row": i} | rows[i] for i in range(len(features))])


def from_images(cfg: CfgNode, paths: list[str], gallery: Searched, force: bool) -> SearchQueries:
    """Makes queries from image files and skips those that cannot be read. Raises ``UserError`` if none can be."""
    extractor = make_extractor(cfg, gallery.meta.get("space", IMAGE))
    refuse_other_model(extractor.model_hash, gallery, force)
    log_kinds("--query", "image", paths)
    feats, columns, skipped = [], [], []
    for start in range(0, len(paths), extractor.batch_size):
        images = []
        for path in paths[start : start + extractor.batch_size]:
            try:
                images.append(load_image(path, rules=extractor.rules))
            except BadImage as error:
                skipped.append(str(error))
            else:
                columns.append({"path": path})
        feats.append(extractor(images))
    if not columns:
        raise UserError(f"--query: none of the {len(paths)} images could be read; the first: {skipped[0]}")
    return SearchQueries(np.concatenate(feats), columns, skipped)


def from_sentences(extractor: Extractor, sentences: list[str], gallery: Searched, force: bool) -> SearchQueries:
    """Makes queries from sentences. Raises ``UserError`` for a gallery whose features do not compare with text."""
    if gallery.meta.get("space", TEXT) != TEXT:
        raise UserError(f"{gallery.path}: no sentence compares with its features; extract them with --for_text")
    refuse_other_model(extractor.model_hash, gallery, force)
    return SearchQueries(extractor.sentences(sentences), [{"text": sentence} for sentence in sentences])


def refuse_two_queries(args: argparse.Namespace) -> None:
    """Raises ``UserError`` unless either --query or --text is given."""
    if bool(args.query) == bool(args.text):
        raise UserError("give either --query or --text")


def open_inputs(args: argparse.Namespace) -> tuple[SearchQueries, Gallery]:
    """Opens what --query or --text, and --gallery, name."""
    refuse_two_queries(args)
    if not args.gallery and not args.text:
        raise UserError("--gallery: name a folder of tools.extract or a .npy file; only --text can do without")
    if args.gallery:
        features = Features(args.gallery)
        return open_queries(args, features), features
    cfg = named_model(args)
    extractor = make_extractor(cfg, TEXT)
    gallery = TestSetGallery(cfg, extractor)
    return from_sentences(extractor, args.text, gallery, args.force), gallery


def named_model(args: argparse.Namespace) -> CfgNode:
    """Returns the configuration of the model that embeds images and sentences."""
    if not args.config_file and not args.opts:
        raise UserError("--config_file and TEST.WEIGHT must name the model for images and sentences as queries")
    return load_config(args.config_file, args.opts)


def open_queries(args: argparse.Namespace, gallery: Searched) -> SearchQueries:
    """Returns the queries that --query or --text names, to search ``gallery`` with."""
    first = Path(args.query[0]) if args.query else None
    if first and (first.suffix in (".npy", ".npz") or first.is_dir()):
        if len(args.query) > 1:
            raise UserError(f"--query: {first} holds features; give it alone, or image files")
        if first.is_dir() and not any((first / name).exists() for name in (META, PLAN)):
            raise UserError(f"--query: {first} is a folder without features; run tools.extract on it first")
        return from_features(first, gallery, args.force)
    cfg = named_model(args)
    if args.query:
        return from_images(cfg, args.query, gallery, args.force)
    return from_sentences(make_extractor(cfg, TEXT), args.text, gallery, args.force)


def hits(indices: np.ndarray, distances: np.ndarray, rows: Mapping[int, Columns]) -> list[Columns]:
    """Returns one query's list, from (k,) each, as JSON has it. rows: columns by gallery row."""
    pairs = ((int(row), float(value)) for row, value in zip(indices, distances, strict=True) if row >= 0)
    return [{"rank": n, "distance": value, "row": row} | rows[row] for n, (row, value) in enumerate(pairs, 1)]


@dataclass(frozen=True)
class Decisions:
    """What a calibration says about matches. limit: the largest distance of a match that counts."""

    calibration: Calibration
    limit: float

    def with_probabilities(self, found: list[Columns]) -> list[Columns]:
        """Returns the matches of a query with the probability that each shows the query's identity."""
        shares = self.calibration.probability(np.array([hit["distance"] for hit in found]))
        return [hit | {"probability": round(float(share), 6)} for hit, share in zip(found, shares, strict=True)]

    def knows(self, hit: Columns) -> bool:
        """Returns whether a match is near enough."""
        return hit["distance"] <= self.limit


def make_decisions(args: argparse.Namespace, gallery: Searched, metric: str, unit: bool) -> Decisions | None:
    """Reads --calibration. Raises ``UserError`` if it is of another model or distance than the gallery."""
    if not args.calibration:
        for name in ("far", "fpir"):
            if getattr(args, name) is not None:
                raise UserError(f"--{name}: chooses a threshold of --calibration, which is missing")
        return None
    if args.far is not None and args.fpir is not None:
        raise UserError("--far and --fpir: give one; both choose the threshold")
    calibration = Calibration.read(args.calibration)
    known = str(gallery.meta.get("model_hash", ""))
    if not known and not args.force:
        raise UserError(
            f"{gallery.path}: does not say which model its features are of, so {args.calibration} may be of another; "
            "--force decides all the same"
        )
    calibration.refuse_other(known or calibration.model_hash, metric, unit, args.calibration)
    if args.fpir is not None:
        return Decisions(calibration, calibration.unknown_beyond(args.fpir, len(gallery)))
    return Decisions(calibration, calibration.threshold(args.far).distance)


@dataclass(frozen=True)
class Matches:
    """The result of a search: (Q, k) gallery rows, nearest first, and their distances.

    decisions: what turns distances into probabilities, and the largest distance of somebody known; None for neither.
    """

    queries: SearchQueries
    gallery: Searched
    indices: np.ndarray
    distances: np.ndarray
    decisions: Decisions | None = None

    def lists(self) -> Iterator[tuple[Columns, list[Columns]]]:
        """Yields each query and its list."""
        rows = self.gallery.rows(np.unique(self.indices).tolist())
        for query, indices, distances in zip(self.queries.columns, self.indices, self.distances, strict=True):
            found = hits(indices, distances, rows)
            if self.decisions is not None:
                found = self.decisions.with_probabilities(found)
                query = query | {"known": bool(found) and self.decisions.knows(found[0])}
            yield query, found

    def json_lines(self) -> Iterator[str]:
        """Yields a line of JSON for each query."""
        for query, matches in self.lists():
            yield json.dumps({"query": query, "found": matches}) + "\n"

    def table(self) -> tuple[list[str], Iterator[list]]:
        """Returns the columns and rows of a CSV file: query, rank, distance, row, and what is known of the image."""
        first = self.gallery.rows(self.indices.flat[:1].tolist())
        known = [name for name in next(iter(first.values()), {}) if name != "row"]
        decided = [] if self.decisions is None else ["probability"]
        columns = ["query", "rank", "distance", *decided, "row", *known]
        return columns, (
            [query_title(query), *(hit.get(name, "") for name in columns[1:])]
            for query, matches in self.lists() for hit in matches
        )  # fmt: skip


def query_title(columns: Columns) -> str:
    """Returns what a query is called: its sentence, its path or its row."""
    return columns.get("text") or columns.get("path") or f"row {columns['row']}"


def box_of_columns(columns: Columns) -> np.ndarray | None:
    """Returns the crop box in an image's columns, None without one."""
    if not all(columns.get(name) for name in BOX):
        return None
    return np.array([int(float(columns[name])) for name in BOX])


def match_shot(query: Columns, hit: Columns) -> dict[str, Any]:
    """Returns the shot of one match of a query."""
    kind = UNKNOWN
    if query.get("pid") and hit.get("pid"):
        kind = RIGHT if query["pid"] == hit["pid"] else WRONG
    label = f"{hit['distance']:.3f}" if hit.get("path") else f"row {hit['row']}, {hit['distance']:.3f}"
    if "probability" in hit:
        label += f", P {hit['probability']:.2f}"
    description = f"place {hit['rank']}, distance {hit['distance']:.3f}"
    return shot(hit.get("path", ""), kind, label, description, box_of_columns(hit))


def write_search_page(path: Path, matches: Matches, how: str) -> int:
    """Writes a page of the first queries and places; returns how many thumbnails could not be read."""
    count, places = ON_PAGE
    shown = Matches(
        SearchQueries(matches.queries.feats[:count], matches.queries.columns[:count]), matches.gallery,
        matches.indices[:count, :places], matches.distances[:count, :places], matches.decisions,
    )  # fmt: skip
    rows = []
    for query, hits_of_query in shown.lists():
        title = query_title(query).encode(errors="replace").decode()  # file names need not be UTF-8
        shots = [match_shot(query, hit) for hit in hits_of_query]
        title += "" if query.get("known", True) else ": unknown, nobody is near enough"
        rows.append({
            "title": title, "query": shot(query.get("path", ""), QUERY, "", title, box_of_columns(query)),
            "lists": [{"name": f"nearest to {title}", "shots": shots}],
        })  # fmt: skip
    failed = load_thumbnails(rows, PixelRules.of_run(matches.gallery.meta.get("settings")))
    lead = (
        f"{len(matches.queries.columns)} queries in {len(matches.gallery)} images of {matches.gallery.path}, "
        f"the first {len(rows)} shown. {how}"
    )
    judged = any(one["kind"] in ("right", "wrong") for row in rows for one in row["lists"][0]["shots"])
    write_page(path, "search.html", title="Search", lead=lead, rows=rows, judged=judged)
    return failed


def write_matches(args: argparse.Namespace, matches: Matches) -> None:
    """Writes --out, or lines on standard output if no file was asked for."""
    if args.out and args.out.suffix == ".npz":
        write_atomically(
            args.out, lambda handle: np.savez(handle, indices=matches.indices, distances=matches.distances)
        )
    elif args.out and args.out.suffix == ".csv":
        write_csv(args.out, *matches.table())
    elif args.out:
        write_lines(args.out, matches.json_lines())
    elif not args.page:
        sys.stdout.writelines(matches.json_lines())


def index_file(gallery: Gallery) -> Path | None:
    """Returns where the index of an extraction is kept, by what it was made of; None if it is not kept."""
    if "list_hash" not in gallery.meta:
        return None
    return gallery.path / f"ivf_{gallery.meta['model_hash'][:8]}_{gallery.meta['list_hash'][:8]}.faiss"


def find_matches(args: argparse.Namespace, queries: SearchQueries, gallery: Gallery) -> tuple[Matches, str]:
    """Searches; returns the matches and a sentence that says how exact they are."""
    metric = args.metric or gallery.meta.get("distance", METRICS[0])
    unscaled = args.raw or gallery.meta.get("unit_length") is False
    unit = bool(args.text) or metric == "cosine" or not unscaled
    memory = int(args.memory * 1e9) or free_memory() // 4
    decisions = make_decisions(args, gallery, metric, unit)
    if not args.index:
        indices, distances = search(queries.feats, gallery.array, args.k, metric, unit, memory)
        return Matches(queries, gallery, indices, distances, decisions), f"Exact. Distances are {metric}."
    index = make_index(gallery.array, unit, index_file(gallery) if unit else None)
    indices, distances = approximate_search(queries.feats, index, args.k, metric, unit)
    share = recall(queries.feats, gallery.array, indices, metric, unit, memory)
    how = f"FAISS, {index.nprobe} of {index.nlist} lists: recall {share:.4f} of the exact {indices.shape[1]} nearest."
    return Matches(queries, gallery, indices, distances, decisions), f"{how} Distances are {metric}."


def run_search(args: argparse.Namespace) -> None:
    """Runs the search that the arguments ask for."""
    queries, gallery = open_inputs(args)
    for message in queries.skipped:
        print(f"skipped: {message}", file=sys.stderr)
    matches, how = find_matches(args, queries, gallery)
    notes = sys.stdout if args.out or args.page else sys.stderr
    if args.index:
        print(how, file=notes)
    write_matches(args, matches)
    if args.page:
        failed = write_search_page(args.page, matches, how)
        print(f"{args.page}" + (f": {failed} images could not be read" if failed else ""), file=notes)
    skipped = f", {len(queries.skipped)} skipped" if queries.skipped else ""
    if matches.decisions is not None:
        unknown = int((matches.distances[:, 0] > matches.decisions.limit).sum())
        skipped += f"; {unknown} show nobody of the gallery (distance above {matches.decisions.limit:.4f})"
    where = f"{args.out}: " if args.out else ""
    print(
        f"{where}the {matches.indices.shape[1]} nearest of {len(gallery)} images for {len(queries.columns)} "
        f"queries{skipped}",
        file=notes,
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    model = "--config_file configs/quickstart.yml TEST.WEIGHT runs/quickstart/resnet10_12.pth"
    prompt_model = "--config_file configs/clip_reid/veri_vit_prom.yml TEST.WEIGHT W"
    parser = make_parser(
        "python -m tools.search", __doc__, "--query q.npy --gallery g.npy --k 100 --out topk.npz",
        f"--query a.jpg b.jpg --gallery features --page found.html {model}",
        f'--text "a red car" --gallery features {prompt_model}',
        f'--text "a red car" --k 10 --page cars.html {prompt_model}',
        settings=True,
    )  # fmt: skip
    parser.add_argument("--query", nargs="+", metavar="Q", help="image files, a folder of features, or a .npy file")
    parser.add_argument("--text", nargs="+", metavar="SENTENCE", help="sentences instead")
    parser.add_argument("--gallery", type=Path, help="folder of features, or .npy file (images, width)")
    parser.add_argument("--out", type=Path, help=".jsonl, .csv or .npz file to write")
    parser.add_argument("--page", type=Path, help="page to write, .html")
    parser.add_argument("--k", type=int, default=100, help="length of the lists (100)")
    parser.add_argument("--metric", choices=METRICS, help="default: the gallery's, else euclidean, which is squared")
    parser.add_argument("--raw", action="store_true", help="do not scale features to unit length")
    parser.add_argument("--memory", type=float, default=0, metavar="GB", help="working memory (a quarter of the free)")
    parser.add_argument("--index", choices=("faiss",), help="approximate, in memory; prints its recall")
    parser.add_argument("--calibration", type=Path, metavar="FILE", help="of tools.calibrate: adds P(same) and 'known'")
    parser.add_argument("--far", type=float, metavar="RATE", help="whose threshold decides; the file's strictest")
    parser.add_argument("--fpir", type=float, metavar="RATE", help="or: share of absent queries that get a name")
    parser.add_argument("--force", action="store_true", help="search even if query and gallery are of different models")
    args = parser.parse_args(argv)
    if args.memory < 0:
        raise UserError(f"--memory: expected at least 0 GB, got {args.memory}")
    if args.k < 1:
        raise UserError(f"--k: expected at least 1 image, got {args.k}")
    if args.out and args.out.suffix not in (".npz", ".jsonl", ".csv"):
        raise UserError(f"--out: expected a name that ends in .npz, .jsonl or .csv, got {args.out}")
    if args.page and args.page.suffix != ".html":
        raise UserError(f"--page: expected a name that ends in .html, got {args.page}")
    run_search(args)


if __name__ == "__main__":
    run_command(main)
