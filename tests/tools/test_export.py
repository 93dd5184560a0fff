"""Exported files do what the model does: resize, features, metrics; what cannot be exported says why."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.transforms.resizing import make_resizer
from model.deployed import FILTERS, Preprocess, Renormalise, make_deployed
from model.exporting import write_onnx
from model.layouts import IMAGENET, LAYOUTS, LEVELS, SHARES
from model.make_model import make_model
from processor import run
from processor.runtimes import OnnxRuntime, OpenVino
from tests.tiny import CLIP, MSVIT, config, write_market
from tools import export as exporting
from tools.export import export
from tools.exporting.feeding import fed
from tools.exporting.judging import Judge
from utils.checkpoint import load_weights
from utils.errors import UserError

pytest.importorskip("onnxruntime", reason="requirements-dev.txt has it")
pytest.importorskip("onnxscript", reason="requirements-dev.txt has it")


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A data root, and a trained model with side information and local parts."""
    root, folder = write_market(tmp_path_factory.mktemp("data")), tmp_path_factory.mktemp("run")
    sides = {"MODEL__JPM": True, "MODEL__SIE_CAMERA": True, "MODEL__STRIDE_SIZE": [4, 4]}
    run.train(config(root, folder, SOLVER__MAX_EPOCHS=1, **sides))
    return root, config(root, folder, TEST__WEIGHT=str(folder / "transformer_1.pth"), **sides)


@pytest.mark.parametrize("shape", [(300, 111), (64, 200), (31, 17), (64, 32), (50, 50), (128, 64)])
@pytest.mark.parametrize("resize", [name for name in FILTERS if name != "pil_bicubic"])
def test_the_resize_is_evaluations_to_a_grey_level(shape, resize):
    image = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    found = Preprocess((64, 32), [0.5] * 3, [0.5] * 3, resize).resized(torch.from_numpy(image)[None])[0]
    wanted = make_resizer(resize, is_train=False)(Image.fromarray(image), (64, 32))
    assert (found - wanted.float()).abs().max() <= 1


def test_the_margin_is_cut_off_and_pixels_are_normalised():
    image = np.random.default_rng(1).integers(0, 256, (90, 40, 3), dtype=np.uint8)
    pre = Preprocess((64, 32), [0.1, 0.2, 0.3], [0.5, 0.6, 0.7], margin=8)
    large = make_resizer("auto", is_train=False)(Image.fromarray(image), (72, 40))[:, 4:68, 4:36].float()
    wanted = (large / 255 - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.6, 0.7]).view(3, 1, 1)
    assert (pre(torch.from_numpy(image)[None])[0] - wanted).abs().max() <= 1.01 / 255 / 0.5


@pytest.mark.slow
def test_an_exported_model_scores_alike_and_its_weights_load(trained, tmp_path):
    _, cfg = trained
    report = export(cfg, tmp_path / "out")
    assert report["feature_difference"] < 1e-4 and report["pixel_difference"] <= 1 and report["speed_ratio"] > 0
    before, after = (report[name]["market1501"] for name in ("pytorch", "onnxruntime"))
    assert before["Rank-1"] == after["Rank-1"] and abs(before["mAP"] - after["mAP"]) < 0.01
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert set(about["inputs"]) == {"images", "cam_label"} and about["opset"] == 18 and about["size"] == [32, 16]
    runtime = OnnxRuntime(tmp_path / "out" / "model.onnx")
    images = np.random.default_rng(0).integers(0, 256, (3, 70, 41, 3), dtype=np.uint8)  # another number and size
    feats = runtime(images, cam_label=np.array([0, 1, 0]))
    assert feats.shape == (3, about["width"])
    np.testing.assert_allclose(np.linalg.norm(feats, axis=1), 1, rtol=1e-5)
    assert not np.allclose(feats, runtime(images, cam_label=np.array([1, 0, 1])))
    model = make_model(cfg, 4, 2, 1)
    assert not load_weights(model, tmp_path / "out" / "model.safetensors").missing


NETWORKS = {
    "msvit": MSVIT | {"MODEL__MSVIT__BLOCKS": [1, 1, 1, 1]},
    "clip": {"MODEL__NAME": CLIP["MODEL__NAME"]},
    "osnet": {"MODEL__NAME": "torchreid_osnet_x0_25", "MODEL__FC_DIM": 16},
    "cluster": {"MODEL__NAME": "resnet10", "PROCESSOR__NAME": "cluster", "MODEL__POOLING": "gem"},
}


REPEATED = {"osnet": ["base.conv2.1", "base.conv3.1", "base.conv4.1"]}
"""The second block of each stage, which would take as long to trace as the first and teach nothing."""


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_traced_for_any_batch_and_size(name, tmp_path):
    torch.manual_seed(0)
    size = {"INPUT__SIZE_TRAIN": [64, 32], "INPUT__SIZE_TEST": [64, 32]}
    cfg = config(tmp_path, tmp_path, **(NETWORKS[name] | size))
    model = make_model(cfg, 4, 1, 1)
    for block in REPEATED.get(name, ()):
        model.set_submodule(block, torch.nn.Identity())
    deployed = make_deployed(cfg, model)
    write_onnx(deployed, tmp_path / "model.onnx")
    images = torch.randint(0, 256, (3, 64, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        wanted = deployed(images).numpy()
    found = OnnxRuntime(tmp_path / "model.onnx")(images.numpy())
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, NETWORKS["clip"] | {"PROCESSOR__NAME": "prompt"}], ids=["ViT", "CLIP"])
def test_the_batch_stays_open_at_the_first_try(changes, tmp_path):
    """Where a network fixes it, an exporter begins again in another, slower way, and its file is as good."""
    model = make_model(config(tmp_path, tmp_path, **changes), 4).eval()
    shapes, images = ({0: torch.export.Dim.DYNAMIC},), torch.randn(5, 3, 32, 16)
    traced = torch.export.export(model, (torch.zeros(2, 3, 32, 16),), dynamic_shapes=shapes, strict=False).module()
    torch.testing.assert_close(traced(images), model(images))


@pytest.mark.parametrize(
    ("differences", "line"),
    [((2e-3, 0.0), "a unit feature differs by 2.0e-03, the limit is 0.001"), ((0.0, 2.0), "pixel differs by 2 grey")],
)
def test_a_file_that_differs_is_not_written(trained, tmp_path, monkeypatch, differences, line):
    """The differences of a real file are measured above; here they are given, which saves tracing the network again."""
    _, cfg = trained

    class Traced:
        def __init__(self, *args):
            self.resize = self.open = self.write = self.openers = lambda *args: {}

    found = dict(zip(("feature_difference", "pixel_difference"), differences, strict=True))
    monkeypatch.setattr(exporting, "FileWriter", Traced)
    monkeypatch.setattr(Judge, "differences", lambda *args: found)
    with pytest.raises(UserError, match=f"not exported: .*{line}"):
        export(cfg, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_mistakes_are_one_line(trained, tmp_path):
    root, _ = trained
    with pytest.raises(UserError, match="TEST.WEIGHT is empty"):
        export(config(root, tmp_path), tmp_path / "out")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file, not a folder"):
        export(config(root, tmp_path), tmp_path / "file")

    class Untraceable(torch.nn.Module):
        def forward(self, images):
            return images.float() if images.sum() > 3 else images.float() + 1

    with pytest.raises(UserError, match="the network cannot be exported: "):
        write_onnx(Untraceable(), tmp_path / "x.onnx")


@pytest.mark.slow
@pytest.mark.parametrize("layout", [name for name in LAYOUTS if name != "raw"])
def test_a_layout_takes_what_its_program_feeds(layout, one_layer, tmp_path):
    if layout == "openvino":
        pytest.importorskip("openvino", reason="requirements-dev.txt has it")
    report = export(one_layer, tmp_path, layout)
    about = json.loads((tmp_path / "model.json").read_text())
    assert about["layout"] == layout and set(about["sha256"]) <= {path.name for path in tmp_path.iterdir()}
    given, size = LAYOUTS[layout].given, tuple(about["size"])
    assert ("with_its_resize" in report) == (given is not None)
    image = np.random.default_rng(0).integers(0, 256, (*size, 3), dtype=np.uint8)
    expected = make_deployed(one_layer, exporting.tested_model(one_layer, exporting.data_for_the_check(one_layer)))
    with torch.no_grad():
        wanted = expected(torch.from_numpy(image)[None]).numpy()
    feed = image[None] if given is None else fed(given, size, "auto")(image)
    if layout == "torchscript":
        (found,) = torch.jit.load(tmp_path / "model.torchscript")(torch.from_numpy(feed)).detach().numpy()
    else:
        found = (OpenVino if layout == "openvino" else OnnxRuntime)(tmp_path / f"model.{LAYOUTS[layout].ending}")(feed)
    np.testing.assert_allclose(found.reshape(1, -1), wanted, atol=1e-5)
    assert (layout == "deepstream") == (tmp_path / "config_tracker.yml").exists()


@pytest.mark.parametrize(("given", "values"), [(LEVELS, (0, 255)), (SHARES, (0, 1)), (IMAGENET, (-2.2, 2.7))])
def test_what_a_tracker_scales_is_normalised_as_in_training(given, values):
    image = np.random.default_rng(2).integers(0, 256, (16, 8, 3), dtype=np.uint8)
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    feed = fed(given, (16, 8), "auto")(image)
    assert values[0] <= feed.min() and feed.max() <= values[1] and feed.shape == (1, 3, 16, 8)
    wanted = Preprocess((16, 8), mean, std)(torch.from_numpy(image)[None])
    found = Renormalise((16, 8), mean, std, given)(torch.from_numpy(feed))
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=0)


def test_a_layout_without_labels_refuses_a_model_that_needs_them(trained, one_layer, tmp_path):
    _, cfg = trained
    with pytest.raises(UserError, match="this layout has no input for cam_label; export --for raw or openvino, or a"):
        export(cfg, tmp_path / "out", "boxmot")
    margin = one_layer.clone()
    margin.merge_from_list(["INPUT.RESIZE_MARGIN", 4])
    with pytest.raises(UserError, match=r"INPUT\.RESIZE_MARGIN: no tracker cuts a margin off; export --for raw"):
        export(margin, tmp_path / "out", "ultralytics")
    assert not (tmp_path / "out").exists()


def test_without_its_images_export_says_what_they_are_for_and_what_else_will_do(tmp_path):
    weight = tmp_path / "resnet10.pth"
    changes = {"MODEL__NAME": "resnet10", "TEST__WEIGHT": str(weight)}
    torch.save(make_model(config(tmp_path, tmp_path, **changes), 4).state_dict(), weight)
    with pytest.raises(UserError, match=r"nowhere.* - export needs images only to check its file: DATASETS\.NAMES"):
        export(config(tmp_path / "nowhere", tmp_path, **changes), tmp_path / "out")
    drawn = config(tmp_path / "drawn", tmp_path, **changes, DATASETS__NAMES="synthetic", DATASETS__SYNTHETIC__IDS=4)
    (test,) = exporting.data_for_the_check(drawn).tests
    assert len(test.query) > 0 and not (tmp_path / "out").exists()
