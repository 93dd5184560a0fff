"""A store of many features: adding beside the engine's bare rate, the index, and searching beside exact search.

    python -m benchmarks.gallery [--images 100000 1000000] [--threads 2] [--folder FOLDER]

Each size runs in a process of its own, in a temporary folder that is removed afterwards: features of identities with
some 20 images each, 512 wide, as a folder of tools.extract has them. The bare rate is LanceDB's for the same rows,
which are in its own format already. Memory is the process's resident set; the search's is that of a new process, which
opens the store and answers the queries. Prints a table; --json FILE keeps the figures.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.evaluation import forget_peak, resident_mib

WIDTH = 512
QUERIES = 200
SIZES = (100_000, 1_000_000)


def write_features(folder: Path, images: int) -> None:
    """Writes what tools.extract would: features.npy, rows.csv and meta.json."""
    rng = np.random.default_rng(0)
    plane = rng.standard_normal((64, WIDTH), dtype=np.float32) / 8
    centres = rng.standard_normal((max(images // 20, 1), 64), dtype=np.float32)
    folder.mkdir()
    out = np.lib.format.open_memmap(folder / "features.npy", "w+", np.float32, (images, WIDTH))
    pids = rng.integers(0, len(centres), images)
    for top in range(0, images, 8192):
        some = slice(top, top + 8192)
        code = centres[pids[some]] + 0.75 * rng.standard_normal((len(pids[some]), 64), dtype=np.float32)
        feats = code @ plane + 0.2 * rng.standard_normal((len(code), WIDTH), dtype=np.float32)
        out[some] = feats / np.linalg.norm(feats, axis=1, keepdims=True)
    out.flush()
    with open(folder / "rows.csv", "w", newline="") as handle:
        writer = csv.writer(handle, lineterminator="\n")
        writer.writerow(("path", "pid", "camid", "seq", "time"))
        writer.writerows((f"/images/{i:09d}.jpg", pid, i % 8, "", i) for i, pid in enumerate(pids))
    meta = {"count": images, "width": WIDTH, "skipped": 0, "model_hash": "0" * 64, "list_hash": "1" * 64, "batch": 64}
    meta |= {"space": "image", "unit_length": True, "distance": "euclidean", "settings": {}}
    (folder / "meta.json").write_text(json.dumps(meta))


def bare_rate(folder: Path, features: Path) -> float:
    """Returns the rows a second that LanceDB takes, ready-made, in the batches that a store writes."""
    from tools.galleries.adding import batch_rows, columns_of
    from tools.galleries.lancedb import arrow_rows, import_lancedb, row_schema
    from tools.galleries.schema import StoreRows
    from utils.feature_files import Features

    given, size, spent = Features(features), batch_rows(WIDTH), 0.0
    table = import_lancedb().connect(str(folder / "bare")).create_table("rows", schema=row_schema(WIDTH))
    lines = list(given.lines())
    for start in range(0, len(given), size):
        some = slice(start, start + size)
        columns = columns_of(lines[some], "s", "s", start, 0.0)
        rows = arrow_rows(StoreRows(np.arange(start, start + len(lines[some])), given.array[some], columns), WIDTH)
        began = time.perf_counter()
        table.add(rows)
        spent += time.perf_counter() - began
    shutil.rmtree(folder / "bare")
    return len(given) / spent


def measure(folder: Path, images: int) -> dict[str, Any]:
    """Returns the figures of one size."""
    from tools.galleries.adding import add_features
    from tools.galleries.opening import create_store
    from tools.galleries.tuning import verify
    from tools.gallery import meta_of_features
    from utils.feature_files import Features

    write_features(folder / "features", images)
    bare = bare_rate(folder, folder / "features")
    features = Features(folder / "features")
    store = create_store(str(folder / "store"), meta_of_features(features))
    added = add_features(store, features, "features")
    plain = store.size() or 0
    forget_peak()
    began = time.perf_counter()
    store.build_index()
    built, peak = time.perf_counter() - began, resident_mib()
    store.set_fact("index", {"built": {"kind": "built"}})
    result = verify(store, k=10, wanted=0.99, size=QUERIES)
    return {
        "images": images, "rows_s": added.written / added.seconds, "bare_rows_s": bare,
        "disk_mb": plain / 1e6, "index_mb": ((store.size() or 0) - plain) / 1e6, "index_s": built, "index_mib": peak,
        "recall": result.chosen.recall, "effort": result.chosen.effort, "p50": result.chosen.p50,
        "p99": result.chosen.p99, "exact_ms": result.exact_ms,
    }  # fmt: skip


def searching(folder: Path) -> dict[str, float]:
    """Returns MiB of a process that answers queries by the index, one by one, and the times of queries after the first
    few."""
    from tools.galleries.filters import RowFilter
    from tools.galleries.opening import open_store
    from tools.galleries.searching import search_store

    queries = np.load(folder / "features" / "features.npy", mmap_mode="r")[::997][:QUERIES]
    before, store, times = resident_mib("VmRSS"), open_store(str(folder / "store")), []
    forget_peak()
    for query in queries:
        began = time.perf_counter()
        search_store(store, query[None], 10, RowFilter(), False)
        times.append(time.perf_counter() - began)
    p50, p99 = 1000 * np.percentile(times[5:], [50, 99])
    return {"mib": resident_mib(), "more_mib": resident_mib() - before, "whole_p50": p50, "whole_p99": p99}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, nargs="+", default=list(SIZES))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--folder", type=Path, help="where the files go (the system's temporary folder)")
    parser.add_argument("--json", type=Path, help="file to write the figures to")
    parser.add_argument("--run", type=int, help="measure this size in this process in --folder")
    parser.add_argument("--search", action="store_true", help="search the store in --folder in this process")
    args = parser.parse_args()
    if args.run:
        print(json.dumps(measure(args.folder, args.run)))
        return
    if args.search:
        print(json.dumps(searching(args.folder)))
        return
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "LANCE_CPU_THREADS": str(args.threads)}
    figures = []
    print(f"{WIDTH} wide, {args.threads} threads, top 10 at recall 0.99")
    for images in args.images:
        with tempfile.TemporaryDirectory(dir=args.folder) as folder:
            words = [sys.executable, "-m", "benchmarks.gallery", "--folder", folder]
            found: dict[str, Any] = {}
            for more in (["--run", str(images)], ["--search"]):
                done = subprocess.run([*words, *more], env=env, check=True, stdout=subprocess.PIPE)
                found |= json.loads(done.stdout.splitlines()[-1])
        figures.append(found)
        share = found["rows_s"] / found["bare_rows_s"]
        print(
            f"{images:,}: {found['rows_s']:,.0f} rows/s added ({share:.0%} of the bare {found['bare_rows_s']:,.0f}), "
            f"{found['disk_mb']:,.0f} MB; index {found['index_s']:.0f} s, {found['index_mb']:,.0f} MB, peak "
            f"{found['index_mib']:,.0f} MiB; recall {found['recall']:.4f} {found['effort']}: p50 {found['p50']:.1f} "
            f"ms, p99 {found['p99']:.1f} ms, exact {found['exact_ms']:.1f} ms; a searching process "
            f"{found['mib']:,.0f} MiB, {found['more_mib']:,.0f} more than its imports",
            flush=True,
        )
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
