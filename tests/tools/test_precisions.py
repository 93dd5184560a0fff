"""Files of other precisions keep what the command promises, and what cannot be kept is not written."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from datasets.loaders import make_dataloader
from model.exporting import write_onnx
from model.half_precision import write_bfloat16, write_float16
from model.quantising_onnx import OnnxQuantiser
from model.quantising_openvino import OpenVinoQuantiser
from model.recipes import Recipe, groups_of
from processor.runtimes import OnnxRuntime, OpenVino
from tests.browser import Page
from tools import export as exporting
from tools.export import export, main, refuse_options
from tools.exporting.calibration_images import calibration_feeds, drawn_over_cameras
from tools.exporting.eight_bits import write_int8
from tools.exporting.judging import Judge
from tools.exporting.search import Trial, fastest, mean_change, try_recipes
from tools.exporting.verdict import Comparison, Figure, Row, Verdict
from utils.errors import UserError
from utils.processor_flags import lacks_int8, processor_flags

pytest.importorskip("onnxruntime", reason="requirements-dev.txt has it")
pytest.importorskip("onnxscript", reason="requirements-dev.txt has it")


@pytest.fixture(scope="module")
def network(tmp_path_factory):
    """A network of three layers with weights as ONNX, and calibration images of it, one a feed."""
    torch.manual_seed(0)
    layers = (nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 3, stride=2), nn.ReLU())
    module = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 6)).eval()
    path = tmp_path_factory.mktemp("network") / "network.onnx"
    write_onnx(module, path, torch.zeros(2, 3, 16, 8))
    feeds = [{"images": torch.randn(1, 3, 16, 8).numpy()} for _ in range(32)]
    return path, feeds


@pytest.mark.slow
def test_a_file_in_half_precision_has_a_verdict_and_a_reference_that_it_passes(one_layer, tmp_path, capsys):
    out = tmp_path / "out"
    report = export(one_layer, out, "boxmot", "fp16", max_loss=100, reference=True)
    about = json.loads((out / "model.json").read_text())
    assert about["precision"] == "fp16" and about["verdict"] == json.loads(json.dumps(report["verdict"]))
    half = next(row for row in about["verdict"]["rows"] if row["precision"] == "fp16")
    whole = next(row for row in about["verdict"]["rows"] if row["precision"] == "fp32" and row["runtime"] != "PyTorch")
    assert half["megabytes"] < 0.6 * whole["megabytes"] and half["tests"]["market1501"]["least_cosine"] > 0.99
    assert whole["tests"]["market1501"]["same_first"] == 1 and set(half["speed"]) == set(whole["speed"])
    with np.load(out / "reference.npz") as stored:
        images, features = stored["images"], stored["features"]
    found = OnnxRuntime(out / "model.onnx")(images)
    assert found.dtype == np.float32 and images.dtype == np.float32 and images.shape == (8, 3, 32, 16)
    np.testing.assert_allclose(found, features, atol=1e-2)
    np.savez(tmp_path / "theirs.npz", features=features)
    main(["--verify", str(out / "reference.npz"), str(tmp_path / "theirs.npz")])
    assert "8 images: largest difference of a unit feature 0.0e+00" in capsys.readouterr().out
    page = Page(out / "verdict.html")
    assert "fp16 in onnxruntime" in page.text.lower() and "market1501" in page.text and "same first" in page.text
    assert not [attrs for tag, attrs in page.tags if "http:" in str(attrs) or "https:" in str(attrs)]


def test_a_file_that_loses_too_much_is_not_written(one_layer, tmp_path, monkeypatch):
    class Traced:
        def __init__(self, *args):
            self.resize = self.open = self.write = self.openers = lambda *args: {}

    monkeypatch.setattr(exporting, "FileWriter", Traced)
    monkeypatch.setattr(Judge, "differences", lambda *args: {"feature_difference": 0.5, "pixel_difference": 0})
    monkeypatch.setattr(Judge, "results", lambda *args: {})
    monkeypatch.setattr(Judge, "losses", lambda *args: {"market1501": 2.5})
    with pytest.raises(UserError, match="not exported: fp16 loses 2.50 points of mAP on market1501, --max-loss is 1"):
        export(one_layer, tmp_path / "out", "raw", "fp16")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (
            ("torchscript", "int8", 1.0, 256),
            "--precision int8: not --for torchscript: a traced network keeps its precision",
        ),
        (
            ("deepstream", "fp16", 1.0, 256),
            "--precision fp16: not --for deepstream: TensorRT chooses it when it builds",
        ),
        (
            ("boxmot", "bf16", 1.0, 256),
            "--precision bf16: not --for boxmot: onnxruntime multiplies no bfloat16 on a CPU",
        ),
        (("raw", "int8", 1.0, 31), "--calibration-images: expected at least 32, got 31"),
        (("raw", "fp16", -1.0, 256), "--max-loss: expected points of mAP from 0 to 100, got -1"),
    ],
)
def test_options_that_cannot_be_met_are_refused_before_any_work(tmp_path, options, line):
    with pytest.raises(UserError, match=line):
        refuse_options(tmp_path / "out", *options)


@pytest.mark.parametrize(("layout", "package"), [("openvino", "nncf"), ("raw", "onnxruntime")])
def test_a_missing_quantiser_is_named(tmp_path, monkeypatch, layout, package):
    for name in [name for name in sys.modules if name.partition(".")[0] == package]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=f"--precision int8 needs {package}: pip install -r requirements-extra.txt"):
        refuse_options(tmp_path / "out", layout, "int8", 1.0, 256)


def test_bfloat16_needs_a_processor_that_runs_it(monkeypatch, tmp_path):
    openvino = pytest.importorskip("openvino", reason="requirements-dev.txt has it")
    core = SimpleNamespace(get_property=lambda *args: ["FP32", "INT8"])
    monkeypatch.setattr(openvino, "Core", lambda: core)
    with pytest.raises(UserError, match="--precision bf16: OpenVINO runs bfloat16 on processors with AVX512_BF16 or"):
        refuse_options(tmp_path / "out", "openvino", "bf16", 1.0, 256)
    core.get_property = lambda *args: ["FP32", "BF16"]
    refuse_options(tmp_path / "out", "openvino", "bf16", 1.0, 256)


def test_too_few_training_images_to_calibrate_are_counted(one_layer):
    data = make_dataloader(one_layer, training=False)
    with pytest.raises(UserError, match="DATASETS.NAMES market1501 has 16 training images to calibrate with, at least"):
        calibration_feeds(one_layer, data, (), 256, 8)


def test_calibration_images_are_drawn_over_cameras():
    camids = np.array([0] * 50 + [1] * 5 + [2] * 20)
    rows = drawn_over_cameras(camids, 30, seed=0)
    assert np.bincount(camids[rows]).tolist() == [13, 5, 12] or np.bincount(camids[rows]).tolist() == [12, 5, 13]
    assert rows.tolist() == sorted(set(rows.tolist())) == drawn_over_cameras(camids, 30, seed=0).tolist()
    assert len(drawn_over_cameras(camids, 999, seed=0)) == len(camids)


@pytest.mark.slow
@pytest.mark.parametrize("ranges", ["minmax", "percentile", "entropy"])
def test_onnx_networks_are_quantised_but_for_what_stays_in_float(network, tmp_path, ranges):
    onnx = pytest.importorskip("onnx")
    path, feeds = network
    quantiser = OnnxQuantiser(path, feeds, tmp_path)
    assert len(quantiser.groups) == 3
    before = OnnxRuntime(path)
    recipe = Recipe(ranges, per_channel=True)
    quantiser.write(recipe, tmp_path / "all.onnx")
    change = mean_change(before, OnnxRuntime(tmp_path / "all.onnx"), feeds)
    assert 0 < change < 0.02
    kept = recipe.keeping(0.5, quantiser.groups[::-1])
    quantiser.write(kept, tmp_path / "kept.onnx")
    assert 0 < mean_change(before, OnnxRuntime(tmp_path / "kept.onnx"), feeds) < change * 1.5
    weights = {
        name: [value.data_type for value in onnx.load(tmp_path / name).graph.initializer if len(value.dims) > 1]
        for name in ("all.onnx", "kept.onnx")
    }
    integers = {name: types.count(onnx.TensorProto.INT8) for name, types in weights.items()}
    assert integers == {"all.onnx": 3, "kept.onnx": 1}
    quantiser.write(recipe, tmp_path / "one.onnx", only=quantiser.groups[0])
    assert 0 < mean_change(before, OnnxRuntime(tmp_path / "one.onnx"), feeds) < change * 1.5


def test_openvino_networks_are_quantised_but_for_what_stays_in_float(network, tmp_path):
    pytest.importorskip("nncf", reason="requirements-dev.txt has it")
    path, feeds = network
    quantiser = OpenVinoQuantiser(path, feeds)
    before, changes = OpenVino(path), {}
    kept = quantiser.starts[0].keeping(0.9, quantiser.groups)
    for name, recipe in {"minmax": quantiser.starts[0], "percentile": quantiser.starts[1], "kept": kept}.items():
        quantiser.write(recipe, tmp_path / f"{name}.xml")
        changes[name] = mean_change(before, OpenVino(tmp_path / f"{name}.xml"), feeds)
    assert changes["kept"] < changes["minmax"] < 0.05 and 0 < changes["percentile"] < 0.05


def test_weights_of_16_bits_change_features_little(network, tmp_path):
    path, feeds = network
    write_float16(path, tmp_path / "half.onnx")
    assert mean_change(OnnxRuntime(path), OnnxRuntime(tmp_path / "half.onnx"), feeds) < 1e-4
    pytest.importorskip("openvino", reason="requirements-dev.txt has it")
    write_bfloat16(path, tmp_path / "bfloat.xml")
    assert 0 < mean_change(OpenVino(path), OpenVino(tmp_path / "bfloat.xml"), feeds) < 1e-3


class Recorder:
    """A quantiser that writes nothing: a recipe loses less the more layers it keeps in float."""

    starts = Recipe("minmax", False), Recipe("minmax", True)
    groups = [("a",), ("b",), ("c",), ("d",)]
    ending = "onnx"

    def __init__(self):
        self.written = {}

    def write(self, recipe, path, only=None):
        self.written[path.name] = recipe, only


def test_the_fastest_recipe_within_the_limit_is_taken_and_layers_are_measured_only_if_needed(tmp_path):
    quantiser = Recorder()

    def judge(path):
        recipe = quantiser.written[path.name][0]
        lost = (3 if recipe.per_channel else 6) * (1 - recipe.kept)
        return {"one": lost, "two": 0.0}, 100 - 40 * recipe.kept - 10 * recipe.per_channel

    def sensitivity(layers):
        return "acbd".index(layers[0])

    plain = try_recipes(quantiser, judge, sensitivity, tmp_path, max_loss=7)
    assert len(plain) == 2 and fastest(plain, 7).recipe == quantiser.starts[0]
    assert fastest(plain, 4).recipe == quantiser.starts[1] and fastest(plain, 1) is None
    tried = try_recipes(quantiser, judge, sensitivity, tmp_path, max_loss=2.5)
    assert [trial.recipe.kept for trial in tried] == [0, 0, 0.1, 0.25, 0.5]
    assert tried[-1].recipe.floats == ("d", "b") and fastest(tried, 2.5).recipe.kept == 0.25
    assert str(tried[-1].recipe) == "minmax, per channel, 50 % of the layers in float"


@pytest.mark.parametrize(("speed", "taken"), [(100.0, 1), (96.0, 1), (94.0, 0)])
def test_of_recipes_that_are_as_fast_but_for_timing_the_one_that_loses_least_is_taken(speed, taken):
    trials = [Trial(Recipe("minmax", bool(i)), {"one": loss}, fast, Path()) for i, (loss, fast) in enumerate(
        [(0.6, 100.0), (0.2, speed)])]  # fmt: skip
    assert fastest(trials, 1.0) is trials[taken]


def test_without_a_good_recipe_the_best_one_s_loss_is_named(tmp_path):
    quantiser = Recorder()
    writer = SimpleNamespace(
        quantiser=lambda feeds: quantiser, scratch=tmp_path, ending="onnx", network=tmp_path / "n.onnx",
        open=lambda path: lambda images: images, finish=lambda *args: None,
    )  # fmt: skip
    judge = SimpleNamespace(
        results=lambda runtime: {}, losses=lambda results: {"one": 4.25, "two": 5.5}, speed=lambda runtime: 10.0
    )
    feeds, before = [{"images": np.eye(4, dtype=np.float32)}], {"one": {"mAP": 0.5}, "two": {"mAP": 0.5}}
    line = r"not exported: the best of 5 int8 recipes \(minmax, per tensor\) loses 5.50 points of mAP on two, --max"
    with pytest.raises(UserError, match=line):
        write_int8(writer, judge, feeds, tmp_path / "model.onnx", 1.0, before)


def test_layers_are_grouped_in_order_with_what_follows_them():
    layers = [("in", False), ("a", True), ("relu", False), ("b", True), ("c", True), ("add", False)]
    assert groups_of(layers) == [("in",), ("a", "relu"), ("b",), ("c", "add")]
    few = groups_of([(str(i), True) for i in range(100)], most=7)
    assert len(few) == 7 and sum(few, ()) == tuple(map(str, range(100)))


def verdict_of(int8: float, flags: frozenset[str], megabytes: float = 1.0) -> Verdict:
    found = Comparison({"mAP": Figure(0.5, 0.51, -0.03, 0.01)}, 0.9, 0.99, 0.9)
    rows = [
        Row("fp32", "PyTorch", 4.0, {1: 50.0, 2: 80.0}),
        Row("fp32", "onnxruntime", 4.0, {1: 60.0, 2: 100.0}, {"a": found}),
        Row("int8", "onnxruntime", megabytes, {1: 40.0, 2: int8}, {"a": found}),
        Row("int8", "openvino", megabytes, trouble="no"),
    ]  # fmt: skip
    recipes = [{"recipe": "minmax", "loss": {"a": 1.0}, "images_per_second": int8, "float": []}]
    return Verdict("int8", "onnxruntime", rows, 2.0, recipes, flags)


def test_an_int8_file_that_is_slower_here_is_not_praised():
    slow = verdict_of(80.0, frozenset({"avx2"})).sentences()
    assert slow[0] == "int8 in onnxruntime: 0.80 times as fast as fp32 (80 against 100 images/s), 25 % of its size"
    assert "no instructions for 8-bit products (VNNI): int8 runs at 80 images/s here" in slow[1]
    assert slow[2] == "warning: fp32 is faster here than int8, which only saves space"
    assert slow[3] == "fastest here: fp32 in onnxruntime, 100 images/s"
    # layers in float, and scales beside them
    large = verdict_of(80.0, frozenset({"avx2"}), megabytes=5.0).sentences()[2]
    assert large == "warning: fp32 is faster here than int8, which is larger too: it gains nothing on this machine"
    fast = verdict_of(200.0, frozenset({"avx2", "avx512_vnni"}))
    assert not [line for line in fast.sentences() if "warning" in line]
    assert "int8  onnxruntime  mAP 50.00 (-1.00, -3.00 to +1.00), same first match 90.0" in "\n".join(fast.lines())


def test_the_processor_s_flags_are_read(tmp_path):
    (tmp_path / "x86").write_text("processor : 0\nflags : fpu avx2 avx_vnni\n")
    (tmp_path / "arm").write_text("Features\t: fp asimd\n")
    assert not lacks_int8(processor_flags(tmp_path / "x86")) and lacks_int8(processor_flags(tmp_path / "arm"))
    assert not lacks_int8(processor_flags(tmp_path / "none"))  # another system: nothing is known


def test_features_of_another_machine_are_compared(tmp_path, capsys):
    ours = np.eye(3, 4, dtype=np.float32)
    np.savez(tmp_path / "reference.npz", images=np.zeros((3, 2, 2, 3), np.uint8), features=ours)
    theirs = {"name": "features", "dimensions": "3x4", "values": (2 * ours).ravel().tolist()}
    (tmp_path / "theirs.json").write_text(json.dumps([theirs]))
    main(["--verify", str(tmp_path / "reference.npz"), str(tmp_path / "theirs.json")])
    assert "the same: within 0.001" in capsys.readouterr().out
    np.save(tmp_path / "other.npy", ours + 0.01)
    with pytest.raises(SystemExit) as ended:
        main(["--verify", str(tmp_path / "reference.npz"), str(tmp_path / "other.npy")])
    assert ended.value.code == 1 and "different: above 0.001" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("write", "line"),
    [
        (lambda path: None, "theirs.npz: no such file"),
        (lambda path: np.savez(path, images=np.zeros(3)), "theirs.npz: holds no 'features"),
        (lambda path: np.savez(path, features=np.zeros((2, 4))), r"has features of shape \(2, 4\), .* of \(3, 4\)"),
        (lambda path: np.savez(path, features=np.full((3, 4), np.nan)), "expected finite features"),
        (lambda path: path.write_text("no archive"), "theirs.npz: cannot be read"),
    ],
)
def test_features_that_cannot_be_compared_are_refused(tmp_path, write, line):
    np.savez(tmp_path / "reference.npz", features=np.eye(3, 4))
    write(tmp_path / "theirs.npz")
    with pytest.raises(UserError, match=line):
        main(["--verify", str(tmp_path / "reference.npz"), str(tmp_path / "theirs.npz")])
