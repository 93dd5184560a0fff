"""Every entry of the catalogue as a small tree that can be read, and the images in it."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import lru_cache
from pathlib import Path

import numpy as np
from PIL import Image

from datasets import CATALOGUE
from datasets.readers.scan import is_image
from datasets.synthetic.sets import NAMES as SYNTHETIC
from datasets.synthetic.tracks import ensure_tracks
from tests.datasets.miniatures import MINIATURES, write

TABLE = """path,pid,camid,split,seq,x1,y1,x2,y2,weather
in/b.jpg,ann,gate,train,,0,0,4,6,dry
in/b.jpg,rex,gate,train,,2,1,4,8,dry
in/a.png,zoë,yard,train,s1,,,,,wet
out/q.jpg,tom,gate,query,s2,,,,,dry
out/g.jpg,tom,yard,gallery,s3,,,,,wet
out/h.jpg,eve,yard,gallery,,,,,,wet
"""
PEOPLE = ["ann/1.jpg", "ann/2.jpg", "rex/1.jpg", "tom/1.jpg", "tom/3.jpg", "zoë/1.jpg"]
OPTIONS = {name: {"ids": 4, "cameras": 2, "images": 2} for name in SYNTHETIC}
OPTIONS["synthetic_tracks"] = {"ids": 4, "cameras": 2, "frames": 44, "seed": 86}
"""Options without which an entry would be slow to make."""


@lru_cache
def drawn_tracks() -> Path:
    """The folder of a small ``synthetic_tracks``, drawn once a process: frames take longer than images."""
    home = tempfile.mkdtemp()
    atexit.register(shutil.rmtree, home, ignore_errors=True)
    return ensure_tracks("synthetic_tracks", home, **OPTIONS["synthetic_tracks"])


def build(name: str, root: Path) -> None:
    """Writes what ``make_dataset(name, root, **OPTIONS.get(name, {}))`` reads."""
    root.mkdir(parents=True, exist_ok=True)
    if name in MINIATURES:
        MINIATURES[name].build(root)
    elif name == "csv":
        write(root, ["in/a.png", "in/b.jpg", "out/q.jpg", "out/g.jpg", "out/h.jpg"])
        (root / "dataset.csv").write_text(TABLE, encoding="utf-8")
    elif name == "synthetic_tracks":
        shutil.copytree(drawn_tracks(), root / drawn_tracks().name)
    elif name in ("folder", "images"):
        write(root, PEOPLE)
    else:
        assert name in SYNTHETIC, f"{name} is in the catalogue and has no small tree here"


def paint(root: Path) -> None:
    """Gives every image below a content of its own."""
    for i, path in enumerate(sorted(p for p in root.rglob("*") if is_image(p.name))):
        pixels = np.random.default_rng(i).integers(0, 255, (8, 4, 3), np.uint8)
        Image.fromarray(pixels).save(path, "PNG" if path.suffix == ".png" else "JPEG")
        os.utime(path, (1e9, 1e9))


NAMES = sorted(CATALOGUE)
