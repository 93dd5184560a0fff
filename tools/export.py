"""Exports a trained model for other programs, with the resize and normalisation that they do not do inside.

``python -m tools.export --config_file F --out FOLDER [--for LAYOUT] TEST.WEIGHT W`` writes ``model.onnx`` (or
OpenVINO's ``model.xml`` and ``model.bin``, or ``model.torchscript``), ``model.json`` (what a program needs to know of
it) and ``model.safetensors`` (the weights, which TEST.WEIGHT reads). LAYOUT ``raw``, ``openvino`` and ``torchscript``
take whole images: ``images``, uint8, RGB, (batch, height, width, 3), of any number and size. ``ultralytics``,
``boxmot`` and ``deepstream`` take what those trackers feed: float32, RGB, (batch, 3, H, W), of the size of the test.
``cam_label`` and ``view_label``, int64 (batch,), where the model uses side information; output ``features``, float32.
First the file runs on the configuration's test sets; if a feature, the resize or a first rank differs, nothing is
written.
"""

from __future__ import annotations

import logging
import platform
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from yacs.config import CfgNode

from configs import load_config
from datasets.images import ImageList
from datasets.loaders import Data, TestSet, make_dataloader
from datasets.transforms.resizing import make_resizer, to_pixels
from model.deployed import Deployed, Preprocess, Renormalise, make_deployed
from model.exporting import OPSET, WHOLE, example_images, write_onnx, write_openvino, write_torchscript
from model.layers.lora import merge_adapters
from model.layouts import LAYOUTS, LEVELS, Given
from processor.evaluate import Settings, evaluate, score
from processor.exported import sha256
from processor.extractor import hash_of_tested, make_extractor
from processor.runtimes import OnnxRuntime, OpenVino, Runtime, TorchScript
from processor.trained import tested_model
from utils.commands import make_parser, run_command
from utils.errors import UserError
from utils.files import write_json, write_text
from utils.weight_files import write_tensors

log = logging.getLogger("lineup")

FEATURE_LIMIT = 1e-3
"""Largest permitted difference of a unit feature's entry from the same pixels."""

CHECKED = 64
"""Photographs of every test set on which pixels and features are compared one by one."""


Feed = Callable[[np.ndarray], np.ndarray]
"""Makes the input of one image, with a batch axis, of its pixels, uint8 (H, W, 3)."""


@dataclass
class Photo:
    """One test image. image: uint8 (H, W, 3). labels: the model's further inputs."""

    image: np.ndarray
    labels: dict[str, np.ndarray]


def photos(test: TestSet, sides: tuple[str, ...], most: int | None = None) -> Iterator[Photo]:
    """Yields the images of a test set's list in order, as they are in their files, upright and opaque."""
    records = test.loader.records
    images = ImageList(records, to_pixels, decoder=test.loader.decoder)
    columns = {"cam_label": records.cam_labels, "view_label": records.view_labels}
    for row in range(len(records) if most is None else min(most, len(records))):
        pixels = to_pixels(images.image(row)).permute(1, 2, 0).numpy()
        yield Photo(pixels, {name: columns[name][row : row + 1] for name in sides})


def whole(image: np.ndarray) -> np.ndarray:
    """Returns what a file takes that resizes itself."""
    return image[None]


def fed(given: Given, size: tuple[int, int], resize: str) -> Feed:
    """Returns what makes of an image what a tracker feeds, (1, 3, H, W) float32. resize: a word of INPUT.RESIZE."""
    resize_image = make_resizer(resize, is_train=False)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (given.mean, given.std))

    def feed(image: np.ndarray) -> np.ndarray:
        levels = resize_image(Image.fromarray(image), size)
        return ((levels.float() / 255 - mean) / std)[None].numpy()

    return feed


def unit(feature: np.ndarray) -> np.ndarray:
    """Returns a feature scaled to length 1."""
    return feature / max(float(np.linalg.norm(feature)), 1e-12)


@torch.no_grad()
def feature_difference(
    reference: Deployed, runtime: Runtime, feed: Feed, tests: list[TestSet], resize: str
) -> float:
    """Returns the largest difference of a unit feature's entry from the same pixels, on some photographs.

    reference: the network that takes whole images. resize: evaluation's, a word of INPUT.RESIZE.
    """
    pre, resize_image, worst = reference.preprocess, make_resizer(resize, is_train=False), 0.0
    margin = pre.margin if isinstance(pre, Preprocess) else 0
    for test in tests:
        for photo in photos(test, reference.sides, CHECKED):
            size = pre.size[0] + margin, pre.size[1] + margin
            pixels = resize_image(Image.fromarray(photo.image), size).permute(1, 2, 0).contiguous()
            labels = (torch.from_numpy(photo.labels[name]) for name in reference.sides)
            expected = nn.functional.normalize(reference(pixels[None], *labels))[0].numpy()
            exported = unit(runtime(feed(pixels.numpy()), **photo.labels)[0])
            worst = max(worst, float(np.abs(exported - expected).max()))
    return worst


def pixel_difference(pre: Preprocess, resizer: Runtime, tests: list[TestSet]) -> float:
    """Returns the largest difference of a resized pixel, in grey levels, on some photographs."""
    resize_image, worst, edge = make_resizer(pre.resize, is_train=False), 0.0, pre.margin // 2
    for test in tests:
        for photo in photos(test, (), CHECKED):
            expected = resize_image(Image.fromarray(photo.image), (pre.size[0] + pre.margin, pre.size[1] + pre.margin))
            cut = expected[:, edge : edge + pre.size[0], edge : edge + pre.size[1]].numpy().astype(np.float32)
            worst = max(worst, float(np.abs(resizer(photo.image[None])[0] - cut).max()))
    return worst


def exported_features(runtime: Runtime, test: TestSet, sides: tuple[str, ...], feed: Feed) -> Tensor:
    """Returns the exported file's features of a test set's list, from the image files' own pixels, (N, D)."""
    found = (runtime(feed(photo.image), **photo.labels)[0] for photo in photos(test, sides))
    return torch.from_numpy(np.stack(list(found)))


@torch.no_grad()
def speed_ratio(deployed: Deployed, runtime: Runtime, batch: int = 8, repeats: int = 3) -> float:
    """Returns how many times as fast the runtime is as PyTorch: the best of some runs each, at the test size."""
    size, generator = deployed.preprocess.size, torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8, generator=generator)
    if example_images(deployed).dtype != torch.uint8:
        images = images.permute(0, 3, 1, 2).float().contiguous() / 255
    labels = {name: np.zeros(batch, np.int64) for name in deployed.sides}
    tensors = [torch.from_numpy(value) for value in labels.values()]

    def best(work: Callable[[], object]) -> float:
        times = []
        for _ in range(repeats + 1):  # the first warms up
            began = time.perf_counter()
            work()
            times.append(time.perf_counter() - began)
        return min(times[1:])

    eager = best(lambda: deployed(images, *tensors))
    return eager / best(lambda: runtime(images.numpy(), **labels))


def model_card(cfg: CfgNode, deployed: Deployed, layout: str, width: int, folder: Path) -> dict[str, Any]:
    """Returns the content of ``model.json``, less the report of the check. layout: of ``LAYOUTS``."""
    height, across = deployed.preprocess.size
    given = LAYOUTS[layout].given
    images = (
        "uint8, RGB, (batch, height, width, 3), any size; upright (EXIF orientation applied), transparent parts "
        "composed over 'background', 16 bits scaled to 8"
        if given is None
        else f"float32, RGB, (batch, 3, {height}, {across}), (level / 255 - {list(given.mean)}) / {list(given.std)}"
    )
    return {
        "model": cfg.MODEL.NAME,
        "type": cfg.MODEL.TRANSFORMER_TYPE if cfg.MODEL.NAME == "transformer" else "",
        "method": cfg.PROCESSOR.NAME,
        "layout": layout,
        "inputs": {"images": images, **dict.fromkeys(deployed.sides, "int64, (batch,)")},
        "output": f"features, float32, (batch, {width})",
        "width": width,
        "size": [height, across],
        "resize": cfg.INPUT.RESIZE,
        "resize_margin": cfg.INPUT.RESIZE_MARGIN,
        "background": list(cfg.INPUT.BACKGROUND),
        "mean": list(cfg.INPUT.PIXEL_MEAN),
        "std": list(cfg.INPUT.PIXEL_STD),
        "flip": deployed.flip,
        "unit_length": deployed.unit,
        "distance": cfg.TEST.METRIC,
        "opset": OPSET,
        "sha256": {path.name: sha256(path) for path in sorted(folder.iterdir())},
        "weight": Path(cfg.TEST.WEIGHT).name,
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def calibration_of(cfg: CfgNode) -> dict[str, Any]:
    """Returns the entry of TEST.CALIBRATION in ``model.json``, none without it.

    Raises ``UserError`` if it is of another model.
    """
    calibration = make_extractor(cfg).calibration if cfg.TEST.CALIBRATION else None
    return {} if calibration is None else {"calibration": calibration.content()}


def write_file(cfg: CfgNode, deployed: Deployed, layout: str, folder: Path, scratch: Path) -> tuple[Runtime, Runtime]:
    """Writes the file of a layout into ``folder``; opens it, and the resize alone of one that takes whole images."""
    path, pre, sides = folder / f"model.{LAYOUTS[layout].ending}", deployed.preprocess, deployed.sides
    if not isinstance(pre, Preprocess):
        write_onnx(deployed, path, example_images(deployed), sides)
        return OnnxRuntime(path), OnnxRuntime(path)
    if layout == "torchscript":
        resize = write_torchscript(Resize(pre), WHOLE, scratch / "resize.torchscript")
        return TorchScript(write_torchscript(deployed, WHOLE, path, sides)), TorchScript(resize)
    if layout == "openvino":
        levels = Renormalise(pre.size, cfg.INPUT.PIXEL_MEAN, cfg.INPUT.PIXEL_STD, LEVELS)
        network = Deployed(deployed.model, levels, sides, deployed.flip, deployed.unit)
        images = example_images(network)
        for module, name, file in ((network, "features", path), (Levels(), "pixels", scratch / "resize.xml")):
            write_onnx(module, scratch / "part.onnx", images, sides if module is network else (), name)
            write_openvino(scratch / "part.onnx", file, pre)
        return OpenVino(path), OpenVino(scratch / "resize.xml")
    write_onnx(deployed, path, WHOLE, sides)
    write_onnx(Resize(pre), scratch / "resize.onnx", output="pixels")
    return OnnxRuntime(path), OnnxRuntime(scratch / "resize.onnx")


def export(cfg: CfgNode, out: Path, layout: str = "raw") -> dict[str, Any]:
    """Checks and writes the files; returns the differences, the scores of both and the ratio of speeds.

    layout: of ``LAYOUTS``. Raises ``UserError`` for a network that cannot be traced or that the layout has no inputs
    for, and for a file whose results differ from the model's.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file, not a folder")
    decisions, given = calibration_of(cfg), LAYOUTS[layout].given
    data = data_for_the_check(cfg)
    tests = [test for test in data.tests if test.protocol != "classification"]
    model = tested_model(cfg, data)
    decisions |= {"model_hash": hash_of_tested(cfg, model)}
    model = merge_adapters(model)
    settings = replace(Settings.from_cfg(cfg), camera_norm="off", centralisation=None)  # features alone
    deployed, reference = make_deployed(cfg, model, given), make_deployed(cfg, model)
    size = deployed.preprocess.size
    feed = whole if given is None else fed(given, size, cfg.INPUT.RESIZE)
    with tempfile.TemporaryDirectory() as name, tempfile.TemporaryDirectory() as scratch:
        folder = Path(name)
        runtime, resizer = write_file(cfg, deployed, layout, folder, Path(scratch))
        features, pixels = feature_difference(reference, runtime, feed, tests, cfg.INPUT.RESIZE), 0.0
        if features > FEATURE_LIMIT:
            raise UserError(f"not exported: a unit feature differs by {features:.1e}, the limit is {FEATURE_LIMIT:g}")
        if isinstance(deployed.preprocess, Preprocess):
            pixels = pixel_difference(deployed.preprocess, resizer, tests)
        if pixels > (limit := LAYOUTS[layout].pixel_limit):
            raise UserError(f"not exported: a resized pixel differs by {pixels:g} grey levels, the limit is {limit:g}")
        before = evaluate(model, tests, settings, torch.device("cpu"))
        after = scores_of(runtime, tests, settings, deployed.sides, feed)
        changed = [name for name in after if after[name].get("Rank-1") != before[name].get("Rank-1")]
        if changed:
            one, two = (scores[changed[0]]["Rank-1"] for scores in (before, after))
            raise UserError(f"not exported: Rank-1 of {changed[0]} changes from {one:.4f} to {two:.4f}")
        report = {
            "feature_difference": features, "pixel_difference": pixels, "pytorch": before, runtime.name: after,
            "speed_ratio": speed_ratio(deployed, runtime), "runtime": runtime.name,
        }  # fmt: skip
        if given is not None:
            own = fed(given, size, given.resize)
            report["with_its_resize"] = scores_of(runtime, tests, settings, deployed.sides, own)
        width = runtime(np.concatenate([feed(np.zeros((8, 8, 3), np.uint8))] * 2), **no_labels(deployed)).shape[1]
        write_tensors(folder / "model.safetensors", deployed.model.state_dict())
        if layout == "deepstream":
            write_text(folder / "config_tracker.yml", tracker_config(size, width))
        write_json(folder / "model.json", model_card(cfg, deployed, layout, width, folder) | decisions | report)
        out.mkdir(parents=True, exist_ok=True)
        for file in sorted(folder.iterdir(), key=lambda file: file.name == "model.json"):  # it stands for the others
            shutil.copyfile(file, out / f".{file.name}")
            (out / f".{file.name}").replace(out / file.name)
    return report


def scores_of(
    runtime: Runtime, tests: list[TestSet], settings: Settings, sides: tuple[str, ...], feed: Feed
) -> dict[str, dict[str, float]]:
    """Returns the scores of an exported file, by test set."""
    return {t.name: score(t, exported_features(runtime, t, sides, feed), settings).metrics for t in tests}


def no_labels(deployed: Deployed) -> dict[str, np.ndarray]:
    """Returns the further inputs of two images: camera and view 0."""
    return {name: np.zeros(2, np.int64) for name in deployed.sides}


def tracker_config(size: tuple[int, int], width: int) -> str:
    """Returns the ReID section and what it needs of DeepStream's nvtracker (NvDCF or NvDeepSORT), as YAML.

    size: (H, W). width: of a feature. Scaling and normalisation are in the file, so factor and offsets do nothing.
    """
    return f"""# Beside these sections, nvtracker needs those of its own sample config_tracker_NvDeepSORT.yml.
ReID:
  reidType: 2
  batchSize: 100
  workspaceSize: 1000
  reidFeatureSize: {width}
  reidHistorySize: 100
  inferDims: [3, {size[0]}, {size[1]}]
  networkMode: 0  # fp32; 1 is fp16
  inputOrder: 0  # NCHW
  colorFormat: 0  # RGB
  offsets: [0.0, 0.0, 0.0]
  netScaleFactor: 1.0
  keepAspc: 0  # crops are stretched, as in training
  addFeatureNormalization: 0  # features have unit length
  onnxFile: "model.onnx"
"""


def data_for_the_check(cfg: CfgNode) -> Data:
    """Returns the data of the configuration. Raises ``UserError`` that says what it is for, and what else will do."""
    try:
        return make_dataloader(cfg, training=False)
    except UserError as error:
        raise UserError(
            f"{error} - export needs images only to check its file: DATASETS.NAMES and DATASETS.ROOT_DIR may name any "
            "that are there, DATASETS.NAMES synthetic draws some"
        ) from None


class Levels(nn.Module):
    """Passes resized pixels on, so that OpenVINO's own resize stands alone."""

    def forward(self, pixels: Tensor) -> Tensor:
        return pixels.clamp(0, 255)


class Resize(nn.Module):
    """The resize alone, which the check compares with evaluation's."""

    def __init__(self, preprocess: Preprocess):
        super().__init__()
        self.preprocess = preprocess

    def forward(self, images: Tensor) -> Tensor:
        return self.preprocess.resized(images)


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command."""
    example = "--config_file configs/transreid/market1501.yml --out exported TEST.WEIGHT transformer_120.pth"
    parser = make_parser("python -m tools.export", __doc__, example, settings=True)
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="where the files go")
    parser.add_argument(
        "--for", dest="layout", choices=LAYOUTS, default="raw", metavar="LAYOUT",
        help=f"the program that reads the file: {', '.join(LAYOUTS)} (default: raw, for onnxruntime)",
    )  # fmt: skip
    args = parser.parse_args(argv)
    report = export(load_config(args.config_file, args.opts), args.out, args.layout)
    runtime, file = report["runtime"], args.out / f"model.{LAYOUTS[args.layout].ending}"
    print(
        f"largest difference of a unit feature {report['feature_difference']:.1e}, of a resized pixel "
        f"{report['pixel_difference']:g} grey levels"
    )
    for name, before in report["pytorch"].items():
        print(f"{name}: {beside(before, report[runtime][name])} (PyTorch / {runtime})")
        if "with_its_resize" in report:
            after = report["with_its_resize"][name]
            print(f"{name}: {beside(before, after)} (PyTorch / {runtime}, resized as {args.layout} does)")
    print(f"{runtime} is {report['speed_ratio']:.2f} times as fast as PyTorch here; {file}")
    print(f"{args.layout}: {LAYOUTS[args.layout].note}")


def beside(before: dict[str, float], after: dict[str, float]) -> str:
    """Returns two scores side by side, in percent."""
    shown = [key for key in ("mAP", "Rank-1") if key in before]
    return ", ".join(f"{key} {100 * before[key]:.2f} / {100 * after[key]:.2f}" for key in shown)


if __name__ == "__main__":
    run_command(main)
