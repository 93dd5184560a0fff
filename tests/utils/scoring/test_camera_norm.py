"""Norms by camera and by pair of cameras, against loops, and in every way that distances are computed."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.metrics import evaluate_features, evaluate_rank, evaluate_roc, roc
from utils.scoring.camera_norm import CameraMeans, CameraPairs, CameraReference, drawn_of_each
from utils.scoring.pair_counts import count_pairs


def images(seed: int, identities: int = 20, each: int = 6, offset: float = 2.0):
    """Returns unit features that lean towards their camera, with identities and cameras 3, 5 and 9."""
    rng = np.random.default_rng(seed)
    offsets = np.random.default_rng(77).normal(size=(3, 16)) * offset
    pids, cams = np.repeat(np.arange(identities), each), rng.integers(0, 3, identities * each)
    feats = rng.normal(size=(identities, 16))[pids] + offsets[cams] + 0.6 * rng.normal(size=(len(pids), 16))
    feats /= np.linalg.norm(feats, axis=1, keepdims=True)
    return torch.from_numpy(feats.astype(np.float32)), pids, np.array([3, 5, 9])[cams]


def slow_normed(a, b, a_cams, b_cams, reference, cams):
    """Returns the distances of two lists in deviations from the mean of their cameras, pair by pair."""
    def distance(x, y):
        return float(((x.double() - y.double()) ** 2).sum())

    tables = {}
    for one in set(a_cams):
        for other in set(b_cams):
            values = [
                distance(reference[i], reference[j])
                for i in np.flatnonzero(cams == one) for j in np.flatnonzero(cams == other) if i != j
            ]
            tables[one, other] = np.mean(values), np.std(values)
    out = np.empty((len(a), len(b)))
    for i in range(len(a)):
        for j in range(len(b)):
            mean, deviation = tables[a_cams[i], b_cams[j]]
            out[i, j] = (distance(a[i], b[j]) - mean) / deviation
    return out


def recorder(queries: int, images: int):
    """Returns a matrix and a watcher that fills it with the distances of an evaluation."""
    matrix = np.full((queries, images), np.nan)

    def watch(start, block, pairs):
        matrix[start : start + len(block)] = block.numpy()

    return matrix, watch


def test_a_mean_is_that_of_a_cameras_images():
    feats, _, cams = images(0)
    means = CameraMeans.fit(feats, cams)
    centred = means(feats, cams)
    for camera in (3, 5, 9):
        assert centred[torch.from_numpy(cams == camera)].mean(0).abs().max() < 1e-6
    own = [feat - feats[torch.from_numpy(cams == cam)].mean(0) for feat, cam in zip(feats, cams, strict=True)]
    torch.testing.assert_close(centred, torch.stack(own))
    other, _, other_cams = images(1, 7)
    alone = torch.cat([means(other[i : i + 1], other_cams[i : i + 1]) for i in range(len(other))])
    assert torch.equal(means(other, other_cams), alone)


def test_features_are_scaled_before_they_are_centred():
    feats, _, cams = images(0)
    unit, raw = CameraReference("mean", feats, cams), CameraReference("mean", 3 * feats, cams)
    assert torch.allclose(unit.centred(feats, cams, True), raw.centred(5 * feats, cams, True), atol=1e-6)
    assert not torch.allclose(unit.centred(feats, cams, False), raw.centred(feats, cams, False), atol=1e-2)
    assert unit.pairs("euclidean", True) is None
    pair = CameraReference("pair", feats, cams)
    assert pair.centred(feats, cams, True) is feats
    one, other = pair.pairs("euclidean", True), CameraReference("pair", 2 * feats, cams).pairs("euclidean", True)
    assert one is not None and other is not None and one.mean == pytest.approx(other.mean, abs=1e-5)


def test_pairs_are_those_of_loops_in_every_block():
    reference, _, cams = images(2)
    (qf, q_pids, q_cams), (gf, g_pids, g_cams) = images(3, 12, 2), images(3, 12, 5)
    pairs = CameraPairs.fit(reference, cams, "euclidean")
    assert np.array_equal(pairs.mean, pairs.mean.T) and np.array_equal(pairs.deviation, pairs.deviation.T)
    slow = slow_normed(qf, gf, q_cams, g_cams, reference, cams)
    ids = (q_pids, g_pids, q_cams, g_cams)
    expected = evaluate_rank(slow, *ids)
    for options in ({}, {"block_size": 16}, {"max_memory": 40_000}):
        got, watch = recorder(len(qf), len(gf))
        result = evaluate_features(qf, gf, *ids, camera_pairs=pairs, watch=watch, **options)
        assert got == pytest.approx(slow, abs=1e-4)
        assert result.mAP == pytest.approx(expected.mAP) and np.array_equal(result.cmc, expected.cmc)
    cosine = CameraPairs.fit(reference, cams, "cosine")
    assert evaluate_roc(qf, gf, *ids, fars=(0.1,), camera_pairs=cosine) == pytest.approx(roc(slow, *ids, fars=(0.1,)))


@pytest.mark.parametrize("which", ["all", "across", "within"])
def test_counted_pairs_are_normalised(which):
    reference, _, cams = images(2)
    feats, pids, own = images(4)
    pairs = CameraPairs.fit(reference, cams, "euclidean")
    counts = count_pairs(feats, feats, pids, pids, own, own, which=which, same_list=True, far=0.05, camera_pairs=pairs)
    slow = slow_normed(feats, feats, own, own, reference, cams)
    one = own[:, None] == own[None]
    keep = ~np.eye(len(pids), dtype=bool) & {"all": np.ones_like(one), "across": ~one, "within": one}[which]
    same = pids[:, None] == pids[None]
    assert counts.genuine == pytest.approx(np.sort(slow[keep & same]), abs=1e-4)
    assert counts.nearest == pytest.approx(np.sort(slow[keep & ~same])[: len(counts.nearest)], abs=1e-4)
    assert counts.impostors == (keep & ~same).sum()


def test_both_norms_find_what_a_camera_hides():
    reference, _, cams = images(5, 60)
    feats, pids, own = images(6, 60)
    scores = {}
    for kind in ("off", "mean", "pair"):
        norm = CameraReference(kind, reference, cams)
        rows = norm.centred(feats, own, True)
        result = evaluate_features(rows, rows, pids, pids, own, own, camera_pairs=norm.pairs("euclidean", True))
        scores[kind] = float(result.mAP)
    assert scores["mean"] > scores["off"] + 0.1 and scores["pair"] > scores["off"] + 0.05


def test_equal_features_of_a_dead_network_stay_ties():
    feats, pids, cams = images(7)
    same = torch.ones_like(feats)
    pairs = CameraPairs.fit(same, cams, "euclidean")
    got, watch = recorder(len(same), len(same))
    evaluate_features(same, same, pids, pids, cams, cams, camera_pairs=pairs, watch=watch)
    assert np.isfinite(got).all() and (got == got[0, 0]).all()


def test_some_images_of_each_camera_are_drawn():
    cams = np.repeat([4, 1, 7], [30, 3, 12])
    rows = drawn_of_each(cams, seed=0, most=10)
    assert np.array_equal(rows, np.unique(rows)) and np.array_equal(np.bincount(cams[rows])[[4, 1, 7]], [10, 3, 10])
    assert np.array_equal(rows, drawn_of_each(cams, 0, 10)) and not np.array_equal(rows, drawn_of_each(cams, 1, 10))
    assert len(drawn_of_each(cams, 0)) == len(cams)


def test_what_cannot_be_normalised_is_refused():
    feats, pids, cams = images(0)
    pairs = CameraPairs.fit(feats, cams, "euclidean")
    with pytest.raises(UserError, match=r"nothing was fitted for camera 4; known: \[3, 5, 9\]"):
        pairs.between(cams, cams + 1)
    with pytest.raises(UserError, match="cameras of query and gallery must be given"):
        evaluate_features(feats, feats, pids, pids, camera_pairs=pairs)
    with pytest.raises(UserError, match="re-ranking has a distance of its own"):
        evaluate_features(feats, feats, pids, pids, cams, cams, camera_pairs=pairs, rerank=(5, 2, 0.3))
