"""Distillation as a stage: terms, teachers of any kind, unlabelled images, whole runs, resume, mistakes."""

from __future__ import annotations

import json
import re

import pytest
import torch
import torch.nn.functional as F

import loss
from datasets.images import Batch
from datasets.loaders import make_dataloader
from loss.distillation import relative_distances
from model import make_model
from processor import run
from processor.methods.distill import Distill, Lesson, Teacher
from tests.kinds import write_teacher
from tests.runs import assert_same_bytes, call, weights
from tests.tiny import config, options, write_market
from utils.extra_modules import import_extras
from utils.methods import METHODS

TEACHER = {"INPUT__SIZE_TRAIN": [64, 32], "INPUT__SIZE_TEST": [64, 32], "INPUT__PIXEL_MEAN": [0.5, 0.5, 0.5]}
"""What the teacher has beside ``tests.tiny.options``, which is the student: larger images of another normalisation."""


COLOURS = """
from torch import nn
from model import register_backbone

@register_backbone("colours")
def colours(cfg, camera_num, view_num):
    return Colours()

class Colours(nn.Module):
    width = 6
    def forward(self, images, cam_label=None, view_label=None):
        return images.unflatten(2, (2, -1)).mean((3, 4)).flatten(1)
"""


@pytest.fixture(scope="module")
def taught(market, tmp_path_factory) -> dict[str, str]:
    """The keys of a run with one teacher."""
    folder = tmp_path_factory.mktemp("teacher")
    return {"PROCESSOR__NAME": "distill"} | write_teacher(config(market, folder, **TEACHER), folder)


@pytest.fixture
def table(market, tmp_path):
    """The market's images as a table in which some or all training images have no identity; call it with the rule."""

    def write(unlabelled) -> dict[str, str]:
        lines, files = ["path,pid,camid,split"], sorted((market / "market1501").glob("*/*.jpg"))
        for i, path in enumerate(files):
            split = {"bounding_box_train": "train", "bounding_box_test": "gallery"}.get(path.parent.name, "query")
            pid = "" if split == "train" and unlabelled(i) else path.name[:4]
            lines.append(f"{path},{pid},{path.name[6]},{split}")
        (tmp_path / "dataset.csv").write_text("\n".join(lines))
        return {"DATASETS__NAMES": "csv", "DATASETS__FILE": str(tmp_path / "dataset.csv")}

    return write


def stage_of(root, folder, **changes) -> Distill:
    cfg = config(root, folder, **changes)
    torch.manual_seed(0)
    data = make_dataloader(cfg)
    model = make_model(cfg, data.num_classes, data.num_cameras, data.num_views)
    (stage,) = METHODS["distill"].stages(cfg, data, model)
    stage.begin()
    stage.model.train()
    return stage


# ---------------------------------------------------------------- terms


def test_distances_forget_scale_rotation_and_width_and_match_the_slow_version():
    student = torch.randn(6, 8, dtype=torch.double, requires_grad=True)
    teacher = torch.randn(6, 3)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.double))
    wider = torch.cat([3 * student.detach() @ rotation, torch.zeros(6, 5)], 1)
    assert float(loss.distance_distillation(student, wider).detach()) < 1e-6

    def slow(feats):
        unit = [row / row.norm() for row in feats.float()]
        return torch.stack([(unit[i] - unit[j]).norm() for i in range(6) for j in range(i + 1, 6)])

    ours = loss.distance_distillation(student, teacher)
    gaps = [a - b for a, b in zip(*(d / d.mean() for d in (slow(student), slow(teacher))), strict=True)]
    theirs = torch.stack([0.5 * gap**2 if gap.abs() < 1 else gap.abs() - 0.5 for gap in gaps]).mean()
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(*(torch.autograd.grad(value, student)[0] for value in (ours, theirs)))


def test_equal_features_have_a_finite_gradient_and_two_images_nothing_to_teach():
    equal = torch.ones(4, 3, requires_grad=True)
    loss.distance_distillation(equal, torch.randn(4, 5)).backward()
    assert equal.grad.isfinite().all()
    assert float(loss.distance_distillation(torch.randn(2, 3), torch.randn(2, 5))) == 0
    torch.testing.assert_close(relative_distances(torch.randn(5, 4)).mean(), torch.tensor(1.0))


def test_class_shares_agree_with_the_formula_and_a_shift_of_the_logits_is_nothing():
    student, teacher, hot = torch.randn(5, 7), torch.randn(5, 7), 3.0
    p, q = (teacher / hot).softmax(1), (student / hot).softmax(1)
    by_hand = hot**2 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(loss.logit_distillation(student, teacher, hot), by_hand)
    assert float(loss.logit_distillation(teacher + 2, teacher, hot)) == pytest.approx(0, abs=1e-5)


def test_an_ensemble_teaches_the_mean_of_its_similarities_and_class_shares():
    student, one, other = torch.randn(5, 4), torch.randn(5, 3), 100 * torch.randn(5, 9)
    term = Lesson(distances=0, dissimilarities=2.0).relations(student, [one, other])["dissimilarities"]
    ours, *theirs = (F.normalize(feats) @ F.normalize(feats).t() for feats in (student, one, other))
    torch.testing.assert_close(term, 2 * torch.linalg.matrix_norm(ours - sum(theirs) / 2))
    scores = torch.randn(5, 6, requires_grad=True)
    teachers = [torch.randn(5, 6), torch.randn(5, 6)]
    Lesson(logits=0.5, temperature=2.0).class_shares([scores], teachers).backward()
    mean = sum((teacher / 2).softmax(1) for teacher in teachers) / 2
    torch.testing.assert_close(scores.grad, 0.5 * 4 * ((scores / 2).softmax(1) - mean).detach() / 2 / 5)


def test_a_teacher_sees_the_same_pixels_at_its_own_size_and_normalisation(market, tmp_path):
    network = make_model(config(market, tmp_path, MODEL__NAME="resnet10"), 4)
    seen = []
    network.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    network.outputs = lambda images, *sides: seen.append((images, sides))
    own = ((0.5, 0.4, 0.3), (0.5, 0.2, 0.1))
    pixels = torch.rand(2, 3, 1, 1).expand(2, 3, 8, 4)
    mean, std = (torch.tensor(row)[:, None, None] for row in ((0.1, 0.2, 0.3), (0.3, 0.2, 0.1)))
    sides = torch.zeros(2, dtype=torch.long)
    batch = Batch((pixels - mean) / std, sides, sides, sides, sides)
    for knows in (True, False):
        pair = ((0.1, 0.2, 0.3), (0.3, 0.2, 0.1))
        Teacher(network, (16, 6), pixels=pair, own_pixels=own, knows_sides=knows)(batch)
        images, given = seen.pop()
        assert (given[0] is sides) == knows
        mean, std = (torch.tensor(row)[:, None, None] for row in own)
        torch.testing.assert_close(images, ((pixels[:, :, :1, :1] - mean) / std).expand(2, 3, 16, 6))
    assert not any(p.requires_grad for p in network.parameters()) and not network.training


@pytest.mark.parametrize("changes", [{"MODEL__NAME": "resnet10"}, {"MODEL__PART_TOKENS": True}], ids=["cnn", "pass"])
@pytest.mark.parametrize("place", ["before", "after"])
def test_a_network_shows_the_feature_and_the_scores_that_it_has_elsewhere(market, tmp_path, changes, place):
    network = make_model(config(market, tmp_path, TEST__NECK_FEAT=place, **changes), 4).eval()
    images = torch.randn(2, 3, 32, 16)
    out = network.outputs(images)
    torch.testing.assert_close(out.feats[0], network(images))
    torch.testing.assert_close(out.scores[0], network.class_scores(images))


# ---------------------------------------------------------------- runs


def test_an_ensemble_of_other_families_teaches_all_terms_and_stays_as_it_is(market, tmp_path, taught):
    more = write_teacher(config(market, tmp_path, **TEACHER, MODEL__NAME="resnet10"), tmp_path)
    more |= {key: [taught[key], more[key]] for key in ("DISTILL__TEACHERS", "DISTILL__CHECKPOINTS")}
    student = {"MODEL__NAME": "torchreid_osnet_x0_25", "MODEL__FC_DIM": 16, "DISTILL__WEIGHT_LOGITS": 1.0}
    settings = taught | more | student | {"DISTILL__WEIGHT_DISSIMILARITIES": 0.1, "SOLVER__MAX_EPOCHS": 1}
    stage = stage_of(market, tmp_path / "stage", **settings)
    before = {name: value.clone() for name, value in stage.teachers.state_dict().items()}
    terms = stage.losses(next(iter(stage.batches(1))))
    assert list(terms) == ["distances", "dissimilarities", "id", "triplet", "logits"]
    assert_same_bytes(before, stage.teachers.state_dict())
    metrics = run.train(config(market, tmp_path / "run", **settings))
    state = weights(tmp_path / "run", 1, "torchreid_osnet_x0_25")
    assert not [name for name in state if "teacher" in name or "network" in name]
    tested = {key: value for key, value in settings.items() if "PROCESSOR" not in key and "DISTILL" not in key}
    tested["TEST__WEIGHT"] = str(tmp_path / "run" / "torchreid_osnet_x0_25_1.pth")
    assert call("test", options(market, tmp_path / "test", **tested)) == 0
    alone = json.loads((tmp_path / "test" / "test_metrics.json").read_text())["results"]["market1501"]
    assert alone["mAP"] == pytest.approx(metrics["results"]["market1501"]["mAP"], abs=1e-6)


STUDENTS = ("timm:mobilenetv4_conv_small", "timm:repvit_m0_9", "timm:tiny_vit_5m_224", "torchreid_mobilenetv2_x1_0")


@pytest.mark.parametrize("name", STUDENTS)
def test_small_networks_are_students(name, market, tmp_path, taught):
    stage = stage_of(market, tmp_path, **taught, **TEACHER, MODEL__NAME=name, MODEL__FC_DIM=16)
    terms = stage.losses(next(iter(stage.batches(1))))
    sum(terms.values()).backward()
    assert all(p.grad is not None for p in stage.model.parameters() if p.requires_grad)


def test_relations_are_of_the_feature_that_is_retrieved(market, tmp_path, taught):
    """Behind the neck by default, where the metric terms take it before."""
    for place in ("before", "after"):
        changes = {"TEST__NECK_FEAT": place, "DISTILL__WEIGHT_LABELS": 0.0, "DISTILL__WEIGHT_DISTANCES": 1.0}
        stage = stage_of(market, tmp_path, **taught, **changes, MODEL__DROP_PATH=0.0)
        batch = next(iter(stage.batches(1)))
        out = stage.forward(batch)
        assert torch.equal(out.retrieval, out.feats[0]) == (place == "before")
        terms = stage.losses(batch)
        assert list(terms) == ["distances"]
        expected = loss.distance_distillation(out.retrieval, stage.teachers[0](batch).feats[0])
        torch.testing.assert_close(terms["distances"], expected)


def test_images_without_identity_learn_from_relations_alone(market, tmp_path, taught, table):
    changes = taught | table(lambda i: i % 2) | {"DATALOADER__SAMPLER": "softmax", "MODEL__ID_LOSS_TYPE": "arcface"}
    changes |= {"MODEL__DROP_PATH": 0.0}
    stage = stage_of(market, tmp_path / "a", **changes)
    batch = next(batch for batch in stage.batches(1) if 0 < int((batch.pids >= 0).sum()) < len(batch))
    rows = batch.pids >= 0
    terms, out = stage.losses(batch), stage.outputs(batch)
    assert list(terms) == ["distances", "id"]
    entropy = loss.cross_entropy(out.scores[0][rows], batch.pids[rows])  # unsmoothed, as ever with this sampler
    torch.testing.assert_close(terms["id"], entropy)
    none = table(lambda i: True)
    metrics = run.train(config(market, tmp_path / "b", **taught | none | {"DATALOADER__SAMPLER": "softmax"}))
    assert metrics["results"]["csv"]["mAP"] > 0
    lines = [line for line in (tmp_path / "b" / "log.txt").read_text().splitlines() if "distill epoch" in line]
    assert " distances " in lines[-1] and " id " not in lines[-1] and " acc " not in lines[-1]


@pytest.mark.slow
def test_a_student_learns_without_labels(tmp_path):
    """The teacher is no network at all but the colours of the halves, which are what tells these people apart."""
    root = write_market(tmp_path / "data", ids=16)
    (tmp_path / "colours.py").write_text(COLOURS)
    cfg = config(root, tmp_path, EXTRA_MODULES=[str(tmp_path / "colours.py")], MODEL__NAME="colours")
    import_extras(cfg.EXTRA_MODULES)
    student = {"MODEL__NAME": "resnet10", "INPUT__RE_PROB": 0.0, "INPUT__PADDING": 0, "SOLVER__OPTIMIZER_NAME": "Adam"}
    student |= {"SOLVER__BASE_LR": 1e-3, "SOLVER__MAX_EPOCHS": 6, "SOLVER__IMS_PER_BATCH": 16}
    student |= {"SOLVER__EVAL_PERIOD": 0, "SOLVER__EVAL_BEFORE": True, "DISTILL__WEIGHT_LABELS": 0.0}
    taught = {"PROCESSOR__NAME": "distill"} | write_teacher(cfg, tmp_path)
    before, after = run.train(config(root, tmp_path / "run", **student | taught))["history"]
    assert after["mAP"] - before["mAP"] > 0.12, f"mAP {before['mAP']:.3f} before, {after['mAP']:.3f} after"


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"DISTILL__TEACHERS": []}, "DISTILL.TEACHERS is empty: name the YAML of a teacher"),
        ({"DISTILL__CHECKPOINTS": []}, "DISTILL.CHECKPOINTS: 0 files for 1 DISTILL.TEACHERS"),
        ({"DISTILL__TEACHERS": "none.yml"}, "DISTILL.TEACHERS: none.yml: .*no such configuration file"),
        ({"DISTILL__CHECKPOINTS": "none.pth"}, "DISTILL.CHECKPOINTS: none.pth: no such checkpoint file"),
        ({"DISTILL__WEIGHT_DISTANCES": 0.0}, "are all 0, so the teachers teach nothing"),
        ({"DISTILL__WEIGHT_LOGITS": -1.0}, "DISTILL.WEIGHT_LOGITS: -1.0 must be at least 0"),
        ({"SOLVER__IMS_PER_BATCH": 2}, "SOLVER.IMS_PER_BATCH: 2 images have one distance"),
        ({"DISTILL__WEIGHT_LOGITS": 1.0, "MODEL__ID_LOSS_TYPE": "arcface"}, "scores hold a margin"),
        ({"DISTILL__WEIGHT_LABELS": 0.0, "MODEL__METRIC_LOSS_TYPE": "triplet_center"}, "WEIGHT_LABELS 0 cannot go"),
        ({"DISTILL__WEIGHT_LOGITS": 1.0, "DATASETS__NAMES": "synthetic", "DATASETS__SYNTHETIC__IDS": 4},
         "was trained on other classes than the"),
    ],
)  # fmt: skip
def test_mistakes_are_one_line_and_exit_code_2(market, tmp_path, taught, changes, line, capsys):
    assert call("train", options(market, tmp_path / "run", **taught | changes)) == 2
    message = capsys.readouterr().err.splitlines()[-1]
    assert re.search(line, message), message
