"""Pre-training on folders of classes: it learns to classify, and its file is what a ReID run starts from."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from configs import load_config
from processor import run
from tests.tiny import MSVIT, config, options
from utils.errors import UserError

IMAGENET = Path(__file__).resolve().parents[2] / "configs" / "msvit" / "imagenet_s.yml"


def write_classes(root: Path, classes: int = 6, images: int = 12) -> Path:
    """train/ and val/ with a folder per class: its colour under noise."""
    rng = np.random.default_rng(0)
    for name in range(classes):
        paint = rng.integers(0, 256, 3)
        for i in range(images):
            place = root / ("train" if i < images - 3 else "val") / f"n{name:02d}"
            place.mkdir(parents=True, exist_ok=True)
            pixels = paint + rng.integers(-40, 40, (40, 40, 3))
            Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(place / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def classes(tmp_path_factory):
    return write_classes(tmp_path_factory.mktemp("classes"))


def recipe(root: Path, folder: Path, **changes):
    """The recipe's YAML in a size of seconds."""
    tiny = {k: v for k, v in MSVIT.items() if "SPARSE" not in k} | {
        "DATASETS__NAMES": "folder", "DATALOADER__SAMPLER": "softmax", "MODEL__NO_MARGIN": False,
        "SOLVER__OPTIMIZER_NAME": "AdamW", "SOLVER__BASE_LR": 3e-3, "SOLVER__IMS_PER_BATCH": 18,
        "SOLVER__MAX_EPOCHS": 12, "SOLVER__WARMUP_EPOCHS": 1, "SOLVER__EVAL_PERIOD": 0, "SOLVER__EVAL_BEFORE": True,
        "SOLVER__EMA__DECAY": 0.8,
    }  # fmt: skip
    return load_config(IMAGENET, options(root, folder, **(tiny | changes)))


@pytest.mark.slow
def test_the_recipe_learns_and_its_file_starts_a_reid_run(classes, market, tmp_path):
    metrics = run.train(recipe(classes, tmp_path / "classes", INPUT__AUTO_AUGMENT=""))  # it changes colours
    before, after = metrics["history"]
    assert metrics["results"]["folder"].keys() == {"Top-1", "Top-5"}
    assert after["Top-1"] > before["Top-1"] + 0.3, f"{before['Top-1']:.2f} before, {after['Top-1']:.2f} after"
    path = tmp_path / "classes" / "msvit_s_12.pth"
    again = run.test(recipe(classes, tmp_path / "again", TEST__WEIGHT=str(path)))
    assert again["results"] == metrics["results"]
    start = {"MODEL__PRETRAIN_CHOICE": "imagenet", "MODEL__PRETRAIN_PATH": str(path), "SOLVER__MAX_EPOCHS": 1}
    run.train(config(market, tmp_path / "reid", **(MSVIT | start)))
    log = (tmp_path / "reid" / "log.txt").read_text()
    assert "tensors loaded from" in log and "mismatched" not in log


def test_a_run_of_the_recipe_is_the_same_twice(classes, tmp_path):
    found = [run.train(recipe(classes, tmp_path / n, SOLVER__MAX_EPOCHS=2)) for n in "ab"]
    assert found[0]["history"] == found[1]["history"]


def test_a_network_without_class_scores_is_told(classes, tmp_path):
    with pytest.raises(UserError, match="MSViTReID has no class scores.*MODEL.MSVIT.HEAD 'classifier'"):
        run.train(recipe(classes, tmp_path, MODEL__MSVIT__HEAD="parts", INPUT__MIXUP=0.0, INPUT__CUTMIX=0.0))


def test_any_backbone_with_one_neck_classifies_too(classes, tmp_path):
    changes = {"MODEL__NAME": "resnet10", "SOLVER__MAX_EPOCHS": 1}
    assert run.train(recipe(classes, tmp_path, **changes))["results"]["folder"].keys() == {"Top-1", "Top-5"}


def test_keeping_the_best_by_map_is_refused(classes, tmp_path):
    with pytest.raises(UserError, match="SOLVER.KEEP_BEST 'mAP' and TEST.PROTOCOL 'classification'"):
        run.train(recipe(classes, tmp_path, SOLVER__KEEP_BEST="mAP"))
