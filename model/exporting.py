"""Writes a network in the file formats of other runtimes: ONNX, OpenVINO's and TorchScript."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from model.deployed import Deployed, Preprocess
from utils.errors import UserError

OPSET = 18

WHOLE = torch.zeros(2, 90, 50, 3, dtype=torch.uint8)
"""Two whole images, of any size, from which a network is traced."""


def example_images(deployed: Deployed) -> Tensor:
    """Returns two black images as the network takes them."""
    preprocess = deployed.preprocess
    return WHOLE if isinstance(preprocess, Preprocess) else torch.zeros(2, 3, *preprocess.size)


def write_onnx(
    module: nn.Module, path: Path, images: Tensor = WHOLE, sides: tuple[str, ...] = (), output: str = "features"
) -> None:
    """Writes a module as ONNX, for any number of images.

    images: an example; of uint8 images, (2, height, width, 3), any size is taken later. sides: names of further inputs,
    int64 (batch,). Raises ``UserError`` with the tracer's first line for a network that cannot be traced.
    """
    try:
        import onnx  # torch's own message is long if one of them is missing
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
            torch.onnx.export(
                module, (images, *labels), path, dynamo=True, opset_version=OPSET, optimize=False, verbose=False,
                external_data=False, input_names=["images", *sides], output_names=[output], dynamic_shapes=shapes,
            )  # fmt: skip
    except Exception as error:  # noqa: BLE001 - the exporter raises many kinds of errors
        raise untraceable(error) from None
    traced = optimised(onnx.load(path))
    for node in traced.graph.node:
        del node.metadata_props[:]  # the lines of code it comes from: half of a small file, and paths of this machine
    onnx.save(traced, path)


def optimised(model: Any) -> Any:
    """Returns an ONNX model with its constants computed, so that runtimes can join batch norms and convolutions.

    onnxruntime does not see that the biases which a trace adds are constants, and OSNet is three times slower then. A
    model that the optimiser fails on (splits of unknown sizes) comes back as it is.
    """
    from onnxscript import optimizer

    before = copy.deepcopy(model)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return optimizer.optimize(model)
    except Exception:  # noqa: BLE001 - it raises many kinds of errors
        return before


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


def join_onnx(front: Path, network: Path, path: Path) -> None:
    """Writes a network behind its preprocessing as one ONNX file.

    front: of ``images``, output ``pixels``. network: of these pixels, its input ``images``, with its further inputs.
    """
    import onnx
    from onnx import compose

    first, second = (compose.add_prefix(onnx.load(file), prefix, rename_inputs=False, rename_outputs=False)
                     for file, prefix in ((front, "preprocessing/"), (network, "network/")))  # fmt: skip
    for value in second.graph.input:
        value.name = "pixels" if value.name == "images" else value.name
    for node in second.graph.node:
        node.input[:] = ["pixels" if name == "images" else name for name in node.input]
    first.ir_version = second.ir_version = max(first.ir_version, second.ir_version)
    onnx.save(compose.merge_models(first, second, io_map=[("pixels", "pixels")]), path)


def read_openvino(path: Path) -> Any:
    """Returns OpenVINO's model of an ONNX file or of its own. Raises ``UserError`` if it is not installed."""
    try:
        import openvino
    except ImportError:
        raise UserError("this format needs openvino: pip install -r requirements-extra.txt") from None
    return openvino.Core().read_model(path)


def write_openvino(
    network: Path, path: Path, preprocess: Preprocess, half: bool = False, normalise: bool = True
) -> None:
    """Writes OpenVINO's ``.xml`` and ``.bin`` with resize, margin and normalisation inside, by its PrePostProcessor.

    network: of normalised pixels, (batch, 3, H, W). half: store weights in 16 bits. normalise: False for a network that
    takes grey levels, 0 to 255. Raises ``UserError`` if OpenVINO is not installed.
    """
    model = read_openvino(network)
    import openvino as ov
    from openvino.preprocess import PrePostProcessor, ResizeAlgorithm

    algorithms = {
        "auto": ResizeAlgorithm.RESIZE_BILINEAR_PILLOW, "pil_bilinear": ResizeAlgorithm.RESIZE_BILINEAR_PILLOW,
        "pil_bicubic": ResizeAlgorithm.RESIZE_BICUBIC_PILLOW, "cv2_bilinear": ResizeAlgorithm.RESIZE_LINEAR,
    }  # fmt: skip
    steps = PrePostProcessor(model)
    images = steps.input("images")
    images.tensor().set_element_type(ov.Type.u8).set_layout(ov.Layout("NHWC")).set_shape([-1, -1, -1, 3])
    images.model().set_layout(ov.Layout("NCHW"))
    height, width = (side + preprocess.margin for side in preprocess.size)
    todo = images.preprocess().resize(algorithms[preprocess.resize], height, width).convert_element_type(ov.Type.f32)
    if preprocess.margin:
        edge = preprocess.margin // 2
        todo = todo.crop([0, edge, edge, 0], [2**31 - 1, edge + preprocess.size[0], edge + preprocess.size[1], 3])
    if normalise:
        mean, std = -preprocess.shift / preprocess.scale, 1 / preprocess.scale
        todo.mean(mean.flatten().tolist()).scale(std.flatten().tolist())
    ov.save_model(steps.build(), path, compress_to_fp16=half)
