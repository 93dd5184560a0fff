"""What labelling takes: decisions until the clusters are right, and time and memory at many images.

    python -m benchmarks.label --simulate --split test --config_file FILE TEST.WEIGHT W [KEY VALUE ...]
    python -m benchmarks.label --size 50000

``--simulate``: a person who knows the truth answers questions about the images of a data set, in three orders of pairs,
until the pairwise F1 of the clusters is 0.95 and 0.99; beside it, how many names it takes to get there by naming one
crop after the other. ``--wrong 0.03``: that share of the answers is wrong. Every seed draws its own 70 % of the
identities. ``--size``: seconds and memory of a session about so many drawn features, and of the replay of
``--decisions`` decisions.
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from configs import load_config
from datasets.dataset import make_dataset
from datasets.options import options_of_run
from datasets.records import join
from processor.extractor import make_extractor
from tools.labelling.clustering import Clusters, Graph
from tools.labelling.constraints import Constraints
from tools.labelling.journal import Decision, Journal, active
from tools.labelling.neighbours import make_graph
from tools.labelling.pairs import PairOrder, expected_change, uncertainty
from tools.labelling.session import Images, Session

TARGETS = (0.95, 0.99)
SHARE = 0.7
"""Of the identities, in every repetition."""


def random_order(count: int, seed: int) -> Callable:
    """Returns the order that draws among the pairs that are worth anything."""
    drawn = np.random.default_rng(seed).random(count)
    return lambda doubt, at_stake, edges: np.where(at_stake > 0, drawn[edges] + 1e-9, 0)


def f1(truth: np.ndarray, labels: np.ndarray) -> float:
    """Returns the F1 of pairs in one cluster against pairs of one identity. (N,), (N,), numbers from 0."""

    def pairs(keys: np.ndarray) -> int:
        counts = np.unique(keys, return_counts=True)[1].astype(np.int64)
        return int((counts * (counts - 1) // 2).sum())

    both = pairs(labels * (int(truth.max()) + 1) + truth)
    return 2 * both / max(pairs(labels) + pairs(truth), 1)


def simulate(
    graph: Graph, truth: np.ndarray, order: Callable, eps: float, min_samples: int, wrong: float, seed: int, most: int
) -> tuple[dict[float, int], float, float]:
    """Returns the decisions until each of ``TARGETS``, and F1 before the first and after the last decision."""
    rng = np.random.default_rng(seed)
    constraints = Constraints(graph.count)
    clusters = Clusters(graph, constraints, eps, min_samples)
    pairs = PairOrder(clusters, order, mistakes=0.02 if order is expected_change else 0.0)
    decisions: list[Decision] = []
    of_pair: dict[tuple[int, int], int] = {}
    first = score = f1(truth, clusters.labels)
    reached = {target: 0 for target in TARGETS if score >= target}
    while len(decisions) < most and len(reached) < len(TARGETS):
        found = pairs.next()
        if not found:
            break
        a, b, _ = found[0]
        same = bool(truth[a] == truth[b]) != (rng.random() < wrong)
        number, before = len(decisions) + 1, of_pair.get((a, b), 0)
        known = constraints.known(a, b)
        undo = before if before and known is not same else 0
        decisions.append(
            Decision(number, "pairs", same=((a, b),) if same else (), differ=() if same else ((a, b),), undo=undo)
        )
        of_pair[a, b] = number
        if undo:
            constraints = Constraints.of(graph.count, active(decisions))
        else:
            constraints.add(decisions[-1])
        clusters.update(constraints, (a, b))
        pairs.answer(a, b, same)
        if undo:
            pairs.closed[:] = False
        score = f1(truth, clusters.labels)
        reached |= {target: number for target in TARGETS if score >= target and target not in reached}
    return reached, first, score


def by_hand(truth: np.ndarray, seed: int) -> dict[float, int]:
    """Returns the names that it takes to reach each of ``TARGETS`` in a random order, one image a decision."""
    order = np.random.default_rng(seed).permutation(len(truth))
    sizes: dict[int, int] = {}
    pairs = np.unique(truth, return_counts=True)[1].astype(np.int64) * 1.0
    total = float((pairs * (pairs - 1) / 2).sum())
    together, reached = 0.0, {}
    for number, row in enumerate(order, 1):
        size = sizes.get(int(truth[row]), 0)
        together += size
        sizes[int(truth[row])] = size + 1
        recall = together / total
        for target in TARGETS:
            if 2 * recall / (1 + recall) >= target and target not in reached:
                reached[target] = number
    return reached


def measure(size: int, count: int) -> None:
    """Prints seconds and memory of a session: 20 images an identity, 128 features."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(size // 20 + 1, 128)).astype(np.float32)
    truth = np.arange(size) // 20
    feats = centres[truth] + 0.6 * rng.normal(size=(size, 128)).astype(np.float32)
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
            "session", lambda: Session(images, graph, journal, Path(folder) / "x.csv", eps=0.6, min_samples=4)
        )
        timed("first page", lambda: (session.state(), session.rows()))
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
    parser.add_argument("--split", choices=("train", "test"), default="train")
    parser.add_argument("--orders", nargs="+", default=["change", "uncertain", "random"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--wrong", type=float, nargs="+", default=[0.0])
    parser.add_argument("--most", type=int, default=4, help="decisions at most, times the images")
    parser.add_argument("--config_file", default="")
    parser.add_argument("--size", type=int, default=0)
    parser.add_argument("--decisions", type=int, default=100_000)
    parser.add_argument("opts", nargs=argparse.REMAINDER)
    args = parser.parse_args(argv)
    if args.size:
        measure(args.size, args.decisions)
    if not args.simulate:
        return
    cfg = load_config(args.config_file, args.opts)
    name, options = next(iter(options_of_run(cfg).items()))
    data = make_dataset(name, cfg.DATASETS.ROOT_DIR, **options)
    records = data.train if args.split == "train" else join([data.query, data.gallery])
    feats = make_extractor(cfg)(list(records.paths))
    for wrong in args.wrong:
        for seed in range(args.seeds):
            ids = np.unique(records.pids[records.pids >= 0])
            drawn = np.random.default_rng(seed).permutation(ids)[: round(SHARE * len(ids))]
            rows = np.flatnonzero(np.isin(records.pids, drawn))
            truth = np.unique(records.pids[rows], return_inverse=True)[1]
            graph = make_graph(
                feats[rows], cfg.CLUSTER.K1, cfg.CLUSTER.K2, cfg.CLUSTER.EPS, np.arange(len(rows)), len(rows)
            )
            head = f"{name} {args.split}, wrong {wrong}, seed {seed}, {len(rows)} images, {len(drawn)} identities"
            print(f"{head}: by hand {by_hand(truth, seed)}", flush=True)
            for word in args.orders:
                order = {"change": expected_change, "uncertain": uncertainty}.get(word)
                order = order or random_order(len(graph.first), seed)
                began = time.perf_counter()
                reached, first, last = simulate(
                    graph, truth, order, cfg.CLUSTER.EPS, cfg.CLUSTER.MIN_SAMPLES, wrong, seed, args.most * len(rows)
                )
                seconds = time.perf_counter() - began
                print(f"  {word:9s} F1 {first:.3f} -> {last:.3f} {reached} {seconds:.1f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
