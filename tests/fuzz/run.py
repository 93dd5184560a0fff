"""Feeds damaged files to every reader: ``python -m tests.fuzz.run [--seconds 3600] [--seed 0] [--only NAME]``.

Each sample ends in one of four ways: ``clean`` (one line, a ``UserError``), ``accepted``, ``traceback`` (any other
exception, a hang, a crash or too much memory) and ``changed`` (a reader that promises to notice damage did not). Only
the last two are faults: they are printed with the seed that makes them again, and the exit code is 1.
"""

from __future__ import annotations

import argparse
import os
import pickle
import random
import resource
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from pathlib import Path

from tests.fuzz.targets import TARGETS, Target
from utils.errors import UserError

BATCH = 40
"""Samples that one process takes, so that a crash costs few."""
SECONDS = 20
"""A sample that takes longer counts as a hang."""
MEMORY = 3 * 2**30
"""Bytes beyond what the process has at its start."""


class Hang(Exception):
    """A sample took too long."""


def outcome_of(target: Target, seed: int, folder: Path) -> tuple[str, str]:
    """Runs one sample: (how it ended, what went wrong)."""
    draw = random.Random(f"{target.name} {seed}")
    path = target.write(folder, draw)

    def stop(*args: object) -> None:
        raise Hang(f"no end after {SECONDS} s")

    signal.signal(signal.SIGALRM, stop)
    signal.alarm(SECONDS)
    try:
        meaning = target.read(path)
    except UserError as error:
        line = str(error)
        if "\n" in line or len(line) > 2000 or not line.isprintable():
            return "traceback", f"the message is not one short line of text: {line[:300]!r}"
        return "clean", ""
    except (Exception, SystemExit):  # noqa: BLE001
        return "traceback", traceback.format_exc(limit=-6)
    finally:
        signal.alarm(0)
    if target.same is not None and not target.same(meaning):
        return "changed", "damage was accepted and the content differs"
    return "accepted", ""


def run_batch(target: Target, seeds: range) -> list[tuple[int, str, str]]:
    """Runs samples in a process of their own; the first one without an answer crashed it."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        with open("/proc/self/statm") as handle:
            size = int(handle.read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + MEMORY, size + MEMORY))
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
        with tempfile.TemporaryDirectory() as folder, os.fdopen(writer, "wb") as out:
            for seed in seeds:
                pickle.dump((seed, *outcome_of(target, seed, Path(folder))), out)
                out.flush()
        os._exit(0)
    os.close(writer)
    results = []
    with os.fdopen(reader, "rb") as source:
        while True:
            try:
                results.append(pickle.load(source))
            except EOFError:
                break
    _, status = os.waitpid(child, 0)
    if len(results) < len(seeds):
        results.append((seeds[len(results)], "traceback", f"the process died (status {status})"))
    return results


def run(seconds: float, seed: int, names: list[str]) -> tuple[dict[str, Counter], list[tuple[str, int, str, str]]]:
    """Takes the targets in turns until the time is over: (target -> counts, faults)."""
    counts = {name: Counter() for name in names}
    position = dict.fromkeys(names, seed * 10**9)
    faults, until = [], time.monotonic() + seconds
    while time.monotonic() < until:
        for name in names:
            batch = range(position[name], position[name] + BATCH)
            for number, how, why in run_batch(TARGETS[name], batch):
                counts[name][how] += 1
                position[name] = number + 1
                if how in ("traceback", "changed"):
                    faults.append((name, number, how, why))
            if time.monotonic() > until:
                break
    return counts, faults


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=60)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", action="append", choices=TARGETS)
    args = parser.parse_args(argv)
    counts, faults = run(args.seconds, args.seed, args.only or list(TARGETS))
    print(f"{'reader':24s}{'clean':>9s}{'accepted':>10s}{'traceback':>11s}{'changed':>9s}")
    for name, row in counts.items():
        print(f"{name:24s}{row['clean']:9d}{row['accepted']:10d}{row['traceback']:11d}{row['changed']:9d}")
    shown: set[str] = set()
    for name, number, how, why in faults:
        last = why.strip().splitlines()[-1] if why.strip() else ""
        if (name + last) not in shown and len(shown) < 40:
            shown.add(name + last)
            print(f"\n{name}, seed {number}: {how}\n{why}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
