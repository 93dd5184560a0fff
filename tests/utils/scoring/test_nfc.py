"""Neighbour feature centralisation against a slow loop, its limits and failures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from utils.errors import UserError
from utils.reranking import neighbour_centralisation
from utils.scoring import blocks, distances, neighbours, nfc


@pytest.fixture
def small_tiles(monkeypatch):
    """Many tiles and passes even for a few dozen images."""
    monkeypatch.setattr(blocks, "TILE", 16)
    monkeypatch.setattr(distances, "CHUNK", 32)
    monkeypatch.setattr(neighbours, "SIDE", 32)
    monkeypatch.setattr(nfc, "ROWS", 7)


def clusters(num, width=12, spread=0.7, seed=0):
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((9, width))
    return (centres[rng.integers(0, 9, num)] + spread * rng.standard_normal((num, width))).astype(np.float32)


def slow(feats, k1, k2):
    """The method as published, in loops: an image is at distance 1000 from itself."""
    feats = feats.astype(np.float64)
    dist = ((feats[:, None] - feats[None]) ** 2).sum(2)
    np.fill_diagonal(dist, 1000)
    near = [sorted(range(len(feats)), key=lambda j, row=row: (row[j], j))[:k1] for row in dist]
    return np.stack([
        feats[i] + sum((feats[j] for j in near[i] if i in near[j][: min(k1, k2)]), np.zeros_like(feats[i]))
        for i in range(len(feats))
    ])  # fmt: skip


def unit(feats):
    return feats / np.linalg.norm(feats, axis=1, keepdims=True)


SETTINGS = [(2, 2), (1, 1), (6, 3), (3, 8), (70, 70), (70, 2), (25, 25)]


@pytest.mark.parametrize(("k1", "k2"), SETTINGS)
@pytest.mark.parametrize("scale", [1, 12])  # at 12 most images are nearer to themselves than to any other
def test_it_matches_the_slow_version(k1, k2, scale, small_tiles):
    feats = scale * clusters(70)
    ours = neighbour_centralisation(feats, k1, k2)
    assert isinstance(ours, np.ndarray) and ours.dtype == np.float32
    np.testing.assert_allclose(ours, slow(feats, k1, k2), rtol=1e-5, atol=1e-5 * scale)
    scaled = neighbour_centralisation(feats, k1, k2, normalize=True)
    np.testing.assert_allclose(scaled, unit(slow(unit(feats), k1, k2)), atol=1e-6)


def test_it_depends_on_no_block_no_thread_and_no_type(monkeypatch):
    feats = clusters(330, width=20)
    before, threads = feats.copy(), torch.get_num_threads()
    expected = neighbour_centralisation(feats, 6, 4)
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            for rows, memory in ((5, None), (1024, 1), (100, 10_000)):
                monkeypatch.setattr(nfc, "ROWS", rows)
                np.testing.assert_array_equal(neighbour_centralisation(feats, 6, 4, max_memory=memory), expected)
    finally:
        torch.set_num_threads(threads)
    tensor = neighbour_centralisation(torch.from_numpy(feats).requires_grad_(), 6, 4)
    assert isinstance(tensor, torch.Tensor) and not tensor.requires_grad
    np.testing.assert_array_equal(tensor.numpy(), expected)
    np.testing.assert_array_equal(feats, before)


def test_the_order_of_the_images_changes_nothing():
    feats, order = clusters(90), np.random.default_rng(1).permutation(90)
    np.testing.assert_allclose(
        neighbour_centralisation(feats[order], 4, 3), neighbour_centralisation(feats, 4, 3)[order], rtol=1e-5, atol=1e-5
    )


def test_the_closest_pair_is_mutual_and_one_far_from_all_is_left_alone():
    feats = np.array([[0, 0], [1, 0], [3, 0], [8, 0]], np.float32)
    assert neighbour_centralisation(feats, 1, 1).tolist() == [[1, 0], [1, 0], [3, 0], [8, 0]]


@pytest.mark.parametrize("k1", [1, 2, 7, 50])
def test_copies_are_neighbours_by_their_index(k1, small_tiles):
    feats = np.repeat(clusters(2), 20, axis=0)  # every image has 19 copies, more than some lists hold
    np.testing.assert_allclose(neighbour_centralisation(feats, k1, k1), slow(feats, k1, k1), rtol=1e-5)


def test_an_image_alone_is_its_own_neighbour_and_keeps_its_direction():
    feats = np.array([[3.0, 4.0]], np.float32)
    np.testing.assert_allclose(neighbour_centralisation(feats), [[6.0, 8.0]])  # the list stops at the only image
    np.testing.assert_allclose(neighbour_centralisation(feats, normalize=True), [[0.6, 0.8]])


FEATS = np.eye(4, dtype=np.float32)


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: neighbour_centralisation(FEATS, 0), "k1: expected a whole number of at least 1, got 0"),
        (lambda: neighbour_centralisation(FEATS, 2, 1.5), "k2: expected .* got 1.5$"),
        (lambda: neighbour_centralisation(FEATS[:0]), "image features: no images"),
        (lambda: neighbour_centralisation(np.full((3, 3), np.nan)), "image features: 3 of 3 rows"),
        (lambda: neighbour_centralisation(FEATS[0]), r"expected shape \(images, width\)"),
    ],
)
def test_a_mistake_is_told_in_one_line(call, words):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)
