"""The wheel has every package below ``lineup``, and lives beside packages that are called as ours are."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lineup
from hatch_build import ROOMS, commit_of, extras, package_files, requirements, rewritten, write_package
from tests.imports import PACKAGES, ROOT, python_files
from tools.__main__ import list_commands
from utils import provenance

STRANGERS = ("datasets", "utils", "model", "tools", "configs")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("from utils.errors import UserError", "from lineup.utils.errors import UserError"),
        ("from loss import (\n    triplet,\n)", "from lineup.loss import (\n    triplet,\n)"),
        ("import loss", "from lineup import loss"),
        ("import loss as l", "import lineup.loss as l"),
        ("import processor.methods  # why", "import lineup.processor.methods; from lineup import processor  # why"),
        ("import model.base as b", "import lineup.model.base as b"),
        ("import os, utils.files", "import os; import lineup.utils.files; from lineup import utils"),
        ("def f():\n    from tools import search", "def f():\n    from lineup.tools import search"),
        ("from . import files\nimport modelling\nfrom utilsx import a", None),
        ("x = 'from utils import y'\n\"\"\"import loss\"\"\"", None),
        ("'python -m tools.search --k 1'", "'lineup search --k 1'"),
        ("'``python -m tools`` lists, python -m configs'", "'``lineup`` lists, lineup configs'"),
        ("f'python {name}.py'\n'python train.py'", "f'lineup {name}'\n'lineup train'"),
        ("'pip install -r requirements-extra.txt'", "'pip install lineup-reid[all]'"),
        ("'python -m pip', 'python trained.py', 'requirements.txt'", None),
    ],
)
def test_what_is_rewritten(source, expected):
    assert rewritten(source) == (source if expected is None else expected)


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    """A folder of packages as after an installation, beside strangers of the same names."""
    folder = tmp_path_factory.mktemp("site")
    write_package(ROOT, folder / "lineup")
    for name in STRANGERS:
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text("ours = False\n")
    return folder


def python(site: Path, folder: Path, *words: str) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(site), "OMP_NUM_THREADS": "1"}
    return subprocess.run([sys.executable, *words], cwd=folder, env=environment, capture_output=True, text=True)


@pytest.mark.slow
def test_the_package_is_complete_and_nothing_in_it_names_what_is_not_there(site):
    names = {path.relative_to(site / "lineup").as_posix() for path in (site / "lineup").rglob("*.*")}
    ours = {path.as_posix() for package in PACKAGES for path in python_files(package)}
    assert set(ROOMS) == set(PACKAGES) and len(ours) > 200
    assert ours <= names
    yamls = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*.yml")}
    templates = {path.relative_to(ROOT).as_posix() for path in (ROOT / "tools/pages/templates").iterdir()}
    assert len(yamls) > 100 and yamls | templates | {"train.py", "test.py", "commands.py"} <= names
    for path in (site / "lineup").rglob("*.py"):
        text = path.read_text()
        imports = [n for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Import | ast.ImportFrom)]
        named = [a.name for n in imports if isinstance(n, ast.Import) for a in n.names]
        named += [n.module or "" for n in imports if isinstance(n, ast.ImportFrom) and not n.level]
        assert not [name for name in named if name.split(".")[0] in ROOMS], path
        assert not re.search(r"python -m (tools|configs)\b|python (train|test)\.py|requirements-extra\.txt", text), path


def test_no_file_of_a_package_is_of_a_kind_that_the_wheel_forgets():
    packed = {source for source, _ in package_files(ROOT)}
    tracked = subprocess.run(["git", "ls-files", *ROOMS], cwd=ROOT, capture_output=True, text=True).stdout.split()
    assert len(tracked) > 300 or not (ROOT / ".git").exists()
    assert [name for name in tracked if ROOT / name not in packed] == []


@pytest.mark.slow
def test_importing_it_is_quick_and_the_extractor_is_there_when_it_is_asked_for(site, tmp_path):
    code = (
        "import sys, lineup; assert 'torch' not in sys.modules\n"
        "import datasets, utils; assert not datasets.ours and not utils.ours\n"
        "from lineup import Extractor, load_config, make_dataset, make_model\n"
        "assert Extractor.__module__ == 'lineup.processor.extractor' and 'torch' in sys.modules\n"
        f"ours = [name for name in sys.modules if name.split('.')[0] in {ROOMS}]\n"
        "assert sorted(ours) == ['datasets', 'utils'], ours\n"
        "assert load_config('configs/msvit/eth80.yml').MODEL.NAME == 'msvit_s'\n"
        "try:\n    lineup.nothing\nexcept AttributeError as error:\n    print(error)"
    )
    done = python(site, tmp_path, "-c", code)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "module 'lineup' has no attribute 'nothing'\n"


@pytest.mark.slow
def test_the_command_has_every_command(site, tmp_path):
    listed = python(site, tmp_path, "-m", "lineup").stdout
    names = re.findall(r"^lineup ([a-z_]+) +\S", listed, re.MULTILINE)
    assert names[:3] == ["train", "test", "configs"]
    assert names[3:] == list(list_commands())
    assert python(site, tmp_path, "-m", "lineup", "--version").stdout.startswith(f"lineup {lineup.__version__} in /")
    helped = python(site, tmp_path, "-m", "lineup", "check-data", "--help")
    assert helped.returncode == 0 and "\n  lineup check_data " in helped.stdout, helped.stderr
    wrong = python(site, tmp_path, "-m", "lineup", "trian")
    assert wrong.returncode == 2 and wrong.stdout == ""
    assert wrong.stderr == (
        "error: lineup: unknown command 'trian', did you mean 'train'? lineup alone lists the commands\n"
    )
    mistake = python(site, tmp_path, "-m", "lineup", "train", "--config_file", "configs/nothing.yml")
    assert mistake.returncode == 2
    assert mistake.stderr == "error: configs/nothing.yml: no such configuration file\n"


def test_a_checkout_has_the_same_names(monkeypatch):
    from processor.extractor import Extractor

    assert lineup.Extractor is Extractor and not lineup.INSTALLED


def test_the_commit_of_a_package_is_that_which_it_was_built_from(tmp_path, monkeypatch):
    (tmp_path / "COMMIT").write_text("abc123\n")
    with monkeypatch.context() as patch:
        patch.setattr(provenance, "__file__", str(tmp_path / "utils" / "provenance.py"))
        assert provenance.commit() == "abc123"
    assert provenance.commit() == commit_of(ROOT)
    (tmp_path / "COMMIT").write_text("def456+\n")
    assert commit_of(tmp_path) == "def456+"
    assert re.fullmatch(r"([0-9a-f]{40}\+?)?", commit_of(ROOT))


def test_every_optional_requirement_belongs_to_an_extra():
    rows = requirements(ROOT / "requirements-extra.txt")
    assert len(rows) >= 8
    assert [requirement for requirement, names in rows if not names] == [], "name an extra: package>=1  # [name]"
    groups = extras(ROOT / "requirements-extra.txt")
    assert groups["all"] == [requirement for requirement, _ in rows]
    assert groups["onnx"] == ["onnx>=1.17", "onnxscript>=0.3", "onnxruntime>=1.20"]


def test_the_version_is_one():
    assert f"version: {lineup.__version__}\n" in (ROOT / "CITATION.cff").read_text()
    assert f"## {lineup.__version__}" in (ROOT / "CHANGELOG.md").read_text()
