"""Keeps features in a store and searches it: ``python -m tools.gallery search --store S --query Q``.

``create`` makes a store for the features of one model, ``add`` fills it from a folder of tools.extract (which writes
into a store itself with ``--to``), ``search`` finds the nearest rows by features, images, tracklets or sentences,
``verify`` builds an index and tunes it to a wanted recall, ``erase`` and ``expire`` remove rows from answers and files,
``info`` says what is in it. S is a folder or an object store's address (LanceDB), or ``milvus://HOST`` or ``FILE.db``
(Milvus). See ``docs/gallery.md``.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from configs import load_config
from processor.extractor import IMAGE, TEXT, make_extractor
from tools.galleries.adding import add_features
from tools.galleries.erasing import PENDING, Erased, erase, expire, records
from tools.galleries.filters import RowFilter, seconds_of
from tools.galleries.opening import create_store, open_store
from tools.galleries.schema import StoreMeta
from tools.galleries.searching import INDEX, StoreGallery, refuse_unknown_columns, search_store
from tools.galleries.sources import SOURCE
from tools.galleries.store import Store
from tools.galleries.tracklets import by_tracklet
from tools.galleries.tuning import verify
from tools.search import (
    Matches,
    make_decisions,
    open_queries,
    refuse_two_queries,
    write_matches,
    write_search_page,
)
from utils.commands import make_parser, run_command
from utils.errors import UserError
from utils.feature_files import Features
from utils.provenance import commit

FILTERS = ("identity", "camera", "source", "seq", "path", "since", "until")


def run_create(args: argparse.Namespace) -> None:
    """Creates a store for the features of a folder, or of a model."""
    with closing(create_store(args.store, new_meta(args))) as store:
        print(f"{store.address}: created for features {store.meta.width} wide of model {store.meta.model_hash[:12]}")


def new_meta(args: argparse.Namespace) -> StoreMeta:
    """Returns what the features of a new store are."""
    if bool(args.features) == bool(args.config_file or args.opts):
        raise UserError("create: give either --features FOLDER or --config_file and TEST.WEIGHT")
    if args.features:
        features = Features(args.features)
        if not features.meta:
            raise UserError(
                f"{args.features}: does not say which model its features are of; name a folder of tools.extract"
            )
        return meta_of_features(features)
    cfg = load_config(args.config_file, args.opts)
    extractor = make_extractor(cfg, TEXT if args.for_text else IMAGE)
    if not extractor.unit:
        raise UserError("a store holds features of unit length; set TEST.FEAT_NORM 'yes'")
    return StoreMeta(
        extractor.model_hash, extractor.width, extractor.space, cfg.TEST.METRIC, extractor.settings, commit()
    )


def meta_of_features(features: Features) -> StoreMeta:
    """Returns what the features of a folder are."""
    meta = features.meta
    if meta.get("unit_length") is False:
        raise UserError(f"{features.path}: a store holds features of unit length; extract with TEST.FEAT_NORM 'yes'")
    return StoreMeta(
        meta["model_hash"], int(meta["width"]), str(meta.get("space", IMAGE)), str(meta.get("distance", "euclidean")),
        meta.get("settings"), commit(),
    )  # fmt: skip


def run_add(args: argparse.Namespace) -> None:
    """Adds the rows of a features file."""
    features = Features(args.features)
    with closing(open_store(args.store)) as store:
        added = add_features(store, features, args.source or args.features.stem, args.force)
        rate = f", {added.written / added.seconds:,.0f} rows/s" if added.written else ""
        before = f"; {added.before:,} were there before" if added.before else ""
        print(f"{store.address}: {added.written:,} rows added in {added.seconds:.1f} s{rate}{before}")


def run_search(args: argparse.Namespace) -> None:
    """Searches a store."""
    refuse_two_queries(args)
    if args.out and args.out.suffix not in (".npz", ".jsonl", ".csv"):
        raise UserError(f"--out: expected a name that ends in .npz, .jsonl or .csv, got {args.out}")
    if args.page and args.page.suffix != ".html":
        raise UserError(f"--page: expected a name that ends in .html, got {args.page}")
    at_least("--k", args.k, 1)
    where = filter_of(args)
    with closing(open_store(args.store)) as store:
        refuse_unknown_columns(store, where, store.facts(SOURCE))
        gallery = StoreGallery(store)
        queries = open_queries(args, gallery)
        for message in queries.skipped:
            print(f"skipped: {message}", file=sys.stderr)
        queries = by_tracklet(queries) if args.tracklets else queries
        decisions = make_decisions(args, gallery, store.meta.distance, True)
        ids, distances, how = search_store(store, queries.feats, args.k, where, args.exact)
        matches = Matches(queries, gallery, ids, distances, decisions)
        notes = sys.stdout if args.out or args.page else sys.stderr
        write_matches(args, matches)
        if args.page:
            failed = write_search_page(args.page, matches, how)
            print(f"{args.page}" + (f": {failed} images could not be read" if failed else ""), file=notes)
        unknown = ""
        if decisions is not None:
            near = distances[:, 0] <= decisions.limit if distances.shape[1] else [False] * len(queries.columns)
            unknown = f"; {len(queries.columns) - int(sum(near))} show nobody of the store"
        where_to = f"{args.out}: " if args.out else ""
        print(f"{where_to}the {ids.shape[1]} nearest for {len(queries.columns)} queries{unknown}. {how}", file=notes)


def run_erase(args: argparse.Namespace) -> None:
    """Erases rows."""
    where = filter_of(args)
    with closing(open_store(args.store)) as store:
        chosen = None if where == RowFilter() else where
        if chosen is None and PENDING not in store.facts(PENDING):
            raise UserError(
                "erase: name what to erase: --identity, --path, --source, --camera, --seq, --since or --until"
            )
        used = [name for name in FILTERS if getattr(args, name)]
        print(erased_line(store, erase(store, chosen, " and ".join(used))))


def run_expire(args: argparse.Namespace) -> None:
    """Erases old rows."""
    if not 0 <= args.days < 1e5:
        raise UserError(f"--days: expected 0 to 100,000 days, got {args.days:g}")
    with closing(open_store(args.store)) as store:
        print(erased_line(store, expire(store, args.days, args.by)))


def erased_line(store: Store, erased: Erased) -> str:
    """Returns what an erasure did."""
    again = ", the index was built again" if erased.indexed else ""
    if not erased.rows:
        return f"{store.address}: no row matches; {erased.left:,} rows"
    return f"{store.address}: {erased.rows:,} rows erased, {erased.left:,} left{again}"


def run_info(args: argparse.Namespace) -> None:
    """Says what a store holds."""
    with closing(open_store(args.store)) as store:
        print(json.dumps(info_of(store), indent=2) if args.json else "\n".join(info_lines(store)))


def info_of(store: Store) -> dict[str, Any]:
    """Returns what a store holds, in JSON's types."""
    facts = store.facts()
    names = sorted(name.removeprefix(SOURCE) for name in facts if name.startswith(SOURCE))
    sources = {name: facts[SOURCE + name] | {"rows": store.count(RowFilter(source=(name,)))} for name in names}
    return {
        "address": store.address, "rows": store.count(RowFilter()), "bytes": store.size(), **store.meta.content(),
        "sources": sources, "index": facts.get(INDEX), "erasures": records(store), "pending": facts.get(PENDING),
    }  # fmt: skip


def info_lines(store: Store) -> list[str]:
    """Returns what a store holds, for people."""
    info = info_of(store)
    size = "" if info["bytes"] is None else f", {info['bytes'] / 1e6:,.1f} MB"
    lines = [
        f"{info['address']}: {info['rows']:,} rows{size}, {info['width']} wide, {info['distance']}, "
        f"space {info['space']}, model {info['model_hash'][:12]}"
    ]
    for name, source in info["sources"].items():
        lines.append(f"source {name}: {source['rows']:,} rows, since {day_of(source['added'])}")
    index = info["index"]
    if index:
        lines.append(
            f"index {index['built']['kind']}: recall {index['recall']:.4f} of {index['k']} with {index['effort']}, "
            f"measured on {index['queries']} queries of {index['rows']:,} rows, {day_of(index['when'])}"
        )
    lines += [
        f"erased {day_of(record['when'])}: {record['rows']:,} rows by {record['why']}" for record in info["erasures"]
    ]
    if info["pending"]:
        lines.append(f"an erasure of {info['pending']['rows']:,} rows was stopped: erase again, so that their bytes go")
    return lines


def day_of(seconds: float) -> str:
    """Returns a time as a day in UTC."""
    return f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d}"


def run_verify(args: argparse.Namespace) -> None:
    """Builds and tunes the index."""
    if not 0 < args.recall <= 1:
        raise UserError(f"--recall: expected a share above 0 and up to 1, got {args.recall:g}")
    at_least("--k", args.k, 1)
    at_least("--queries", args.queries, 1)
    with closing(open_store(args.store)) as store:
        queries = None
        if args.query:
            features = Features(args.query)
            store.meta.refuse_other(
                str(features.meta.get("model_hash", "")),
                features.array.shape[1],
                str(args.query),
                store.address,
                args.force,
            )
            queries = features.array
        began = time.monotonic()
        result = verify(store, args.k, args.recall, args.queries, queries, args.rebuild)
        for one in result.tried:
            print(f"{one.effort}: recall {one.recall:.4f}, {one.p50:.2f} ms (p99 {one.p99:.2f})")
        chosen, seconds = result.chosen, time.monotonic() - began
        print(
            f"{store.address}: recall {chosen.recall:.4f} of the exact {args.k} on {result.queries} queries with "
            f"{chosen.effort}; exact search takes {result.exact_ms:.1f} ms ({seconds:.0f} s in all)"
        )
        if args.json:
            print(json.dumps(asdict(result)))


def at_least(option: str, value: int, least: int) -> None:
    """Raises ``UserError`` for a number below ``least``."""
    if value < least:
        raise UserError(f"{option}: must be at least {least}, got {value}")


def filter_of(args: argparse.Namespace) -> RowFilter:
    """Returns the filter of the command line. Raises ``UserError`` for malformed times, or ones in the wrong order."""
    since = None if args.since is None else seconds_of(args.since, "--since")
    until = None if args.until is None else seconds_of(args.until, "--until")
    if since is not None and until is not None and since >= until:
        raise UserError(f"--until: must be after --since, got {args.since} to {args.until}")
    return RowFilter(
        identity=tuple(args.identity or ()), camid=tuple(args.camera or ()), source=tuple(args.source or ()),
        seq=tuple(args.seq or ()), path=tuple(args.path or ()), since=since, until=until,
    )  # fmt: skip


def add_filters(parser: argparse.ArgumentParser) -> None:
    """Adds the options that choose rows."""
    parser.add_argument("--identity", nargs="+", metavar="ID", help="rows of these identities")
    parser.add_argument("--camera", nargs="+", metavar="CAM", help="rows of these cameras")
    parser.add_argument("--source", nargs="+", metavar="NAME", help="rows that were added under these names")
    parser.add_argument("--seq", nargs="+", metavar="SEQ", help="rows of these tracklets")
    parser.add_argument("--path", nargs="+", metavar="PATH", help="rows of these images")
    parser.add_argument("--since", metavar="TIME", help="rows from this time on: seconds, or 2026-11-30T08:00")
    parser.add_argument("--until", metavar="TIME", help="rows before this time")


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the words that name a model; they stand last."""
    parser.add_argument("--config_file", "--config-file", default="", metavar="FILE", help="YAML file under configs/")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings that override the file's")


def make_command_parser() -> argparse.ArgumentParser:
    """Returns the parser of all commands."""
    parser = make_parser(
        "python -m tools.gallery", __doc__, "create --store gate --features features",
        "add --store gate --features features", "search --store gate --query features --camera 3 --out found.jsonl",
        "verify --store gate --recall 0.99", "erase --store gate --identity 0042", "expire --store gate --days 30",
    )  # fmt: skip
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")

    def command(name: str, run: Callable[[argparse.Namespace], None], purpose: str) -> argparse.ArgumentParser:
        one = commands.add_parser(name, help=purpose, description=purpose)
        one.set_defaults(run=run)
        one.add_argument("--store", required=True, metavar="S", help="folder, object store, milvus://HOST or FILE.db")
        return one

    one = command("create", run_create, "creates a store for the features of one model")
    one.add_argument("--features", type=Path, metavar="FOLDER", help="of tools.extract, whose model it is for")
    one.add_argument("--for_text", "--for-text", action="store_true", help="for features that sentences compare with")
    add_model(one)
    one = command("add", run_add, "adds the features of a folder; after a kill the same command continues")
    one.add_argument("--features", type=Path, required=True, metavar="FOLDER", help="of tools.extract, or a .npy file")
    one.add_argument("--source", metavar="NAME", help="name of what is added (the folder's)")
    one.add_argument("--force", action="store_true", help="add features of which no model or another one is known")
    one = command("search", run_search, "finds the nearest rows of queries")
    one.add_argument("--query", nargs="+", metavar="Q", help="image files, a folder of features, or a .npy file")
    one.add_argument("--text", nargs="+", metavar="SENTENCE", help="sentences instead, with a prompt model")
    one.add_argument("--tracklets", action="store_true", help="a query per seq of the features; of images, one in all")
    one.add_argument("--k", type=int, default=10, help="length of the lists (10)")
    one.add_argument("--exact", action="store_true", help="look at every row, though there is an index")
    one.add_argument("--out", type=Path, help=".jsonl, .csv or .npz file to write")
    one.add_argument("--page", type=Path, help="page to write, .html")
    one.add_argument("--calibration", type=Path, metavar="FILE", help="of tools.calibrate: adds P(same) and 'known'")
    one.add_argument("--far", type=float, metavar="RATE", help="whose threshold decides; the file's strictest")
    one.add_argument("--fpir", type=float, metavar="RATE", help="or: share of absent queries that get a name")
    one.add_argument("--force", action="store_true", help="search even if the queries are of another model")
    add_filters(one)
    add_model(one)
    one = command("erase", run_erase, "removes rows from every answer and from the files")
    add_filters(one)
    one = command("expire", run_expire, "erases the rows that are older than some days")
    one.add_argument("--days", type=float, required=True, metavar="N")
    one.add_argument("--by", choices=("added", "time"), default="added", help="which moment counts (added)")
    one = command("info", run_info, "says what a store holds")
    one.add_argument("--json", action="store_true", help="as JSON")
    one = command("verify", run_verify, "builds the index and tunes it to a recall of the exact lists")
    one.add_argument("--recall", type=float, default=0.99, metavar="SHARE", help="wanted (0.99)")
    one.add_argument("--k", type=int, default=10, help="length of the lists (10)")
    one.add_argument("--queries", type=int, default=200, metavar="N", help="rows drawn as queries (200)")
    one.add_argument("--query", type=Path, metavar="FOLDER", help="features to take as queries instead")
    one.add_argument("--rebuild", action="store_true", help="build the index again")
    one.add_argument("--force", action="store_true", help="queries of another model")
    one.add_argument("--json", action="store_true", help="print the measurements as JSON too")
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    args = make_command_parser().parse_args(argv)
    args.run(args)


if __name__ == "__main__":
    run_command(main)
