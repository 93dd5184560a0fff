"""Exports a trained model for other programs: ONNX with resize and normalisation inside, and safetensors.

``python -m tools.export --config_file F --out FOLDER TEST.WEIGHT W`` writes ``model.onnx`` (input ``images``:
uint8, RGB, (batch, height, width, 3), of any number and size; ``cam_label`` and ``view_label``, int64 (batch,), where
the model uses side information; output ``features``, float32), ``model.json`` (what a program needs to know of it) and
``model.safetensors`` (the weights, which TEST.WEIGHT reads). First it runs the file in onnxruntime on the
configuration's test sets; if a feature, the resize or a first rank differs, it writes nothing.
"""

from __future__ import annotations

import hashlib
import logging
import platform
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from yacs.config import CfgNode

from configs import load_config
from datasets.images import ImageList
from datasets.loaders import Data, TestSet, make_dataloader
from datasets.transforms.resizing import make_resizer, to_pixels
from model.deployed import Deployed, Preprocess, make_deployed
from model.layers.lora import merge_adapters
from processor.evaluate import Settings, evaluate, score
from processor.extractor import make_extractor
from processor.trained import tested_model
from utils.commands import make_parser, run_command
from utils.errors import UserError
from utils.files import write_json
from utils.weight_files import write_tensors

log = logging.getLogger("lineup")

OPSET = 18
FEATURE_LIMIT, PIXEL_LIMIT = 1e-3, 1.0
"""Largest permitted difference of a unit feature's entry from the same pixels, and of a pixel in grey levels."""

CHECKED = 64
"""Photographs of every test set on which pixels and features are compared one by one."""


class Runner(Protocol):
    """What is used of an onnxruntime session."""

    def run(self, outputs: None, inputs: dict[str, np.ndarray]) -> list[np.ndarray]: ...

    def get_outputs(self) -> list[Any]: ...


def write_onnx(module: nn.Module, path: Path, sides: tuple[str, ...] = (), output: str = "features") -> None:
    """Writes a module of uint8 images (batch, height, width, 3), all three of any length, and labels (batch,) as ONNX.

    Raises ``UserError`` with the tracer's first line for a network that cannot be traced.
    """
    try:
        import onnx  # noqa: F401 - torch's own message is long if one of them is missing
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"export needs {error.name}: pip install -r requirements-extra.txt") from None
    any_length = torch.export.Dim.DYNAMIC
    images = torch.zeros(2, 90, 50, 3, dtype=torch.uint8)
    labels = tuple(torch.zeros(2, dtype=torch.int64) for _ in sides)
    shapes: tuple = ({0: any_length, 1: any_length, 2: any_length},)
    if sides:
        shapes += (tuple({0: any_length} for _ in sides),)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            # not optimised here: onnxruntime does so when it loads the file
            torch.onnx.export(
                module, (images, *labels), path, dynamo=True, opset_version=OPSET, optimize=False, verbose=False,
                external_data=False, input_names=["images", *sides], output_names=[output], dynamic_shapes=shapes,
            )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - the exporter raises many kinds of errors
        lines = [line for line in str(error.__cause__ or error).splitlines() if line.strip()] or [type(error).__name__]
        raise UserError(f"the network cannot be exported: {lines[0][:200]}") from None


def open_session(path: Path) -> Runner:
    """Opens a file in onnxruntime on the CPU. Raises ``UserError`` if that is not installed."""
    try:
        import onnxruntime
    except ImportError:
        raise UserError("export checks its file with onnxruntime: pip install -r requirements-extra.txt") from None
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = torch.get_num_threads()
    session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return session


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


def exported_feature(runner: Runner, photo: Photo) -> np.ndarray:
    """Returns the exported file's feature of an image, (D,)."""
    return runner.run(None, {"images": photo.image[None], **photo.labels})[0][0]


@torch.no_grad()
def compare(
    deployed: Deployed, runner: Runner, resizer: Runner, tests: list[TestSet], resize: str
) -> tuple[float, float]:
    """Returns the largest differences on some photographs: of a feature from the same pixels, and of a resized pixel.

    runner, resizer: sessions of the whole file and of the resize alone. resize: evaluation's, a word of INPUT.RESIZE.
    """
    pre, resize_image = deployed.preprocess, make_resizer(resize, is_train=False)
    height, width = (side + pre.margin for side in pre.size)
    edge, features, pixels = pre.margin // 2, 0.0, 0.0
    for test in tests:
        for photo in photos(test, deployed.sides, CHECKED):
            expected = resize_image(Image.fromarray(photo.image), (height, width))
            exported = resizer.run(None, {"images": photo.image[None]})[0][0]
            cut = expected[:, edge : edge + pre.size[0], edge : edge + pre.size[1]].numpy().astype(np.float32)
            pixels = max(pixels, float(np.abs(exported - cut).max()))
            resized = Photo(expected.permute(1, 2, 0).contiguous().numpy(), photo.labels)
            labels = (torch.from_numpy(resized.labels[name]) for name in deployed.sides)
            feature = nn.functional.normalize(deployed(torch.from_numpy(resized.image)[None], *labels))[0].numpy()
            exported = exported_feature(runner, resized)
            unit = exported / max(float(np.linalg.norm(exported)), 1e-12)
            features = max(features, float(np.abs(unit - feature).max()))
    return features, pixels


def exported_features(runner: Runner, test: TestSet, sides: tuple[str, ...]) -> Tensor:
    """Returns the exported file's features of a test set's list, from the image files' own pixels, (N, D)."""
    return torch.from_numpy(np.stack([exported_feature(runner, photo) for photo in photos(test, sides)]))


@torch.no_grad()
def speed_ratio(deployed: Deployed, runner: Runner, batch: int = 8, repeats: int = 3) -> float:
    """Returns how many times as fast onnxruntime is as PyTorch: the best of some runs each, at the test size."""
    size = deployed.preprocess.size
    images = torch.randint(0, 256, (batch, *size, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
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
    return eager / best(lambda: runner.run(None, {"images": images.numpy(), **labels}))


def sha256(path: Path) -> str:
    """Returns the SHA-256 of a file in hexadecimal."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def model_card(cfg: CfgNode, deployed: Deployed, width: int, folder: Path) -> dict[str, Any]:
    """Returns the content of ``model.json``, less the report of the check."""
    pre = deployed.preprocess
    return {
        "model": cfg.MODEL.NAME,
        "type": cfg.MODEL.TRANSFORMER_TYPE if cfg.MODEL.NAME == "transformer" else "",
        "method": cfg.PROCESSOR.NAME,
        "inputs": {
            "images": "uint8, RGB, (batch, height, width, 3), any size; upright (EXIF orientation applied), "
            "transparent parts composed over 'background', 16 bits scaled to 8",
            **dict.fromkeys(deployed.sides, "int64, (batch,)"),
        },
        "output": f"features, float32, (batch, {width})",
        "width": width,
        "size": list(pre.size),
        "resize": cfg.INPUT.RESIZE,
        "background": list(cfg.INPUT.BACKGROUND),
        "mean": list(cfg.INPUT.PIXEL_MEAN),
        "std": list(cfg.INPUT.PIXEL_STD),
        "unit_length": deployed.unit,
        "distance": cfg.TEST.METRIC,
        "opset": OPSET,
        "sha256": {name: sha256(folder / name) for name in ("model.onnx", "model.safetensors")},
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


def export(cfg: CfgNode, out: Path) -> dict[str, Any]:
    """Checks and writes the files; returns the differences, the scores of both and the ratio of speeds.

    Raises ``UserError`` for a network that cannot be traced and for a file whose results differ from the model's.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"--out: {out} is a file, not a folder")
    decisions = calibration_of(cfg)
    data = data_for_the_check(cfg)
    tests = [test for test in data.tests if test.protocol != "classification"]
    model = merge_adapters(tested_model(cfg, data))
    settings = replace(Settings.from_cfg(cfg), camera_norm="off", centralisation=None)  # features alone
    deployed = make_deployed(cfg, model)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_onnx(deployed, folder / "model.onnx", deployed.sides)
        write_onnx(Resize(deployed.preprocess), folder / "resize.onnx", output="pixels")
        runner, resizer = open_session(folder / "model.onnx"), open_session(folder / "resize.onnx")
        features, pixels = compare(deployed, runner, resizer, tests, cfg.INPUT.RESIZE)
        if features > FEATURE_LIMIT:
            raise UserError(f"not exported: a unit feature differs by {features:.1e}, the limit is {FEATURE_LIMIT:g}")
        if pixels > PIXEL_LIMIT:
            raise UserError(
                f"not exported: a resized pixel differs by {pixels:g} grey levels, the limit is {PIXEL_LIMIT:g}"
            )
        before = evaluate(model, tests, settings, torch.device("cpu"))
        after = {t.name: score(t, exported_features(runner, t, deployed.sides), settings).metrics for t in tests}
        changed = [name for name in after if after[name].get("Rank-1") != before[name].get("Rank-1")]
        if changed:
            one, two = (scores[changed[0]]["Rank-1"] for scores in (before, after))
            raise UserError(f"not exported: Rank-1 of {changed[0]} changes from {one:.4f} to {two:.4f}")
        report = {
            "feature_difference": features, "pixel_difference": pixels, "pytorch": before, "onnxruntime": after,
            "speed_ratio": speed_ratio(deployed, runner),
        }  # fmt: skip
        width = int(runner.get_outputs()[0].shape[1])
        write_tensors(folder / "model.safetensors", deployed.model.state_dict())
        write_json(folder / "model.json", model_card(cfg, deployed, width, folder) | decisions | report)
        out.mkdir(parents=True, exist_ok=True)
        for file in ("model.onnx", "model.safetensors", "model.json"):
            shutil.copyfile(folder / file, out / f".{file}")
            (out / f".{file}").replace(out / file)
    return report


def data_for_the_check(cfg: CfgNode) -> Data:
    """Returns the data of the configuration. Raises ``UserError`` that says what it is for, and what else will do."""
    try:
        return make_dataloader(cfg, training=False)
    except UserError as error:
        raise UserError(
            f"{error} - export needs images only to check its file: DATASETS.NAMES and DATASETS.ROOT_DIR may name any "
            "that are there, DATASETS.NAMES synthetic draws some"
        ) from None


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
    args = parser.parse_args(argv)
    report = export(load_config(args.config_file, args.opts), args.out)
    print(
        f"largest difference of a unit feature {report['feature_difference']:.1e}, of a resized pixel "
        f"{report['pixel_difference']:g} grey levels"
    )
    for name, before in report["pytorch"].items():
        after = report["onnxruntime"][name]
        shown = [k for k in ("mAP", "Rank-1") if k in before]
        values = ", ".join(f"{k} {100 * before[k]:.2f} / {100 * after[k]:.2f}" for k in shown)
        print(f"{name}: {values} (PyTorch / onnxruntime)")
    print(f"onnxruntime is {report['speed_ratio']:.2f} times as fast as PyTorch here; {args.out / 'model.onnx'}")


if __name__ == "__main__":
    run_command(main)
