"""The style checks of ``make lint`` find what they are there for."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def run(tool: str, *arguments) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-m", tool, *map(str, arguments)], cwd=ROOT, capture_output=True, text=True)


def test_ruff_finds_commented_out_code(tmp_path):
    (tmp_path / "a.py").write_text("x = 1\n# y = compute(x)\n# if y > 3:\n#     print(y)\n")
    checked = run("ruff", "check", "--config", ROOT / "pyproject.toml", "--no-cache", tmp_path)
    assert checked.returncode != 0 and "ERA001" in checked.stdout


def test_pylint_finds_duplicate_code(tmp_path):
    body = "".join(f"    value_{i} = values[{i}] + {i} * scale\n" for i in range(12))
    for name in "ab":
        (tmp_path / f"{name}.py").write_text(f"def {name}(values, scale):\n{body}    return value_0\n")
    checked = run("pylint", "--rcfile", ROOT / "pyproject.toml", tmp_path / "a.py", tmp_path / "b.py")
    assert checked.returncode != 0 and "duplicate-code" in checked.stdout
