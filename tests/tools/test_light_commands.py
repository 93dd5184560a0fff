"""Commands that read files start at once: neither they nor what they read import torch."""

from __future__ import annotations

import subprocess
import sys

import pytest

from tests.runs import ROOT
from tests.tools.test_compare import aps, finished

LIGHT = ("average", "compare", "frontier", "record", "report")
AFTER = "; import sys; assert 'torch' not in sys.modules, 'torch was imported'"


def python(code: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", code + AFTER], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize("name", LIGHT)
def test_importing_a_command_that_reads_files_imports_no_torch(name):
    done = python(f"import tools.{name}")
    assert done.returncode == 0, done.stderr


def test_reading_runs_imports_no_torch(tmp_path):
    runs = [str(finished(tmp_path / name, aps(i), SEED=i)) for i, name in enumerate("ab")]
    words = [*runs, "--out", str(tmp_path / "page.html")]
    done = python(f"from tools import average, compare; compare.main({words!r}); average.main({runs[:1]!r})")
    assert done.returncode == 0, done.stderr
    assert "queries" in done.stdout and (tmp_path / "page.html").exists()
