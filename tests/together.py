"""What two processes do in one start: every share of a step, then whole commands, one after the other.

Starting two processes takes longer than any of this. Nothing of ``train.py`` itself runs here:
``tests/processor/test_torchrun_stops.py`` starts it by ``torchrun``.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
from pathlib import Path

import torch

from model import make_model
from processor import run
from tests.processor.shares import write_shares
from tests.runs import call
from tests.tiny import config, options, write_market
from tools import extract
from utils.distributed import barrier, is_main, rank, start, stop

DINO = {
    "PROCESSOR__NAME": "dino", "DATALOADER__SAMPLER": "softmax", "MODEL__STEM_CONV": True, "DINO__OUT_DIM": 8,
    "DINO__HIDDEN_DIM": 16, "DINO__CROP_HEIGHT": 16, "DINO__CROP_WIDTH": 8, "DINO__USE_BN_IN_HEAD": True,
    "SOLVER__OPTIMIZER_NAME": "AdamW", "SOLVER__BASE_LR": 1e-3,
}  # fmt: skip

SIDES = {"MODEL__SIE_CAMERA": True, "MODEL__JPM": True, "MODEL__STRIDE_SIZE": [4, 4]}


def write_weight(path: Path) -> None:
    """A checkpoint of a model with side information for two cameras and local parts, its neck's statistics not bare."""
    torch.manual_seed(0)
    model = make_model(config(path.parent, path.parent, **SIDES), 4, 2, 1)
    torch.nn.init.normal_(model.base.sie_embed)
    for name, value in model.named_buffers():
        if "running" in name:
            value.uniform_(0.5, 1.5)
    torch.save(model.state_dict(), path)


def commands(folder: Path) -> dict[str, tuple[str, list]]:
    """Name -> (command, words). Each reads and writes below ``folder``."""
    data, skips = folder / "data", {"DATALOADER__BAD_IMAGES": "skip", "DATALOADER__SAMPLER": "softmax"}
    trains = {"SOLVER__IMS_PER_BATCH": 8, "MODEL__METRIC_LOSS_TYPE": "triplet_center", "SOLVER__EMA__RATIO": 0.5}
    run_words = options(data, folder / "run", TEST__REPORT=True, **trains)
    skips |= {"SOLVER__GATHER": True, "SOLVER__IMS_PER_BATCH": 8}
    return {
        "run": ("train", run_words),
        "run again": ("train", run_words),
        "skipped images": ("train", options(folder / "damaged", folder / "skips", **skips)),
        "pre-training": ("train", options(data, folder / "dino", **DINO)),
        "extraction": ("extract", extraction_words(folder, folder / "features")),
    }


def extraction_words(folder: Path, out: Path) -> list:
    """The words of ``tools.extract`` for the images and weights of ``folder``."""
    given = options(folder / "data", folder, TEST__WEIGHT=folder / "sides.pth", TEST__IMS_PER_BATCH=5, **SIDES)
    return ["--images", folder / "images", "--out", out, *given]


def write_inputs(folder: Path) -> None:
    """Writes what the commands read: weights, a set, one with images of no bytes, and a folder with one that is cut."""
    write_weight(folder / "sides.pth")
    images = sorted(write_market(folder / "data").rglob("*.jpg"))
    train = write_market(folder / "damaged") / "market1501" / "bounding_box_train"
    for path in sorted(train.glob("0001_*")) + sorted(train.glob("0002_*"))[:1]:  # all of one identity, one of another
        path.write_bytes(b"")
    (folder / "images").mkdir()
    for path in images[:23]:
        shutil.copy(path, folder / "images")
    cut = sorted((folder / "images").iterdir())[7]
    cut.write_bytes(cut.read_bytes()[:200])


def exit_code(command: str, words: list) -> int:
    if command != "extract":
        return call(command, words)
    extract.main([str(word) for word in words])
    return 0


def run_together(folder: Path) -> None:
    """Does all of it, as one of the ranks."""
    start(torch.device("cpu"))
    write_shares(folder)
    if is_main():
        write_inputs(folder)
    barrier()
    run.stop = lambda: None  # the processes stay together from command to command
    for name, (command, words) in commands(folder).items():
        with open(folder / f"{name}.{rank()}.txt", "w") as output:
            os.dup2(output.fileno(), sys.stdout.fileno())
            code = exit_code(command, words)
            sys.stdout.flush()
        (folder / f"{name}.{rank()}.json").write_text(json.dumps(code))
    stop()


def output_of(folder: Path, name: str) -> str:
    """What both processes printed; raises ``AssertionError`` if one of them failed."""
    codes = [json.loads((folder / f"{name}.{i}.json").read_text()) for i in range(2)]
    text = "".join((folder / f"{name}.{i}.txt").read_text() for i in range(2))
    assert codes == [0, 0], text
    return text
