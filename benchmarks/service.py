"""The service under load, beside ``Extractor`` alone: images per second, waiting times and memory.

    python -m benchmarks.service --run RUN [--clients 1 8 32] [--images 1 16] [--seconds 20] [--minutes 10]

RUN is what ``tools.serve --run`` takes. The service runs in a process of its own on the loopback address, the clients
are threads of another one, and all share the machine's cores. Each client keeps its connection and sends the next
request to ``/embed`` when it has the answer to the last: one JPEG of 256 x 128 as the body, or several in base64.
Before every load, ``Extractor`` embeds the same files in a third process, which rests otherwise: the ratio is to that
rate. With --minutes, eight clients follow for that long, with the service's resident memory at the end of every minute.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

TOKEN = "benchmark-0123456789"
FILES = 256
ROUNDS = 3
WARM = 2.0
"""Seconds of a load that are not counted."""


class Load(NamedTuple):
    """What clients saw. cores: of the client process."""

    images_s: float
    p50: float
    p99: float
    refused: int
    cores: float


def write_images(folder: Path) -> list[Path]:
    """Writes JPEG files of 256 x 128 with smooth random colours."""
    rng, paths = np.random.default_rng(0), []
    for i in range(FILES):
        coarse = Image.fromarray(rng.integers(0, 256, (32, 16, 3), dtype=np.uint8))
        paths.append(folder / f"{i:03d}.jpg")
        coarse.resize((128, 256), Image.Resampling.BICUBIC).save(paths[-1], quality=90)
    return paths


def bodies(paths: list[Path], images: int) -> tuple[str, list[bytes]]:
    """Returns the content type and the bodies of requests with so many images each."""
    raw = [path.read_bytes() for path in paths]
    if images == 1:
        return "image/jpeg", raw
    texts = [base64.b64encode(one).decode() for one in raw]
    groups = [texts[start : start + images] for start in range(0, len(texts), images)]
    return "application/json", [json.dumps({"images": group}).encode() for group in groups]


class Client(threading.Thread):
    """Sends one request after the other until the end. waits: seconds of each answer, by the time of its end."""

    def __init__(self, port: int, kind: str, requests: list[bytes], first: int, end: float):
        super().__init__()
        self.port, self.kind, self.requests, self.next, self.end = port, kind, requests, first, end
        self.waits: list[tuple[float, float]] = []
        self.refused = 0

    def run(self) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        headers = {"Authorization": f"Bearer {TOKEN}", "Content-Type": self.kind}
        while (began := time.perf_counter()) < self.end:
            connection.request("POST", "/embed", self.requests[self.next % len(self.requests)], headers)
            answer = connection.getresponse()
            answer.read()
            self.next += 1
            if answer.status == 429:
                self.refused += 1
                time.sleep(float(answer.headers["Retry-After"]))
                continue
            assert answer.status == 200, answer.status
            self.waits.append((time.perf_counter(), time.perf_counter() - began))
        connection.close()


def load(port: int, paths: list[Path], clients: int, images: int, seconds: float) -> Load:
    """Returns what so many clients see who ask for so long."""
    kind, requests = bodies(paths, images)
    start, cpu = time.perf_counter() + WARM, time.process_time()
    end = start + seconds
    threads = [Client(port, kind, requests, 37 * number, end) for number in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    waits = [wait for thread in threads for ended, wait in thread.waits if start <= ended < end]
    p50, p99 = 1000 * np.percentile(waits, [50, 99])
    cores = (time.process_time() - cpu) / (seconds + WARM)
    return Load(images * len(waits) / seconds, p50, p99, sum(thread.refused for thread in threads), cores)


def alone(run: str, paths: list[Path], opts: list[str]) -> None:
    """Prints the images per second of ``Extractor`` for every line that comes in, the best of some rounds."""
    from processor.extractor import Extractor

    extractor = Extractor.load(run, None, *opts)
    files: list[str | Path | Image.Image | np.ndarray] = list(paths)
    extractor(files)
    for _ in sys.stdin:
        times = []
        for _ in range(ROUNDS):
            began = time.perf_counter()
            extractor(files)
            times.append(time.perf_counter() - began)
        print(len(files) / min(times), flush=True)


def resident(process: subprocess.Popen) -> float:
    """Returns the MiB of a process in memory."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def measure(args: argparse.Namespace, folder: Path, env: dict[str, str]) -> None:
    """Starts the processes, loads the service and prints the figures."""
    paths = write_images(folder)
    words = [sys.executable, "-m", "benchmarks.service", "--run", args.run, "--alone", str(folder), *args.opts]
    base = subprocess.Popen(words, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    serve = [sys.executable, "-m", "tools.serve", "--run", args.run, "--port", "0", *args.opts]
    service = subprocess.Popen(serve, env={**env, "LINEUP_TOKEN": TOKEN}, stdout=subprocess.PIPE, text=True)
    assert base.stdin and base.stdout and service.stdout
    try:
        address = next(line for line in service.stdout if line.startswith("serving "))
        port = int(address.rstrip().rstrip("/").rpartition(":")[2])
        print("clients  images each  images/s  Extractor  ratio  p50 ms  p99 ms  429s  client cores  MiB", flush=True)
        for images in args.images:
            for clients in args.clients:
                base.stdin.write("go\n")
                base.stdin.flush()
                rate = float(base.stdout.readline())
                seen = load(port, paths, clients, images, args.seconds)
                print(
                    f"{clients:7d} {images:12d} {seen.images_s:9.1f} {rate:10.1f} {seen.images_s / rate:6.2f} "
                    f"{seen.p50:7.1f} {seen.p99:7.1f} {seen.refused:5d} {seen.cores:13.2f} {resident(service):4.0f}",
                    flush=True,
                )
        for minute in range(args.minutes):
            seen = load(port, paths, 8, args.images[-1], 60 - WARM)
            print(f"minute {minute + 1}: {seen.images_s:.1f} images/s, {resident(service):.1f} MiB", flush=True)
    finally:
        service.terminate()
        base.terminate()
        print(f"stopped with code {service.wait(30)}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--run", required=True)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--images", type=int, nargs="+", default=[1, 16], help="of a request")
    parser.add_argument("--seconds", type=float, default=20.0, help="of every load")
    parser.add_argument("--minutes", type=int, default=0, help="of a long load")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--alone", type=Path, help="measure Extractor on this folder in this process")
    parser.add_argument("opts", nargs=argparse.REMAINDER, metavar="KEY VALUE", help="settings that override the run's")
    args = parser.parse_args()
    if args.alone:
        alone(args.run, sorted(args.alone.glob("*.jpg")), args.opts)
        return
    env = {**os.environ, "OMP_NUM_THREADS": str(args.threads)}
    with tempfile.TemporaryDirectory() as folder:
        measure(args, Path(folder), env)


if __name__ == "__main__":
    main()
