"""Cutting long loops into blocks, and running them in threads."""

from __future__ import annotations

import time

import pytest
import torch

from utils.scoring.blocks import each_block, even_cut, free_memory, in_threads, strip_height


@pytest.mark.parametrize("total", [1, 15, 16, 17, 255, 256, 257, 3368, 15913, 93820])
@pytest.mark.parametrize("most", [16, 32, 256, 640])
def test_cuts_are_multiples_of_16_that_waste_little(total, most):
    size = even_cut(total, most)
    assert size % 16 == 0 and size <= max(most, 16)
    assert -(-total // size) * size - total <= max(-(-total // most) * most - total, 15)


def test_strips_fit_into_the_memory_given():
    assert 160 <= strip_height(10_000, 1000) <= 256
    assert strip_height(10_000, 10**6, 2 * 10**8) < strip_height(10_000, 1000)
    assert strip_height(10_000, 10**9, 1) == 16


@pytest.mark.parametrize("threads", [False, True])
@pytest.mark.parametrize("block_size", [None, 1, 40, 10**6])
def test_blocks_cover_all_rows_once_and_in_order(threads, block_size):
    spans = each_block(1000, 50, block_size, lambda *span: span, "test", strip=32, threads=threads)
    assert spans[0][0] == 0 and spans[-1][1] == 1000
    assert all(a[1] == b[0] and b[0] % 32 == 0 for a, b in zip(spans, spans[1:], strict=False))


def test_the_error_of_a_thread_is_raised_and_ends_the_work():
    torch.set_num_threads(2)  # conftest.py sets it back
    done = []

    def work(number):
        if number == 1:
            raise ValueError("broken")
        time.sleep(0.001)
        done.append(number)

    with pytest.raises(ValueError, match="broken"):
        in_threads([(number,) for number in range(1000)], work)
    assert len(done) < 999


def test_free_memory_is_a_number_of_bytes():
    assert 2**20 < free_memory() < 2**50
