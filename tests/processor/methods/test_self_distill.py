"""SSDViT as a stage: terms, memories, whole runs, the report on unseen targets, resume, mistakes."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from configs import ConfigError
from datasets.loaders import make_dataloader
from loss import ClusterMemory, triplet
from loss.cluster_memory import class_means
from processor import run
from processor.evaluate import extract_features
from processor.methods.self_distill import Recipe, SelfDistillation
from tests.runs import call, weights
from tests.tiny import config, options, write_market
from utils.errors import UserError
from utils.methods import METHODS

SMALL = {
    "PROCESSOR__NAME": "self_distill", "MODEL__NAME": "ssdvit", "MODEL__DROP_PATH": 0.1, "MODEL__NO_MARGIN": False,
    "DATASETS__NAMES": ["synthetic", "synthetic_b"], "DATASETS__TARGETS": ["synthetic_c"], "DATASETS__USE_ALL": True,
    "DATASETS__SYNTHETIC__IDS": 8, "DATALOADER__SAMPLER": "multiple_gallery_nocam", "SOLVER__EVAL_PERIOD": 0,
    "INPUT__RE_PROB": 0.0, "INPUT__ROTATION": 5, "INPUT__COLOR_JITTER": [[0.5, 2], [0.5, 2], [0.5, 2], [-0.1, 0.1]],
    "INPUT__AUTOAUGMENT": "imagenet", "INPUT__OCCLUSION_MAX": 0.8, "SSD__ITERS": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("synthetic")


def step_lines(folder) -> list[str]:
    return [line for line in (folder / "log.txt").read_text().splitlines() if "self_distill epoch" in line]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("changes", "terms"),
    [
        ({"SSD__MODE": "released"}, {"memory", "triplet", "block", "view"}),
        ({"SSD__MODE": "released", "SSD__PAIRED_VIEWS": True}, {"memory", "triplet", "block", "view"}),
        ({"SSD__MODE": "logits"}, {"memory", "triplet", "block"}),
        (
            {"SSD__MODE": "logits", "SSD__PAIRED_VIEWS": True, "SOLVER__ACCUMULATION": 3},
            {"memory", "triplet", "block", "view"},
        ),
        ({"SSD__MODE": "off", "DATASETS__NAMES": "synthetic", "MODEL__NAME": "resnet10"}, {"memory", "triplet"}),
    ],
    ids=["released", "released, paired", "logits", "logits, paired", "off, single source, resnet"],
)  # fmt: skip
def test_a_run_of_each_mode_reports_on_the_unseen_target(root, tmp_path, changes, terms):
    metrics = run.train(config(root, tmp_path, **SMALL | changes))
    assert set(metrics["results"]) == {"synthetic_c"}
    line = step_lines(tmp_path)[-1]
    assert f"step {3 // changes.get('SOLVER__ACCUMULATION', 1)}/" in line
    assert {word for word in ("memory", "triplet", "block", "view") if f" {word} " in line} == terms
    report = json.loads((tmp_path / "metrics.json").read_text())["generalisation"]
    names = changes.get("DATASETS__NAMES", SMALL["DATASETS__NAMES"])
    assert report["sources"] == ([names] if isinstance(names, str) else names)
    found = {k: metrics["results"]["synthetic_c"][k] for k in ("mAP", "Rank-1")}
    assert report["targets"] == {"synthetic_c": found} and report["mean"] == found


@pytest.mark.slow
def test_several_targets_are_reported_with_their_mean_and_tested_without_the_sources(root, tmp_path):
    targets = ["synthetic_b", "synthetic_c"]
    more = {"DATASETS__NAMES": "synthetic", "DATASETS__TARGETS": targets, "SOLVER__MAX_EPOCHS": 1}
    metrics = run.train(config(root, tmp_path / "train", **SMALL | more))
    report = metrics["generalisation"]
    assert report["mean"]["mAP"] == pytest.approx(np.mean([row["mAP"] for row in report["targets"].values()]))
    log = (tmp_path / "train" / "log.txt").read_text()
    shown = f"mean mAP {100 * report['mean']['mAP']:.1f} Rank-1 {100 * report['mean']['Rank-1']:.1f}"
    assert "generalisation from synthetic: synthetic_b mAP " in log and shown in log
    # The layout of the published files, and a data root that holds the target alone; no pre-trained file is opened.
    state = {f"module.{k}": v for k, v in weights(tmp_path / "train", 1, "ssdvit").items()}
    best = tmp_path / "model_best.pth.tar"
    torch.save({"state_dict": state, "epoch": 1, "best_mAP": np.float64(0.1)}, best)
    for folder in root.glob("synthetic_c*"):
        shutil.copytree(folder, tmp_path / "target" / folder.name)
    absent = {
        "DATASETS__NAMES": ["market1501", "cuhk_sysu"], "DATASETS__TARGETS": "synthetic_c", "TEST__WEIGHT": str(best),
        "MODEL__PRETRAIN_CHOICE": "imagenet", "MODEL__PRETRAIN_PATH": "absent.pth",
    }  # fmt: skip
    assert call("test", options(tmp_path / "target", tmp_path / "test", **SMALL | absent)) == 0
    tested = json.loads((tmp_path / "test" / "test_metrics.json").read_text())
    assert tested["results"]["synthetic_c"]["mAP"] == pytest.approx(report["targets"]["synthetic_c"]["mAP"], abs=1e-6)
    assert tested["generalisation"]["sources"] == ["market1501", "cuhk_sysu"]


def test_a_supervised_run_on_unseen_targets_reports_too_and_one_on_its_own_test_does_not(root, tmp_path, market):
    plain = {"PROCESSOR__NAME": "supervised", "MODEL__NAME": "transformer", "SOLVER__MAX_EPOCHS": 1}
    metrics = run.train(config(root, tmp_path / "a", **SMALL | plain))
    assert metrics["generalisation"]["sources"] == ["synthetic", "synthetic_b"]
    for own in ((), "market1501"):
        changes = {"SOLVER__MAX_EPOCHS": 1, "DATASETS__TARGETS": own, "SOLVER__RESUME": "never"}
        assert "generalisation" not in run.train(config(market, tmp_path / "b", **changes))


def stage_of(root, folder, **changes) -> SelfDistillation:
    cfg = config(root, folder, **SMALL | {"MODEL__DROP_PATH": 0.0, "SSD__RANDOM_BLOCK": 1} | changes)
    torch.manual_seed(0)
    data = make_dataloader(cfg)
    stage = METHODS["self_distill"].stages(cfg, data, run.make_model(cfg, data.num_classes))[0]
    stage.begin()
    return stage


def test_each_source_has_its_own_labels_loaders_and_memory_of_mean_features(root, tmp_path):
    stage = stage_of(root, tmp_path)
    assert [s.name for s in stage.sources] == ["synthetic", "synthetic_b"]
    stage.batches(1)
    for source, memory in zip(stage.sources, stage.memories, strict=True):
        assert sorted(set(source.plain.records.pids.tolist())) == list(range(8)), "train, query and gallery together"
        assert len(source.plain.records) == 8 * 16 and len(source.views) == 2
        feats = extract_features(stage.model, source.plain, torch.device("cpu"))
        wanted = class_means(feats, torch.from_numpy(source.plain.records.pids), 8)
        torch.testing.assert_close(memory.features, wanted)
        torch.testing.assert_close(memory.features.norm(dim=1), torch.ones(8))


@pytest.mark.parametrize("paired", [False, True])
def test_views_are_of_the_same_images_only_when_paired(root, tmp_path, paired):
    stage = stage_of(root, tmp_path, SSD__PAIRED_VIEWS=paired)
    for weak, strong in stage.views(next(iter(stage.batches(1)))):
        assert len(weak) == len(strong) == 4 and not torch.equal(weak.images, strong.images)
        assert torch.equal(weak.rows, strong.rows) == paired


@pytest.mark.parametrize("mode", ["released", "logits", "off"])
def test_the_memory_moves_after_the_step_by_the_strong_views(root, tmp_path, mode):
    """By features of a pass after the step, or, over identities, by those of the step itself."""
    stage = stage_of(root, tmp_path, SSD__MODE=mode, SSD__PAIRED_VIEWS=True)
    batch = next(iter(stage.batches(1)))
    stage.model.train()
    before = [memory.features.clone() for memory in stage.memories]
    sum(stage.losses(batch).values()).backward()
    assert all(torch.equal(m.features, b) for m, b in zip(stage.memories, before, strict=True)), "not by the loss"
    strong = [view for _, view in stage.views(batch)]
    with torch.no_grad():
        as_in_the_step = [stage.model(view.images).feats[2] for view in strong]
        for parameter in stage.model.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
        as_after = [stage.model(view.images).feats[2] for view in strong]
    stage.after_step([batch])
    used = as_in_the_step if mode == "logits" else as_after
    for memory, rows, feats, view in zip(stage.memories, before, used, strong, strict=True):
        for feat, label in zip(feats, view.pids, strict=True):
            rows[label] = F.normalize(0.2 * rows[label] + 0.8 * feat, dim=0)
        torch.testing.assert_close(memory.features, rows, rtol=1e-4, atol=1e-5)
    assert not stage.step_features


def test_the_weights_of_the_terms_make_every_row_of_the_ablation():
    torch.manual_seed(0)
    memory = ClusterMemory(F.normalize(torch.randn(4, 8)), normalize=False)
    weak, strong = [torch.randn(6, 8) for _ in range(4)], F.normalize(torch.randn(6, 8))
    labels, others = torch.arange(6) % 4, torch.arange(6) % 3

    def terms(**changes):
        return Recipe(**{"mode": "released", **changes}).terms(memory, weak, labels, strong, others, 1, 4)

    whole, weighted = terms(), terms(loss_weights=(2.0, 0.0, 3.0, 0.5))
    for name, factor in (("memory", 2.0), ("triplet", 0.0), ("block", 3.0), ("view", 0.5)):
        torch.testing.assert_close(weighted[name], factor * whole[name])
    tri, rb, feats, _ = weak
    torch.testing.assert_close(whole["triplet"], 0.8 * triplet(tri, labels) + 0.2 * triplet(rb, labels))
    torch.testing.assert_close(whole["memory"], 0.5 * memory(feats, labels) + 0.5 * memory(strong, others))
    off = Recipe(mode="off").terms(memory, weak, labels, None, others, 1, 4)
    assert off.keys() == {"memory", "triplet"}
    torch.testing.assert_close(off["memory"], memory(feats, labels))
    torch.testing.assert_close(off["triplet"], triplet(tri, labels))


def test_a_source_with_one_camera_trains_and_one_as_target_is_told(tmp_path):
    root = write_market(tmp_path / "data", ids=6, cameras=1, images=4)
    one = {"DATASETS__NAMES": ["market1501", "synthetic"], "INPUT__PADDING": 2, "SOLVER__MAX_EPOCHS": 1}
    assert run.train(config(root, tmp_path / "run", **SMALL | one))["results"]
    target = {"DATASETS__NAMES": "synthetic", "DATASETS__TARGETS": "market1501"}
    with pytest.raises(UserError, match="market1501: .*different camera"):
        run.train(config(root, tmp_path / "target", **SMALL | target))


def test_a_held_out_part_of_the_sources_may_choose_the_best(root, tmp_path):
    more = {"DATASETS__VAL_SHARE": 0.25, "SOLVER__KEEP_BEST": "mAP", "SOLVER__EVAL_PERIOD": 1}
    metrics = run.train(config(root, tmp_path, **SMALL | more))
    assert metrics["best"]["chosen_on"] == "identities held out of training"
    assert (tmp_path / "best.pth").exists()


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"DATASETS__TARGETS": ["synthetic_b"]}, "DATASETS.TARGETS: synthetic_b is source and target at once"),
        ({"DATASETS__TARGETS": []}, "DATASETS.USE_ALL: .* name other sets in DATASETS.TARGETS"),
        ({"SOLVER__IMS_PER_BATCH": 32}, "a batch of 32 needs 16 identities with 2 images each, synthetic has 8"),
        ({"SOLVER__IMS_PER_BATCH": 5}, "is not a multiple of DATALOADER.NUM_INSTANCE 2"),
        ({"DATALOADER__SAMPLER": "softmax_triplet"}, "use 'multiple_gallery_nocam'"),
        ({"SSD__MODE": "feature"}, "SSD.MODE: unknown 'feature'. Known: released, logits, off"),
        ({"SSD__ALPHA": 1.5}, "SSD.ALPHA: 1.5 must be at most 1"),
        ({"SSD__ALPHA": -0.1}, "SSD.ALPHA: -0.1 must be at least 0"),
        ({"SSD__MEMORY_TEMPERATURE": 0.0}, "SSD.MEMORY_TEMPERATURE: 0.0 must be at least"),
        ({"INPUT__PIPELINE": "imagenet"}, "INPUT.PIPELINE 'imagenet' and PROCESSOR.NAME 'self_distill'"),
    ],
)
def test_mistakes_are_one_line(root, tmp_path, changes, line):
    with pytest.raises((UserError, ConfigError), match=line):
        run.train(config(root, tmp_path, **SMALL | changes))


def test_fewer_identities_than_a_batch_needs_are_told_of_the_source_that_has_them(tmp_path):
    root = write_market(tmp_path / "data", ids=2, images=2)
    changes = {"DATASETS__NAMES": ["synthetic", "market1501"], "SOLVER__IMS_PER_BATCH": 12}
    with pytest.raises(UserError, match="a batch of 12 needs 6 identities with 2 images each, market1501 has 4"):
        run.train(config(root, tmp_path / "run", **SMALL | changes))


def test_identities_of_a_single_image_may_not_fill_a_batch(tmp_path):
    root = write_market(tmp_path / "data", ids=4, cameras=1, images=1)
    first = next((root / "market1501" / "query").glob("*"))
    (root / "market1501" / "bounding_box_test").mkdir()
    shutil.copy(first, root / "market1501" / "bounding_box_test" / first.name.replace("_c1", "_c2"))
    changes = {"DATASETS__NAMES": "market1501", "SOLVER__IMS_PER_BATCH": 12}  # eight identities with nine images in all
    with pytest.raises(UserError, match="a pass over market1501 gives no batch of 12"):
        run.train(config(root, tmp_path / "run", **SMALL | changes))
