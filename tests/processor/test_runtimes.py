"""Networks in other runtimes and exported files do what the network does; what does not go together says so."""

from __future__ import annotations

import json
import logging
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from configs import dump, load_config
from model import make_model
from model.exporting import write_onnx
from processor import fastest, run, runtime_network
from processor.evaluate import extract_features
from processor.exported import CARD, ExportedFile, hash_of_features
from processor.extractor import TEXT, Extractor, make_extractor
from processor.runtime_network import RuntimeNetwork, Scaled, WholeImages, network_of_file
from processor.runtimes import OnnxRuntime, OpenVino
from tests.patches import PATCHES
from tests.tiny import CLIP, config, options, write_market
from tools import calibrate, extract
from tools.export import export
from tools.exporting import files, judging
from utils.errors import UserError
from utils.feature_files import Features

for package in ("onnxruntime", "onnxscript", "openvino"):
    pytest.importorskip(package, reason="requirements-dev.txt has it")

PICTURES = np.random.default_rng(0).integers(0, 256, (5, 40, 20, 3), dtype=np.uint8)
CAMERAS = [0, 1, 1, 9, -1]


SIDES = {"MODEL__SIE_CAMERA": True, "TEST__FLIP": True, "INPUT__RESIZE_MARGIN": 4}


class Black(nn.Module):
    """Stands for the resize of a file."""

    def forward(self, images):
        return images.float() * 0


class Place:
    """A data root, the weights of a network with side information and of one without, and exported files of both."""

    def __init__(self, folder: Path):
        self.folder, self.root = folder, write_market(folder / "data")
        for name, settings in (("sides", SIDES), ("plain", {})):
            torch.manual_seed(1)
            model = make_model(self.cfg(name, **settings), 4, 2, 1)
            with torch.no_grad():  # statistics with which features differ by more than rounding
                feats = model.base(torch.randn(32, 3, 1, 1) + 0.5 * torch.randn(32, 3, 32, 16))
            model.bottleneck.running_mean.copy_(feats.mean(0))
            model.bottleneck.running_var.copy_(feats.var(0))
            torch.save(model.state_dict(), folder / f"{name}.pth")

    def words(self, name: str, out: str = "out", **changes) -> list:
        settings = {"MODEL__NAME": PATCHES, "TEST__IMS_PER_BATCH": 5, "TEST__WEIGHT": f"{self.folder / name}.pth"}
        settings |= SIDES if name == "sides" else {}
        return options(self.root, self.folder / out, **settings | changes)

    def cfg(self, name: str, out: str = "out", **changes):
        return load_config(opts=self.words(name, out, **changes))

    def file(self, layout: str) -> Path:
        """An exported file: of the network with side information as raw, of the other one for the other layouts."""
        out = self.folder / f"exported_{layout}"
        if not out.exists():
            with pytest.MonkeyPatch.context() as patch:  # tests of the export compare the resize, whose tracing is long
                patch.setattr(judging, "pixel_difference", lambda *args: 0.0)
                patch.setattr(files, "Resize", lambda preprocess: Black())
                export(self.cfg("sides" if layout == "raw" else "plain"), out, layout)
        return out / ("model.xml" if layout == "openvino" else "model.onnx")

    def copy(self, layout: str, to: Path, /, **card) -> Path:
        """A copy of an exported file; card: entries of its ``model.json`` that become others."""
        shutil.copytree(self.file(layout).parent, to)
        about = json.loads((to / CARD).read_text()) | card
        (to / CARD).write_text(json.dumps({key: value for key, value in about.items() if value is not None}))
        return to / self.file(layout).name


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return Place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module", autouse=True)
def traced_once(tmp_path_factory):
    """Keeps the file of a network that is exported for a runtime: tracing takes longer than all the rest."""
    write, files = runtime_network.write_onnx, {}

    def kept(module, path, images, sides):
        key = sides, images.shape, sum(value.double().sum().item() for value in module.state_dict().values())
        if key not in files:
            files[key] = tmp_path_factory.mktemp("traced") / "model.onnx"
            write(module, files[key], images, sides)
        shutil.copyfile(files[key], path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runtime_network, "write_onnx", kept)
        yield


@pytest.mark.slow
@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_test_in_another_runtime_has_the_figures_of_torch(place, runtime):
    before = run.test(place.cfg("sides", "torch"))
    after = run.test(place.cfg("sides", runtime, TEST__RUNTIME=runtime))
    assert (before["runtime"], after["runtime"]) == ("torch", runtime)
    assert after["mean"] == pytest.approx(before["mean"], abs=1e-6) and 0 < before["mean"]["mAP"] < 1


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["raw", "openvino", "boxmot"])
def test_an_exported_file_does_what_its_network_does(place, layout):
    name, file = "sides" if layout == "raw" else "plain", place.file(layout)
    before, after = (run.test(place.cfg(name, f"{layout}_{i}", **more)) for i, more in enumerate(
        ({}, {"TEST__WEIGHT": str(file)})
    ))  # fmt: skip
    assert after["mean"] == pytest.approx(before["mean"], abs=1e-6)
    network, loaded = make_extractor(place.cfg(name)), Extractor.load(file)
    assert loaded.model_hash == network.model_hash and loaded.width == network.width
    np.testing.assert_allclose(loaded(PICTURES, CAMERAS), network(PICTURES, CAMERAS), atol=1e-5)
    np.testing.assert_allclose(loaded(PICTURES), network(PICTURES), atol=1e-5)  # no camera is an unknown one
    assert (np.abs(loaded(PICTURES, CAMERAS) - loaded(PICTURES)).max() > 1e-3) == (layout == "raw")
    if layout != "openvino":
        other = Extractor.load(file, None, "TEST.RUNTIME", "openvino")
        assert other.model.runs_in == "openvino"
        np.testing.assert_allclose(other(PICTURES, CAMERAS), network(PICTURES, CAMERAS), atol=1e-5)


@pytest.mark.slow
def test_a_file_that_averages_the_mirrored_image_is_run_once(place):
    cfg = place.cfg("sides", TEST__WEIGHT=str(place.file("raw")))
    calls, network = [], network_of_file(ExportedFile.read(cfg.TEST.WEIGHT), "torch")
    runtime = network.runtime

    def counted(images, **labels):
        calls.append(len(images))
        return runtime(images, **labels)

    counted.name, counted.inputs, network.runtime = runtime.name, runtime.inputs, counted
    data = run.make_dataloader(cfg, training=False)
    settings = run.Settings.from_cfg(cfg)
    assert settings.flip and network.averages_mirrored
    run.evaluate(network, data.tests, settings, torch.device("cpu"))
    assert sum(calls) == 16
    twice = extract_features(network, data.tests[0].loader, torch.device("cpu"), flip=True)
    once = extract_features(network, data.tests[0].loader, torch.device("cpu"))
    torch.testing.assert_close(twice, once, atol=1e-5, rtol=0)


def test_grey_levels_come_back_whole_and_a_margin_is_put_round_them():
    mean, std = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1), torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    levels = torch.arange(256).view(1, 1, 16, 16).expand(2, 3, -1, -1)
    images = (levels / 255 - mean) / std
    fed = WholeImages(mean, std, margin=5)(images)
    assert fed.dtype == torch.uint8 and fed.shape == (2, 21, 21, 3)
    assert (fed[:, 2:18, 2:18] == levels.permute(0, 2, 3, 1)).all() and fed.sum() == levels.sum()
    scaled = Scaled(mean, std, (0.4, 0.5, 0.6), (0.1, 0.2, 0.3))(images)
    expected = (levels / 255 - mean - 0.3) / torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    torch.testing.assert_close(scaled, expected, atol=1e-5, rtol=0)


def test_the_folder_of_a_run_is_its_last_checkpoint(place, tmp_path):
    cfg = place.cfg("plain", TEST__WEIGHT="")
    (tmp_path / "config.yml").write_text(dump(cfg))
    with pytest.raises(UserError, match=r"no checkpoint patches_EPOCH\.pth"):
        Extractor.load(tmp_path)
    state = torch.load(place.folder / "plain.pth")
    for epoch, scale in ((9, 2.0), (10, 1.0)):
        torch.save({key: value * scale for key, value in state.items()}, tmp_path / f"patches_{epoch}.pth")
    torch.save(state, tmp_path / "patches_stage1_20.pth")
    of_run, both = Extractor.load(tmp_path), make_extractor(place.cfg("plain"))
    assert of_run.model_hash == both.model_hash
    np.testing.assert_allclose(of_run(PICTURES), both(PICTURES), atol=1e-6)
    tested = tmp_path / "tested"
    tested.mkdir()
    (tested / "test_config.yml").write_text(dump(place.cfg("plain")))
    assert Extractor.load(tested).model_hash == both.model_hash
    (tmp_path / "empty").mkdir()
    for source, line in (("empty", r"no config\.yml or test_config\.yml"), ("patches_9.pth", "the folder of a run")):
        with pytest.raises(UserError, match=line):
            Extractor.load(tmp_path / source)


# ---------------------------------------------------------------- extraction


def words(place: Place, out: Path, *more: str) -> list[str]:
    images = place.root / "market1501" / "bounding_box_test"
    given = place.words("plain", TEST__IMS_PER_BATCH=3)
    return [str(word) for word in ("--images", images, "--out", out, *more, *given)]


class Cut(Exception):
    """Stands for a kill."""


def test_the_fastest_runtime_is_taken_and_an_extraction_goes_on_in_it(place, tmp_path, monkeypatch, capsys):
    speeds = {"torch": 1.0, "onnxruntime": 2.0, "openvino": 9.0}
    monkeypatch.setattr(fastest, "speeds_of", lambda tried, batch: {name: speeds[name] for name in tried})
    extract.main(words(place, tmp_path / "whole", "--runtime", "auto"))
    line = next(one for one in capsys.readouterr().out.splitlines() if one.startswith("--runtime auto"))
    first = "--runtime auto: openvino, by images/s on the first 3 images: torch 1.0, onnxruntime 2.0, openvino 9.0; its"
    assert line.startswith(first)
    whole = Features(tmp_path / "whole")
    extract.main(words(place, tmp_path / "torch"))
    of_torch = Features(tmp_path / "torch")
    assert (whole.meta["runtime"], of_torch.meta["runtime"]) == ("openvino", "torch")
    assert whole.meta["model_hash"] == of_torch.meta["model_hash"]
    np.testing.assert_allclose(whole.array, of_torch.array, atol=1e-5)

    keep, calls = extract.keep, []

    def stops(*args):
        calls.append(1)
        if len(calls) == 2:
            raise Cut
        keep(*args)

    monkeypatch.setattr(extract, "FLUSH_SECONDS", 0)
    monkeypatch.setattr(extract, "keep", stops)
    with pytest.raises(Cut):
        extract.main(words(place, tmp_path / "cut", "--runtime", "openvino"))
    monkeypatch.setattr(extract, "keep", keep)
    with pytest.raises(UserError, match=r"holds features that openvino computed \(plan\.json\), not torch; name an"):
        extract.main(words(place, tmp_path / "cut"))
    extract.main(words(place, tmp_path / "cut", "--runtime", "auto"))
    assert "--runtime auto: openvino, as before" in capsys.readouterr().out
    assert (tmp_path / "cut" / "features.npy").read_bytes() == (tmp_path / "whole" / "features.npy").read_bytes()


def test_torch_is_left_only_for_what_is_clearly_faster(place, monkeypatch):
    extractor = make_extractor(place.cfg("plain"))
    for speed, taken in ((1.04, "torch"), (1.06, "onnxruntime")):
        speeds = {"torch": 1.0, "onnxruntime": speed, "openvino": 0.5}
        monkeypatch.setattr(fastest, "speeds_of", lambda tried, batch, speeds=speeds: {n: speeds[n] for n in tried})
        assert fastest.in_fastest_runtime(extractor, torch.randn(4, 3, 32, 16)).model.runs_in == taken


def test_runtimes_that_differ_or_are_missing_are_left_out(place, monkeypatch, caplog):
    extractor = make_extractor(place.cfg("plain"))
    caplog.set_level(logging.INFO, "lineup")
    monkeypatch.setitem(sys.modules, "openvino", None)
    call = OnnxRuntime.__call__
    monkeypatch.setattr(OnnxRuntime, "__call__", lambda self, images, **labels: call(self, images, **labels) + 0.1)
    chosen = fastest.in_fastest_runtime(extractor, torch.randn(4, 3, 32, 16))
    assert chosen is extractor
    assert "left out: onnxruntime: a unit feature differs by" in caplog.messages[-1]
    assert "; openvino is not installed: pip install -r requirements-extra.txt" in caplog.messages[-1]
    monkeypatch.setitem(sys.modules, "onnx", None)
    monkeypatch.setattr(runtime_network, "write_onnx", write_onnx)
    fastest.in_fastest_runtime(extractor, torch.randn(4, 3, 32, 16))
    assert "left out: export needs onnx: pip install -r requirements-extra.txt" in caplog.messages[-1]


# ---------------------------------------------------------------- hashes and calibrations


def test_another_precision_has_features_of_its_own(place, tmp_path, caplog):
    cfg = place.cfg("plain", "calibrated", TEST__WEIGHT=str(place.file("boxmot")), DATASETS__TARGETS="market1501")
    calibration, _, _ = calibrate.calibrate(cfg, [0.5], 0.1, "all")
    calibration.write(tmp_path / "calibration.json")
    assert calibration.model_hash == make_extractor(place.cfg("plain")).model_hash
    of_torch = make_extractor(place.cfg("plain", TEST__CALIBRATION=str(tmp_path / "calibration.json")))
    assert of_torch.calibration is not None  # the file's thresholds are the network's
    content = calibration.content()
    full = Extractor.load(place.copy("boxmot", tmp_path / "full", calibration=content))
    assert full.calibration is not None and full.same(PICTURES[0], PICTURES[0]) > 0
    small = place.copy("boxmot", tmp_path / "small", calibration=content, precision="int8")
    extractor = Extractor.load(small)
    assert extractor.calibration is None and extractor.model_hash != full.model_hash
    assert extractor.model_hash == hash_of_features(full.model_hash, "int8", [ExportedFile.read(small).digests[0]])
    with pytest.raises(UserError, match=r"TEST.CALIBRATION .*: is of another model or setting"):
        Extractor.load(small, None, "TEST.CALIBRATION", tmp_path / "calibration.json")


# ---------------------------------------------------------------- mistakes


@pytest.mark.parametrize(
    ("package", "layout", "runtime"), [("onnxruntime", "raw", "onnxruntime"), ("openvino", "openvino", "openvino")]
)
def test_a_missing_package_is_named(place, monkeypatch, package, layout, runtime):
    file = place.file(layout)
    monkeypatch.setitem(sys.modules, package, None)
    line = f"^{package} is not installed: pip install -r requirements-extra.txt$"
    with pytest.raises(UserError, match=line):
        Extractor.load(file)
    with pytest.raises(UserError, match=line):
        run.test(place.cfg("plain", TEST__RUNTIME=runtime))


def test_a_file_that_is_not_the_one_of_its_description_is_refused(place, tmp_path):
    for layout, ending in (("raw", ".onnx"), ("openvino", ".bin")):
        changed = place.copy(layout, tmp_path / layout)
        with open(changed.with_suffix(ending), "ab") as handle:
            handle.write(b"x")
        with pytest.raises(UserError, match=r"model\.(onnx|bin): changed since .*model\.json was written \(SHA-256 "):
            Extractor.load(changed)
    alone = tmp_path / "alone" / "model.onnx"
    alone.parent.mkdir()
    shutil.copyfile(place.file("raw"), alone)
    with pytest.raises(UserError, match=r"alone/model\.onnx: no model\.json beside it, .* export the model again"):
        Extractor.load(alone)
    with pytest.raises(UserError, match="no such file"):
        Extractor.load(tmp_path / "nothing.onnx")
    renamed = place.copy("raw", tmp_path / "renamed").rename(tmp_path / "renamed" / "osnet_x0_25_mine.onnx")
    assert Extractor.load(renamed).width == 128  # trackers want such names


@pytest.mark.parametrize(
    ("card", "line"),
    [
        ({"flip": None}, r"\.json: of an older version, without entry 'flip'; export the model again"),
        ({"size": [32]}, r"model\.json: damaged, entry 'size' is not what tools\.export writes"),
        ({"layout": ["raw"]}, "damaged, entry 'layout'"),
        ({"sha256": {"model.onnx": 5}}, "damaged, entry 'sha256'"),
        ({"calibration": {"version": 2}}, "model.json: damaged"),
    ],
)
def test_a_damaged_description_is_one_line(place, tmp_path, card, line):
    with pytest.raises(UserError, match=line):
        Extractor.load(place.copy("raw", tmp_path / "copy", **card))


CONTRADICTIONS = {
    "size": ({"INPUT__SIZE_TEST": [64, 32]}, r"INPUT\.SIZE_TEST is \[64, 32\], the file's is \[32, 16\]\. Set what"),
    "mean": ({"INPUT__PIXEL_MEAN": [0.1] * 3}, r"INPUT\.PIXEL_MEAN is \[0\.1, 0\.1, 0\.1\], the file's is"),
    "flip": ({"TEST__FLIP": True}, r"TEST\.FLIP is True, the file's is False"),
    "length": ({"TEST__FEAT_NORM": "no"}, r"TEST\.FEAT_NORM is no, the file's is yes"),
    "network": ({"MODEL__NAME": "resnet10"}, r"MODEL\.NAME is resnet10, the file's is patches"),
    "sides": ({"MODEL__SIE_CAMERA": True}, r"has no input cam_label, and MODEL\.SIE_CAMERA is True: .* --for raw"),
}


@pytest.mark.parametrize("name", CONTRADICTIONS)
def test_settings_that_contradict_a_file_are_refused(place, name):
    changes, line = CONTRADICTIONS[name]
    cfg = place.cfg("plain", TEST__WEIGHT=str(place.file("boxmot")), **changes)
    for command in (run.test, make_extractor):
        with pytest.raises(UserError, match=line):
            command(cfg)


class Fixed:
    """A runtime whose file takes three images, no more and no fewer."""

    name, inputs = "onnxruntime", {"images": (3, 3, 4, 2)}

    def __call__(self, images, **labels):
        assert images.shape == (3, 3, 4, 2)
        return images.mean((2, 3))


def test_a_batch_that_a_file_has_no_room_for():
    network, images = RuntimeNetwork(Fixed(), (4, 2), 3), torch.randn(4, 3, 4, 2)
    torch.testing.assert_close(network(images[:2]), images[:2].mean((2, 3)))  # the rest is filled up
    line = "^the file takes 3 images at a time, not 4: set TEST.IMS_PER_BATCH 3, or export the model again"
    with pytest.raises(UserError, match=line):
        network(images)
    with pytest.raises(UserError, match=r"^the file takes images of 4 x 2, not 2 x 4: set INPUT.SIZE_TEST$"):
        network(images.transpose(2, 3))
    with pytest.raises(UserError, match=r"TEST\.RUNTIME: images are classified by the network itself"):
        network.class_scores(images)


@pytest.mark.parametrize(("opset", "reason"), [(1, "Could not find an implementation for"), (99, "Opset 99 is under")])
def test_an_opset_that_a_runtime_does_not_know(tmp_path, opset, reason):
    from onnx import TensorProto, helper

    image, feature = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 3]) for n in ("images", "features"))
    graph = helper.make_graph([helper.make_node("Relu", ["images"], ["features"])], "graph", [image], [feature])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    (tmp_path / "model.onnx").write_bytes(model.SerializeToString())
    line = rf"model\.onnx: onnxruntime [\d.]+ cannot read it \(opset {opset}\): {reason}.*; install another version"
    with pytest.raises(UserError, match=line):
        OnnxRuntime(tmp_path / "model.onnx")


def test_a_file_that_is_damaged(tmp_path):
    (tmp_path / "model.onnx").write_bytes(b"nothing")
    (tmp_path / "model.xml").write_bytes(b"nothing")
    for runtime, name in ((OnnxRuntime, "model.onnx"), (OpenVino, "model.onnx"), (OpenVino, "model.xml")):
        with pytest.raises(UserError, match=rf"{name}: {runtime.name} [\d.]+ cannot read it: "):
            runtime(tmp_path / name)


def test_what_a_runtime_cannot_do_is_one_line(place, tmp_path):
    with pytest.raises(UserError, match=r"TEST\.RUNTIME: onnxruntime reads \.onnx files, and .*xml is none; set"):
        Extractor.load(place.file("openvino"), None, "TEST.RUNTIME", "onnxruntime")
    exported = place.cfg("plain", TEST__WEIGHT=str(place.file("boxmot")))
    with pytest.raises(UserError, match=r"exported file, and here the network itself is needed: .*safetensors$"):
        export(exported, tmp_path / "again")
    with pytest.raises(UserError, match=r"--runtime auto: compares runtimes with torch, and .*onnx is an exported"):
        extract.extract_to_folder(exported, place.root, tmp_path / "out", auto=True)
    weight = str(place.folder / "plain.pth")
    prompt = config(place.root, tmp_path, **CLIP, TEST__RUNTIME="openvino", TEST__WEIGHT=weight)
    with pytest.raises(UserError, match=r"sentences are compared with come from the network itself: set TEST"):
        make_extractor(prompt, TEXT)
    heads = place.cfg("plain", TEST__RUNTIME="openvino", KD__MULTI_HEAD=True)
    with pytest.raises(UserError, match=r"KD\.MULTI_HEAD: "):
        make_extractor(heads)
    with pytest.raises(UserError, match=r"TEST\.RUNTIME: unknown 'tensorrt'"):
        place.cfg("plain", TEST__RUNTIME="tensorrt")
