"""Metrics against slow textbook versions, their limits and their failures."""

from __future__ import annotations

import logging
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.metrics import (
    evaluate_features,
    evaluate_rank,
    evaluate_retrieval,
    evaluate_roc,
    nmi,
    roc,
)
from utils.scoring import blocks, distances, neighbours, ranking

RANKS = ("AP", "INP", "first_match_rank")


@pytest.fixture
def small_tiles(monkeypatch):
    """Many tiles, chunks and blocks even for a few dozen images."""
    monkeypatch.setattr(blocks, "TILE", 16)
    monkeypatch.setattr(distances, "CHUNK", 32)
    monkeypatch.setattr(neighbours, "SIDE", 32)


@pytest.fixture
def four_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    yield
    torch.set_num_threads(before)


def draw(seed, num_q=40, num_g=90, num_ids=7, num_cams=3, levels=None):
    """Random distances and ids; ``levels`` rounds the distances to that many values, so that most of them tie."""
    rng = np.random.default_rng(seed)
    dist = rng.random((num_q, num_g)).astype(np.float32)
    if levels:
        dist = np.floor(dist * levels).astype(np.float32)
    ids = [rng.integers(0, high, n) for high in (num_ids, num_cams) for n in (num_q, num_g)]
    return SimpleNamespace(dist=dist, ids=ids, seqs=[rng.integers(0, 2, n) for n in (num_q, num_g)])


def slow_rank(
    dist, q_pids, g_pids, q_cams=None, g_cams=None, q_seqs=None, g_seqs=None, same_list=False, ap="rectangle"
):
    """AP, INP and first rank of each query, by sorting in Python and counting."""
    scores = {name: [] for name in RANKS}
    for i, row in enumerate(dist):
        ranked = []
        for j in sorted(range(len(row)), key=lambda j: (row[j], j)):
            same = q_pids[i] == g_pids[j]
            removed = (same_list and i == j) or any(
                same and q[i] == g[j] for q, g in ((q_cams, g_cams), (q_seqs, g_seqs)) if q is not None
            )
            if not removed:
                ranked.append(same)
        hits = [rank for rank, same in enumerate(ranked, start=1) if same]
        total = 0.0
        for t, rank in enumerate(hits, start=1):
            before = (t - 1) / (rank - 1) if rank > 1 else 1.0
            total += t / rank if ap == "rectangle" else (t / rank + before) / 2
        scores["AP"].append(total / len(hits) if hits else -1)
        scores["INP"].append(len(hits) / hits[-1] if hits else -1)
        scores["first_match_rank"].append(hits[0] if hits else -1)
    return {name: np.array(values) for name, values in scores.items()}


def agree(result, slow, max_rank):
    for name in RANKS:
        np.testing.assert_allclose(result.per_query[name], slow[name], rtol=1e-12, err_msg=name)
    first = slow["first_match_rank"]
    valid = first > 0
    assert result.num_valid_q == valid.sum()
    assert result.mAP == pytest.approx(slow["AP"][valid].mean(), rel=1e-12)
    assert result.mINP == pytest.approx(slow["INP"][valid].mean(), rel=1e-12)
    np.testing.assert_allclose(result.cmc, [(first[valid] <= k).mean() for k in range(1, max_rank + 1)], rtol=1e-12)


@pytest.mark.parametrize("levels", [None, 1, 3, 20])
@pytest.mark.parametrize("ap", ["rectangle", "trapezoid"])
@pytest.mark.parametrize("filters", ["none", "cameras", "cameras and sequences"])
def test_rank_matches_the_slow_version(levels, ap, filters):
    one = draw(levels or 0, levels=levels)
    ids = one.ids if filters != "none" else one.ids[:2]
    seqs = dict(zip(("q_seqs", "g_seqs"), one.seqs, strict=True)) if "seq" in filters else {}
    result = evaluate_rank(one.dist, *ids, max_rank=12, ap=ap, **seqs)
    agree(result, slow_rank(one.dist, *ids, **seqs, ap=ap), 12)


@pytest.mark.parametrize("num_g", [30, 3000])
def test_both_ways_to_count_agree_with_the_slow_one(num_g):
    """Few positives among many images are counted one by one, a few near images are sorted; accelerators sort all."""
    one = draw(5, num_q=12, num_g=num_g, num_ids=4, levels=200)
    query = np.repeat(np.arange(12), 5)
    value = np.sort(np.random.default_rng(0).integers(0, 200, (12, 5)).astype(np.float32)).ravel()
    value[:5] = [0, 0, 1, 1, 2]
    rows = one.dist[query]
    expected = (rows < value[:, None]).sum(1), (rows <= value[:, None]).sum(1)
    for count in (ranking._count_by_comparing, ranking._count_by_sorting):
        for ours, theirs in zip(count(torch.from_numpy(one.dist), query, value), expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("levels", [None, 4])
def test_one_list_removes_the_image_itself_and_nothing_else(levels):
    one = draw(1, 60, 60, 20, levels=levels)
    pids = one.ids[1]
    result = evaluate_rank(one.dist, pids, pids, same_list=True)
    agree(result, slow_rank(one.dist, pids, pids, same_list=True), 50)


def test_one_list_with_cameras_removes_the_image_itself_and_nothing_else():
    one = draw(1, 60, 60, 20)
    pids, cams, seqs = one.ids[1], one.ids[3], one.seqs[1]
    expected = slow_rank(one.dist, pids, pids, same_list=True)
    filters = {"q_camids": cams, "g_camids": cams, "q_seqs": seqs, "g_seqs": seqs}
    agree(evaluate_rank(one.dist, pids, pids, same_list=True, **filters), expected, 50)
    feats = features(12, 60)[0]
    plain = evaluate_features(feats, feats, pids, pids, same_list=True)
    filtered = evaluate_features(feats, feats, pids, pids, cams, cams, same_list=True)
    assert (plain.mAP, plain.num_valid_q) == (filtered.mAP, filtered.num_valid_q)
    assert evaluate_roc(feats, feats, pids, pids, cams, cams, same_list=True) == evaluate_roc(
        feats, feats, pids, pids, same_list=True
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.float64, torch.int64])
def test_tensors_lists_and_other_number_types_are_the_same_distances(dtype):
    one = draw(2, levels=30)
    expected = evaluate_rank(one.dist, *one.ids)
    tensors = evaluate_rank(torch.from_numpy(one.dist).to(dtype), *map(torch.from_numpy, one.ids))
    lists = evaluate_rank(one.dist.tolist(), *(ids.tolist() for ids in one.ids))
    for result in (tensors, lists):
        assert result.mAP == expected.mAP
        np.testing.assert_array_equal(result.cmc, expected.cmc)


def test_infinite_distances_are_the_farthest():
    dist = np.array([[np.inf, np.inf, 1.0, np.inf]], np.float32)
    result = evaluate_rank(dist, [1], [0, 1, 0, 1])
    agree(result, slow_rank(dist, [1], [0, 1, 0, 1]), 50)
    assert result.per_query["first_match_rank"] == [3]


def test_negative_zero_ties_with_zero():
    result = evaluate_rank(np.array([[0.0, -0.0, 0.0, -0.0]], np.float32), [1], [0, 0, 1, 0])
    assert result.per_query["first_match_rank"] == [3]


def test_a_short_gallery_repeats_the_last_value():
    result = evaluate_rank(np.array([[0.1, 0.2, 0.3]]), [1], [0, 1, 0], max_rank=6)
    np.testing.assert_array_equal(result.cmc, [0, 1, 1, 1, 1, 1])
    drawn = evaluate_rank(np.array([[0.1, 0.2, 0.3]]), [1], [0, 1, 0], max_rank=6, protocol="cuhk03")
    np.testing.assert_array_equal(drawn.cmc[1:], np.ones(5))


def test_invalid_queries_count_in_no_mean():
    dist, g_pids, g_cams = np.array([[0.1, 0.2]] * 3), [1, 2], [0, 1]
    result = evaluate_rank(dist, [1, 2, 9], g_pids, [1, 1, 1], g_cams)
    assert result.num_valid_q == 1
    assert result.mAP == result.mINP == result.cmc[0] == 1
    for name in RANKS:
        np.testing.assert_array_equal(result.per_query[name], [1, -1, -1])


def test_a_constant_distance_is_warned_of(caplog):
    log = logging.getLogger("lineup")
    log.addHandler(caplog.handler)
    try:
        one = draw(3)
        evaluate_rank(one.dist, *one.ids)
        assert "trust" not in caplog.text
        evaluate_rank(np.zeros_like(one.dist), *one.ids)
        assert "trust" in caplog.text
    finally:
        log.removeHandler(caplog.handler)


def slow_single_shot(dist, q_pids, g_pids, q_cams, g_cams, max_rank, seed, repeats):
    rng = np.random.RandomState(seed)
    curves = []
    for i, row in enumerate(dist):
        order = sorted(range(len(row)), key=lambda j: (row[j], j))
        order = [j for j in order if q_pids[i] != g_pids[j] or q_cams[i] != g_cams[j]]
        if all(g_pids[j] != q_pids[i] for j in order):
            continue
        groups = {}
        for place, j in enumerate(order):
            groups.setdefault(g_pids[j], []).append(place)
        for _ in range(repeats):
            drawn = {pid: rng.choice(places) for pid, places in groups.items()}
            rank = sum(place < drawn[q_pids[i]] for place in drawn.values())
            curves.append(np.arange(max_rank) >= rank)
    return np.mean(curves, axis=0)


@pytest.mark.parametrize("levels", [None, 5])
def test_single_shot_takes_the_same_draws_as_the_slow_version(levels):
    one = draw(4, 15, 80, 12, 2, levels)
    for repeats in (1, 10):
        result = evaluate_rank(one.dist, *one.ids, max_rank=8, protocol="cuhk03", seed=3, repeats=repeats)
        np.testing.assert_allclose(result.cmc, slow_single_shot(one.dist, *one.ids, 8, 3, repeats), rtol=1e-12)
        full = evaluate_rank(one.dist, *one.ids)
        assert (result.mAP, result.mINP) == (full.mAP, full.mINP)


def test_exact_single_shot_is_what_many_draws_approach():
    one = draw(6, 8, 60, 9, 2)
    exact = evaluate_rank(one.dist, *one.ids, max_rank=9, protocol="cuhk03", repeats=None).cmc
    many = evaluate_rank(one.dist, *one.ids, max_rank=9, protocol="cuhk03", repeats=5000).cmc
    np.testing.assert_allclose(many, exact, atol=0.01)
    assert exact[0] > 0.02 and np.ptp(exact) > 0.5  # a curve, so that agreeing means something
    assert exact[-1] == pytest.approx(1)


def features(seed, num_q=50, num_g=130, width=12, num_ids=15, num_cams=3, copies=False):
    """Clustered features; ``copies`` makes coarse ones with many exact copies, so that distances tie."""
    rng = np.random.default_rng(seed)
    centres = 2 * rng.standard_normal((num_ids, width))
    pids, cams = rng.integers(0, num_ids, num_q + num_g), rng.integers(0, num_cams, num_q + num_g)
    feats = (centres[pids] + rng.standard_normal((num_q + num_g, width))).astype(np.float32)
    if copies:
        feats = rng.integers(0, 2, feats.shape).astype(np.float32) * (np.arange(width) < 5)
    q, g = slice(None, num_q), slice(num_q, None)
    return feats[q], feats[g], pids[q], pids[g], cams[q], cams[g]


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("normalize", [True, False])
def test_features_give_what_their_distances_give(metric, normalize, small_tiles):
    qf, gf, *ids = features(0)
    a, b = qf.astype(np.float64), gf.astype(np.float64)
    if normalize or metric == "cosine":
        a, b = (f / np.linalg.norm(f, axis=1, keepdims=True) for f in (a, b))
    dist = ((a[:, None] - b[None]) ** 2).sum(2) if metric == "euclidean" else 1 - a @ b.T
    result = evaluate_features(qf, gf, *ids, metric=metric, normalize=normalize, max_rank=20)
    agree(result, slow_rank(dist, *ids), 20)


@pytest.mark.parametrize("protocol", ["market1501", "cuhk03"])
@pytest.mark.parametrize("rerank", [None, (6, 3, 0.3), (6, 3, 0.0)])
@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("normalize", [False, True])
def test_no_result_depends_on_the_block_size(protocol, rerank, copies, normalize, small_tiles):
    """Bit for bit, with ties across the edges of tiles and chunks too."""
    data = features(1, copies=copies)
    results = [
        evaluate_features(*data, protocol=protocol, rerank=rerank, normalize=normalize, block_size=size)
        for size in (None, 1, 16, 17, 40, 1000)
    ]
    for result in results[1:]:
        assert (result.mAP, result.mINP) == (results[0].mAP, results[0].mINP)
        np.testing.assert_array_equal(result.cmc, results[0].cmc)
        for name in RANKS:
            np.testing.assert_array_equal(result.per_query[name], results[0].per_query[name])


@pytest.mark.parametrize("normalize", [False, True])
def test_copies_tie_whatever_their_place(normalize):
    """Equal features must get equal distances at every place of the product, or the order of copies is chance."""
    rng = np.random.default_rng(2)
    base = rng.standard_normal((3, 33)).astype(np.float32)
    for num_q, num_g in ((1, 5), (3, 19), (7, 101), (41, 5000)):
        kinds = rng.integers(0, 3, num_g)
        a, b = (torch.from_numpy(f) for f in (base[rng.integers(0, 3, num_q)], base[kinds]))
        if normalize:
            a, b = distances.unit_length(a), distances.unit_length(b)
        dist = distances.Distances(a, b).rows(0, num_q).numpy()
        for kind in range(3):
            assert (np.ptp(dist[:, kinds == kind], axis=1) == 0).all() or not (kinds == kind).any()


def test_no_squared_distance_is_negative():
    feats = torch.from_numpy(features(13)[1])
    dist = distances.Distances(feats, feats + 1e-7).rows(0, len(feats))
    assert dist.min() == 0 and (dist.diagonal() < 1e-4).all()


def test_tiles_of_full_size_agree_with_one_matrix():
    data = features(3, num_q=600, num_g=5000, width=8, num_ids=200)
    qf, gf, *ids = data
    qf, gf = np.round(qf), np.round(gf)  # whole numbers: exact in any order of adding, with many ties
    dist = ((qf[:, None] - gf[None]) ** 2).sum(2)
    expected = evaluate_rank(dist, *ids)
    for size in (None, 256, 300):
        result = evaluate_features(qf, gf, *ids, normalize=False, block_size=size)
        np.testing.assert_array_equal(result.per_query["AP"], expected.per_query["AP"])
        np.testing.assert_array_equal(result.cmc, expected.cmc)


def test_a_block_that_does_not_fit_is_halved(monkeypatch, small_tiles):
    data = features(4)
    expected = evaluate_features(*data, protocol="cuhk03")
    rows, asked = distances.Distances.rows, []

    def tight(self, start, stop):
        asked.append(stop - start)
        if stop - start > 16:
            raise MemoryError
        return rows(self, start, stop)

    monkeypatch.setattr(distances.Distances, "rows", tight)
    result = evaluate_features(*data, protocol="cuhk03", block_size=64)
    assert result.mAP == expected.mAP and (result.cmc == expected.cmc).all()
    assert max(asked) > 16 and asked.count(16) == 3

    def broken(self, start, stop):
        raise RuntimeError("something else")

    monkeypatch.setattr(distances.Distances, "rows", broken)
    for protocol in ("cuhk03", "market1501"):
        with pytest.raises(RuntimeError, match="something else"):
            evaluate_features(*data, protocol=protocol)


def test_threads_that_do_not_fit_together_go_one_by_one(monkeypatch, small_tiles, four_threads):
    data = features(4, num_q=200)
    expected = evaluate_features(*data)
    rows, lock, refused = distances.Distances.rows, threading.Lock(), []

    def tight(self, start, stop):
        if not lock.acquire(blocking=False):
            refused.append(start)
            raise MemoryError
        try:
            time.sleep(0.002)
            return rows(self, start, stop)
        finally:
            lock.release()

    monkeypatch.setattr(distances.Distances, "rows", tight)
    result = evaluate_features(*data)
    assert refused
    np.testing.assert_array_equal(result.per_query["AP"], expected.per_query["AP"])


@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize("width", [12, 130])
def test_no_result_depends_on_threads_memory_or_the_height_of_strips(copies, width, monkeypatch):
    data = features(14, num_q=300, num_g=1500, width=width, num_ids=40, copies=copies)
    results = {}
    before = torch.get_num_threads()
    for threads, memory, tile in ((1, None, 256), (3, None, 256), (2, 1, 256), (2, 500_000, 256), (2, None, 48)):
        monkeypatch.setattr(blocks, "TILE", tile)
        torch.set_num_threads(threads)
        try:
            for rerank in (None, (20, 6, 0.3)):
                results.setdefault(rerank, []).append(evaluate_features(*data, rerank=rerank, max_memory=memory))
        finally:
            torch.set_num_threads(before)
    for one in results.values():
        for result in one[1:]:
            np.testing.assert_array_equal(result.per_query["AP"], one[0].per_query["AP"])
            np.testing.assert_array_equal(result.cmc, one[0].cmc)


@pytest.mark.parametrize("offset", [0, 3000])
def test_long_features_keep_their_near_neighbours(offset):
    qf, gf, *ids = features(5)
    exact = ((qf[:, None].astype(np.float64) - gf[None]) ** 2).sum(2)
    result = evaluate_features(qf + np.float32(offset), gf + np.float32(offset), *ids, normalize=False)
    assert result.mAP == pytest.approx(evaluate_rank(exact, *ids).mAP, abs=1e-3)


def test_lengths_beyond_float32_squares_still_normalise():
    qf, gf, *ids = features(6)
    expected = evaluate_features(qf, gf, *ids).mAP
    assert evaluate_features(qf * np.float32(1e25), gf * np.float32(1e25), *ids).mAP == pytest.approx(
        expected, abs=1e-6
    )
    with pytest.raises(UserError, match="too large"):
        evaluate_features(qf * np.float32(1e25), gf, *ids, normalize=False)


def test_zero_vectors_stay_zero_and_are_ranked():
    qf, gf, *ids = features(7)
    gf[:5] = 0
    for metric in ("euclidean", "cosine"):
        assert 0 < evaluate_features(qf, gf, *ids, metric=metric).mAP < 1
    same = evaluate_features(np.zeros_like(qf), np.zeros_like(gf), *ids, metric="cosine")
    assert same.mAP == evaluate_rank(np.ones((len(qf), len(gf))), *ids).mAP


def test_one_query_and_one_image():
    for rerank in (None, (20, 6, 0.3)):
        result = evaluate_features([[1.0, 2.0]], [[3.0, 4.0]], [5], [5], rerank=rerank)
        assert (result.mAP, result.cmc[0], result.num_valid_q) == (1, 1, 1)


def test_half_precision_tensors_are_features_too():
    qf, gf, *ids = features(8)
    qf, gf = (torch.from_numpy(f).half() for f in (qf, gf))
    expected = evaluate_features(qf.float().numpy(), gf.float().numpy(), *ids)
    assert evaluate_features(qf.requires_grad_(), gf, *ids).mAP == expected.mAP


def slow_recall(feats, labels, k):
    unit = feats.astype(np.float64)
    unit /= np.linalg.norm(unit, axis=1, keepdims=True)
    hits = []
    for i in range(len(unit)):
        others = sorted((j for j in range(len(unit)) if j != i), key=lambda j: (round(-(unit[i] @ unit[j]), 9), j))
        hits.append(any(labels[j] == labels[i] for j in others[:k]))
    return np.mean(hits)


@pytest.mark.parametrize("block_size", [None, 1])
@pytest.mark.parametrize("copies", [False, True])
def test_recall_matches_the_slow_version(copies, block_size, small_tiles):
    feats, _, labels, *_ = features(9, num_q=70)
    if copies:
        feats = feats[np.random.default_rng(0).integers(0, 25, 70)]
    labels[:3] = [100, 101, 102]  # one image each: misses
    result = evaluate_retrieval(feats, labels, ks=(1, 2, 5, 70, 1000), nmi=False, block_size=block_size)
    for k, recall in result.recall.items():
        assert recall == pytest.approx(slow_recall(feats, labels, k), abs=1e-12)
    assert result.recall[1000] == pytest.approx(1 - result.num_unmatched / 70)
    assert result.nmi is None and result.num_unmatched >= 3


def test_a_copy_of_the_query_is_found_and_the_query_is_not():
    feats = np.array([[1.0, 0], [1, 0], [0, 1], [0, 1]])
    assert evaluate_retrieval(feats, [0, 0, 1, 1], ks=[1]).recall[1] == 1
    assert evaluate_retrieval(feats, [0, 1, 0, 1], ks=[1, 3]).recall == {1: 0, 3: 1}


def test_recall_of_one_image_and_with_a_gallery_of_its_own():
    assert evaluate_retrieval([[1.0, 0]], [3]).recall == {1: 0, 2: 0, 4: 0, 8: 0}
    apart = evaluate_retrieval([[1.0, 0], [0, 1]], [0, 1], [[1.0, 0.1], [0.1, 1]], [0, 1], ks=[1])
    assert apart.recall == {1: 1} and apart.nmi == 1
    assert evaluate_retrieval([[1.0, 0]], [0], [[1.0, 0.1], [0.1, 1]], [1, 0], ks=[1, 2], nmi=False).recall == {
        1: 0,
        2: 1,
    }


def test_nmi_over_the_arithmetic_mean():
    assert nmi([0, 0, 1, 1], [5, 5, 2, 2]) == pytest.approx(1)
    assert nmi([0, 0, 1, 1], [0, 1, 0, 1]) == pytest.approx(0, abs=1e-12)
    # entropies log 2 and log 4, mutual information log 2
    assert nmi(torch.tensor([0, 0, 1, 1]), [0, 1, 2, 3]) == pytest.approx(2 / 3)


def slow_roc(dist, q_pids, g_pids, q_cams, g_cams, far):
    genuine, impostor = [], []
    for i in range(len(dist)):
        for j in range(len(dist[i])):
            if q_pids[i] != g_pids[j]:
                impostor.append(dist[i, j])
            elif q_cams[i] != g_cams[j]:
                genuine.append(dist[i, j])
    best = 0.0
    for threshold in [-1.0, *genuine]:
        if np.mean(np.array(impostor) <= threshold) <= far:
            best = max(best, np.mean(np.array(genuine) <= threshold))
    return best


@pytest.mark.parametrize("levels", [None, 9, 1])
def test_roc_matches_the_slow_version(levels, small_tiles):
    one = draw(10, levels=levels)
    fars = (0.0, 1e-3, 0.01, 0.1, 0.5, 1.0)
    ours = roc(one.dist, *one.ids, fars=fars)
    assert ours == pytest.approx({far: slow_roc(one.dist, *one.ids, far) for far in fars})


@pytest.mark.parametrize("copies", [False, True])
def test_roc_of_features_does_not_depend_on_the_block_size(copies, small_tiles):
    data = features(11, copies=copies)
    results = [evaluate_roc(*data, fars=(1e-3, 0.02, 0.3), block_size=size) for size in (None, 1, 33, 1000)]
    assert all(result == results[0] for result in results)
    unit = [f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12) for f in data[:2]]
    if not copies:
        assert results[0] == pytest.approx(roc(1 - unit[0] @ unit[1].T, *data[2:], fars=(1e-3, 0.02, 0.3)), abs=0.01)
        assert 0.05 < results[0][1e-3] < results[0][0.3] < 1


DIST = np.ones((3, 4), np.float32)
IDS = ([1, 2, 3], [1, 2, 3, 4])


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: evaluate_rank(DIST, [1, 2], IDS[1]), "3 queries x 4 gallery images, but 2 q_pids and 4 g_pids"),
        (lambda: evaluate_rank(DIST[:, :0], IDS[0], []), "0 gallery images"),
        (lambda: evaluate_rank(DIST[:0], [], IDS[1]), "0 queries"),
        (lambda: evaluate_rank(DIST[0], IDS[0], IDS[1]), r"expected shape \(queries, gallery\)"),
        (lambda: evaluate_rank(DIST, *IDS, [0, 0], [1, 1, 1, 1]), "2 q_camids for 3 q_pids"),
        (lambda: evaluate_rank(DIST, *IDS, [0, 0, 0]), "q_camids and g_camids go together"),
        (lambda: evaluate_rank(DIST, *IDS, q_seqs=[0, 0, 0]), "q_seqs and g_seqs go together"),
        (lambda: evaluate_rank(DIST, [1.0, 2.0, 3.0], IDS[1]), "q_pids: ids must be integers, got float64"),
        (lambda: evaluate_rank(DIST, IDS[0], list("abcd")), "g_pids: ids must be integers"),
        (lambda: evaluate_rank(DIST, [[1], [2], [3]], IDS[1]), "q_pids: expected one id per image"),
        (lambda: evaluate_rank(DIST * np.nan, *IDS), "distmat: NaN in 3 rows from row 0"),
        (lambda: evaluate_rank(DIST, *IDS, protocol="market"), "did you mean 'market1501'.*Known: market1501, cuhk03"),
        (lambda: evaluate_rank(DIST, *IDS, ap="area"), "ap: unknown 'area'.*rectangle, trapezoid"),
        (lambda: evaluate_rank(DIST, *IDS, max_rank=0), "max_rank: expected a whole number of at least 1, got 0"),
        (lambda: evaluate_rank(DIST, *IDS, repeats=0), "repeats: expected .* got 0$"),
        (lambda: evaluate_rank(DIST, *IDS, same_list=True), "same_list"),
        (lambda: evaluate_rank(DIST, [7, 8, 9], IDS[1]), "of 3 queries, 3 have .* absent from the gallery and 0 have"),
        (
            lambda: evaluate_rank(DIST, *IDS, [0] * 3, [0] * 4),
            "0 have .* 3 have matches of their own camera only",
        ),
        (
            lambda: evaluate_features(np.ones((3, 2)), np.ones((4, 2)), *IDS, metric="l1"),
            "metric: unknown 'l1'.*euclidean",
        ),
        (lambda: evaluate_features(np.ones((3, 2)), np.ones((4, 3)), *IDS), "query features are 2 wide, gallery .* 3"),
        (lambda: evaluate_features(np.ones((3, 2)), np.ones((0, 2)), IDS[0], []), "gallery features: no images"),
        (lambda: evaluate_features(np.ones(3), np.ones((4, 2)), *IDS), "query features: expected shape"),
        (lambda: evaluate_features(np.ones((3, 2)), np.ones((4, 2)), *IDS, block_size=0), "block_size: .* got 0"),
        (lambda: evaluate_features(np.ones((3, 2)), np.ones((4, 2)), *IDS, rerank=(0, 6, 0.3)), "k1: .* got 0$"),
        (lambda: evaluate_features(np.ones((3, 2)), np.ones((4, 2)), *IDS, rerank=(20, 0, 0.3)), "k2: .* got 0$"),
        (lambda: evaluate_rank(DIST[:2, :2], [1, 2], [1, 2], same_list=True), "each of the 2 identities has one image"),
        (lambda: evaluate_features(DIST * np.nan, np.eye(4), *IDS), r"query .* 3 of 3 rows .*rows 0, 1"),
        (lambda: evaluate_features(DIST[:2], np.eye(4), *IDS), "2 queries x 4 gallery images, but 3 q_pids"),
        (lambda: evaluate_features(DIST, np.eye(4), [0.5] * 3, IDS[1]), "q_pids: ids must be integers"),
        (lambda: evaluate_features(DIST, np.eye(4), [7, 8, 9], IDS[1]), "no query has a valid match"),
        (lambda: roc(DIST, *IDS, fars=[2]), "fars: expected shares between 0 and 1, got 2"),
        (lambda: roc(DIST, [1, 1, 1], [1, 1, 1, 1]), "no impostor pairs"),
        (lambda: evaluate_retrieval(np.ones((2, 3)), [1, 1], np.ones((2, 3))), "gallery_labels go together"),
        (lambda: evaluate_retrieval(np.ones((2, 3)), [1, 1, 1]), "2 queries x 2 gallery images, but 3 q_pids"),
        (lambda: evaluate_retrieval(np.ones((2, 3)), [1, 1], ks=(0,)), "ks: expected .* got 0$"),
        (lambda: nmi([1, 2], [1]), "at least one, got 2 and 1"),
    ],
)
def test_a_mistake_is_told_in_one_line(call, words):
    with pytest.raises(ValueError, match=words) as error:
        call()
    assert isinstance(error.value, UserError) and "\n" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_features_that_are_no_numbers_are_counted_and_named(value):
    qf, gf, *ids = features(12)
    gf[[3, 40], [0, 5]] = value
    for call in (evaluate_features, evaluate_roc):
        with pytest.raises(ValueError, match=r"gallery features: 2 of 130 rows hold NaN or infinity \(rows 3, 40\)"):
            call(qf, gf, *ids)
    gf[50:70] = value
    with pytest.raises(ValueError, match=r"22 of 130 rows .* \(rows 3, 40, 50, 51, 52, \.\.\.\)"):
        evaluate_retrieval(gf, ids[1])
