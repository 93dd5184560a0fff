"""Search against sorting the whole matrix, its limits and its failures."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from tools import search as command
from utils.errors import UserError
from utils.scoring import neighbours, search


@pytest.fixture
def small_tiles(monkeypatch):
    monkeypatch.setattr(neighbours, "SIDE", 32)
    monkeypatch.setattr(search, "SIDE", 32)
    monkeypatch.setattr(search, "ROWS", 64)


def lists(seed=0, num_q=70, num_g=500, width=12, levels=None):
    rng = np.random.default_rng(seed)
    feats = rng.standard_normal((num_q + num_g, width)).astype(np.float32)
    if levels:
        feats = rng.integers(-levels, levels, feats.shape).astype(np.float32)
    return feats[:num_q], feats[num_q:]


def slow(query, gallery, k, metric, normalize):
    a, b = query.astype(np.float64), gallery.astype(np.float64)
    if normalize or metric == "cosine":
        a, b = (f / np.maximum(np.linalg.norm(f, axis=1, keepdims=True), 1e-12) for f in (a, b))
    dist = ((a[:, None] - b[None]) ** 2).sum(2) if metric == "euclidean" else 1 - a @ b.T
    order = np.argsort(dist, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(dist, order, 1)


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("k", [1, 20, 33, 9999])
def test_lists_are_those_of_the_sorted_matrix(metric, normalize, k, small_tiles):
    query, gallery = lists()
    indices, distances = search.search(query, gallery, k, metric, normalize)
    expected = slow(query, gallery, k, metric, normalize)
    assert (indices.dtype, distances.dtype) == (np.int64, np.float32)
    assert (indices == expected[0]).mean() > 0.999  # a few lie closer together than float32 tells
    assert (np.sort(indices, axis=1) == np.sort(expected[0], axis=1)).all()
    np.testing.assert_allclose(distances, expected[1], atol=2e-5)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("num_g", [3, 40, 900])
def test_ties_go_to_the_lower_index_whatever_the_memory(levels, num_g, small_tiles):
    query, gallery = lists(1, num_g=num_g, width=4, levels=levels)
    for k in (1, 5, 100):
        expected = slow(query, gallery, k, "euclidean", False)[0]
        for memory in (None, 1, 300_000):
            found = search.search(query, gallery, k, normalize=False, max_memory=memory)[0]
            np.testing.assert_array_equal(found, expected)


def test_threads_change_nothing(small_tiles):
    query, gallery = lists(2, num_g=3000, levels=2)
    before, results = torch.get_num_threads(), []
    for threads in (1, 2, 5):
        torch.set_num_threads(threads)
        results.append(search.search(query, gallery, 40))
    torch.set_num_threads(before)
    for found in results[1:]:
        for ours, theirs in zip(found, results[0], strict=True):
            np.testing.assert_array_equal(ours, theirs)


def test_a_gallery_from_the_far_end_to_the_near_one(small_tiles):
    query, gallery = lists(3, num_g=800)
    gallery = gallery[np.argsort(-slow(query[:1], gallery, 800, "euclidean", False)[1][0], kind="stable")]
    gallery = gallery * np.linspace(9, 0.1, 800, dtype=np.float32)[:, None]
    found = search.search(query, gallery, 30, normalize=False)
    np.testing.assert_array_equal(found[0], slow(query, gallery, 30, "euclidean", False)[0])


def test_half_precision_and_tensors(small_tiles):
    query, gallery = (f.astype(np.float16) for f in lists(4))
    expected = search.search(query.astype(np.float32), gallery.astype(np.float32), 10)
    for found in (search.search(query, gallery, 10), search.search(*map(torch.from_numpy, (query, gallery)), 10)):
        np.testing.assert_array_equal(found[0], expected[0])


@pytest.mark.parametrize("normalize", [True, False])
def test_a_memory_mapped_gallery_is_the_same_and_left_alone(normalize, tmp_path, small_tiles):
    query, gallery = lists(8, num_g=3000)
    np.save(tmp_path / "g.npy", gallery)
    mapped = np.load(tmp_path / "g.npy", mmap_mode="r")
    expected = search.search(query, gallery, 12, normalize=normalize)
    for part in (mapped, mapped[100:]):
        found = search.search(query, part, 12, normalize=normalize, max_memory=1)
        if len(part) == len(gallery):
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])
    np.testing.assert_array_equal(mapped, gallery)


def test_full_tiles_and_sides_that_are_no_multiple():
    query, gallery = lists(5, num_q=530, num_g=5000, width=33)
    found = search.search(query, gallery, 7)
    unit = [f / np.linalg.norm(f, axis=1, keepdims=True) for f in (query, gallery)]
    dist = 2 - 2 * unit[0] @ unit[1].T
    np.testing.assert_allclose(np.sort(dist, axis=1)[:, :7], found[1], atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(dist, found[0], 1), found[1], atol=1e-5)


def test_the_command_writes_what_search_finds(tmp_path, capsys):
    query, gallery = lists(6)
    np.save(tmp_path / "q.npy", query)
    np.save(tmp_path / "g.npy", gallery)
    words = ["--query", tmp_path / "q.npy", "--gallery", tmp_path / "g.npy", "--out", tmp_path / "topk.npz"]
    command.main([*map(str, words), "--k", "9", "--metric", "cosine"])
    written = np.load(tmp_path / "topk.npz")
    expected = search.search(query, gallery, 9, "cosine")
    np.testing.assert_array_equal(written["indices"], expected[0])
    np.testing.assert_array_equal(written["distances"], expected[1])
    assert "the 9 nearest of 500 images for 70 queries" in capsys.readouterr().out


QUERY, GALLERY = lists(7)
NAN = GALLERY.copy()
NAN[321, 2] = np.nan


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: search.search(QUERY, NAN), "gallery features: row 321 holds NaN or infinity"),
        (lambda: search.search(NAN, GALLERY), "query features: row 321 holds NaN"),
        (lambda: search.search(QUERY, GALLERY[:, :5]), "query features are 12 wide, gallery features 5"),
        (lambda: search.search(QUERY, GALLERY[:0]), "gallery features: no images"),
        (lambda: search.search(QUERY[0], GALLERY), "query features: expected shape"),
        (lambda: search.search(QUERY.astype(int), GALLERY), "query features: expected floating point"),
        (lambda: search.search(QUERY, GALLERY, k=0), "k: expected .* got 0$"),
        (lambda: search.search(QUERY, GALLERY, metric="l1"), "metric: unknown 'l1'. Known: euclidean, cosine"),
        (lambda: search.search(QUERY, GALLERY * np.float32(1e25), normalize=False), "gallery features are too large"),
    ],
)
def test_a_mistake_is_told_in_one_line(call, words):
    with pytest.raises(UserError, match=words) as error:
        call()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.npy", None, "no such file"),
        ("text.npy", b"hello", "not a readable .npy file"),
        ("empty.npy", b"", "not a readable .npy file"),
        ("cut.npy", "cut", "not a readable .npy file"),
        ("objects.npy", np.array([None, 1]), "not a readable .npy file"),
        ("several.npz", "npz", "an .npz holds several arrays"),
        ("ids.npy", np.arange(9), "gallery features: expected shape"),
    ],
)
def test_the_command_refuses_bad_files(name, content, words, tmp_path):
    np.save(tmp_path / "q.npy", QUERY)
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, np.ndarray):
        np.save(path, content)
    elif content == "cut":
        path.write_bytes((tmp_path / "q.npy").read_bytes()[:1000])
    elif content == "npz":
        np.savez(path, a=QUERY)
    with pytest.raises(UserError, match=words) as error:
        command.main(["--query", str(tmp_path / "q.npy"), "--gallery", str(path), "--out", str(tmp_path / "o.npz")])
    assert "\n" not in str(error.value) and not (tmp_path / "o.npz").exists()


def test_the_command_refuses_another_kind_of_result(tmp_path):
    np.save(tmp_path / "q.npy", QUERY)
    words = ["--query", str(tmp_path / "q.npy"), "--gallery", str(tmp_path / "q.npy"), "--out"]
    with pytest.raises(UserError, match="expected a name that ends in .npz"):
        command.main([*words, str(tmp_path / "o.txt")])
    with pytest.raises(UserError, match="--memory: expected at least 0 GB, got -1.0"):
        command.main([*words, str(tmp_path / "o.npz"), "--memory", "-1"])


@pytest.mark.parametrize("size", [7, 64, 500])
def test_a_gallery_in_blocks_of_any_order_gives_the_same_bits(size, small_tiles):
    query, gallery = lists(2)
    order = np.random.default_rng(3).permutation(len(gallery))

    def blocks():
        return ((some, gallery[some]) for some in (order[at : at + size] for at in range(0, len(order), size)))

    found = search.search_blocks(query, blocks, len(gallery), 20)
    for ours, expected in zip(found, search.search(query, gallery, 20), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_a_pass_with_fewer_images_than_it_promised_leaves_places_empty(small_tiles):
    query, gallery = lists(4, num_g=3)
    indices, distances = search.search_blocks(query, lambda: [(np.arange(3), gallery)], 5, 9)
    assert indices.shape == distances.shape == (len(query), 5)
    assert (indices[:, 3:] == -1).all() and np.isinf(distances[:, 3:]).all()
    np.testing.assert_array_equal(indices[:, :3], search.search(query, gallery, 3)[0])
    nobody = search.search_blocks(query, list, 5, 2)
    assert (nobody[0] == -1).all() and np.isinf(nobody[1]).all()
