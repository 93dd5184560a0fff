"""Writes a network in the file formats of other runtimes: ONNX, OpenVINO's and TorchScript."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.deployed import Deployed, Preprocess, Renormalise
from utils.errors import UserError

OPSET = 18

WHOLE = torch.zeros(2, 90, 50, 3, dtype=torch.uint8)
"""Two whole images, of any size, from which a network is traced."""


def example_images(deployed: Deployed) -> Tensor:
    """Returns two black images as the network takes them."""
    preprocess = deployed.preprocess
    return torch.zeros(2, 3, *preprocess.size) if isinstance(preprocess, Renormalise) else WHOLE


def write_onnx(
    module: nn.Module, path: Path, images: Tensor = WHOLE, sides: tuple[str, ...] = (), output: str = "features"
) -> None:
    """Writes a module as ONNX, for any number of images.

    images: an example; of uint8 images, (2, height, width, 3), any size is taken later. sides: names of further inputs,
    int64 (batch,). Raises ``UserError`` with the tracer's first line for a network that cannot be traced.
    """
    try:
        import onnx  # noqa: F401 - torch's own message is long if one of them is missing
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise UserError(f"export needs {error.name}: pip install -r requirements-extra.txt") from None
    any_length = torch.export.Dim.DYNAMIC
    labels = tuple(torch.zeros(2, dtype=torch.int64) for _ in sides)
    shapes: tuple = (dict.fromkeys((0, 1, 2) if images.dtype == torch.uint8 else (0,), any_length),)
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
        raise untraceable(error) from None


def untraceable(error: Exception) -> UserError:
    """Returns the one line of what a tracer says."""
    lines = [line for line in str(error.__cause__ or error).splitlines() if line.strip()] or [type(error).__name__]
    return UserError(f"the network cannot be exported: {lines[0][:200]}")


def write_torchscript(
    module: nn.Module, images: Tensor, path: Path, sides: tuple[str, ...] = ()
) -> Callable[..., Tensor]:
    """Writes a module as TorchScript, which C++ programs load without Python, and returns what it wrote.

    images, sides: as for ``write_onnx``.
    """
    labels = tuple(torch.zeros(2, dtype=torch.int64) for _ in sides)
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore")
            traced: Any = torch.jit.trace(module, (images, *labels), check_trace=False)
            torch.jit.save(traced, path)
    except Exception as error:  # noqa: BLE001 - the tracer raises many kinds of errors
        raise untraceable(error) from None
    return traced


def write_openvino(onnx: Path, path: Path, preprocess: Preprocess) -> None:
    """Writes OpenVINO's ``.xml`` and ``.bin`` with resize, margin and normalisation inside, by its PrePostProcessor.

    onnx: the network alone, of levels 0 to 255, (batch, 3, H, W). Raises ``UserError`` for a resize that OpenVINO has
    not, and if it is not installed.
    """
    try:
        import openvino as ov
        from openvino.preprocess import PrePostProcessor, ResizeAlgorithm
    except ImportError:
        raise UserError("this format needs openvino: pip install -r requirements-extra.txt") from None
    algorithms = {
        "auto": ResizeAlgorithm.RESIZE_BILINEAR_PILLOW, "pil_bilinear": ResizeAlgorithm.RESIZE_BILINEAR_PILLOW,
        "pil_bicubic": ResizeAlgorithm.RESIZE_BICUBIC_PILLOW, "cv2_bilinear": ResizeAlgorithm.RESIZE_LINEAR,
    }  # fmt: skip
    model = ov.Core().read_model(onnx)
    steps = PrePostProcessor(model)
    images = steps.input("images")
    images.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC")).set_shape([-1, -1, -1, 3])
    images.model().set_layout(ov.Layout("NCHW"))
    height, width = (side + preprocess.margin for side in preprocess.size)
    todo = images.preprocess().resize(algorithms[preprocess.resize], height, width).convert_element_type(ov.Type.f32)
    if preprocess.margin:
        edge = preprocess.margin // 2
        todo.crop([0, edge, edge, 0], [2**31 - 1, edge + preprocess.size[0], edge + preprocess.size[1], 3])
    ov.save_model(steps.build(), path, compress_to_fp16=False)
