"""Fixtures of the tests of training."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.runs import TORCHRUN, start_process


@pytest.fixture(scope="session")
def shares(tmp_path_factory) -> Path:
    """A folder with what ``tests.processor.shares`` writes as one process and as two."""
    folder = tmp_path_factory.mktemp("shares")
    worker = ["-m", "tests.processor.shares", folder]
    for command in ([sys.executable, *worker], [*TORCHRUN, *worker]):
        done = start_process(*command)
        assert done.returncode == 0, done.stderr[-3000:]
    return folder
