"""The map of features: whom it shows, and that what is near stays near."""

from __future__ import annotations

import numpy as np

from utils.scoring.embedding import IDENTITIES, IMAGES, in_plane, rows_to_show


def test_rows_are_of_wanted_identities_with_several_images():
    pids = np.repeat(np.arange(40), 30)
    pids[:5] = -1
    rows = rows_to_show(np.append(pids, [77, 78, 78]), np.array([-1, *range(30), 77, 78]))
    shown, counts = np.unique(np.append(pids, [77, 78, 78])[rows], return_counts=True)
    assert len(shown) == IDENTITIES and (counts <= IMAGES).all() and counts.max() == IMAGES
    assert shown.min() >= 0 and shown.max() < 30
    assert np.array_equal(rows, rows_to_show(np.append(pids, [77, 78, 78]), np.array([-1, *range(30), 77, 78])))
    assert len(rows_to_show(np.arange(9), np.arange(9))) == 0
    assert rows_to_show(np.array([-1, -1, -1, 0, 0, 0, 5]), np.arange(-1, 6)).tolist() == [3, 4, 5]


def test_clusters_stay_together():
    rng = np.random.default_rng(0)
    pids = np.repeat(np.arange(4), 12)
    feats = 6 * rng.standard_normal((4, 16))[pids] + rng.standard_normal((48, 16))
    plane = in_plane(feats.astype(np.float32))
    assert plane.shape == (48, 2) and plane.min() >= 0 and plane.max() <= 1 + 1e-6
    dist = np.linalg.norm(plane[:, None] - plane, axis=2) + 9 * np.eye(48)
    assert (pids[dist.argmin(1)] == pids).mean() == 1
    assert np.array_equal(plane, in_plane(feats.astype(np.float32)))


def test_small_and_dead_inputs_give_a_map():
    assert in_plane(np.eye(4, dtype=np.float32)).shape == (4, 2)
    assert (in_plane(np.ones((8, 5), np.float32)) == 0.5).all()
    assert np.isfinite(in_plane(np.random.default_rng(0).standard_normal((6, 1)).astype(np.float32))).all()
