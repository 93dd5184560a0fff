"""Builds the wheel, installs it into an environment and uses it there: ``python -m tests.wheel ENVIRONMENT``.

The environment has the requirements, Hugging Face's ``datasets`` and pytest, and nothing of a checkout; ``make wheel``
makes it. An older wheel is installed first, which the new one replaces. Then come the commands on built-in data,
features in three lines of Python beside ``datasets``, and the fast tests, whose imports are rewritten as the wheel's.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

import lineup
from hatch_build import FRONT, rewritten
from tests.imports import ROOT

MOST_MEGABYTES = 3.0
TESTS = ("loss", "solver", "model/layers")
"""Folders of tests that run quickly and need no checkout around them."""
SMALL = (
    *("DATASETS.SYNTHETIC.IDS", "16", "SOLVER.MAX_EPOCHS", "2", "SOLVER.WARMUP_EPOCHS", "1"),
    *("SOLVER.EVAL_PERIOD", "2", "SOLVER.IMS_PER_BATCH", "16"),
)
FEATURES = """
import datasets, utils
from lineup import Extractor
extract = Extractor.load("runs/quickstart")
feats = extract(sorted(__import__("glob").glob("data/**/query/*.jpg", recursive=True))[:8])
assert feats.shape == (8, 512) and "Dataset" in dir(datasets) and utils.strange
print(feats.shape, datasets.__name__, datasets.__version__)
"""


def run(what: str, *words: object, cwd: Path = ROOT, **more: str) -> str:
    """Runs a command and prints how long it took; returns its output. Ends the program where it fails."""
    began = time.monotonic()
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **more}
    done = subprocess.run([str(word) for word in words], cwd=cwd, env=environment, capture_output=True, text=True)
    print(f"{what}: {time.monotonic() - began:.1f} s", flush=True)
    if done.returncode:
        sys.exit(f"{done.stdout[-6000:]}\n{done.stderr[-6000:]}\n{what} failed with code {done.returncode}")
    return done.stdout


def older(wheel: Path, folder: Path) -> Path:
    """Writes a wheel of an earlier version, with a module that the new one lacks; returns its path."""
    old = folder / wheel.name.replace(lineup.__version__, "0.0.1")
    with zipfile.ZipFile(wheel) as new, zipfile.ZipFile(old, "w") as archive:
        for name in new.namelist():
            raw = new.read(name)
            if name.endswith("METADATA"):
                raw = re.sub(rb"(?m)^Version: .*", b"Version: 0.0.1", raw, count=1)
            if name.endswith("RECORD"):
                raw = raw.replace(f"-{lineup.__version__}.dist".encode(), b"-0.0.1.dist") + b"lineup/gone.py,,\n"
            archive.writestr(name.replace(f"-{lineup.__version__}.dist", "-0.0.1.dist"), raw)
        archive.writestr("lineup/gone.py", "")
    return old


def build(folder: Path) -> Path:
    """Builds source archive and wheel into a folder that held others; returns the wheel."""
    shutil.rmtree(folder, ignore_errors=True)
    run("source archive and wheel", sys.executable, "-m", "build", "--no-isolation", "--outdir", folder)
    (wheel,) = folder.glob("*.whl")
    megabytes = wheel.stat().st_size / 1e6
    print(f"{wheel.name}: {megabytes:.2f} MB")
    assert megabytes < MOST_MEGABYTES
    return wheel


def copy_tests(folder: Path, package: Path) -> None:
    """Copies the tests with imports of the installed package, beside its YAML files."""
    for path in (ROOT / "tests").rglob("*.py"):
        target = folder / path.relative_to(ROOT)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(rewritten(path.read_text(encoding="utf-8")), encoding="utf-8")
    shutil.copy(ROOT / "pyproject.toml", folder)
    (folder / "configs").symlink_to(package / "configs")


def main() -> None:
    """Runs all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("environment", type=Path, help="a virtual environment with the requirements")
    bin_folder = (parser.parse_args().environment / "bin").resolve()
    wheel = build(ROOT / "dist")
    uv = [bin_folder / "uv", "pip", "install", "-q", "--no-deps", "--reinstall", "--python", bin_folder / "python"]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "utils.py").write_text("strange = True\n")  # what a user's project may hold
        run("an older wheel", *uv, older(wheel, folder))
        run("the wheel over it", *uv, wheel)
        python, command = bin_folder / "python", bin_folder / FRONT
        where = "import lineup, pathlib; print(pathlib.Path(lineup.__file__).parent)"
        package = Path(run("where it is", python, "-c", where, cwd=folder).strip())
        assert package.is_relative_to(bin_folder.parent) and not (package / "gone.py").exists()
        version = run("lineup --version", command, "--version", cwd=folder)
        assert version == f"lineup {lineup.__version__} in {package}\n"
        settings = ["--config_file", "configs/quickstart.yml", *SMALL]
        run("lineup train", command, "train", *settings, cwd=folder)
        weight = "runs/quickstart/resnet10_2.pth"
        words = ["TEST.WEIGHT", weight, "OUTPUT_DIR", "runs/test"]
        run("lineup test", command, "test", *settings, *words, cwd=folder)
        assert (folder / "runs/quickstart/report.html").is_file() and (folder / "runs/test/test_metrics.json").is_file()
        print(run("features", python, "-c", FEATURES, cwd=folder), end="")
        copy_tests(folder / "copy", package)
        tests = [f"tests/{test}" for test in TESTS]
        words = [python, "-m", "pytest", "-q", "-n", "auto", "--dist", "worksteal", "-p", "no:cacheprovider"]
        print(run("the fast tests", *words, *tests, cwd=folder / "copy").splitlines()[-1])


if __name__ == "__main__":
    main()
