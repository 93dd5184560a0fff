"""Cluster contrast as a stage: encoder, pseudo-labels, batches over cameras, whole runs, resume, mistakes."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from model import make_model
from processor import run
from processor.methods import pseudo_labels
from processor.methods.cluster import ClusterContrast
from processor.methods.pseudo_labels import Clustering, fills_a_batch, pair_scores
from tests.runs import assert_same_bytes, call
from tests.tiny import CLIP, MSVIT, config, options, write_market
from utils.checkpoint import load_pretrained, load_weights
from utils.errors import UserError

SMALL = {
    "PROCESSOR__NAME": "cluster", "MODEL__NAME": "resnet10", "MODEL__POOLING": "gem", "DATASETS__NAMES": "synthetic",
    "DATASETS__SYNTHETIC__IDS": 16, "INPUT__SIZE_TRAIN": [64, 32], "INPUT__SIZE_TEST": [64, 32],
    "DATALOADER__SAMPLER": "multiple_gallery", "DATALOADER__NUM_INSTANCE": 4, "SOLVER__IMS_PER_BATCH": 16,
    "SOLVER__SCHEDULER": "step", "SOLVER__EVAL_PERIOD": 0, "CLUSTER__ITERS": 4, "CLUSTER__K1": 8, "CLUSTER__K2": 4,
    "CLUSTER__USE_HARD": True,
}  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("synthetic")


# ---------------------------------------------------------------- pseudo-labels


def test_pair_scores_count_the_pairs():
    rng = np.random.default_rng(0)
    truth, clusters = rng.integers(0, 5, 40), rng.integers(-1, 6, 40)
    pairs = [(i, j) for i in range(40) for j in range(i)]
    alike = {p for p in pairs if truth[p[0]] == truth[p[1]]}
    together = {p for p in pairs if clusters[p[0]] == clusters[p[1]] >= 0}
    expected = len(alike & together) / len(together), len(alike & together) / len(alike)
    assert pair_scores(truth, clusters) == pytest.approx(expected)
    assert pair_scores(truth, truth) == (1.0, 1.0)
    assert pair_scores(truth, np.full(40, -1)) == (1.0, 0.0)


def test_a_batch_is_filled_by_clusters_of_two_images_or_more():
    labels = np.array([0, 0, 1, 1, 2, -1, -1])
    assert fills_a_batch(labels, 8, 4) and not fills_a_batch(labels, 12, 4)  # the third is a single image
    assert fills_a_batch(labels, 5, 0) and not fills_a_batch(labels, 6, 0)


def scripted(monkeypatch, answers: dict[float, list[int]], asked: list[float]) -> Clustering:
    """A clustering of six images whose labels by eps are given; all outliers at any other eps."""

    def cluster(feats, k1, k2, eps, min_samples):
        asked.append(round(eps, 2))
        return np.array(answers.get(round(eps, 2), [-1] * 6))

    monkeypatch.setattr(pseudo_labels, "cluster", cluster)
    return Clustering(None, eps=0.5, batch_size=4, num_instances=2)


def test_eps_grows_until_outliers_join_and_falls_until_one_cluster_parts(monkeypatch):
    good, feats = [0, 0, 1, 1, 1, -1], torch.zeros(6, 2)
    asked: list[float] = []
    clusters = scripted(monkeypatch, {0.5: [0, 0, -1, -1, -1, -1], 0.6: good}, asked)
    assert clusters.labels_of(feats).tolist() == good and asked == [0.5, 0.55, 0.6]
    asked.clear()
    clusters = scripted(monkeypatch, {0.5: [0] * 6, 0.45: [0] * 6, 0.4: good}, asked)
    assert clusters.labels_of(feats).tolist() == good and asked == [0.5, 0.45, 0.4]


def test_where_no_eps_helps_the_labels_of_the_epoch_before_stay(monkeypatch, caplog):
    asked: list[float] = []
    clusters = scripted(monkeypatch, {}, asked)
    with pytest.raises(UserError, match="CLUSTER.EPS 0.5: neither this nor another eps"):
        clusters.labels_of(torch.zeros(6, 2))
    assert asked[-1] == 0.95 and all(b > a for a, b in pairwise(asked))
    other = Clustering(None, eps=0.5, batch_size=4, num_instances=2)
    other.load_state_dict({"labels": [0, 0, 1, 1, -1, -1]})  # as after a restart
    assert other.labels_of(torch.zeros(6, 2)).tolist() == [0, 0, 1, 1, -1, -1]
    assert "continues with the last epoch's labels" in caplog.text


# ---------------------------------------------------------------- the encoder

BACKBONES = {
    "vit": {"MODEL__NAME": "transformer", "MODEL__POOLING": "avg", "MODEL__STEM_CONV": True,
            "MODEL__TRANSFORMER_TYPE": "vit_mini_patch16_TransReID", "MODEL__STRIDE_SIZE": [16, 16]},
    "resnet": {}, "resnet_max": {"MODEL__POOLING": "max"},
    "osnet": {"MODEL__NAME": "torchreid_osnet_x0_25"},
    "msvit": MSVIT | {"MODEL__POOLING": "avg"},
    "clip": {"MODEL__NAME": CLIP["MODEL__NAME"], "MODEL__POOLING": "avg"},
    "timm": {"MODEL__NAME": "timm:resnet10t", "MODEL__POOLING": "avg"},
}  # fmt: skip


@pytest.mark.parametrize("name", BACKBONES)
def test_every_backbone_gives_unit_features_in_both_modes(name, tmp_path):
    model = make_model(config(tmp_path, tmp_path, **(SMALL | BACKBONES[name])), num_class=0)
    images = torch.randn(4, 3, 64, 32)
    out = model.train()(images, cam_label=torch.zeros(4).long(), view_label=torch.zeros(4).long())
    assert out.scores == [] and len(out.feats) == 1
    assert not model.bottleneck.bias.requires_grad
    for feats in (out.feats[0], model.eval()(images)):
        torch.testing.assert_close(feats.norm(dim=1), torch.ones(4))
    loss = out.feats[0][:, 0].sum()
    loss.backward()
    trained = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not [n for n in trained if n.startswith("base.")] or name in ("clip", "timm"), trained


def vit(tmp_path, **changes):
    return make_model(config(tmp_path, tmp_path, **(SMALL | BACKBONES["vit"] | changes)), num_class=0)


def test_the_published_layout_and_a_supervised_checkpoint_load(tmp_path):
    torch.manual_seed(0)
    model = vit(tmp_path)
    state = {key: torch.randn_like(v) if v.is_floating_point() else v for key, v in model.state_dict().items()}
    file = tmp_path / "model_best.pth.tar"
    bare = {f"module.{key.removeprefix('base.')}": value for key, value in state.items()}
    torch.save({"state_dict": bare, "epoch": 50, "best_mAP": np.float64(0.9)}, file)
    report = load_weights(model, file)
    assert not report.missing and not report.unexpected
    assert_same_bytes(model.state_dict(), state)

    settings = SMALL | BACKBONES["vit"] | {"PROCESSOR__NAME": "supervised"}
    supervised = make_model(config(tmp_path, tmp_path, **settings), num_class=5)
    assert "classifier.weight" in load_weights(supervised, file).missing  # which no test needs
    torch.testing.assert_close(supervised.state_dict()["base.norm.weight"], state["base.norm.weight"])
    path = tmp_path / "transformer_120.pth"
    torch.save(supervised.state_dict(), path)
    fresh = vit(tmp_path)
    load_pretrained(fresh, path)
    for key, value in supervised.state_dict().items():
        if key.startswith("base."):
            assert torch.equal(fresh.state_dict()[key], value)
    assert torch.equal(fresh.bottleneck.weight, torch.ones(fresh.width))  # the neck starts fresh


# ---------------------------------------------------------------- runs

QUICK = SMALL | {"MODEL__NAME": "timm:test_efficientnet", "MODEL__POOLING": "auto", "DATASETS__SYNTHETIC__IMAGES": 2}
"""Convolutions, batch norms and drop path at a fiftieth of the weights."""


@pytest.mark.slow
def test_a_run_without_labels_learns(tmp_path):
    changes = SMALL | {
        "DATASETS__NAMES": "market1501", "INPUT__SIZE_TRAIN": [32, 16], "INPUT__SIZE_TEST": [32, 16],
        "INPUT__RE_PROB": 0.0, "SOLVER__OPTIMIZER_NAME": "Adam", "SOLVER__BASE_LR": 1e-3, "SOLVER__EVAL_BEFORE": True,
        "SOLVER__MAX_EPOCHS": 3, "CLUSTER__ITERS": 12,
    }  # fmt: skip
    images = write_market(tmp_path, ids=16, cameras=2, images=4, size=(32, 16))
    before, after = run.train(config(images, tmp_path / "run", **changes))["history"]
    assert after["mAP"] - before["mAP"] > 0.3, f"mAP {before['mAP']:.3f} before, {after['mAP']:.3f} after"
    log = (tmp_path / "run" / "log.txt").read_text()
    assert log.count(" clusters, ") >= 3 and "against the labels: NMI" in log


def test_averaged_weights_are_re_estimated_on_the_last_clusters(root, tmp_path, monkeypatch):
    """Batch norm sees the last epoch's batches again: no clustering, and no features kept for the memory."""
    clusterings, stages, forwards = [], set(), []

    def labels_of(self, feats, real=Clustering.labels_of):
        clusterings.append(real(self, feats))
        return clusterings[-1]

    def forward(self, batch, real=ClusterContrast.forward):
        stages.add(self)
        forwards.append((self.model.training, torch.is_grad_enabled(), batch.rows.tolist()))
        return real(self, batch)

    monkeypatch.setattr(Clustering, "labels_of", labels_of)
    monkeypatch.setattr(ClusterContrast, "forward", forward)
    run.train(config(root, tmp_path, **(QUICK | {"SOLVER__MAX_EPOCHS": 2, "SOLVER__EMA__RATIO": 0.5})))
    (stage,) = stages
    assert len(clusterings) == 2 and stage.step_features == []
    assert len(forwards) == 3 * QUICK["CLUSTER__ITERS"]
    trained, again = forwards[4:8], forwards[8:]
    assert [rows for *_, rows in again] == [rows for *_, rows in trained]
    assert all(training and not grad for training, grad, _ in again)


def test_an_epoch_has_its_steps_and_only_images_of_clusters(root, tmp_path, monkeypatch):
    seen = []

    def losses(self, batch, real=ClusterContrast.losses):
        seen.append((self.clusters.last[batch.rows.numpy()], batch))
        return real(self, batch)

    monkeypatch.setattr(ClusterContrast, "losses", losses)
    run.train(config(root, tmp_path, **(QUICK | {"SOLVER__MAX_EPOCHS": 1, "CLUSTER__ITERS": 7})))
    assert len(seen) == 7  # several passes over the clusters, whatever their number
    for labels, batch in seen:
        assert labels.min() >= 0
        for k in range(0, 16, 4):
            assert len(set(labels[k : k + 4])) == 1
            here = batch.cam_labels[k]
            elsewhere = (batch.cam_labels[k + 1 : k + 4] != here).sum()
            assert elsewhere in (0, 3)  # the others come from other cameras, or there are none


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"CLUSTER__EPS": 0.5, "CLUSTER__MIN_SAMPLES": 200}, "CLUSTER.EPS 0.5: neither this nor another eps"),
        ({"SOLVER__IMS_PER_BATCH": 18}, "SOLVER.IMS_PER_BATCH: 18 images per process is not a multiple"),
        ({"CLUSTER__TEMP": 0.0}, "CLUSTER.TEMP: 0.0 must be at least"),
        ({"MODEL__REDUCE_FEAT_DIM": True}, "MODEL.REDUCE_FEAT_DIM and PROCESSOR.NAME 'cluster' cannot go together"),
        (BACKBONES["timm"] | {"MODEL__POOLING": "gem"}, "MODEL.POOLING 'gem' and MODEL.NAME 'timm:resnet10t'"),
        (BACKBONES["clip"] | {"MODEL__SIE_CAMERA": True}, "MODEL.SIE_CAMERA and PROCESSOR.NAME 'cluster'"),
        ({"DATALOADER__BAD_IMAGES": "skip"}, "DATALOADER.BAD_IMAGES 'skip' and PROCESSOR.NAME 'cluster'"),
        ({"MODEL__PRETRAIN_CHOICE": "imagenet", "MODEL__PRETRAIN_PATH": "head.pth"}, "no tensor fits the model"),
    ],
)  # fmt: skip
def test_mistakes_end_in_one_line(root, tmp_path, monkeypatch, capsys, changes, words):
    monkeypatch.chdir(tmp_path)
    torch.save({"classifier.weight": torch.zeros(4, 512)}, "head.pth")
    assert call("train", options(root, tmp_path / "out", **(SMALL | {"SOLVER__MAX_EPOCHS": 1} | changes))) == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error")]
    assert len(lines) == 1 and words in lines[0], lines
