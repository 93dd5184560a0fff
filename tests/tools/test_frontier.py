"""``tools.frontier`` and ``tools.speed``: who is on the frontier, what is measured, what page and table show."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import numpy as np
import pytest
import yaml

from configs import load_config
from model import make_model
from tests.browser import Browser, Page, needs_browser
from tests.tiny import options
from tests.tools.test_compare import aps, finished
from tools import frontier, speed
from tools.pages.charts import round_costs
from tools.record import fill_tables
from utils.errors import UserError

MEASURED = {"size": [64, 32], "batch": 1, "machine": "2 cores", "threads": 1, "torch": "2.6"}


def measured(folder: Path, lift: float, times: dict[str, float], parameters: int) -> Path:
    run = finished(folder, aps(1, lift))
    content = MEASURED | {"milliseconds": times, "parameters": parameters, "megabytes": 4e-6 * parameters}
    (run / "speed.json").write_text(json.dumps(content))
    return run


@pytest.fixture
def runs(tmp_path):
    return [
        measured(tmp_path / "small", 0.0, {"torch": 5.0, "onnxruntime": 3.0}, 2_000_000),
        measured(tmp_path / "large", 0.1, {"torch": 50.0}, 30_000_000),
        measured(tmp_path / "worst", -0.1, {"torch": 80.0}, 40_000_000),
    ]


def test_a_run_that_another_beats_in_both_is_not_on_the_frontier():
    points = [(1, 10), (2, 20), (3, 15), (2, 20), (2, 19), (1, 9)]
    assert frontier.on_frontier(points) == [True, True, False, True, False, False]


def test_the_axis_of_costs_has_round_numbers():
    assert round_costs(0.9, 30) == [1, 2, 5, 10, 20] and round_costs(3, 4) == [3, 4]


def test_sizes_of_small_networks_are_not_rounded_to_nothing():
    assert frontier.Speed({}, 4_922_000, 19.7, 1, (64, 32), "").sizes() == ("4.9", "20")
    assert frontier.Speed({}, 43_000, 0.172, 1, (64, 32), "").sizes() == ("0.043", "0.17")


def test_page_and_table_show_every_run_with_its_interval(runs, tmp_path, capsys):
    frontier.main([*map(str, runs), "--out", str(tmp_path / "page.html"), "--table", str(tmp_path / "table.md")])
    table = (tmp_path / "table.md").read_text()
    assert table in capsys.readouterr().out
    rows = [line.strip("| ").split(" | ") for line in table.splitlines()]
    assert len(rows) == 5 and rows[0][5:7] == ["ms in PyTorch", "ms in onnxruntime"]
    values = {Path(row[0].strip("`")).name: row for row in rows[2:]}
    assert list(values) == ["large", "small", "worst"]
    low, high = map(float, values["small"][4].split(" to "))
    assert low < float(values["small"][3]) < high and values["small"][5:] == ["5.0", "3.0", "2.0", "8"]
    assert values["large"][6] == ""
    page = Page(tmp_path / "page.html")
    assert len(page.all("svg")) == 2 and "http:" not in page.source and "https:" not in page.source
    assert page.source.count("<circle") == 4 + 2 + 3  # times in two runtimes, their legend, and parameters


def test_a_recorded_table_fills_a_page(runs, tmp_path, monkeypatch):
    monkeypatch.setattr(frontier, "ROOT", tmp_path)
    for run in runs:
        metrics = json.loads((run / "metrics.json").read_text())
        (run / "metrics.json").write_text(json.dumps(metrics | {"config_file": f"configs/{run.name}.yml"}))
    frontier.main([*map(str, runs), "--record", "people", "--data", "Market|1501"])
    (tmp_path / "page.md").write_text("<!-- results frontier_people -->\nold\n<!-- end -->\n")
    fill_tables(tmp_path / "results", [tmp_path / "page.md"])
    rows = [line.strip("| ").split(" | ") for line in (tmp_path / "page.md").read_text().splitlines()[1:-1]]
    assert rows[0] == ["config", "data", "network", "size", "mAP", "95 % interval", "ms in PyTorch",
                       "ms in onnxruntime", "M parameters", "MB"]  # fmt: skip
    assert [row[0] for row in rows[2:]] == [f"`configs/{name}.yml`" for name in ("large", "small", "worst")]
    assert rows[3][1] == "Market\\|1501" and rows[3][6:] == ["5.0", "3.0", "2.0", "8"]
    with pytest.raises(UserError, match=r"--record: '\.\./x' is not a name of letters"):
        frontier.main([*map(str, runs), "--record", "../x"])


def test_mistakes_are_one_line(runs, tmp_path):
    damaged = json.loads((runs[0] / "speed.json").read_text()) | {"parameters": -1}
    for content in (json.dumps(damaged), "[]", "{"):
        (runs[0] / "speed.json").write_text(content)
        with pytest.raises(UserError, match="small/speed.json: damaged .*remove it"):
            frontier.main(list(map(str, runs)))
    with pytest.raises(UserError, match="no metrics.json"):
        frontier.main([str(tmp_path)])
    other = finished(tmp_path / "short", aps(1)[1:])
    with pytest.raises(UserError, match="not tested on the same queries"):
        frontier.main([str(runs[1]), str(other)])
    with pytest.raises(UserError, match="--batch and --repeats must be at least 1"):
        speed.main([str(runs[0]), "--batch", "0"])


def write_any_onnx(path: Path) -> None:
    """A file with the inputs of an exported model."""
    onnx = pytest.importorskip("onnx", reason="requirements-dev.txt has it")
    make, kinds = onnx.helper, onnx.TensorProto
    images = make.make_tensor_value_info("images", kinds.UINT8, ["n", "h", "w", 3])
    cameras = make.make_tensor_value_info("cam_label", kinds.INT64, ["n"])
    out = make.make_tensor_value_info("features", kinds.FLOAT, ["n", "h", "w", 3])
    nodes = [make.make_node("Cast", ["images"], ["features"], to=kinds.FLOAT)]
    graph = make.make_graph(nodes, "any", [images, cameras], [out])
    onnx.save(make.make_model(graph, opset_imports=[make.make_opsetid("", 18)], ir_version=9), path)


def test_a_run_is_measured_in_both_runtimes_and_counted_without_classifiers(tmp_path):
    pytest.importorskip("onnxruntime", reason="requirements-dev.txt has it")
    run = finished(tmp_path / "run", aps(1))
    cfg = load_config(opts=options(tmp_path, run, MODEL__SIE_CAMERA=True))
    tree: dict = yaml.safe_load((run / "config.yml").read_text())
    for key, value in zip(*[iter(options(tmp_path, run, MODEL__SIE_CAMERA=True))] * 2, strict=True):
        *sections, leaf = key.split(".")
        node = tree
        for name in sections:
            node = node.setdefault(name, {})
        node[leaf] = value
    (run / "config.yml").write_text(yaml.safe_dump(tree))
    model = make_model(cfg, 2, 1)
    (run / "exported").mkdir()
    write_any_onnx(run / "exported" / "model.onnx")
    speed.main([str(run), "--batch", "2", "--repeats", "2"])
    read = frontier.Speed.read(run / "speed.json")
    assert read.milliseconds.keys() == {"torch", "onnxruntime"} and read.size == (32, 16) and read.batch == 2
    expected = sum(p.numel() for name, p in model.named_parameters() if not name.startswith("classifier"))
    assert read.parameters == expected and read.megabytes == pytest.approx(4e-6 * expected, rel=0.01)
    assert np.isfinite(list(read.milliseconds.values())).all()


def test_a_run_that_cannot_be_measured_says_why(tmp_path, monkeypatch):
    run = finished(tmp_path / "run", aps(1))
    done = subprocess.CompletedProcess([], 2, "", "a warning\nerror: MODEL.NAME: unknown 'nothing'\n")
    monkeypatch.setattr(frontier.subprocess, "run", lambda *words, **more: done)
    with pytest.raises(UserError, match="could not be measured: MODEL.NAME: unknown 'nothing'"):
        frontier.main([str(run)])


@needs_browser
def test_a_browser_opens_the_page(runs, tmp_path):
    frontier.main([*map(str, runs), "--out", str(tmp_path / "page.html")])
    with Browser(tmp_path / "profile", width=390) as browser:
        browser.size(390, 800, phone=True)
        browser.open(tmp_path / "page.html")
        assert browser.ask("document.documentElement.scrollWidth") <= 390
        assert browser.troubles == []
