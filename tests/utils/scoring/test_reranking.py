"""Re-ranking, Jaccard distance and query expansion against slow textbook versions, their limits and failures."""

from __future__ import annotations

import logging

import numpy as np
import pytest
import torch
from sklearn.cluster import DBSCAN

from utils.errors import UserError
from utils.metrics import evaluate_features, evaluate_rank
from utils.reranking import jaccard_distance, query_expansion, re_ranking
from utils.scoring import blocks, distances, neighbours, reranking
from utils.scoring.distances import Distances
from utils.scoring.neighbours import nearest_rows


@pytest.fixture
def small_tiles(monkeypatch):
    """Many tiles, chunks and blocks even for a few dozen images."""
    monkeypatch.setattr(blocks, "TILE", 16)
    monkeypatch.setattr(distances, "CHUNK", 32)
    monkeypatch.setattr(neighbours, "SIDE", 32)
    monkeypatch.setattr(reranking, "ROWS", 24)
    monkeypatch.setattr(reranking, "PAIRS", 50)


def clusters(seed, num, width=16, num_ids=12, spread=1.0):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((num_ids, width))
    feats = centres[rng.integers(0, num_ids, num)] + spread * rng.standard_normal((num, width))
    return (feats / np.linalg.norm(feats, axis=1, keepdims=True)).astype(np.float32)


def squared(feats):
    feats = feats.astype(np.float64)
    return np.maximum(((feats[:, None] - feats[None]) ** 2).sum(2), 0)


def slow_jaccard(dist, weights_of, length, half, k2):
    """The method as published, in dense loops; ``length`` and ``half`` count the entries of the two lists."""
    num = len(dist)
    rank = [sorted(range(num), key=lambda j, row=row: (row[j], j)) for row in dist]

    def reciprocal(i, k):
        return {j for j in rank[i][:k] if i in rank[j][:k]}

    codes = np.zeros((num, num))
    for i in range(num):
        full = reciprocal(i, length)
        expanded = set(full)
        for c in full:
            short = reciprocal(c, min(half, length))
            if len(short & full) > 2 / 3 * len(short):
                expanded |= short
        for j in expanded:
            codes[i, j] = np.exp(-weights_of[i, j])
        codes[i] /= max(codes[i].sum(), 1e-300)
    if k2 != 1:
        codes = np.stack([codes[rank[i][:k2]].mean(0) for i in range(num)])
    shared = np.array([[np.minimum(a, b).sum() for b in codes] for a in codes])
    return np.maximum(1 - shared / (2 - shared), 0)


def slow_re_ranking(qf, gf, k1, k2, lambda_value):
    dist = squared(np.concatenate([qf, gf]))
    original = dist / np.where(dist.max(1) > 0, dist.max(1), 1)[:, None]
    jaccard = slow_jaccard(dist, original, k1 + 1, round(k1 / 2) + 1, k2)
    return ((1 - lambda_value) * jaccard + lambda_value * original)[: len(qf), len(qf) :]


def dense(matrix):
    out = np.ones(matrix.shape, np.float32)
    out[np.repeat(np.arange(len(out)), np.diff(matrix.indptr)), matrix.indices] = matrix.data
    return out


SETTINGS = [
    (20, 6, 0.3),
    (7, 1, 0.3),
    (5, 3, 0.0),
    (3, 9, 0.2),
    (4, 3, 1.0),
    (1, 1, 0.5),
    (25, 2, 0.3),
    (500, 700, 0.3),
]


@pytest.mark.parametrize(("k1", "k2", "lambda_value"), SETTINGS)
def test_re_ranking_matches_the_slow_version(k1, k2, lambda_value, small_tiles):
    feats = clusters(0, 110)
    ours = re_ranking(feats[:30], feats[30:], k1, k2, lambda_value)
    assert ours.shape == (30, 80) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, slow_re_ranking(feats[:30], feats[30:], k1, k2, lambda_value), atol=2e-6)


def test_re_ranking_of_features_of_any_length(small_tiles):
    feats = 7 * clusters(1, 90) * np.random.default_rng(0).uniform(0.5, 2, (90, 1)).astype(np.float32)
    tensors = torch.from_numpy(feats).requires_grad_()
    ours = re_ranking(tensors[:20], tensors[20:], 10, 4, 0.3)
    np.testing.assert_allclose(ours, slow_re_ranking(feats[:20], feats[20:], 10, 4, 0.3), atol=2e-6)


@pytest.mark.parametrize("rerank", [(20, 6, 0.3), (10, 1, 0.0)])
def test_blocks_score_what_the_matrix_scores(rerank, small_tiles):
    feats = clusters(2, 150)
    rng = np.random.default_rng(0)
    ids = [rng.integers(0, 9, 50), rng.integers(0, 9, 100), rng.integers(0, 3, 50), rng.integers(0, 3, 100)]
    expected = evaluate_rank(re_ranking(feats[:50], feats[50:], *rerank), *ids)
    for size in (None, 1, 30, 1000):
        result = evaluate_features(feats[:50], feats[50:], *ids, normalize=False, rerank=rerank, block_size=size)
        np.testing.assert_array_equal(result.per_query["AP"], expected.per_query["AP"])


def test_full_tiles_and_rows_of_sparse_products():
    """Over a thousand images, so that blocks have the sizes of real use; a few rows are checked densely."""
    feats = clusters(3, 1100, width=24, num_ids=60, spread=0.4)
    dist = squared(feats)
    ranks, values, farthest = nearest_rows(Distances(*[torch.from_numpy(feats)] * 2), 15)
    order = np.argsort(dist, axis=1, kind="stable")[:, :15]
    np.testing.assert_allclose(
        np.take_along_axis(dist, ranks.astype(int), 1), np.take_along_axis(dist, order, 1), atol=1e-6
    )
    np.testing.assert_allclose(values, np.take_along_axis(dist, order, 1), atol=1e-6)
    np.testing.assert_allclose(farthest, dist.max(1), rtol=1e-6)
    whole = re_ranking(feats[:300], feats[300:], 14, 4, 0.3)
    again = re_ranking(feats[:300][::-1].copy(), feats[300:], 14, 4, 0.3)[::-1]
    np.testing.assert_allclose(whole, again, atol=2e-6)


@pytest.mark.parametrize("levels", [1, 2, 4])
@pytest.mark.parametrize("width", [5, 40, 700])
def test_neighbours_of_tied_distances_are_those_of_lower_index(levels, width, small_tiles):
    feats = np.random.default_rng(levels).integers(0, levels, (width, 4)).astype(np.float32)
    tensor = torch.from_numpy(feats)
    expected = np.argsort(squared(feats), axis=1, kind="stable")
    for k in (1, 3, 17, 5000):
        for size in (None, 1, 50):
            ranks, _, _ = nearest_rows(Distances(tensor, tensor), k, size)
            np.testing.assert_array_equal(ranks, expected[:, :k])


@pytest.mark.parametrize("levels", [None, 2])
def test_whole_rows_as_on_an_accelerator_give_the_same_neighbours(levels, small_tiles):
    feats = clusters(9, 300)
    if levels:
        feats = np.random.default_rng(0).integers(0, levels, (300, 4)).astype(np.float32)
    tensor = torch.from_numpy(feats)
    by_rows = Distances(tensor, tensor)
    by_rows.on_cpu = False
    for ours, theirs in zip(nearest_rows(Distances(tensor, tensor), 9), nearest_rows(by_rows, 9), strict=True):
        np.testing.assert_allclose(ours, theirs, atol=1e-6)


def test_lists_longer_than_the_data_are_warned_of(caplog):
    log = logging.getLogger("lineup")
    log.addHandler(caplog.handler)
    try:
        feats = clusters(0, 12)
        re_ranking(feats[:4], feats[4:], 11, 6)
        jaccard_distance(feats, 12, 6)
        assert not caplog.records
        re_ranking(feats[:4], feats[4:], 20, 6)
        jaccard_distance(feats, 30, 6)
        assert {r.getMessage().split(":")[1] for r in caplog.records} == {
            f" lists of {k} and 6 images asked for, but there are only 12" for k in (21, 30)
        }
    finally:
        log.removeHandler(caplog.handler)


@pytest.mark.parametrize("copies", [False, True])
def test_neither_threads_nor_memory_change_a_bit(copies, monkeypatch):
    feats = clusters(10, 260, width=40)
    if copies:
        feats = feats[np.random.default_rng(0).integers(0, 60, 260)]
    before, results = torch.get_num_threads(), []
    monkeypatch.setattr(neighbours, "SIDE", 48)
    for threads, memory in ((1, None), (4, None), (2, 1), (3, 10**6)):
        torch.set_num_threads(threads)
        matrix = jaccard_distance(feats, 12, 4, max_memory=memory)
        found = re_ranking(feats[:60], feats[60:], 12, 4, max_memory=memory)
        results.append((found, matrix.data, matrix.indices, matrix.indptr))
    torch.set_num_threads(before)
    for result in results[1:]:
        for ours, theirs in zip(result, results[0], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_ties_and_copies_follow_the_slow_version(small_tiles):
    """Whole numbers, so that equal distances are equal in any arithmetic."""
    feats = np.random.default_rng(4).integers(0, 3, (80, 3)).astype(np.float32)
    ours = re_ranking(feats[:25], feats[25:], 12, 4, 0.3)
    np.testing.assert_allclose(ours, slow_re_ranking(feats[:25], feats[25:], 12, 4, 0.3), atol=2e-6)


def test_equal_images_and_zero_vectors_give_numbers():
    for feats in (np.ones((40, 8)), np.zeros((40, 8)), np.ones((2, 1))):
        half = len(feats) // 2
        ours = re_ranking(feats[:half], feats[half:], 5, 3, 0.3)
        assert np.isfinite(ours).all() and (ours >= 0).all() and (ours <= 1).all()
        clustered = dense(jaccard_distance(feats, 5, 3))
        assert np.isfinite(clustered).all() and (np.diag(clustered) == 0).all()


@pytest.mark.parametrize(("k1", "k2"), [(20, 6), (7, 1), (1, 1), (2, 9), (900, 5)])
def test_jaccard_matches_the_slow_version(k1, k2, small_tiles):
    feats = clusters(5, 90)
    dist = squared(feats)
    ours = jaccard_distance(feats, k1, k2)
    expected = slow_jaccard(dist, dist, k1, round(k1 / 2) + 1, k2)
    np.testing.assert_allclose(dense(ours), expected, atol=2e-6)
    assert (abs(ours - ours.T)).max() == 0
    assert (ours.diagonal() == 0).all() and (ours.data < 1).all()
    stored = np.zeros(ours.shape, bool)
    stored[np.repeat(np.arange(90), np.diff(ours.indptr)), ours.indices] = True
    np.testing.assert_array_equal(stored, (expected < 1) | np.eye(90, dtype=bool))


def test_jaccard_keeps_zeros_of_copies_and_what_dbscan_needs():
    feats = clusters(6, 120, spread=0.5)
    feats[60:63] = feats[10]
    full, cut = jaccard_distance(feats, 15, 4), jaccard_distance(feats, 15, 4, max_distance=0.5)
    assert dense(full)[10, 60] < 1e-6
    assert full.indices.dtype == full.indptr.dtype == np.int32
    assert cut.nnz < full.nnz and cut.data.max() <= 0.5
    np.testing.assert_array_equal(dense(cut), np.where(dense(full) <= 0.5, dense(full), 1))
    labels = [
        DBSCAN(eps=0.5, min_samples=4, metric="precomputed").fit_predict(matrix)
        for matrix in (full, cut, dense(full).astype(np.float64))
    ]
    assert labels[0].max() > 3
    for other in labels[1:]:
        np.testing.assert_array_equal(labels[0], other)


def slow_expansion(feats, times, k, alpha):
    feats = feats.astype(np.float64)
    for _ in range(times):
        unit = feats / np.maximum(np.linalg.norm(feats, axis=1, keepdims=True), 1e-12)
        cosine = unit @ unit.T
        new = []
        for row in cosine:
            near = sorted(range(len(row)), key=lambda j, row=row: (-row[j], j))[:k]
            weights = [row[j] ** alpha if row[j] >= 0 or alpha == int(alpha) else 0.0 for j in near]
            new.append(sum(w * feats[j] for w, j in zip(weights, near, strict=True)) / len(near))
        feats = np.stack(new)
    return feats


@pytest.mark.parametrize(
    ("times", "k", "alpha"), [(1, 5, 3.0), (2, 4, 1.0), (1, 1, 3.0), (1, 70, 2.5), (1, 7, 0.0), (1, 999, 3), (3, 3, 2)]
)
def test_query_expansion_matches_the_slow_version(times, k, alpha, small_tiles):
    feats = 3 * clusters(7, 70, width=6)
    expected = slow_expansion(feats, times, k, alpha)
    ours = query_expansion(feats[:20], feats[20:], times, k, alpha)
    assert isinstance(ours[0], np.ndarray)
    np.testing.assert_allclose(np.concatenate(ours), expected, rtol=1e-4, atol=1e-5)
    tensors = query_expansion(torch.from_numpy(feats[:20]), torch.from_numpy(feats[20:]), times, k, alpha)
    assert isinstance(tensors[1], torch.Tensor) and tensors[1].shape == (50, 6)
    np.testing.assert_array_equal(torch.cat(tensors).numpy(), np.concatenate(ours))


@pytest.mark.parametrize(("times", "k", "alpha"), [(1, 5, 3.0), (2, 4, 1.0), (1, 1, 3.0), (1, 999, 2.5)])
def test_expansion_of_one_list_counts_each_image_once(times, k, alpha, small_tiles):
    feats = 3 * clusters(7, 40, width=6)
    queries, gallery = query_expansion(feats, feats, times, k, alpha, one_list=True)
    np.testing.assert_allclose(gallery, slow_expansion(feats, times, k, alpha), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(queries, gallery)
    if 1 < k < 40:
        assert np.abs(query_expansion(feats, feats, times, k, alpha)[1] - gallery).max() > 0.01


def test_inputs_are_left_alone():
    feats = clusters(8, 40)
    before = feats.copy()
    re_ranking(feats[:10], feats[10:])
    jaccard_distance(feats)
    query_expansion(feats[:10], feats[10:])
    np.testing.assert_array_equal(feats, before)


FEATS = np.eye(6, dtype=np.float32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: re_ranking(FEATS, FEATS, k1=0), "k1: expected a whole number of at least 1, got 0"),
        (lambda: re_ranking(FEATS, FEATS, k2=-1), "k2: expected .* got -1$"),
        (lambda: re_ranking(FEATS, FEATS, k1=2.5), "k1: expected .* got 2.5$"),
        (lambda: re_ranking(FEATS, FEATS, lambda_value=1.5), "lambda: expected a value between 0 and 1, got 1.5"),
        (lambda: re_ranking(FEATS, FEATS[:, :3]), "query features are 6 wide, gallery features 3"),
        (lambda: re_ranking(FEATS, np.full((6, 6), np.inf)), "gallery features: 6 of 6 rows hold NaN or infinity"),
        (lambda: re_ranking(FEATS[:0], FEATS), "query features: no images"),
        (lambda: jaccard_distance(FEATS, k1=0), "k1: expected .* got 0$"),
        (lambda: jaccard_distance(FEATS, k2=0), "k2: expected .* got 0$"),
        (lambda: jaccard_distance(np.full((6, 6), np.nan)), "image features: 6 of 6 rows"),
        (lambda: query_expansion(FEATS, FEATS, k=0), "k: expected .* got 0$"),
        (lambda: query_expansion(FEATS, FEATS, times=0), "times: expected .* got 0$"),
        (lambda: query_expansion(FEATS, FEATS, alpha=-1), "alpha: expected at least 0, got -1"),
        (lambda: query_expansion(FEATS[:3], FEATS, one_list=True), "one_list: expected .* got 3 and 6$"),
    ],
)
def test_a_mistake_is_told_in_one_line(call, words):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


def test_images_of_one_list_are_neighbours_once():
    feats = torch.nn.functional.normalize(torch.randn(30, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    found = reranking.ReRanking(feats, feats, 7, 3, 0.3, one_list=True).rows(0, 30).numpy()
    for cut in (1, 12, 29):  # any division of the list in two has the same neighbours
        np.testing.assert_allclose(found[:cut, cut:], re_ranking(feats[:cut], feats[cut:], 7, 3, 0.3), atol=1e-6)
    twice = re_ranking(feats, feats, 7, 3, 0.3)
    assert np.abs(twice - found).max() > 0.01
    with pytest.raises(UserError, match="one_list"):
        reranking.ReRanking(feats[:3], feats, 7, 3, 0.3, one_list=True)
