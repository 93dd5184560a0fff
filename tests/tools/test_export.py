"""Exported files do what the model does: resize, features, metrics; what cannot be exported says why."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from datasets.transforms.resizing import make_resizer
from model.deployed import FILTERS, Preprocess, make_deployed
from model.make_model import make_model
from processor import run
from tests.tiny import CLIP, MSVIT, config, write_market
from tools import export as exporting
from tools.export import export, open_session, write_onnx
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


def test_an_exported_model_scores_alike_and_its_weights_load(trained, tmp_path):
    _, cfg = trained
    report = export(cfg, tmp_path / "out")
    assert report["feature_difference"] < 1e-4 and report["pixel_difference"] <= 1 and report["speed_ratio"] > 0
    before, after = (report[name]["market1501"] for name in ("pytorch", "onnxruntime"))
    assert before["Rank-1"] == after["Rank-1"] and abs(before["mAP"] - after["mAP"]) < 0.01
    about = json.loads((tmp_path / "out" / "model.json").read_text())
    assert set(about["inputs"]) == {"images", "cam_label"} and about["opset"] == 18 and about["size"] == [32, 16]
    runner = open_session(tmp_path / "out" / "model.onnx")
    images = np.random.default_rng(0).integers(0, 256, (3, 70, 41, 3), dtype=np.uint8)  # another number and size
    feats = runner.run(None, {"images": images, "cam_label": np.array([0, 1, 0])})[0]
    assert feats.shape == (3, about["width"])
    np.testing.assert_allclose(np.linalg.norm(feats, axis=1), 1, rtol=1e-5)
    assert not np.allclose(feats, runner.run(None, {"images": images, "cam_label": np.array([1, 0, 1])})[0])
    model = make_model(cfg, 4, 2, 1)
    assert not load_weights(model, tmp_path / "out" / "model.safetensors").missing


NETWORKS = {
    "resnet": {"MODEL__NAME": "resnet10"},
    "msvit": MSVIT,
    "clip": {"MODEL__NAME": CLIP["MODEL__NAME"]},
    "osnet": {"MODEL__NAME": "torchreid_osnet_x0_25", "MODEL__FC_DIM": 16},
    "cluster": {"MODEL__NAME": "resnet10", "PROCESSOR__NAME": "cluster", "MODEL__POOLING": "gem"},
}


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_are_traced_for_any_batch_and_size(name, tmp_path):
    torch.manual_seed(0)
    size = {"INPUT__SIZE_TRAIN": [64, 32], "INPUT__SIZE_TEST": [64, 32]}
    cfg = config(tmp_path, tmp_path, **(NETWORKS[name] | size))
    deployed = make_deployed(cfg, make_model(cfg, 4, 1, 1))
    write_onnx(deployed, tmp_path / "model.onnx")
    images = torch.randint(0, 256, (3, 64, 32, 3), dtype=torch.uint8)
    with torch.no_grad():
        wanted = deployed(images).numpy()
    found = open_session(tmp_path / "model.onnx").run(None, {"images": images.numpy()})[0]
    np.testing.assert_allclose(found, wanted, atol=1e-4)


@pytest.mark.parametrize(
    ("differences", "line"),
    [((2e-3, 0.0), "a unit feature differs by 2.0e-03, the limit is 0.001"), ((0.0, 2.0), "pixel differs by 2 grey")],
)
def test_a_file_that_differs_is_not_written(trained, tmp_path, monkeypatch, differences, line):
    """The differences of a real file are measured above; here they are given, which saves tracing the network again."""
    _, cfg = trained
    for name, value in (("write_onnx", None), ("open_session", None), ("compare", differences)):
        monkeypatch.setattr(exporting, name, lambda *args, value=value, **more: value)
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


def test_without_its_images_export_says_what_they_are_for_and_what_else_will_do(tmp_path):
    weight = tmp_path / "resnet10.pth"
    changes = {"MODEL__NAME": "resnet10", "TEST__WEIGHT": str(weight)}
    torch.save(make_model(config(tmp_path, tmp_path, **changes), 4).state_dict(), weight)
    with pytest.raises(UserError, match=r"nowhere.* - export needs images only to check its file: DATASETS\.NAMES"):
        export(config(tmp_path / "nowhere", tmp_path, **changes), tmp_path / "out")
    drawn = config(tmp_path / "drawn", tmp_path, **changes, DATASETS__NAMES="synthetic", DATASETS__SYNTHETIC__IDS=4)
    export(drawn, tmp_path / "out")
    assert (tmp_path / "out" / "model.onnx").exists()
