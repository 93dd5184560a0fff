"""DINO as a stage: whole runs, files that the next run reads, resume, freezing, teacher and centre, mistakes."""

from __future__ import annotations

import argparse
import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from model import make_model
from processor import run
from processor.methods.dino import DINO, Ranges, follow, make_following_teacher
from tests.runs import assert_same_bytes, call
from tests.tiny import config, options
from utils.checkpoint import backbone_state, load_pretrained, load_weights
from utils.errors import UserError
from utils.weight_files import read_state

SMALL = {
    "PROCESSOR__NAME": "dino", "DATALOADER__SAMPLER": "softmax", "MODEL__STEM_CONV": True, "DINO__OUT_DIM": 16,
    "DINO__HIDDEN_DIM": 32, "DINO__CROP_HEIGHT": 16, "DINO__CROP_WIDTH": 8, "DINO__LOCAL_CROPS_NUMBER": 2,
    "SOLVER__OPTIMIZER_NAME": "AdamW", "SOLVER__BASE_LR": 0.05, "SOLVER__EVAL_PERIOD": 0, "SOLVER__MAX_EPOCHS": 3,
    "DINO__USE_BN_IN_HEAD": True,
}  # fmt: skip
FINE_TUNING = {"MODEL__STEM_CONV": True, "SOLVER__MAX_EPOCHS": 1, "MODEL__PRETRAIN_CHOICE": "imagenet"}


@pytest.fixture(scope="module")
def finished(market, tmp_path_factory):
    """A finished run's folder and its metrics."""
    folder = tmp_path_factory.mktemp("dino")
    return folder, run.train(config(market, folder, **SMALL))


def test_a_run_leaves_student_teacher_and_a_backbone_file(market, finished, tmp_path):
    folder, metrics = finished
    assert set(metrics["results"]) == {"market1501"} and metrics["method"] == "dino"
    both = read_state(folder / "transformer_3.pth")
    assert set(both) == {"student", "teacher", "epoch"} and both["epoch"] == 3
    assert both["student"].keys() == both["teacher"].keys()
    bare = read_state(folder / "transformer_backbone_3.pth")
    assert_same_bytes(bare, backbone_state(both))
    assert {"cls_token", "pos_embed", "patch_embed.proj.weight", "norm.bias"} <= bare.keys()
    tested = options(market, tmp_path, **SMALL, TEST__WEIGHT=folder / "transformer_3.pth")
    assert call("test", tested) == 0
    alone = json.loads((tmp_path / "test_metrics.json").read_text())["results"]["market1501"]
    assert alone["mAP"] == pytest.approx(metrics["results"]["market1501"]["mAP"], abs=1e-6)


@pytest.mark.parametrize("file", ["transformer_3.pth", "transformer_backbone_3.pth"])
def test_what_it_writes_is_what_fine_tuning_reads(market, finished, file, tmp_path):
    cfg = config(market, tmp_path, **FINE_TUNING, MODEL__PRETRAIN_PATH=str(finished[0] / file))
    model = make_model(cfg, 4)
    report = load_pretrained(model, cfg.MODEL.PRETRAIN_PATH)
    assert not report.missing and not report.mismatched
    teacher = backbone_state(finished[0] / "transformer_3.pth")
    assert_same_bytes(model.base.state_dict(), teacher)
    assert run.train(cfg)["results"]["market1501"]["queries"] == 8


def test_a_run_starts_from_a_pre_trained_backbone(market, finished, tmp_path):
    bare = str(finished[0] / "transformer_backbone_3.pth")
    cfg = config(market, tmp_path, **SMALL, MODEL__PRETRAIN_CHOICE="imagenet", MODEL__PRETRAIN_PATH=bare)
    model = make_model(cfg, 1)
    report = load_pretrained(model, bare)
    assert not report.missing and torch.equal(model.backbone.cls_token, read_state(bare)["cls_token"])


def test_prototypes_wait_and_everything_else_moves_in_the_first_epochs(market, tmp_path):
    cfg = config(market, tmp_path, **SMALL | {"SOLVER__MAX_EPOCHS": 2, "DINO__FREEZE_LAST_LAYER": 2})
    run.train(cfg)
    torch.manual_seed(cfg.SOLVER.SEED)
    ends = [read_state(tmp_path / f"transformer_{epoch}.pth")["student"] for epoch in (1, 2)]
    still = {name for name in ends[0] if torch.equal(ends[0][name], ends[1][name])}
    assert {name for name in still if "running" not in name} == {
        "head.last_layer.weight_g", "head.last_layer.weight_v",
    }  # fmt: skip


def test_the_teacher_is_the_average_and_keeps_buffers_of_its_own(market):
    torch.manual_seed(0)
    student = make_model(config(market, "unused", **SMALL), 1)
    teacher = make_following_teacher(student)
    assert_same_bytes(student.state_dict(), teacher.state_dict())
    before = copy.deepcopy(teacher.state_dict())
    with torch.no_grad():
        for tensor in (*student.parameters(), *student.buffers()):
            tensor.add_(1) if tensor.is_floating_point() else tensor.add_(3)
    follow(teacher, student, 0.75)
    names = {name for name, _ in teacher.named_parameters()}
    for name, now in teacher.state_dict().items():
        torch.testing.assert_close(now, before[name] + 0.25 if name in names else before[name])


def test_the_teacher_drops_nothing_and_sees_the_global_crops_in_training_mode(market):
    changes = {"MODEL__DROP_PATH": 0.9, "MODEL__DROP_OUT": 0.5, "MODEL__ATT_DROP_RATE": 0.5}
    cfg = config(market, "unused", **SMALL | changes)
    student = make_model(cfg, 1)
    teacher = make_following_teacher(student).train()
    crops = [torch.randn(2, 3, 32, 16)] * 2
    assert torch.equal(teacher(crops), teacher(crops))
    assert not torch.equal(student.train()(crops), student(crops))


def test_student_and_teacher_of_two_networks_are_refused(market):
    one, two = (make_model(config(market, "unused", **SMALL | {"DINO__OUT_DIM": n}), 1) for n in (16, 8))
    with pytest.raises(UserError, match="student and teacher are different networks: head.last_layer.weight_g"):
        DINO(one, 1, teacher=two, loader=None, loss_function=None, make_solver=None, ranges=Ranges((1, 1), (0, 0), 0.5))


@pytest.mark.parametrize(
    ("state", "words"),
    [
        ({"teacher": {"module.head.mlp.0.weight": torch.ones(2, 2)}}, "holds no backbone"),
        ({"teacher": {"backbone.other": torch.ones(2)}}, "no tensor fits the model"),
    ],
)
def test_a_pre_trained_file_without_a_backbone_is_refused(market, state, words, tmp_path):
    torch.save(state, tmp_path / "file.pth")
    cfg = config(market, tmp_path / "run", **FINE_TUNING, MODEL__PRETRAIN_PATH=str(tmp_path / "file.pth"))
    with pytest.raises(UserError, match=words):
        run.train(cfg)
    if words == "holds no backbone":
        with pytest.raises(UserError, match="no tensor's name starts with 'backbone.'"):
            backbone_state(tmp_path / "file.pth")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"SOLVER__WARMUP_EPOCHS": 3}, "SOLVER.WARMUP_EPOCHS: 3 epochs of warm-up leave nothing of 3"),
        ({"SOLVER__EMA__RATIO": 0.5}, "SOLVER.EMA and PROCESSOR.NAME 'dino'"),
        ({"DINO__WARMUP_TEACHER_TEMP_EPOCHS": 4}, "DINO.WARMUP_TEACHER_TEMP_EPOCHS: 4"),
        ({"SOLVER__OPTIMIZER_NAME": "LRS"}, "SOLVER.OPTIMIZER_NAME: unknown 'LRS'.*did you mean"),
    ],
)
def test_mistakes_are_one_line(market, changes, words, tmp_path):
    with pytest.raises(UserError, match=words) as caught:
        run.train(config(market, tmp_path, **SMALL | changes))
    assert "\n" not in str(caught.value)


def test_every_optimizer_of_the_release_runs(market, tmp_path):
    for name in ("SGD", "LARS"):
        changes = {"SOLVER__OPTIMIZER_NAME": name, "SOLVER__MAX_EPOCHS": 2, "SOLVER__PRECISION": "bf16"}
        run.train(config(market, tmp_path / name, **SMALL | changes))
        assert (tmp_path / name / "transformer_backbone_2.pth").is_file()


def write_textures(root: Path, kinds: int = 12, images: int = 12) -> Path:
    """``root/market1501``: stripes of one direction and width per identity, phase and noise of each image its own.

    The test's directions lie between those of training.
    """
    rng, (y, x) = np.random.default_rng(0), np.mgrid[:64, :32]
    for pid in range(1, 2 * kinds + 1):
        kind, tested = (pid - 1) % kinds, pid > kinds
        angle, period = np.pi * (kind + tested / 2) / kinds, 4 + kind % 3 * 2
        for i in range(images):
            waves = np.sin(
                2 * np.pi * (x * np.cos(angle) + y * np.sin(angle)) / period + rng.uniform(0, 2 * np.pi)
            )  # fmt: skip
            grey = 127 + 58 * waves + rng.normal(0, 12, waves.shape)
            split = ("query" if i < 2 else "bounding_box_test") if tested else "bounding_box_train"
            path = root / "market1501" / split / f"{pid:04d}_c{1 + i % 2}s1_{i:06d}_00.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.repeat(grey.clip(0, 255).astype(np.uint8)[..., None], 3, 2)).save(path)
    return root


@pytest.mark.slow
def test_pre_training_learns_without_labels_what_tells_textures_apart(tmp_path):
    """Retrieval by frozen features beats the untrained backbone by 10 points of mAP."""
    changes = SMALL | {
        "INPUT__SIZE_TRAIN": [64, 32], "INPUT__SIZE_TEST": [64, 32], "DINO__CROP_HEIGHT": 32, "DINO__CROP_WIDTH": 16,
        "DINO__OUT_DIM": 128, "DINO__HIDDEN_DIM": 256, "DINO__LOCAL_CROPS_SCALE": [0.2, 0.6],
        "DINO__MOMENTUM_TEACHER": 0.95, "SOLVER__BASE_LR": 8e-3, "SOLVER__WEIGHT_DECAY": 0.04, "SOLVER__MAX_EPOCHS": 8,
        "SOLVER__IMS_PER_BATCH": 32, "SOLVER__EVAL_BEFORE": True, "MODEL__DROP_PATH": 0.0,
    }  # fmt: skip
    before, after = run.train(config(write_textures(tmp_path), tmp_path / "run", **changes))["history"]
    assert after["mAP"] - before["mAP"] > 0.1, f"mAP {before['mAP']:.3f} before, {after['mAP']:.3f} after"


#: Published files: (TRANSFORMER_TYPE, with the stem, image size of the fine-tuning that reads it).
PUBLISHED = {
    "vit_small_cfs_lup": ("vit_small_patch16_224_TransReID", False, [256, 128]),
    "vit_small_ics_cfs_lup": ("vit_small_patch16_224_TransReID", True, [384, 128]),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_files_as_published_load_into_the_supervised_models(name, tmp_path):
    """A bare dict on a grid of 16 x 8, and DINO's own checkpoint with its arguments beside it."""
    kind, stem, size = PUBLISHED[name]
    changes = {"MODEL__TRANSFORMER_TYPE": kind, "MODEL__STEM_CONV": stem, "MODEL__PRETRAIN_HW_RATIO": 2}
    changes |= {"MODEL__STRIDE_SIZE": [16, 16], "DINO__OUT_DIM": 4, "DINO__CROP_HEIGHT": 128, "DINO__CROP_WIDTH": 64}
    pre_training = config(tmp_path, tmp_path, **changes, PROCESSOR__NAME="dino", INPUT__SIZE_TRAIN=[256, 128])
    made = make_model(pre_training, 1)
    prefix = "module." if stem else ""
    teacher = {f"{prefix}{key}": value for key, value in made.state_dict().items()}
    student = {f"module.{key}": value for key, value in made.state_dict().items()}
    arguments = argparse.Namespace(arch="ours_vit_small", height=256, epochs=100, lr=0.0005)
    torch.save(backbone_state({"teacher": teacher}), tmp_path / f"{name}.pth")
    torch.save({"student": student, "teacher": teacher, "epoch": 100, "args": arguments}, tmp_path / "checkpoint.pth")
    for file in (f"{name}.pth", "checkpoint.pth"):
        model = make_model(config(tmp_path, tmp_path, **changes, INPUT__SIZE_TRAIN=size), 4)
        report = load_pretrained(model, tmp_path / file, hw_ratio=2)
        assert not report.missing and not report.unexpected, str(report)
        assert report.resized == ([] if size == [256, 128] else ["pos_embed"])
        assert torch.equal(model.base.blocks[11].mlp.fc2.weight, made.backbone.blocks[11].mlp.fc2.weight)
    assert not load_weights(made, tmp_path / "checkpoint.pth").missing
