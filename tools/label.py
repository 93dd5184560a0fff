"""Labels images in a browser: ``python -m tools.label --images I --config_file F --out labels.csv TEST.WEIGHT W``.

I is a folder, a list or a table of images, as for tools.extract. Their features are extracted and clustered as in
training without labels (CLUSTER.EPS, MIN_SAMPLES, K1, K2), and a page on this machine shows the clusters, asks about
pairs and lists what looks wrong (``docs/label.md``). Decisions go to ``labels.work/journal.jsonl`` one by one, and the
table that training reads follows from them. Stop it at any time; the same command goes on.

``--labels TABLE`` in place of ``--images`` looks for mistakes in labels that are there. ``--read`` takes labels of CVAT
(Market-1501), Label Studio or FiftyOne over, ``--write FORMAT:PATH`` gives them back. ``--retrain FILE.yml`` trains on
what is decided, extracts again and goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import os
import secrets
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from configs import load_config
from datasets.identifiers import canonical
from datasets.readers.image_list import Carried, read_image_list
from datasets.records import Records
from datasets.storage.pixels import PixelRules
from processor.run import train
from processor.trained import last_of_run, weight_file
from tools.extract import extract_to_folder, list_hash, table_rows
from tools.labelling import server
from tools.labelling.clean import Cleaning
from tools.labelling.exchange import FORMATS, Found, matched, read_labels, write_labels
from tools.labelling.journal import Journal
from tools.labelling.neighbours import EVEN, kept_graph
from tools.labelling.session import Images, Session
from tools.labelling.suspects import Quality, Suspects
from tools.labelling.table import write_split
from tools.web.listening import free_socket, serve
from utils.calibration import Calibration
from utils.commands import make_parser, run_command
from utils.errors import UserError
from utils.feature_files import ROWS, SKIPPED, Features
from utils.files import sha256_of

log = logging.getLogger("lineup")

JOURNAL, TOKEN = "journal.jsonl", "token"
SAVE_SECONDS = 3.0
"""How often the table is written while decisions come; the journal has them at once."""
PORT = 8265
NAMES_A_LINE = 10_000
LEAST_IDENTITIES = 4
"""Identities that a training needs at least, some of which are held out."""


def work_folder(out: Path) -> Path:
    """Returns the folder beside the table that journal and features are in. Raises ``UserError`` for no table."""
    if out.suffix != ".csv":
        raise UserError(f"--out: {out} must be a .csv file, the table that training reads")
    if out.is_dir():
        raise UserError(f"--out: {out} is a folder, not a file")
    return out.with_suffix(".work")


def names_of(records: Records, images: Path) -> list[str]:
    """Returns what the journal calls the images: their paths from the folder or the table's folder, and their crops."""
    folder = os.path.abspath(images if images.is_dir() else images.parent)
    names = [path[len(folder) + 1 :] if path.startswith(folder + os.sep) else path for path in records.paths]
    if records.boxes is None:
        return names
    crops = records.boxes.tolist()
    return [f"{name} {' '.join(map(str, box))}" if any(box) else name for name, box in zip(names, crops, strict=True)]


def extracted(
    cfg: CfgNode, images: Path, work: Path, config_file: str, records: Records, carried: Carried
) -> tuple[Features, dict[int, str], np.ndarray]:
    """Extracts features, unless it was done before.

    Returns them, the images that could not be read with the reasons, and the row of each feature's image.
    """
    digest = hashlib.sha256(sha256_of(Path(weight_file(cfg))))
    digest.update(list_hash(records, carried).encode())
    digest.update("".join(cfg[section].dump() for section in ("MODEL", "INPUT", "TEST")).encode())
    folder = work / f"features-{digest.hexdigest()[:12]}"
    extract_to_folder(cfg, images, folder, config_file)
    feats = Features(folder)
    lines = feats.rows(range(len(feats)))
    kept, bad, at = [], [], 0
    for row, values in enumerate(table_rows(records, carried)):
        if at < len(lines) and tuple(lines[at].values()) == values:
            kept.append(row)
            at += 1
        else:
            bad.append(row)
    if at < len(lines):
        raise UserError(f"{folder / ROWS}: is of another list of images; remove {folder}")
    reasons = (folder / SKIPPED).read_text("utf-8", "surrogateescape").splitlines()[1:]
    why = [reason.rsplit(": ", 1)[-1].strip('"') for reason in reasons]
    return feats, {row: why[i] if i < len(why) else "" for i, row in enumerate(bad)}, np.array(kept, np.int64)


def make_session(
    cfg: CfgNode, images: Path, out: Path, config_file: str = "", labels: Path | None = None,
    calibration: Path | None = None,
) -> Session:  # fmt: skip
    """Makes the session of some images, with what was decided before. Raises ``UserError`` for a user's mistake.

    labels: the table, if its labels are checked. calibration: the file of tools.calibrate that clusters come from.
    """
    odds = Calibration.read(calibration) if calibration else None
    work = work_folder(out)
    records, carried = read_image_list(images)
    names = names_of(records, images)
    journal = Journal.open(work / JOURNAL, names)
    try:
        feats, bad, rows = extracted(cfg, images, work, config_file, records, carried)
        cluster, eps = cfg.CLUSTER, cfg.CLUSTER.EPS
        if odds is not None:
            odds.refuse_other(feats.meta["model_hash"], odds.metric, odds.normalize, calibration)
            eps = EVEN
        key = f"{feats.meta['model_hash']} {feats.meta['list_hash']}"
        graph = kept_graph(feats.path, key, feats.array, cluster.K1, cluster.K2, eps, rows, len(records), odds)
        listed = Images(list(records.paths), names, records.boxes, bad, carried)
        if labels is None:
            proposals = Suspects(Quality(listed, PixelRules.from_cfg(cfg)))
        else:
            proposals = Cleaning.of_table(labels, eps)
        session = Session(
            listed, graph, journal, out, eps=eps, min_samples=cluster.MIN_SAMPLES, proposals=proposals,
            feats=feats.array, rows=rows,
        )  # fmt: skip
        session.save()
    except BaseException:
        journal.close()
        raise
    return session


def kept_token(work: Path) -> str:
    """Returns the token of the page, the same after a restart, so that open windows go on; for its owner to read."""
    path = work / TOKEN
    if path.is_file() and len(token := path.read_text("utf-8", "replace").strip()) >= 32 and token.isalnum():
        return token
    token = secrets.token_hex(16)
    path.unlink(missing_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as handle:
        handle.write(token + "\n")
    return token


@contextmanager
def saving(session: Session, seconds: float = SAVE_SECONDS) -> Iterator[None]:
    """Writes the table every few seconds while decisions come, and at the end."""
    ended = threading.Event()

    def run() -> None:
        while not ended.wait(seconds):
            try:
                session.save()
            except UserError as error:  # the journal has the decisions; the table follows when there is room
                print(f"warning: {error}", file=sys.stderr)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        session.save()


def summary(session: Session) -> str:
    """Returns a line on what there is."""
    state = session.state()
    line = f"{state['images']:,} images, {state['clusters']:,} clusters, {state['alone']:,} images alone"
    if state["unreadable"]:
        line += f", {state['unreadable']:,} cannot be read and are left out"
    return f"{line}; {state['decisions']:,} decisions about {state['decided']:,} images"


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    example = "--images crops/ --config_file configs/torchreid/osnet_x0_25.yml --out labels.csv TEST.WEIGHT osnet.pth"
    parser = make_parser("python -m tools.label", __doc__, example, settings=True)
    parser.add_argument("--images", type=Path, metavar="FOLDER|LIST.txt|TABLE.csv", help="what is labelled")
    parser.add_argument("--labels", type=Path, metavar="TABLE.csv", help="labels to be checked, in place of --images")
    parser.add_argument("--out", type=Path, required=True, metavar="TABLE.csv", help="where the labels go")
    parser.add_argument(
        "--calibration", type=Path, metavar="FILE", help="cluster by the probabilities of tools.calibrate's file"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; the page needs its token anywhere")
    parser.add_argument("--port", type=int, default=PORT, help=f"port of the page, 0: any that is free; {PORT}")
    parser.add_argument("--table", action="store_true", help="write the table from the journal, with no page, and end")
    parser.add_argument(
        "--only_decided", "--only-decided", action="store_true",
        help="with --table or --write: images that nobody decided about are unlabelled",
    )  # fmt: skip
    parser.add_argument("--read", type=Path, metavar="PATH", help="labels of another tool, taken over as names")
    parser.add_argument(
        "--write", metavar="FORMAT:PATH", help=f"write the labels for another tool ({', '.join(FORMATS)}), and end"
    )
    parser.add_argument(
        "--retrain", default="", metavar="FILE.yml", help="train on what is decided first, by this YAML"
    )
    args = parser.parse_args(argv)
    if args.calibration and args.retrain:
        raise UserError("--calibration: is of TEST.WEIGHT, not of what --retrain trains; calibrate that one afterwards")
    if (args.images is None) == (args.labels is None):
        raise UserError("name the images (--images) or a table whose labels are checked (--labels), one of them")
    if args.labels is not None and (args.retrain or args.read or args.write or args.only_decided):
        raise UserError(
            "--labels: checks labels only; --retrain, --read, --write and --only_decided belong to --images"
        )
    run(args, load_config(args.config_file, args.opts))


def run(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Does what the options ask for."""
    if not 0 <= args.port < 2**16:
        raise UserError(f"--port: {args.port} must be between 0 and 65535")
    kind, target = written(args.write)
    found = read_labels(args.read) if args.read else []
    listening = None if args.table or kind else free_socket(args.host, args.port)  # before any work
    rules, images = PixelRules.from_cfg(cfg), args.images or args.labels
    try:
        if args.retrain:
            cfg, config_file = retrained(cfg, images, args.out, args.config_file, args.retrain)
        else:
            config_file = args.config_file
        session = make_session(cfg, images, args.out, config_file, args.labels, args.calibration)
        try:
            take_over(session, found)
            print(summary(session))
            if kind:
                count = write_labels(kind, target, session.images, session.identities(args.only_decided))
                print(f"written: {target}, labels of {count:,} images")
            elif listening is None:
                session.saved = -1
                session.save(only_decided=args.only_decided)
                print(f"written: {args.out}")
            else:
                show(session, listening, rules)
        finally:
            session.journal.close()
    finally:
        if listening is not None:
            listening.close()


def written(word: str | None) -> tuple[str, Path]:
    """Returns format and path of ``--write``, '' for none."""
    if not word:
        return "", Path()
    kind, _, path = word.partition(":")
    if kind not in FORMATS or not path:
        raise UserError(f"--write: expected FORMAT:PATH with one of {', '.join(FORMATS)}, got {word!r}")
    return kind, Path(path)


def take_over(session: Session, found: Found) -> None:
    """Adds the labels of another tool as decisions, but for those that are there already."""
    if not found:
        return
    entries, unknown = matched(found, session.images)
    if not entries:
        raise UserError(f"--read: none of its {len(found):,} labels is of an image here, such as {unknown[:1]}")
    constraints = session.constraints
    new = [[row, name] for row, name in entries if constraints.names.get(constraints.root(row)) != canonical(name)]
    for top in range(0, len(new), NAMES_A_LINE):
        session.decide({"view": "read", "name": new[top : top + NAMES_A_LINE]})
    print(f"--read: {len(entries):,} images have names, {len(new):,} of them new; {len(unknown):,} are not here")


def show(session: Session, listening: socket.socket, rules: PixelRules) -> None:
    """Serves the page until the process is interrupted."""
    host, port = listening.getsockname()[:2]
    token = kept_token(work_folder(session.out))
    app = server.make_app(session, token, host, port, rules)
    name = f"[{host}]" if ":" in host else host
    print(f"open http://{name}:{port}/?token={token}", flush=True)
    print(f"Ctrl-C ends it; {session.out} follows the decisions", flush=True)
    with saving(session):
        serve(app, listening)


def retrained(cfg: CfgNode, images: Path, out: Path, config_file: str, yaml: str) -> tuple[CfgNode, str]:
    """Trains on what is decided, and returns the configuration whose weights are the result, and its file.

    Training starts from TEST.WEIGHT, by the YAML's own schedule. A tenth of the identities is held out to test on.
    """
    session = make_session(cfg, images, out, config_file)
    try:
        work = work_folder(out)
        number = session.version
        folder = work / f"retrained-{number}"
        table = folder / "dataset.csv"
        identities = write_split(table, session)
    finally:
        session.journal.close()
    if identities < LEAST_IDENTITIES:
        raise UserError(
            f"--retrain: {identities} identities of two or more images are decided, and {LEAST_IDENTITIES} are needed; "
            "decide more first"
        )
    settings = [
        "DATASETS.NAMES", "csv", "DATASETS.FILE", str(table), "DATASETS.ROOT_DIR", str(folder),
        "DATASETS.TARGETS", "()", "OUTPUT_DIR", str(folder),
        "MODEL.PRETRAIN_CHOICE", "self", "MODEL.PRETRAIN_PATH", str(weight_file(cfg)),
    ]  # fmt: skip
    train(load_config(yaml, settings), yaml)
    config, weight = last_of_run(folder)
    print(f"trained on {identities:,} identities; without --retrain: --config_file {config} TEST.WEIGHT {weight}")
    return load_config(config, ["TEST.WEIGHT", weight]), str(config)


if __name__ == "__main__":
    run_command(main)
