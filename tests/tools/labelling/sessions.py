"""Crops of some identities, each of its own colours, and sessions about them without a network."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from tools.labelling.journal import Journal
from tools.labelling.neighbours import make_graph
from tools.labelling.proposals import Proposals
from tools.labelling.session import Images, Session


def write_crops(folder: Path, ids: int = 5, each: int = 4) -> Path:
    """``folder`` with 64 x 32 crops named ``{id}_{number}.png``."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    for pid in range(ids):
        paint = np.array(Image.new("HSV", (1, 1), (pid * 255 // ids, 230, 220)).convert("RGB"))[0, 0]
        other = np.array(Image.new("HSV", (1, 1), ((pid * 97 + 60) % 255, 230, 160)).convert("RGB"))[0, 0]
        for i in range(each):
            pixels = np.empty((64, 32, 3))
            pixels[:32], pixels[32:] = paint, other
            pixels += rng.normal(0, 12, pixels.shape)
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{pid}_{i}.png")
    return folder


def colours(paths: list[Path]) -> np.ndarray:
    """Features: the mean colours of the halves, (N, 6)."""
    rows = [np.asarray(Image.open(path), np.float32) for path in paths]
    return np.stack([np.concatenate([p[:32].mean((0, 1)), p[32:].mean((0, 1))]) for p in rows]) / 255 - 0.5


def make_session(
    folder: Path, out: Path, proposals: Proposals | None = None, k1: int = 5, k2: int = 2, **images
) -> Session:
    """A session about the crops of a folder. images: further columns of ``Images``."""
    paths = sorted(folder.glob("*.png"))
    names = [path.name for path in paths]
    bad = images.get("bad", {})
    good = np.array([row for row in range(len(paths)) if row not in bad])
    graph = make_graph(colours([paths[row] for row in good]), k1, k2, 0.5, good, len(paths))
    journal = Journal.open(out.with_suffix(".work") / "journal.jsonl", names)
    listed = Images([str(path) for path in paths], names, **images)
    return Session(listed, graph, journal, out, eps=0.5, min_samples=2, proposals=proposals)


def settings_of(weight: str) -> list[str]:
    """The command's settings for the small network whose weights these are."""
    return [
        "MODEL.NAME", "resnet10", "MODEL.DEVICE", "cpu", "INPUT.SIZE_TEST", "[32, 16]", "INPUT.SIZE_TRAIN", "[32, 16]",
        "MODEL.PRETRAIN_CHOICE", "no", "DATALOADER.NUM_WORKERS", "0", "CLUSTER.EPS", "0.5", "CLUSTER.MIN_SAMPLES", "2",
        "CLUSTER.K1", "5", "CLUSTER.K2", "2", "TEST.WEIGHT", weight,
    ]  # fmt: skip
