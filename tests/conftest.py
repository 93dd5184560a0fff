"""Fixtures for all tests. They run on the CPU with one thread, so that they share a small machine.

One thread whatever the environment and the tests before say: sums over several differ in their last bits, and tests
compare a process of their own with this one.
"""

from __future__ import annotations

import os

os.environ["OMP_NUM_THREADS"] = "1"
if not os.environ.get("LINEUP_GPU_TESTS"):  # make gpu
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import pytest  # noqa: E402
import torch  # noqa: E402

from tests.tiny import write_market  # noqa: E402


def pytest_runtest_setup():
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def market(tmp_path_factory):
    """A data root with a tiny Market-1501: 4 training and 4 test identities, 2 cameras, 2 images of each."""
    return write_market(tmp_path_factory.mktemp("data"))
