"""A tiny run of every method, for tests that stop runs anywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from yacs.config import CfgNode

from configs import dump
from model import make_model
from tests.tiny import CLIP_RUN, MSVIT, config

NET = "timm:test_efficientnet"
"""Convolutions, batch norms and drop path at 0.1 M parameters."""

DOMAINS = {
    "MODEL__NAME": NET, "DATASETS__SYNTHETIC__IDS": 8, "DATASETS__SYNTHETIC__IMAGES": 2, "DATASETS__NAMES": "synthetic",
    "INPUT__SIZE_TRAIN": [64, 32], "INPUT__SIZE_TEST": [64, 32], "SOLVER__SCHEDULER": "step",
    "SOLVER__OPTIMIZER_NAME": "Adam", "SOLVER__BASE_LR": 1e-3, "SOLVER__IMS_PER_BATCH": 8,
}  # fmt: skip

DISTILLATION = DOMAINS | {
    "PROCESSOR__NAME": "mtda_kd", "DATASETS__TARGETS": ["synthetic_b", "synthetic_c"], "KD__TEACHER__NAME": NET,
    "KD__TEACHER__MODE": "train", "KD__TEACHER__WEIGHTS": ["teacher.pth"] * 2, "KD__STUDENT_WEIGHT": "teacher.pth",
}  # fmt: skip

CLUSTER = {
    "PROCESSOR__NAME": "cluster", "MODEL__POOLING": "gem", "DATASETS__NAMES": "synthetic",
    "DATASETS__SYNTHETIC__IDS": 16, "DATASETS__SYNTHETIC__IMAGES": 2, "MODEL__DROP_OUT": 0.1,
    "DATALOADER__SAMPLER": "multiple_gallery", "DATALOADER__NUM_INSTANCE": 4, "SOLVER__IMS_PER_BATCH": 16,
    "SOLVER__SCHEDULER": "step", "CLUSTER__ITERS": 4, "CLUSTER__K1": 8, "CLUSTER__K2": 4, "CLUSTER__USE_HARD": True,
}  # fmt: skip

DINO = {
    "PROCESSOR__NAME": "dino", "DATALOADER__SAMPLER": "softmax", "MODEL__STEM_CONV": True, "DINO__OUT_DIM": 16,
    "DINO__HIDDEN_DIM": 32, "DINO__CROP_HEIGHT": 16, "DINO__CROP_WIDTH": 8, "DINO__LOCAL_CROPS_NUMBER": 2,
    "SOLVER__OPTIMIZER_NAME": "AdamW", "SOLVER__BASE_LR": 0.05, "DINO__USE_BN_IN_HEAD": True,
}  # fmt: skip

SELF_DISTILLATION = {
    "PROCESSOR__NAME": "self_distill", "MODEL__NAME": "ssdvit", "MODEL__DROP_PATH": 0.1, "MODEL__NO_MARGIN": False,
    "DATASETS__NAMES": ["synthetic", "synthetic_b"], "DATASETS__TARGETS": ["synthetic_c"], "DATASETS__USE_ALL": True,
    "DATASETS__SYNTHETIC__IDS": 8, "DATALOADER__SAMPLER": "multiple_gallery_nocam", "SSD__ITERS": 4,
}  # fmt: skip

KINDS: dict[str, dict[str, Any]] = {
    "supervised": {"MODEL__DROP_OUT": 0.1, "MODEL__METRIC_LOSS_TYPE": "triplet_center", "SOLVER__FREEZE_EPOCHS": 1},
    "supervised, averaged over epochs": {"SOLVER__EMA__RATIO": 0.5, "SOLVER__SCHEDULER": "step"},
    "supervised, averaged over updates": {"SOLVER__EMA__MODE": "exponential", "SOLVER__EMA__DECAY": 0.6},
    "supervised, accumulated": {"SOLVER__ACCUMULATION": 2, "DATALOADER__SAMPLER": "softmax", "MODEL__JPM": True,
                                "MODEL__SHIFT_NUM": 2, "MODEL__SIE_CAMERA": True, "MODEL__DROP_PATH": 0.2,
                                "SOLVER__PRECISION": "bf16", "SOLVER__CLIP_GRAD": 1.0},
    "supervised msvit, averaged over epochs": MSVIT | {
        "MODEL__MSVIT__BATCH_ERASING": 0.4, "SOLVER__NESTEROV": True, "SOLVER__SCHEDULER": "msvit",
        "SOLVER__EMA__RATIO": 0.5, "SOLVER__EMA__EXTRA_EPOCHS": 1, "DATALOADER__SAMPLER": "repeat_iter",
    },
    "supervised, with a worker": {"DATALOADER__NUM_WORKERS": 1},
    "prompt": CLIP_RUN | {"MODEL__USE_SSL": True, "MODEL__SIE_CAMERA": True},
    "dino": DINO,
    "dino, accumulated": DINO | {"SOLVER__ACCUMULATION": 2, "SOLVER__IMS_PER_BATCH": 2},
    "cluster": CLUSTER,
    "cluster, averaged, accumulated": CLUSTER | {
        "MODEL__NAME": NET, "MODEL__POOLING": "auto", "SOLVER__EMA__RATIO": 0.5, "SOLVER__ACCUMULATION": 2,
    },
    "self_distill": SELF_DISTILLATION,
    "self_distill, logits": SELF_DISTILLATION | {"SSD__MODE": "logits", "SSD__PAIRED_VIEWS": True},
    "dmmd": DOMAINS | {"PROCESSOR__NAME": "dmmd", "DATASETS__TARGETS": ["synthetic_b"], "DMMD__WARMUP_EPOCHS": 1},
    "dmmd, clusters": DOMAINS | {
        "PROCESSOR__NAME": "dmmd", "DATASETS__TARGETS": ["synthetic_b"], "DMMD__WARMUP_EPOCHS": 1,
        "DMMD__GROUPS": "pseudo", "CLUSTER__K1": 8, "CLUSTER__MIN_SAMPLES": 2, "DATASETS__SYNTHETIC__IMAGES": 4,
    },
    "distill": {"PROCESSOR__NAME": "distill", "DISTILL__WEIGHT_LOGITS": 1.0, "MODEL__DROP_OUT": 0.1},
    "mtda_kd": DISTILLATION | {"KD__SWEEPS": "per_teacher"},
    "mtda_kd, by shift": DISTILLATION | {"KD__ORDER": "shift"},
    "mtda_kd, one by one": DISTILLATION | {"KD__ORDER": "shift", "KD__ALTERNATION": "full"},
}  # fmt: skip
"""Name -> changes to ``tests.tiny.options``."""


def write_teacher(cfg: CfgNode, folder: Path, name: str = "distilled") -> dict[str, str]:
    """The keys of ``DISTILL`` that name an untrained teacher of four identities, written to ``folder``."""
    torch.manual_seed(0)
    torch.save(make_model(cfg, 4, 2, 1).state_dict(), folder / f"{name}.pth")
    (folder / f"{name}.yml").write_text(dump(cfg))
    return {
        "DISTILL__TEACHERS": str(folder / f"{name}.yml"), "DISTILL__CHECKPOINTS": str(folder / f"{name}.pth"),
    }  # fmt: skip


def changes_of(kind: str, root: Path) -> dict[str, Any]:
    """The changes of a kind, with a teacher's file where it needs one; it is made in ``root``."""
    changes = dict(KINDS[kind])
    if changes.get("PROCESSOR__NAME") == "distill":
        return changes | write_teacher(config(root, root), root)
    if changes.get("PROCESSOR__NAME") != "mtda_kd":
        return changes
    teacher = root / "teacher.pth"
    if not teacher.exists():
        torch.manual_seed(0)
        torch.save(make_model(config(root, root, **DOMAINS), 4).state_dict(), teacher)
    return changes | {"KD__TEACHER__WEIGHTS": [str(teacher)] * 2, "KD__STUDENT_WEIGHT": str(teacher)}
