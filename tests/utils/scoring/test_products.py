"""A cell of a product depends on its two rows alone, whatever the CPU's library does at the edges."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from utils.scoring import products
from utils.scoring.blocks import in_threads
from utils.scoring.products import by_einsum, by_numpy, by_torch, even_product, is_even, product


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("depth", [5, 33, 128, 1000])
def test_equal_rows_have_equal_products_at_every_place_and_in_every_shape(depth, dtype):
    rng = np.random.default_rng(depth)
    a, b = rng.standard_normal((3, depth)).astype(dtype), rng.standard_normal((5, depth)).astype(dtype)
    values: dict[tuple[int, int], set] = {}
    for height in (16, 48, 256):
        for width in (16, 112, 640):
            cells = product(a[np.arange(height) % 3], b[np.arange(width) % 5])
            for i in range(3):
                for j in range(5):
                    values.setdefault((i, j), set()).update(np.unique(cells[i::3, j::5]).tolist())
    assert all(len(found) == 1 for found in values.values())
    exact = (a.astype(np.float64) @ b.astype(np.float64).T)[0, 0]
    assert values[0, 0].pop() == pytest.approx(exact, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("way", [by_numpy, by_torch, by_einsum])
def test_all_libraries_multiply(way):
    rng = np.random.default_rng(0)
    a, b, out = *(rng.standard_normal((16, 7)).astype(np.float32) for _ in range(2)), np.empty((16, 16), np.float32)
    a.flags.writeable = False  # as the rows of a memory-mapped gallery are
    way(a, b, out)
    assert out == pytest.approx(np.einsum("id,jd->ij", a, b), abs=1e-5)
    way(a, a, out)
    assert out == pytest.approx(np.einsum("id,jd->ij", a, a), abs=1e-5)


def test_a_library_that_treats_the_edges_otherwise_is_passed_over(monkeypatch):
    def uneven(a, b, out):
        by_einsum(a, b, out)
        out[:8, :8] = np.nextafter(out[:8, :8], np.float32(np.inf))

    dtype = np.dtype(np.float32)
    assert not is_even(uneven, dtype) and is_even(by_einsum, dtype)
    monkeypatch.setattr(products, "by_numpy", uneven)
    even_product.cache_clear()
    try:
        assert even_product(dtype) is not uneven
        monkeypatch.setattr(products, "by_torch", uneven)
        even_product.cache_clear()
        assert even_product(dtype) is by_einsum
    finally:
        even_product.cache_clear()


def test_threads_multiply_alone_and_leave_torch_as_it_was():
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        assert in_threads([(i,) for i in range(4)], lambda i: torch.get_num_threads()) == [1] * 4
        assert in_threads([(0,)], lambda i: torch.get_num_threads()) == [1] and torch.get_num_threads() == 2
        with pytest.raises(ZeroDivisionError):
            in_threads([(0,)], lambda i: 1 / i)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(before)
