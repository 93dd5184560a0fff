"""python -m configs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from configs.__main__ import describe
from configs.defaults import KEYS

ROOT = Path(__file__).resolve().parents[2]


def test_all_keys_are_listed_with_meaning_and_readers():
    lines = list(describe())
    assert len(lines) == 3 * len(KEYS)
    assert [line.split(" = ")[0] for line in lines[::3]] == list(KEYS)
    assert all(line.startswith("    ") and line.strip() for line in lines[1::3] + lines[2::3])
    text = "\n".join(lines)
    assert "read by nothing: torchrun decides" in text and "read by solver/" in text


@pytest.mark.parametrize(("pattern", "expected"), [
    ("stride_size", ["MODEL.STRIDE_SIZE"]),
    ("INPUT.SIZE_*", ["INPUT.SIZE_TRAIN", "INPUT.SIZE_TEST"]),
])
def test_a_pattern_narrows_the_list(pattern, expected):
    assert [line.split(" = ")[0] for line in list(describe(pattern))[::3]] == expected


def test_a_yaml_shows_what_it_changes(tmp_path):
    path = tmp_path / "run.yml"
    path.write_text("MODEL: {JPM: True}")
    assert next(describe("MODEL.JPM", str(path))) == "MODEL.JPM = False   (here True)"


def test_as_a_program():
    def run(*args):
        return subprocess.run([sys.executable, "-m", "configs", *args], cwd=ROOT, capture_output=True, text=True)
    good, bad, missing = run("jpm"), run("nonsense"), run("--config_file", "nowhere.yml")
    assert good.returncode == 0 and good.stdout.startswith("MODEL.JPM = False\n    jigsaw")
    assert (bad.returncode, missing.returncode) == (2, 2)
    assert bad.stderr.count("\n") == missing.stderr.count("\n") == 1
    assert "nowhere.yml: no such configuration file" in missing.stderr
