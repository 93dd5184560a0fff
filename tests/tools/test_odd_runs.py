"""Folders of runs that others have damaged or edited: every command that reads them ends clean or in one line."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests.runs import call
from tests.tiny import options, write_market
from tools import average, compare, record, report
from utils.errors import UserError

SAMPLES = int(os.environ.get("LINEUP_FUZZ_RUNS", 3))
ODD: list[Any] = [
    None, True, -1, 10**400, 1e308, float("nan"), float("inf"), 0.5, "x", "x" * 10**5, "../../x", "a\nb|<b>", "\udcff",
    [], {}, [[]], {"a": {"b": 1}}, [1, "x"], "/etc/hostname",
]  # fmt: skip


@pytest.fixture(scope="module")
def sound(tmp_path_factory) -> Path:
    """A folder in which training, a test and pictures have finished."""
    root, folder = write_market(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("runs") / "run"
    assert call("train", options(root, folder, TEST__REPORT=True)) == 0
    assert call("test", options(root, folder, TEST__REPORT=True, TEST__WEIGHT=folder / "transformer_1.pth")) == 0
    return folder


def nested(value: Any) -> list[tuple]:
    """The paths of all entries of a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path for key, inner in items for path in [(key,), *((key, *rest) for rest in nested(inner))]]


def changed(value: Any, path: tuple, odd: Any) -> Any:
    if not path:
        return odd
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = changed(value[path[0]], path[1:], odd)
    return copy


def read_by_every_command(folder: Path, sound: Path, capsys) -> int:
    """Runs the commands and returns how many refused the folder."""
    commands = {
        "report": lambda: report.main([str(folder)]),
        "compare": lambda: compare.main([str(folder), str(sound), "--out", str(folder / "compare.html")]),
        "average": lambda: average.main([str(folder)]),
        "record": lambda: record.markdown_table(record.rows_of(folder)),
    }
    refused = 0
    for name, command in commands.items():
        try:
            command()
        except UserError as error:
            assert str(error).isprintable() and len(str(error)) < 2000, name
            refused += 1
        except BaseException as error:
            raise AssertionError(f"{name}: {type(error).__name__}: {error}") from error
        capsys.readouterr()
    return refused


@pytest.mark.parametrize("name", ["metrics.json", "test_metrics.json", "pictures/index.json"])
def test_json_with_odd_entries(sound, tmp_path, capsys, name):
    content = json.loads((sound / name).read_text())
    draw, refused = random.Random(int(os.environ.get("LINEUP_FUZZ_SEED", 0))), 0
    for i in range(SAMPLES):
        folder = shutil.copytree(sound, tmp_path / str(i))
        path, odd = draw.choice([(), *nested(content)]), draw.choice(ODD)
        (folder / name).write_text(json.dumps(changed(content, path, odd)))
        try:
            refused += read_by_every_command(folder, sound, capsys) > 0
        except AssertionError as error:
            raise AssertionError(f"{name}: {path} = {str(odd)[:40]!r}: {error}") from error
        shutil.rmtree(folder)
    assert refused > 0


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("metrics.json", b"{"), ("metrics.json", b"[]"), ("metrics.json", b"[" * 10**5),
        ("metrics.json", b'{"a":' * 2000),
        ("metrics.json", b"\xff\xfe"), ("test_metrics.json", b"null"), ("pictures/index.json", b"[" * 10**5),
        ("pictures/index.json", b"{}"), ("pictures/index.json", b"\xff"), ("per_query.csv", b"\x00"),
        ("per_query.csv", b"path,pid\n" + b"x" * 10**6), ("ranked.npz", b"PK\x03\x04"), ("ranked.npz", b""),
        ("config.yml", b"- a"), ("config.yml", b"[" * 3000), ("config.yml", b"\xff\xfe\x00"), ("config.yml", b"a: *b"),
        ("config.yml", b"a: &a [1]\n" + b"".join(b"a%d: &a%d [%s]\n" % (i, i, b"*a," * 9) for i in range(30))),
        ("test_config.yml", b"\xff"), ("test_config.yml", b"? [a]\n: b"), ("log.txt", b"\xff" * 100),
    ],
)  # fmt: skip
def test_files_of_something_else(sound, tmp_path, capsys, name, content):
    folder = shutil.copytree(sound, tmp_path / "run")
    (folder / name).write_bytes(content)
    read_by_every_command(folder, sound, capsys)


COLUMNS = ["path", "pid", "camid", "AP", "INP", "first_match_rank", "valid"]
ODD_CELLS = ["", "nan", "-1", "1e400", "9" * 30, "9" * 5000, "x" * 10**5, "\x1b[31m", "<b>", "²"]


@pytest.mark.parametrize("column", COLUMNS)
def test_tables_of_queries_with_odd_cells(sound, tmp_path, capsys, column):
    lines = (sound / "per_query.csv").read_text().splitlines()
    place = lines[0].split(",").index(column)
    for i, odd in enumerate(ODD_CELLS[COLUMNS.index(column) % 3 :: 3]):  # each value in two columns or three
        folder = shutil.copytree(sound, tmp_path / str(i))
        cells = lines[1].split(",")
        cells[place] = odd
        (folder / "per_query.csv").write_text("\n".join([lines[0], ",".join(cells), *lines[2:]]) + "\n")
        read_by_every_command(folder, sound, capsys)
        page = folder / "report.html"
        assert "x" * 1000 not in page.read_text() and "<b>," not in page.read_text()
        shutil.rmtree(folder)


def odd_arrays(array: np.ndarray) -> list[np.ndarray]:
    return [
        array.astype(str), array[:0], array.reshape(-1)[:1], array[None], np.array(0), np.full(array.shape, 1e300),
        np.full(array.shape, np.nan), np.full(array.shape, -(2**31)), np.full(array.shape, True), array.astype(complex),
    ]  # fmt: skip


def test_rankings_with_odd_arrays(sound, tmp_path, capsys):
    with np.load(sound / "ranked.npz") as stored:
        arrays = dict(stored)
    draw = random.Random(int(os.environ.get("LINEUP_FUZZ_SEED", 0)))
    cases = [(name, i) for name in arrays for i in range(10)]
    for name, i in draw.sample(cases, 2 * SAMPLES):
        folder = shutil.copytree(sound, tmp_path / f"{name}{i}")
        np.savez(folder / "ranked.npz", **arrays | {name: odd_arrays(arrays[name])[i]})
        try:
            read_by_every_command(folder, sound, capsys)
        except AssertionError as error:
            raise AssertionError(f"{name} {i}: {error}") from error
        shutil.rmtree(folder)


@pytest.mark.parametrize("kind", ["absolute", "above", "link", "text"])
def test_a_page_shows_no_file_from_outside_the_run(sound, tmp_path, kind):
    folder = shutil.copytree(sound, tmp_path / "run")
    secret = tmp_path / "secret.png"
    Image.new("RGB", (3, 3), (1, 2, 3)).save(secret)
    index = json.loads((folder / "pictures" / "index.json").read_text())
    (folder / "pictures" / "link.png").symlink_to(secret)
    (folder / "pictures" / "text.png").write_text("root:x:0:0")
    names = {"absolute": str(secret), "above": "../../secret.png", "link": "link.png", "text": "text.png"}
    index[0]["file"] = names[kind]
    (folder / "pictures" / "index.json").write_text(json.dumps(index))
    (folder / "report.html").unlink()
    with pytest.raises(UserError, match=r"index\.json: damaged; remove"):
        report.main([str(folder)])
    assert not (folder / "report.html").exists()


@pytest.mark.parametrize("method", ["../../x", "/tmp/x", "a/b", ".x", "x\n", "x" * 100, "a b", "-x"])
def test_record_writes_nowhere_else(sound, tmp_path, method):
    folder = shutil.copytree(sound, tmp_path / "run")
    metrics = json.loads((folder / "metrics.json").read_text())
    (folder / "metrics.json").write_text(json.dumps(metrics | {"method": method}))
    with pytest.raises(UserError, match=r"metrics\.json: the method .* is not a name of letters"):
        record.rows_of(folder)


def test_cells_of_tables_hold_no_html_and_no_line_ends():
    row = dict.fromkeys(record.COLUMNS, "a|b<img src=x>\n`c`")
    lines = record.markdown_table([row]).splitlines()
    outside_code = lines[2].replace("`a\\|b<img src=x>\\nc`", "")
    assert len(lines) == 3 and "<img" not in outside_code and lines[2].count(" | ") == 8


def test_a_finished_run_names_its_damaged_file(sound, tmp_path, capsys):
    root, folder = write_market(tmp_path / "data"), tmp_path / "run"
    words = options(root, folder, SOLVER__MAX_EPOCHS=1)
    assert call("train", words) == 0
    for text in ("{", "[]", '{"results": {"a": {"mAP": "x"}}}'):
        (folder / "metrics.json").write_text(text)
        capsys.readouterr()
        assert call("train", words) == 2
        line = capsys.readouterr().err
        assert line.startswith("error: ") and "metrics.json: damaged" in line and line.count("\n") == 1
        assert call("test", [*words, "TEST.WEIGHT", folder / "transformer_1.pth"]) == 0
