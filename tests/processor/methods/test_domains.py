"""D-MMD and multi-target distillation as stages: batches, groups, whole runs, resume, mistakes."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from datasets.records import Records
from model import make_model
from processor import run
from processor.methods.domains import ZippedEpochs, target_groups
from processor.methods.mtda_kd import Distillation
from tests.runs import call, weights
from tests.tiny import config, options
from utils.errors import UserError

NET = "timm:test_efficientnet"
SMALL = {
    "MODEL__NAME": NET, "DATASETS__SYNTHETIC__IDS": 8, "DATASETS__SYNTHETIC__IMAGES": 2, "DATASETS__NAMES": "synthetic",
    "INPUT__SIZE_TRAIN": [64, 32], "INPUT__SIZE_TEST": [64, 32], "INPUT__ENLARGE_PROB": 0.5, "SOLVER__EVAL_PERIOD": 0,
    "SOLVER__SCHEDULER": "step", "SOLVER__BASE_LR": 1e-3, "SOLVER__OPTIMIZER_NAME": "Adam", "SOLVER__IMS_PER_BATCH": 8,
}  # fmt: skip
OSNET = SMALL | {"MODEL__NAME": "torchreid_osnet_x0_25", "MODEL__FC_DIM": 32}
"""The published settings' family: ten times as slow, so only for what that family alone has."""


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    """A data root, and the checkpoint of step 1 on it."""
    root, folder = tmp_path_factory.mktemp("synthetic"), tmp_path_factory.mktemp("source")
    run.train(config(root, folder, **SMALL, SOLVER__FREEZE_EPOCHS=1))
    return root, folder / file_name(NET, 2)


def file_name(name: str, epoch: int) -> str:
    return f"{name.replace(':', '_')}_{epoch}.pth"


def untrained(folder, settings: dict) -> str:
    """The path of a checkpoint of a network's first weights, for the four identities of the source."""
    torch.manual_seed(0)
    torch.save(make_model(config(folder, folder, **settings), 4).state_dict(), folder / "untrained.pth")
    return str(folder / "untrained.pth")


def dmmd(source, **changes) -> dict:
    return SMALL | {
        "PROCESSOR__NAME": "dmmd", "DATASETS__TARGETS": ["synthetic_b"], "DMMD__WARMUP_EPOCHS": 1,
        "DMMD__SOURCE_WEIGHT": str(source[1]),
    } | changes  # fmt: skip


def distil(source, **changes) -> dict:
    return SMALL | {
        "PROCESSOR__NAME": "mtda_kd", "DATASETS__TARGETS": ["synthetic_b", "synthetic_c"], "KD__TEACHER__NAME": NET,
        "KD__TEACHER__WEIGHTS": [str(source[1])] * 2, "KD__STUDENT_WEIGHT": str(source[1]),
    } | changes  # fmt: skip


def test_batches_side_by_side_start_again_where_they_are_shorter():
    pairs = [batch.batches for batch in ZippedEpochs([["a", "b"], ["x", "y", "z"]], length=5)]
    assert pairs == [["a", "x"], ["b", "y"], ["a", "z"], ["b", "x"], ["a", "y"]]
    assert [batch.batches for batch in ZippedEpochs([["a", "b"], ["x", "y", "z"]])] == [["a", "x"], ["b", "y"]]


def test_tracklets_are_one_identity_under_one_camera_with_enough_images():
    pids, camids = np.array([0, 0, 0, 0, 1, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 0, 0, 1, 1, 1])
    records = Records.of([str(i) for i in range(9)], pids, camids)
    assert target_groups(records, "tracklet", 2).tolist() == [0, 0, 1, 1, 2, 2, -1, 3, 3]
    assert target_groups(records, "identity", 2).tolist() == records.pids.tolist()
    with pytest.raises(UserError, match="0 tracklets have DATALOADER.NUM_INSTANCE 3 images"):
        target_groups(records, "tracklet", 3)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"DMMD__GROUPS": "identity", "DMMD__ONLY": True},
        {"DMMD__GROUPS": "pseudo", "CLUSTER__K1": 4, "CLUSTER__K2": 2, "CLUSTER__MIN_SAMPLES": 1},
        {"DATASETS__TARGETS": ["synthetic_b", "synthetic_c"], "DMMD__BLEND": True},
    ],
    ids=["tracklet", "only", "pseudo", "blend"],
)
def test_adaptation_runs_and_reports_targets_beside_the_source(source, tmp_path, changes):
    settings = dmmd(source, **changes)
    metrics = run.train(config(source[0], tmp_path, **settings))
    targets = settings["DATASETS__TARGETS"]
    assert set(metrics["results"]) == {"synthetic", *targets}
    mean = np.mean([metrics["results"][name]["mAP"] for name in targets])
    assert metrics["mean"]["mAP"] == pytest.approx(mean)
    log = (tmp_path / "log.txt").read_text()
    first, second = (next(line for line in log.splitlines() if f"dmmd epoch {e}/2" in line) for e in (1, 2))
    assert "overall" in second and ("overall" in first) == bool(changes.get("DMMD__ONLY"))
    assert ("triplet" in second) != bool(changes.get("DMMD__ONLY"))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "updates"),
    [
        ({}, 2),
        ({"KD__ORDER": "shift", "KD__WEIGHT_SOURCE": 1.0, "KD__WEIGHT_DA": 1.0}, 2),
        ({"KD__SWEEPS": "per_teacher", "KD__TEACHER__MODE": "train", "KD__ORDER": "fixed"}, 4),
        ({"KD__ALTERNATION": "full", "KD__LOG_EUCLID": True}, 2),
        (OSNET | {"KD__ALTERNATION": "full", "KD__ORDER": "shift", "KD__MULTI_HEAD": True}, 2),
    ],
    ids=["default", "shift", "released", "full", "heads"],
)
def test_distillation_runs_and_its_file_is_a_model_like_any_other(source, tmp_path, changes, updates):
    if changes.get("KD__MULTI_HEAD"):
        weight = untrained(tmp_path, OSNET)
        changes = changes | {"KD__TEACHER__NAME": OSNET["MODEL__NAME"], "KD__TEACHER__WEIGHTS": [weight] * 2}
        changes |= {"KD__STUDENT_WEIGHT": weight}
    metrics = run.train(config(source[0], tmp_path, **distil(source, **changes)))
    assert set(metrics["results"]) == {"synthetic", "synthetic_b", "synthetic_c"}
    line = next(line for line in (tmp_path / "log.txt").read_text().splitlines() if "mtda_kd epoch 1/2" in line)
    per_epoch = int(line.split("step ")[1].split("/")[0])
    assert per_epoch % updates == 0 and "target_outputs" in line
    assert ("da_overall" in line) == bool(changes.get("KD__WEIGHT_DA"))
    tested = {**SMALL, "DATASETS__NAMES": "synthetic_b", "TEST__WEIGHT": str(tmp_path / file_name(NET, 2))}
    if not changes.get("KD__MULTI_HEAD"):
        assert call("test", options(source[0], tmp_path / "test", **tested)) == 0
        alone = json.loads((tmp_path / "test" / "test_metrics.json").read_text())["results"]["synthetic_b"]
        assert alone["mAP"] == pytest.approx(metrics["results"]["synthetic_b"]["mAP"], abs=1e-6)


def test_a_student_learns_its_teachers_geometry(source, tmp_path):
    start = {"KD__STUDENT_WEIGHT": "", "SOLVER__IMS_PER_BATCH": 4, "SOLVER__MAX_EPOCHS": 5, "SOLVER__BASE_LR": 3e-3}
    metrics = run.train(config(source[0], tmp_path, **distil(source, **start)))
    assert metrics["history"]
    lines = [line for line in (tmp_path / "log.txt").read_text().splitlines() if "mtda_kd epoch" in line]
    first, last = (float(line.split(" loss ")[1].split()[0]) for line in (lines[0], lines[-1]))
    assert last < 0.8 * first


def test_frozen_epochs_move_the_classifier_only(source, tmp_path):
    folder, weight = tmp_path / "frozen", untrained(tmp_path, OSNET)
    start = {"MODEL__PRETRAIN_CHOICE": "self", "MODEL__PRETRAIN_PATH": weight}
    run.train(config(source[0], folder, **(OSNET | start), SOLVER__FREEZE_EPOCHS=2))
    before, after = torch.load(weight, weights_only=True), weights(folder, 2, OSNET["MODEL__NAME"])
    changed = {k for k in before if not torch.equal(before[k], after[k])}
    assert changed == {"classifier.weight", "classifier.bias"}


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"DATASETS__TARGETS": ["synthetic"]}, "DATASETS.TARGETS: synthetic is source and target at once"),
        ({"DATASETS__TARGETS": []}, "DATASETS.TARGETS is empty"),
        ({"DATASETS__TARGETS": ["synthetic_b", "synthetic_c"]}, "DMMD.BLEND True joins several into one"),
        ({"DMMD__SOURCE_WEIGHT": "none.pth"}, "DMMD.SOURCE_WEIGHT: none.pth: no such file"),
        ({"SOLVER__IMS_PER_BATCH": 32}, "a batch of 32 needs 16 identities"),
        ({"DATALOADER__NUM_INSTANCE": 8, "SOLVER__IMS_PER_BATCH": 16}, "0 tracklets have DATALOADER.NUM_INSTANCE 8"),
    ],
)
def test_mistakes_of_adaptation_are_one_line(source, tmp_path, changes, line):
    with pytest.raises(UserError, match=line):
        run.train(config(source[0], tmp_path, **dmmd(source, **changes)))


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"KD__TEACHER__WEIGHTS": ["one.pth"]}, "1 files for 2 DATASETS.TARGETS"),
        ({"KD__TEACHER__WEIGHTS": ["none.pth"] * 2}, "none.pth: no such checkpoint file"),
        ({"KD__TEACHER__NAME": "resnet9"}, r"^KD.TEACHER.NAME: unknown 'resnet9'"),
        ({"KD__TEACHER__NAME": "torchreid_resnet18"}, r"KD.TEACHER.WEIGHTS: .*KD.TEACHER.NAME is 'torchreid_resnet18'"),
        ({"KD__STYLE": "all"}, "only the torchreid ResNets have matching stages"),
    ],
)
def test_mistakes_of_distillation_are_one_line(source, tmp_path, changes, line):
    with pytest.raises(UserError, match=line):
        run.train(config(source[0], tmp_path, **distil(source, **changes)))


@pytest.mark.slow
def test_stage_maps_are_distilled_between_resnets(tmp_path, source):
    resnet = SMALL | {"MODEL__NAME": "torchreid_resnet18", "MODEL__FC_DIM": 512}
    more = {"KD__TEACHER__NAME": "torchreid_resnet18", "KD__TEACHER__WEIGHTS": [untrained(tmp_path, resnet)]}
    more |= {"KD__STUDENT_WEIGHT": "", "KD__STYLE": "all", "MODEL__MAPS": "student", "DATASETS__TARGETS": "synthetic_b"}
    more |= {"SOLVER__MAX_EPOCHS": 1}
    run.train(config(source[0], tmp_path / "student", **distil(source, **resnet, **more)))
    assert " target_maps " in (tmp_path / "student" / "log.txt").read_text()


def test_the_schedule_counts_sweeps():
    class Recorder:
        def __init__(self):
            self.steps = []

        def step(self, number):
            self.steps.append(number)

    stage = Distillation(
        torch.nn.Linear(1, 1), 3, teachers=[], source=None, targets=[], loss_function=None, make_solver=None,
        num_instances=2, sweeps=3,
    )  # fmt: skip
    stage.scheduler = Recorder()
    for epoch in (1, 2):
        for step in range(12):
            stage.set_rates(epoch, step, 12)
    assert stage.scheduler.steps == [1, 2, 3, 4, 5, 6]
