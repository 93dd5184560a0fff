"""Time and memory of evaluation from features, beside the dense textbook way and the bare matrix product.

    python -m benchmarks.evaluation [--size small|market|msmt17] [--threads 1] [--repeats 3]

Every row runs in a process of its own, so that its peak memory is its own; the seconds are those of the best
repeat, ``cpu`` those of all its threads together: on a busy machine the steadier figure.
The dense way, a whole (Q, G) matrix and its argsort, is left out where it needs tens of gigabytes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable

import numpy as np

SIZES = {  # queries, gallery, identities, cameras, dense versions too
    "small": (300, 1_700, 100, 6, True),
    "market": (3_368, 15_913, 750, 6, True),
    "msmt17": (11_659, 82_161, 3_060, 15, False),
    "market-train": (1, 12_935, 751, 6, True),  # benchmarks.clustering takes both lists as one
    "msmt17-train": (1, 32_620, 1_041, 15, False),
}
WIDTH = 768


def features(size: str) -> tuple[np.ndarray, ...]:
    """Unit features with the structure of real ones: an identity's centre, a camera's offset, noise, distractors.

    Returns qf, gf, q_pids, g_pids, q_camids, g_camids. A sixth of the gallery are identities of one image.
    """
    num_q, num_g, num_ids, num_cams, _ = SIZES[size]
    rng = np.random.default_rng(0)
    plane = rng.standard_normal((64, WIDTH), dtype=np.float32) / 8  # features vary in few of their directions
    offsets = 0.6 * rng.standard_normal((num_cams, 64), dtype=np.float32)
    centres = rng.standard_normal((num_ids + num_g // 6, 64), dtype=np.float32)
    pids = rng.integers(0, num_ids, num_q + num_g)
    pids[-(num_g // 6) :] = num_ids + np.arange(num_g // 6)
    cams = rng.integers(0, num_cams, num_q + num_g)
    feats = np.empty((num_q + num_g, WIDTH), np.float32)
    for top in range(0, len(feats), 4096):
        some = slice(top, top + 4096)
        code = centres[pids[some]] + offsets[cams[some]]
        code += 0.75 * rng.standard_normal(code.shape, dtype=np.float32)
        feats[some] = code @ plane + 0.2 * rng.standard_normal((len(code), WIDTH), dtype=np.float32)
        feats[some] /= np.linalg.norm(feats[some], axis=1, keepdims=True)
    return feats[:num_q], feats[num_q:], pids[:num_q], pids[num_q:], cams[:num_q], cams[num_q:]


def product(a: np.ndarray, b: np.ndarray) -> None:
    """The bare product of the two lists, thrown away a tile at a time: what no exact evaluation can do without."""
    for top in range(0, len(a), 256):
        a[top : top + 256] @ b.T


def dense_scores(dist: np.ndarray, q_pids, g_pids, q_camids, g_camids) -> float:
    """mAP by sorting the whole matrix and walking through every query's ranking."""
    order = np.argsort(dist, axis=1)
    matches = (g_pids[order] == q_pids[:, None]).astype(np.int32)
    aps = []
    for i in range(len(dist)):
        keep = (g_pids[order[i]] != q_pids[i]) | (g_camids[order[i]] != q_camids[i])
        hits = matches[i][keep]
        if hits.any():
            precision = np.cumsum(hits) / (np.arange(len(hits)) + 1)
            aps.append((precision * hits).sum() / hits.sum())
    return float(np.mean(aps))


def dense(qf, gf, *ids) -> float:
    dist = (qf**2).sum(1)[:, None] + (gf**2).sum(1) - 2 * (qf @ gf.T)
    return dense_scores(dist, *ids)


def ours(*data) -> float:
    from utils.metrics import evaluate_features

    return evaluate_features(*data).mAP


def resident_mib(what: str = "VmHWM") -> float:
    """This process's memory as Linux counts it: VmHWM, the most since ``forget_peak``, or VmRSS, now."""
    with open("/proc/self/status") as lines:
        return next(int(line.split()[1]) for line in lines if line.startswith(what)) / 1024


def forget_peak() -> None:
    with open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def measure(size: str, run: Callable, data: tuple[np.ndarray, ...]) -> dict:
    """Seconds, MiB of peak memory beyond the data, and mAP of one run in this process, imports not counted."""
    import utils.metrics  # noqa: F401

    forget_peak()
    before, start, cpu = resident_mib("VmRSS"), time.perf_counter(), time.process_time()
    value = run(*data)
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "mib": resident_mib() - before, "mAP": value}


def table(module: str, rows: dict[str, str], size: str, threads: int, repeats: int, figure: str) -> None:
    """Run every row of ``rows`` (name: what its base is for the ratio, or "") in turn, and print the table."""
    num_q, num_g, *_ = SIZES[size]
    print(f"{size}: {num_q} queries, {num_g} gallery images, {WIDTH} wide, {threads} threads", flush=True)
    print(f"{'':24s}{'seconds':>9s}{'cpu':>9s}{'MiB more':>10s}   {figure:<11s} ratio of seconds", flush=True)
    env = {**os.environ, "OMP_NUM_THREADS": str(threads), "OPENBLAS_NUM_THREADS": str(threads)}
    found: dict[str, list[dict]] = {name: [] for name in rows}
    for _ in range(repeats):  # in turns, so that a busy moment of the machine does not meet one row only
        for name, results in found.items():
            command = [sys.executable, "-m", module, "--size", size, "--run", name]
            results.append(json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout))
    seconds = {}
    for name, bases in rows.items():
        results = found[name]
        best = min(results, key=lambda result: result["seconds"])
        seconds[name] = best["seconds"]
        score = "" if results[0]["mAP"] is None else f"{results[0]['mAP']:.9g}"
        ratio = ", ".join(f"{seconds[name] / seconds[b]:.2f} x {b}" for b in bases.split("; ") if b in seconds)
        memory = max(result["mib"] for result in results)
        line = f"{name:24s}{best['seconds']:9.2f}{best['cpu']:9.2f}{memory:10.0f}   {score:<11s} {ratio}"
        print(line, flush=True)


def main(
    module: str,
    runs: dict[str, Callable],
    rows: dict[str, str],
    repeats: int,
    sizes: tuple[str, ...] = ("small", "market", "msmt17"),
    figure: str = "mAP",
) -> None:
    """The command line that the benchmarks share; ``runs`` maps a row's name to what it measures, ``figure`` names what
    a run returns."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--size", choices=sizes, default=sizes[0])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, default=repeats)
    parser.add_argument("--run", choices=runs, help="measure this row in this process and print it as JSON")
    parser.add_argument("--only", choices=rows, nargs="+", help="these rows only")
    args = parser.parse_args()
    if args.run:
        print(json.dumps(measure(args.size, runs[args.run], features(args.size))))
        return
    with_dense = SIZES[args.size][-1]
    wanted = args.only or rows
    rows = {n: bases for n, bases in rows.items() if n in wanted and (with_dense or not n.startswith("dense"))}
    table(module, rows, args.size, args.threads, args.repeats, figure)


if __name__ == "__main__":
    main(
        "benchmarks.evaluation",
        {"product Q x G": lambda qf, gf, *ids: product(qf, gf), "dense": dense, "ours": ours},
        {"product Q x G": "", "dense": "", "ours": "product Q x G; dense"},
        repeats=3,
    )
