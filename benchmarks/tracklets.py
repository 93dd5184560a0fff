"""Speed and memory of tracklets: crops from video, evaluation at MARS' size, identities of 20,000 tracklets, online.

    python -m benchmarks.tracklets crops evaluation identities online [--share 1.0]

crops: tools.crops on a 1080p video that is drawn here, against decoding its frames to RGB alone. evaluation: the mean
features of 520,000 gallery images in 12,180 tracklets and their scores, against the product of the features of 1,980
queries with the gallery's, which any search needs. identities: 20,000 tracklets of 5,000 people under 10 cameras in an
hour. online: 10,000 such tracklets one by one, as the share of one core beside an hour. --share: of these sizes.
"""

from __future__ import annotations

import argparse
import resource
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from datasets.storage.video import frames_of, write_video
from processor.tracklet_features import TrackletSums
from tools import crops
from tools.tracking.constraints import Schedule
from tools.tracking.online import run_online
from utils.metrics import evaluate_features
from utils.scoring.linkage import cluster
from utils.scoring.same_odds import LogOdds

WIDTH = 512


def seconds(work: Callable[[], object]) -> float:
    """Returns how long something takes."""
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def peak_gb() -> float:
    """Returns the largest memory of this process so far, in GB (10^9 bytes)."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9


def measure_crops(share: float, repeats: int = 3) -> list[str]:
    """Crops of six boxes a frame against bare decoding, the best of some runs each."""
    frames, rng = max(20, int(300 * share)), np.random.default_rng(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        ground = Image.fromarray(rng.integers(0, 255, (270, 480, 3), np.uint8)).resize((1920, 1080))

        def pictures():
            for i in range(frames):
                yield ground.transform(ground.size, Image.Transform.AFFINE, (1, 0, 3 * i % 200, 0, 1, i % 50))

        write_video(folder / "a.mp4", pictures(), 25)
        boxes = [(f, n, 100 + 250 * n + f % 90) for f in range(1, frames + 1) for n in range(6)]
        lines = [f"{frame},{number},{left},300,110,290,1\n" for frame, number, left in boxes]
        (folder / "a.txt").write_text("".join(lines))

        def decode() -> None:
            for _ in frames_of(folder / "a.mp4"):
                pass

        def cut(number: int) -> None:
            out = folder / str(number)
            words = ["--video", str(folder / "a.mp4"), "--boxes", str(folder / "a.txt"), "--images", str(out)]
            crops.main([*words, "--out", f"{out}.csv"])

        bare = min(seconds(decode) for _ in range(repeats))
        whole = min(seconds(lambda i=i: cut(i)) for i in range(repeats))
    return [
        f"crops: {frames} frames of 1080p, {6 * frames} crops; decoding {frames / bare:.1f} frames/s, with crops "
        f"{frames / whole:.1f} ({100 * bare / whole:.0f} %)"
    ]


def measure_evaluation(share: float) -> list[str]:
    """Means and scores at MARS' size against the product alone."""
    images, tracklets, queries = int(520_000 * share), int(12_180 * share), int(1_980 * share)
    generator = torch.Generator().manual_seed(0)
    owner = torch.randint(0, tracklets, (images,), generator=generator)
    owner[:tracklets] = torch.arange(tracklets)
    pids, camids = np.arange(tracklets) % (tracklets // 20), np.arange(tracklets) // 7 % 6
    batch = torch.randn(8192, WIDTH, generator=generator)
    means = torch.empty(0)

    def pool() -> None:
        nonlocal means
        sums = TrackletSums(owner.numpy(), tracklets)
        for start in range(0, images, len(batch)):
            rows = torch.arange(start, min(start + len(batch), images))
            sums.add(rows, batch[: len(rows)])
        means = sums.features()

    def score() -> None:
        evaluate_features(means[:queries], means, pids[:queries], pids, camids[:queries], camids)

    def product() -> None:
        unit = torch.nn.functional.normalize(means[:queries])
        for _ in range(0, images, len(batch)):
            torch.mm(unit, batch.T)

    before = peak_gb()
    pooling, scoring = seconds(pool), seconds(score)
    after = peak_gb()
    bare = seconds(product)
    return [
        f"evaluation: {images:,} images in {tracklets:,} tracklets, {queries:,} queries, {WIDTH} wide: means "
        f"{pooling:.2f} s, scores {scoring:.2f} s; product with all images {bare:.2f} s: "
        f"{(pooling + scoring) / bare:.2f} times; memory {before:.2f} to {after:.2f} GB"
    ]


def drawn(tracklets: int, people: int, noise: float, hours: float, seed: int = 0) -> tuple[np.ndarray, Schedule]:
    """Returns features and times of tracklets of people under 10 cameras."""
    rng = np.random.default_rng(seed)
    looks, owner = rng.normal(size=(people, WIDTH)).astype(np.float32), rng.integers(0, people, tracklets)
    feats = looks[owner] + noise * rng.normal(size=(tracklets, WIDTH)).astype(np.float32)
    feats /= np.linalg.norm(feats, axis=1, keepdims=True)
    start = np.sort(rng.uniform(0, 3600 * hours, tracklets))
    ways = np.full((10, 10), -np.inf)
    ways[np.triu_indices(10, 1)] = ways[np.triu_indices(10, 1)[::-1]] = 20.0
    np.fill_diagonal(ways, 0.0)
    return feats, Schedule(rng.integers(0, 10, tracklets), start, start + rng.uniform(2, 20, tracklets), ways)


def measure_identities(share: float) -> list[str]:
    """20,000 tracklets at once: of people who are distinct, and as one component, the worst there can be."""
    count, lines = int(20_000 * share), []
    for name, noise, odds in (
        ("distinct people", 0.5, LogOdds.line(8.0, -10.0)), ("one component", 1.6, LogOdds.line(8.0, -4.4)),
    ):  # fmt: skip
        feats, schedule = drawn(count, max(2, count // 4), noise, share)
        took, found = 0.0, np.empty(0)

        def work(feats=feats, schedule=schedule, odds=odds) -> None:
            nonlocal found
            found = cluster(feats, odds, schedule.apart)

        took = seconds(work)
        lines.append(
            f"identities, {name}: {count:,} tracklets, {found.max() + 1:,} identities in {took:.1f} s; peak memory "
            f"{peak_gb():.2f} GB"
        )
    return lines


def measure_online(share: float) -> list[str]:
    """Tracklets of an hour, one by one."""
    count = int(10_000 * share)
    feats, schedule = drawn(count, max(2, count // 4), 0.5, share)
    took = seconds(lambda: run_online(feats, schedule, LogOdds.line(8.0, -10.0)))
    return [
        f"online: {count:,} tracklets in {took:.1f} s, {1000 * took / count:.2f} ms each; at 10,000 an hour "
        f"{100 * took / count * 10_000 / 3600:.2f} % of a core"
    ]


PARTS = {
    "crops": measure_crops, "evaluation": measure_evaluation, "identities": measure_identities,
    "online": measure_online,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("parts", nargs="*", default=list(PARTS), metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--share", type=float, default=1.0)
    parser.add_argument("--threads", type=int, default=1)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    for name in args.parts:
        for line in PARTS[name](args.share):
            print(line, flush=True)


if __name__ == "__main__":
    main()
