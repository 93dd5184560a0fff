"""What labelling takes: decisions until the clusters are right, and time and memory at many images.

    python -m benchmarks.label --simulate --split test --config_file FILE TEST.WEIGHT W [KEY VALUE ...]
    python -m benchmarks.label --clean 0.05 --split test --config_file FILE TEST.WEIGHT W [KEY VALUE ...]
    python -m benchmarks.label --clean 0.05 --train FOLDER --config_file FILE [KEY VALUE ...]
    python -m benchmarks.label --size 50000

``--simulate``: a person who knows the truth answers questions about the images of a data set until the pairwise F1 of
the clusters is 0.95 and 0.99: which of a row of crops it is, as the page asks (``rows``), or pair by pair, in three
orders; beside it, how many names it takes to get there by naming one crop after the other. ``--wrong 0.03``: that share
of the answers is wrong. Every seed draws its own 70 % of the identities. ``--clean``: that share of the labels is made
wrong in three ways; how many of the mistakes are proposed, and how many proposals are right. ``--train``: and the mAP
after training on true labels, on the wrong ones, and after every proposal was accepted; features are those of the
network that was trained on the wrong labels. ``--size``: seconds and memory of a session about so many drawn features,
and of the replay of ``--decisions`` decisions.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from yacs.config import CfgNode

from benchmarks.annotator import TARGETS, by_hand, random_order, simulate
from benchmarks.mislabelled import accepted, corrupted, judged
from configs import load_config
from datasets.dataset import ReIDDataset, make_dataset
from datasets.options import options_of_run
from datasets.records import Records, join
from processor.extractor import make_extractor
from processor.run import train
from processor.trained import last_of_run
from tools.labelling.clean import propose
from tools.labelling.clustering import Clusters, Graph
from tools.labelling.constraints import Constraints
from tools.labelling.journal import Decision, Journal
from tools.labelling.neighbours import make_graph
from tools.labelling.pairs import MISTAKES, PairOrder, expected_change, uncertainty
from tools.labelling.session import OTHERS, Images, Session
from utils.files import write_csv

HEADER = ("data", "split", "images", "identities", "wrong", "seed", "order", "F1_start", "decisions_0.95",
          "decisions_0.99", "decisions", "F1_end", "seconds")  # fmt: skip
ORDERS = ("rows", "change", "uncertain", "random")
CLEAN_HEADER = ("data", "split", "images", "identities", "labels_changed", "seed", "kind", "mistakes", "proposals",
                "proposals_right", "mistakes_found")  # fmt: skip
MAP_HEADER = ("data", "seed", "true", "corrupted", "cleaned")
SHARE = 0.7
"""Of the identities, in every repetition."""


def measure(size: int, count: int) -> None:
    """Prints seconds and memory of a session: 20 images an identity, 128 features."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(size // 20 + 1, 128)).astype(np.float32)
    truth = np.arange(size) // 20
    feats = centres[truth] + 0.6 * rng.normal(size=(size, 128)).astype(np.float32)
    feats /= np.linalg.norm(feats, axis=1, keepdims=True)
    names = [f"{i}.jpg" for i in range(size)]

    def timed(what: str, call: Callable):
        began = time.perf_counter()
        result = call()
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{what:40s} {time.perf_counter() - began:8.3f} s   at most {memory:.2f} GB so far", flush=True)
        return result

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        graph = timed("comparing all images, once", lambda: make_graph(feats, 30, 6, 0.6, np.arange(size), size))
        journal = Journal.open(path, names)
        images = Images(names, names)
        session = timed(
            "session",
            lambda: Session(images, graph, journal, Path(folder) / "x.csv", eps=0.6, min_samples=4, feats=feats),
        )
        timed("first page", lambda: (session.state(), session.rows()))
        timed("first question", session.pair)
        seconds, asked = [], 0
        while asked < 200 and (found := session.pair()["pairs"]):
            began = time.perf_counter()
            a, b = found[0]["pair"]
            session.decide({"view": "pairs", "same" if truth[a] == truth[b] else "differ": [[a, b]]})
            session.pair()
            seconds.append(time.perf_counter() - began)
            asked += 1
        shown = ", ".join(f"{1000 * value:.0f}" for value in np.percentile(seconds, [50, 95, 100]))
        print(f"{asked} answers, each with the next pair: {shown} ms (median, 95 %, slowest)")
        timed("table", session.save)
        journal.close()
        with open(path, "ab") as handle:
            for n in range(asked + 1, count + 1):
                a, b = rng.choice(size, 2, replace=False).tolist()
                same = truth[a] == truth[b]
                a, b = (a, a + 1 if a % 20 < 19 and a + 1 < size else a - 1) if n % 2 else (a, b)
                word = {"same": ((a, b),)} if n % 2 or same else {"differ": ((a, b),)}
                handle.write(Decision(n, "clusters", **word).line())
        journal = timed(f"journal of {count:,} decisions read", lambda: Journal.open(path, names))
        timed("what follows from them", lambda: Constraints.of(size, journal.active()))
        journal.close()


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulate", action="store_true")
    parser.add_argument("--clean", type=float, nargs="?", const=0.05, default=0.0, metavar="SHARE")
    parser.add_argument("--train", type=Path, metavar="FOLDER", help="with --clean: train, in this folder")
    parser.add_argument("--split", choices=("train", "test"), default="train")
    parser.add_argument("--orders", nargs="+", default=ORDERS, choices=ORDERS)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--wrong", type=float, nargs="+", default=[0.0])
    parser.add_argument("--name", default="", help="what the table calls the data set")
    parser.add_argument("--out", type=Path, help="table of results that the rows are appended to")
    parser.add_argument("--most", type=float, default=4, help="decisions at most, times the images")
    parser.add_argument("--config_file", default="")
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--decisions", type=int, default=100_000)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args(argv)
    if args.size:
        measure(args.size, args.decisions)
    if args.simulate:
        simulated(args, load_config(args.config_file, args.opts))
    if args.clean:
        cleaned(args, load_config(args.config_file, args.opts))


def records_of(args: argparse.Namespace, cfg: CfgNode) -> tuple[str, ReIDDataset, Records]:
    """Returns the name of the data set, the data set, and the images that are asked about."""
    name, options = next(iter(options_of_run(cfg).items()))
    data = make_dataset(name, cfg.DATASETS.ROOT_DIR, **options)
    return args.name or name, data, data.train if args.split == "train" else join([data.query, data.gallery])


def graph_of(cfg: CfgNode, feats: np.ndarray) -> Graph:
    cluster = cfg.CLUSTER
    return make_graph(feats, cluster.K1, cluster.K2, cluster.EPS, np.arange(len(feats)), len(feats))


def simulated(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Lets the simulated annotator label a data set, and prints and writes what it took."""
    name, _, records = records_of(args, cfg)
    feats = make_extractor(cfg)(list(records.paths))
    orders = {"rows": expected_change, "change": expected_change, "uncertain": uncertainty, "random": None}
    for wrong, seed in itertools.product(args.wrong, range(args.seeds)):
        ids = np.unique(records.pids[records.pids >= 0])
        drawn = np.random.default_rng(seed).permutation(ids)[: round(SHARE * len(ids))]
        rows = np.flatnonzero(np.isin(records.pids, drawn))
        truth = np.unique(records.pids[rows], return_inverse=True)[1]
        about = [name, args.split, len(rows), len(drawn), wrong, seed]
        hand = by_hand(truth, seed)
        finished = [[*about, "by hand", 0.0, *(hand[target] for target in TARGETS), len(rows), 1.0, ""]]
        for word in args.orders:
            began = time.perf_counter()
            graph = graph_of(cfg, feats[rows])
            clusters = Clusters(graph, Constraints(graph.count), cfg.CLUSTER.EPS, cfg.CLUSTER.MIN_SAMPLES)
            order = orders[word] or random_order(max(len(graph.first), 1), seed)
            mistakes = MISTAKES if order is expected_change else 0.0
            pairs = PairOrder(clusters, order, mistakes=mistakes, feats=feats[rows])
            others = OTHERS if word == "rows" else 0
            outcome = simulate(pairs, truth, wrong, seed, round(args.most * len(rows)), others=others)
            finished.append([
                *about, word, round(outcome.first, 3), *(outcome.reached.get(target, "") for target in TARGETS),
                outcome.decisions, round(outcome.last, 3), round(time.perf_counter() - began, 1),
            ])  # fmt: skip
        report(args.out, HEADER, finished)


def cleaned(args: argparse.Namespace, cfg: CfgNode) -> None:
    """Puts mistakes into the labels of a data set, and prints and writes how many of them are proposed."""
    name, data, records = records_of(args, cfg)
    feats = np.empty((0, 0)) if args.train else make_extractor(cfg)(list(records.paths))
    for seed in range(args.seeds):
        truth = np.unique(records.pids, return_inverse=True)[1]
        wrong = corrupted(truth, args.clean, seed)
        results: dict[str, float] = {}
        if args.train:
            folder = args.train / f"seed{seed}"
            results["true"], _ = trained(args, folder / "true", data, [str(pid) for pid in truth.tolist()], seed)
            results["corrupted"], cfg = trained(args, folder / "corrupted", data, wrong.labels, seed)
            feats = make_extractor(cfg)(list(records.paths))
        proposals = propose(graph_of(cfg, feats), wrong.labels, cfg.CLUSTER.EPS)
        if args.train:
            results["cleaned"], _ = trained(args, folder / "cleaned", data, accepted(proposals, wrong.labels), seed)
            report(args.out, MAP_HEADER, [[name, seed, *(f"{100 * results[one]:.1f}" for one in MAP_HEADER[2:])]])
        about = [name, args.split, len(truth), int(truth.max()) + 1, wrong.changed, seed]
        path = args.out.with_name(args.out.stem + "_proposals.csv") if args.out and args.train else args.out
        judgement = judged(proposals, truth, wrong)
        report(path, CLEAN_HEADER, [(*about, kind, *counts) for kind, counts in judgement.items()])


def trained(
    args: argparse.Namespace, folder: Path, data: ReIDDataset, labels: Sequence[str], seed: int
) -> tuple[float, CfgNode]:
    """Trains on some labels of the training images; returns mAP on the test images, and the configuration to test."""
    lines = [(path, label, int(cam), "train") for path, label, cam in zip(
        data.train.paths, labels, data.train.camids, strict=True)]  # fmt: skip
    for split, part in (("query", data.query), ("gallery", data.gallery)):
        lines += [(row.path, f"test {row.pid}", row.camid, split) for row in part]
    table = folder / "dataset.csv"
    write_csv(table, ("path", "pid", "camid", "split"), [(os.path.abspath(path), *rest) for path, *rest in lines])
    settings = [
        "DATASETS.NAMES", "csv", "DATASETS.FILE", str(table), "OUTPUT_DIR", str(folder), "SOLVER.SEED", str(seed),
        "TEST.REPORT", "False", *args.opts,
    ]  # fmt: skip
    metrics = train(load_config(args.config_file, settings), args.config_file)
    config, weight = last_of_run(folder)
    return metrics["mean"]["mAP"], load_config(config, ["TEST.WEIGHT", weight])


def report(path: Path | None, header: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints rows, and appends them to a table of results, with its header if there is none."""
    for row in rows:
        print(*row, sep=",", flush=True)
    if path is not None:
        new = not path.exists()
        with open(path, "a", newline="") as handle:
            csv.writer(handle, lineterminator="\n").writerows([header, *rows] if new else rows)


if __name__ == "__main__":
    main(sys.argv[1:])
