"""What watchers keep is what a whole matrix of distances, sorted, would show."""

from __future__ import annotations

import numpy as np
import pytest

from utils.metrics import evaluate_features, evaluate_rank, evaluate_retrieval
from utils.reranking import re_ranking
from utils.scoring.matching import Matching
from utils.scoring.watching import JUNK, RIGHT, WRONG, CameraScores, TopLists


def data(num_q=20, num_g=300, ids=7, cameras=4, width=8):
    rng = np.random.default_rng(0)
    pids, camids = rng.integers(0, ids, num_q + num_g), rng.integers(0, cameras, num_q + num_g)
    pids[2] = 99  # nobody else
    feats = rng.standard_normal((ids + 93, width))[pids] + rng.standard_normal((num_q + num_g, width))
    feats[num_q + 50] = feats[num_q + 10]  # a tie
    feats = feats.astype(np.float32)
    return feats[:num_q], feats[num_q:], pids[:num_q], pids[num_q:], camids[:num_q], camids[num_q:]


def dense(qf, gf) -> np.ndarray:
    qf, gf = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (qf.astype(np.float64), gf.astype(np.float64)))
    return ((qf[:, None] - gf) ** 2).sum(2)


@pytest.mark.parametrize("block_size", [None, 3])
@pytest.mark.parametrize("rerank", [None, (10, 4, 0.3)])
def test_lists_are_the_sorted_ones_with_their_judgement(block_size, rerank):
    qf, gf, q_pids, g_pids, q_cams, g_cams = everything = data()
    watcher = TopLists(len(qf), len(gf), 15)
    evaluate_features(*everything, rerank=rerank, block_size=block_size, watch=watcher)
    unit = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in (qf, gf)]
    dist = dense(qf, gf) if rerank is None else re_ranking(*unit, *rerank)
    for i, row in enumerate(dist):
        expected = np.argsort(row, kind="stable")[:15]
        np.testing.assert_allclose(row[watcher.indices[i]], row[expected], atol=1e-6)
        np.testing.assert_allclose(watcher.distances[i], row[expected], atol=1e-5)
        for j, judged in zip(watcher.indices[i], watcher.judged[i], strict=True):
            same = q_pids[i] == g_pids[j]
            assert judged == (WRONG if not same else JUNK if q_cams[i] == g_cams[j] else RIGHT)
    both = [i for i in range(len(qf)) if {10, 50} <= set(watcher.indices[i].tolist())]
    for i in both:  # copies: the lower index first
        assert watcher.indices[i].tolist().index(10) < watcher.indices[i].tolist().index(50)


def test_the_query_itself_is_junk_in_a_single_list():
    feats, _, pids, *_ = data(num_q=30)
    found = {}
    for name in ("ranking", "retrieval"):
        watcher = found[name] = TopLists(30, 30, 40)
        if name == "ranking":
            evaluate_features(feats, feats, pids, pids, same_list=True, watch=watcher)
        else:
            evaluate_retrieval(feats, pids, nmi=False, watch=watcher)
        assert watcher.indices.shape == (30, 30)
        assert ((watcher.judged == JUNK).sum(1) == 1).all()
        assert (watcher.indices[watcher.judged == JUNK] == np.arange(30)).all()
    assert np.array_equal(found["ranking"].indices, found["retrieval"].indices)


@pytest.mark.parametrize("kind", ["rectangle", "trapezoid"])
def test_scores_by_camera_are_those_of_an_evaluation_in_that_camera_s_images(kind):
    qf, gf, q_pids, g_pids, q_cams, g_cams = everything = data()
    watcher = CameraScores(len(qf), g_cams, kind)
    evaluate_features(*everything, ap=kind, watch=watcher)
    dist = dense(qf, gf).astype(np.float32)
    for c, camera in enumerate(watcher.cameras):
        own = g_cams == camera
        alone = evaluate_rank(dist[:, own], q_pids, g_pids[own], q_cams, g_cams[own], ap=kind).per_query["AP"]
        np.testing.assert_allclose(watcher.ap[:, c], np.where(alone < 0, np.nan, alone), atol=1e-6)
    cameras, means, numbers = watcher.table(q_cams)
    assert means.shape == (len(cameras), len(watcher.cameras)) and np.isnan(np.diag(means)).all()  # own camera: junk
    one = watcher.ap[q_cams == cameras[0], 1]
    assert numbers[0, 1] == (~np.isnan(one)).sum() and means[0, 1] == pytest.approx(np.nanmean(one))


def test_watching_changes_no_score():
    everything = data()
    lists = TopLists(20, 300, 5)
    plain, watched = evaluate_features(*everything), evaluate_features(*everything, watch=lists)
    assert plain.mAP == watched.mAP
    matching = Matching(*everything[2:])
    first = np.array([row.tolist().index(RIGHT) if RIGHT in row else -1 for row in lists.judged])
    near = (first >= 0) & (matching.num_positives > 0)
    junk_before = np.array([(row[: max(f, 0)] == JUNK).sum() for row, f in zip(lists.judged, first, strict=True)])
    assert np.array_equal((first + 1 - junk_before)[near], watched.per_query["first_match_rank"][near])
