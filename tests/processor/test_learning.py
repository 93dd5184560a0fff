"""A tiny run of every method learns: its mAP beats the untrained model's by a stated margin, on built-in data."""

from __future__ import annotations

import pytest

from processor import run
from processor.trained import last_of_run
from tests.tiny import MSVIT, config

SYNTHETIC = {
    "DATASETS__NAMES": "synthetic", "DATASETS__SYNTHETIC__IDS": 32, "INPUT__SIZE_TRAIN": [64, 32],
    "INPUT__SIZE_TEST": [64, 32], "DATALOADER__NUM_INSTANCE": 4, "SOLVER__IMS_PER_BATCH": 32,
    "SOLVER__OPTIMIZER_NAME": "Adam", "SOLVER__EVAL_PERIOD": 0, "SOLVER__EVAL_BEFORE": True, "MODEL__NO_MARGIN": False,
}  # fmt: skip

SMALL_RESNET = "timm:test_resnet"
"""A ResNet of 0.4 M weights; ResNet-10 has five."""

# method and model -> (settings, by how much the mAP must rise)
LEARNERS = {
    "supervised resnet": (
        {
            "MODEL__NAME": SMALL_RESNET, "DATASETS__SYNTHETIC__IDS": 16, "SOLVER__MAX_EPOCHS": 12,
            "SOLVER__BASE_LR": 5e-3,
        },
        0.15,
    ),
    "supervised msvit": (
        MSVIT | {
            "MODEL__MSVIT__FREEZE": [], "MODEL__DROP_PATH": 0.0, "DATALOADER__SAMPLER": "repeat_iter",
            "SOLVER__OPTIMIZER_NAME": "SGD", "SOLVER__NESTEROV": True, "SOLVER__BASE_LR": 0.1, "MODEL__NO_MARGIN": True,
            "SOLVER__IMS_PER_BATCH": 8, "SOLVER__TRP_L2": True, "SOLVER__SCHEDULER": "msvit", "INPUT__RE_PROB": 0.0,
            "SOLVER__MAX_EPOCHS": 7, "SOLVER__EMA__RATIO": 0.8, "SOLVER__EMA__EXTRA_EPOCHS": 2, "TEST__FLIP": True,
            "DATASETS__SYNTHETIC__IDS": 16, "DATALOADER__NUM_INSTANCE": 2,
        },
        0.1,
    ),
    "supervised transreid": (
        {
            "MODEL__TRANSFORMER_TYPE": "vit_micro_patch8_TransReID", "MODEL__JPM": True, "MODEL__SIE_CAMERA": True,
            "SOLVER__MAX_EPOCHS": 16, "SOLVER__BASE_LR": 3e-3, "INPUT__RE_PROB": 0.0, "DATASETS__SYNTHETIC__IDS": 16,
        },
        0.05,
    ),
    "self distillation": (
        {
            "PROCESSOR__NAME": "self_distill", "MODEL__NAME": SMALL_RESNET, "SSD__MODE": "released", "SSD__ITERS": 6,
            "DATALOADER__SAMPLER": "multiple_gallery_nocam", "SOLVER__MAX_EPOCHS": 6, "SOLVER__BASE_LR": 8e-3,
            "INPUT__RE_PROB": 0.0,
        },
        0.1,
    ),
    "prompt": (
        {
            "PROCESSOR__NAME": "prompt", "MODEL__NAME": "RN-mini", "MODEL__STRIDE_SIZE": [16, 16],
            "MODEL__IF_LABELSMOOTH": "off", "INPUT__RE_PROB": 0.0, "SOLVER__STAGE1__MAX_EPOCHS": 1,
            "SOLVER__STAGE2__MAX_EPOCHS": 10, "SOLVER__STAGE2__IMS_PER_BATCH": 32, "SOLVER__STAGE2__BASE_LR": 2e-3,
            "SOLVER__STAGE2__WARMUP_ITERS": 2, "SOLVER__STAGE2__EVAL_PERIOD": 0,
        },
        0.12,
    ),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return tmp_path_factory.mktemp("synthetic")


@pytest.mark.slow
@pytest.mark.parametrize("learner", LEARNERS)
def test_training_beats_the_untrained_model(learner, data, tmp_path):
    changes, margin = LEARNERS[learner]
    metrics = run.train(config(data, tmp_path, **(SYNTHETIC | changes)))
    before, *_, after = metrics["history"]
    assert before["epoch"] == 0
    gain = after["mAP"] - before["mAP"]
    assert gain > margin, f"mAP {before['mAP']:.3f} before, {after['mAP']:.3f} after"


ADAPTED = SYNTHETIC | {
    "DATASETS__SYNTHETIC__IDS": 16, "MODEL__NAME": SMALL_RESNET, "INPUT__RE_PROB": 0.0, "SOLVER__WARMUP_EPOCHS": 0,
    "DATASETS__TARGETS": ["synthetic_b"],
}  # fmt: skip


@pytest.fixture(scope="module")
def adapted(data, tmp_path_factory) -> tuple[list[dict], str]:
    """The history and the checkpoint of D-MMD, which starts from a run on the source alone."""
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("adapted")
    run.train(config(data, source, **ADAPTED, SOLVER__MAX_EPOCHS=5, SOLVER__BASE_LR=8e-3))
    changes = {"PROCESSOR__NAME": "dmmd", "DMMD__SOURCE_WEIGHT": last_of_run(source)[1]}
    changes |= {"DMMD__WARMUP_EPOCHS": 0, "DMMD__GROUPS": "identity", "SOLVER__MAX_EPOCHS": 4, "SOLVER__BASE_LR": 4e-3}
    metrics = run.train(config(data, folder, **(ADAPTED | changes)))
    return metrics["history"], last_of_run(folder)[1]


@pytest.mark.slow
def test_adaptation_beats_the_source_alone_on_the_target(adapted):
    before, after = adapted[0]
    assert after["mAP"] - before["mAP"] > 0.04, f"mAP {before['mAP']:.3f} before, {after['mAP']:.3f} after"


@pytest.mark.slow
def test_a_student_without_labels_learns_from_its_teacher(data, adapted, tmp_path):
    changes = {"PROCESSOR__NAME": "mtda_kd", "KD__TEACHER__NAME": SMALL_RESNET, "KD__TEACHER__WEIGHTS": [adapted[1]]}
    changes |= {"SOLVER__MAX_EPOCHS": 12, "SOLVER__BASE_LR": 4e-3}
    before, after = run.train(config(data, tmp_path, **(ADAPTED | changes)))["history"]
    assert after["mAP"] - before["mAP"] > 0.05, f"mAP {before['mAP']:.3f} before, {after['mAP']:.3f} after"
