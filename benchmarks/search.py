"""Time and memory of exact search in a large gallery file, beside the bare matrix products over the same file.

    python -m benchmarks.search [--images 1000000] [--queries 1000] [--k 100] [--threads 1] [--folder FOLDER]

The gallery, 3 GB for a million images, is made in a temporary folder and removed afterwards. Each row runs in a process
of its own. Memory is the peak as Linux counts it over what it was before the work, mapped pages of the file included.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.evaluation import WIDTH, forget_peak, resident_mib

ROWS = ("product", "ours")


def write(folder: Path, images: int, queries: int) -> None:
    """g.npy and q.npy: unit features round the centres of identities of some 20 images."""
    rng = np.random.default_rng(0)
    plane = rng.standard_normal((64, WIDTH), dtype=np.float32) / 8
    centres = rng.standard_normal((max(images // 20, 1), 64), dtype=np.float32)
    for name, count in (("g", images), ("q", queries)):
        out = np.lib.format.open_memmap(folder / f"{name}.npy", "w+", np.float32, (count, WIDTH))
        for top in range(0, count, 8192):
            size = min(8192, count - top)
            code = centres[rng.integers(0, len(centres), size)]
            code += 0.75 * rng.standard_normal(code.shape, dtype=np.float32)
            feats = code @ plane + 0.2 * rng.standard_normal((size, WIDTH), dtype=np.float32)
            out[top : top + size] = feats / np.linalg.norm(feats, axis=1, keepdims=True)
        out.flush()


def run(name: str, folder: Path, k: int) -> dict:
    """Seconds, those of the processor, MiB beyond what the process had, and a check sum of the lists."""
    from utils.scoring.search import search

    query, gallery = np.load(folder / "q.npy"), np.load(folder / "g.npy", mmap_mode="r")
    forget_peak()
    before, start, cpu = resident_mib("VmRSS"), time.perf_counter(), time.process_time()
    check = 0
    if name == "product":
        for top in range(0, len(gallery), 4096):
            query @ gallery[top : top + 4096].T
    else:
        check = int(search(query, gallery, k)[0].sum())
    seconds, cpu = time.perf_counter() - start, time.process_time() - cpu
    return {"seconds": seconds, "cpu": cpu, "mib": resident_mib() - before, "check": check}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--images", type=int, default=1_000_000)
    parser.add_argument("--queries", type=int, default=1_000)
    parser.add_argument("--k", type=int, default=100)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="where the files go (the system's temporary folder)")
    parser.add_argument("--run", choices=ROWS, help="measure this row in this process on the files of --folder")
    args = parser.parse_args()
    if args.run:
        print(json.dumps(run(args.run, args.folder, args.k)))
        return
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads), "OPENBLAS_NUM_THREADS": str(args.threads)}
    print(f"{args.images} images, {args.queries} queries, {WIDTH} wide, top {args.k}, {args.threads} threads")
    print(f"{'':10s}{'seconds':>9s}{'cpu':>9s}{'MiB more':>10s}   ratio   of cpu", flush=True)
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        write(Path(folder), args.images, args.queries)
        bare = None
        for name in ROWS:
            command = [sys.executable, "-m", "benchmarks.search", "--run", name, "--folder", folder, "--k", str(args.k)]
            found = json.loads(subprocess.run(command, env=env, check=True, stdout=subprocess.PIPE).stdout)
            bare = bare or found
            shares = [found[key] / bare[key] for key in ("seconds", "cpu")]
            line = f"{name:10s}{found['seconds']:9.2f}{found['cpu']:9.2f}{found['mib']:10.0f}"
            print(f"{line}   {shares[0]:.2f}    {shares[1]:.2f}", flush=True)


if __name__ == "__main__":
    main()
