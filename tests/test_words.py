"""Words of a private dialect do not come back into code, messages and pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.imports import PACKAGES, ROOT, python_files

DIALECT = re.compile(r"\b(told|alike|anew)\b|\bis none of\b", re.IGNORECASE)
FILES = [
    *(path for package in PACKAGES for path in python_files(package)),
    *(Path(name) for name in ("train.py", "test.py", "hatch_build.py", "README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *(path.relative_to(ROOT) for path in sorted((ROOT / "lineup").glob("*.py"))),
    *(path.relative_to(ROOT) for path in sorted((ROOT / "docs").rglob("*.md"))),
]


def test_there_is_something_to_read():
    assert len(FILES) >= 150


@pytest.mark.parametrize("path", FILES, ids=str)
def test_a_file_has_no_word_of_the_dialect(path):
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    assert not [f"{path}:{i}: {line.strip()}" for i, line in enumerate(lines, 1) if DIALECT.search(line)]
