"""Kills runs of every method at random moments and starts them again: ``python -m tests.kills [--kills 20]``.

Each kind runs once undisturbed and once with a kill (SIGKILL, or SIGTERM to the training process) after a random time,
and is started again until it ends. Both must end with identical tensors in every checkpoint and in ``last``, the same
evaluations, and no temporary file. The kinds take turns, so that twenty kills meet every method at least twice. Prints
a row per run; the exit code is 1 if one of them differs.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import torch

from tests.kinds import KINDS, changes_of
from tests.tiny import options, write_market

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
NAMES = [name for name in KINDS if "," not in name]
EPOCHS_OF_RUN = dict.fromkeys(NAMES, 6) | {"mtda_kd": 2}
"""Epochs, so that a run takes long enough to be killed in; that of several teachers has the most steps."""
EPOCHS = ("SOLVER__MAX_EPOCHS", "SOLVER__STAGE1__MAX_EPOCHS", "SOLVER__STAGE2__MAX_EPOCHS")


def start(words: list) -> subprocess.Popen:
    command = [sys.executable, "train.py", *map(str, words)]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, env=ENVIRONMENT, **quiet)


def finish(words: list, folder: Path) -> float:
    """Runs to the end; returns the seconds since the run has begun to write."""
    process = start(words)
    began = begun(process, folder)
    _, errors = process.communicate()
    assert process.returncode == 0, errors[-2000:]
    return time.monotonic() - began


def begun(process: subprocess.Popen, folder: Path) -> float:
    """Waits until a run has begun to write, or ended; returns the time."""
    while process.poll() is None and not (folder / "config.yml").exists():
        time.sleep(0.02)
    return time.monotonic()


def stopped(words: list, number: int, after: float, folder: Path) -> bool:
    """Sends a signal some seconds after the run has begun to write; returns whether it was still running."""
    process = start(words)
    begun(process, folder)
    time.sleep(after)
    running = process.poll() is None
    process.send_signal(number)
    code = process.wait()
    assert not running or code in (-number, 143, 0), code
    return running and code != 0


def difference(whole: Path, other: Path) -> str:
    """Returns in what two folders differ, '' if in nothing that counts."""
    files = {str(p.relative_to(whole)) for p in whole.rglob("*") if "tensorboard" not in p.parts}
    found = {str(p.relative_to(other)) for p in other.rglob("*") if "tensorboard" not in p.parts}
    if files != found:
        return f"files {sorted(files ^ found)}"
    for name in sorted(files):
        if name.endswith(".pth") or name == "last":
            a, b = (torch.load(folder / name, weights_only=True) for folder in (whole, other))
            if not same(a, b):
                return name
    a, b = (json.loads((folder / "metrics.json").read_text()) for folder in (whole, other))
    return "" if (a["results"], a["history"]) == (b["results"], b["history"]) else "metrics.json"


def same(a: object, b: object) -> bool:
    """Returns whether two nested values are equal to the bit, times and settings left out."""
    if isinstance(a, dict):
        keys = a.keys() - {"seconds", "fingerprint"}
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[key], b[key]) for key in keys)
    if isinstance(a, list | tuple):
        return isinstance(b, list | tuple) and len(a) == len(b) and all(map(same, a, b))
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=KINDS)
    args = parser.parse_args(argv)
    draw, counts, left = random.Random(args.seed), Counter(), 0
    names = args.only or NAMES
    print(f"{'run':36s}{'signal':>9s}{'after':>8s}{'files left':>12s}  end", flush=True)
    with tempfile.TemporaryDirectory() as place:
        root = write_market(Path(place) / "data")
        whole: dict[str, tuple[Path, float]] = {}
        while sum(counts.values()) < args.kills:
            name = names[sum(counts.values()) % len(names)]
            epochs = EPOCHS_OF_RUN.get(name, 6)
            changes = {"SOLVER__MAX_EPOCHS": epochs, "SOLVER__SAVE_EVERY_MINUTES": 0.002} | changes_of(name, root)
            changes |= {key: epochs for key in EPOCHS if key in changes}
            if name not in whole:
                folder = Path(place) / f"whole {name}"
                whole[name] = folder, finish(options(root, folder, **changes), folder)
            folder = Path(place) / "killed"
            words = options(root, folder, **changes)
            number = draw.choice((signal.SIGKILL, signal.SIGKILL, signal.SIGTERM))
            while not stopped(words, number, after := draw.random() * whole[name][1], folder):
                shutil.rmtree(folder)  # it had ended before
            temporary = sum(".lineup-" in path.name for path in folder.rglob(".*"))
            left += temporary
            finish(words, folder)
            problem = difference(whole[name][0], folder)
            counts["differs" if problem else "identical"] += 1
            row = f"{name:36s}{signal.Signals(number).name:>9s}{after:8.1f}{temporary:12d}"
            print(f"{row}  {problem or 'identical'}", flush=True)
            shutil.rmtree(folder)
    print(f"{counts['identical']} identical, {counts['differs']} differ; {left} half-written files left and removed")
    return 1 if counts["differs"] else 0


if __name__ == "__main__":
    sys.exit(main())
