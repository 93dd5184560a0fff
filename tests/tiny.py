"""A miniature of everything, so that whole runs take seconds: data in the Market-1501 layout and settings for it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from configs import load_config

#: Changes that make ``config`` a miniature MSViT.
MSVIT = {
    "MODEL__NAME": "msvit_s", "MODEL__MSVIT__WIDTHS": [16, 16, 16, 16], "MODEL__MSVIT__BLOCKS": [1, 1, 2, 1],
    "MODEL__MSVIT__SPLIT_SIZE": [2, 2], "MODEL__MSVIT__SPARSE_RATIO": 0.75, "INPUT__SIZE_TRAIN": [64, 32],
    "INPUT__SIZE_TEST": [64, 32], "MODEL__MSVIT__BATCH_ERASING": 0.0,
}  # fmt: skip


def write_market(root: Path, ids: int = 4, cameras: int = 2, images: int = 2, size: tuple[int, int] = (16, 8)) -> Path:
    """``root/market1501`` with noisy images, each identity of its own colours; test ids follow the training ids."""
    rng = np.random.default_rng(0)
    folder = root / "market1501"
    for pid in range(1, 2 * ids + 1):
        paint = rng.integers(100, 156, size=(2, 1, 3))  # hard enough that no model gets every rank right
        for cam in range(1, cameras + 1):
            for i in range(images):
                split = "bounding_box_train" if pid <= ids else ("query" if i == 0 else "bounding_box_test")
                (folder / split).mkdir(parents=True, exist_ok=True)
                flat = np.repeat(np.repeat(paint, size[0] // 2, 0), size[1], 1)
                pixels = flat + rng.integers(-100, 100, (*size, 3))
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(folder / split / f"{pid:04d}_c{cam}s1_{i:06d}_00.jpg")
    return root


def options(root: Path, folder: Path, **changes) -> list:
    """Overrides for a run of seconds; ``changes`` are keys with dots written as two underscores."""
    settings = {
        "DATASETS.ROOT_DIR": str(root),
        "DATASETS.NAMES": "market1501",
        "OUTPUT_DIR": str(folder),
        "MODEL.DEVICE": "cpu",
        "MODEL.NAME": "transformer",
        "MODEL.TRANSFORMER_TYPE": "vit_micro_patch8_TransReID",
        "MODEL.PRETRAIN_CHOICE": "no",
        "MODEL.STRIDE_SIZE": [8, 8],
        "MODEL.NO_MARGIN": True,
        "INPUT.SIZE_TRAIN": [32, 16],
        "INPUT.SIZE_TEST": [32, 16],
        "INPUT.PADDING": 2,
        "DATALOADER.SAMPLER": "softmax_triplet",
        "DATALOADER.NUM_INSTANCE": 2,
        "DATALOADER.NUM_WORKERS": 0,
        "SOLVER.IMS_PER_BATCH": 4,
        "SOLVER.MAX_EPOCHS": 2,
        "SOLVER.BASE_LR": 0.01,
        "SOLVER.OPTIMIZER_NAME": "SGD",
        "SOLVER.WARMUP_EPOCHS": 1,
        "SOLVER.EVAL_PERIOD": 1,
        "SOLVER.CHECKPOINT_PERIOD": 1,
        "TEST.IMS_PER_BATCH": 8,
    }
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    return [word for pair in settings.items() for word in pair]


def config(root: Path, folder: Path, **changes):
    return load_config(opts=options(root, folder, **changes))
