"""Exported files in the runtimes that read them, behind one call: images and labels in, features out."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from utils.errors import UserError


class Runtime(Protocol):
    """A network in a runtime. Takes images as its layout says, and int64 (B,) arrays of further inputs by name."""

    name: str

    def __call__(self, images: np.ndarray, **labels: np.ndarray) -> np.ndarray: ...


class OnnxRuntime:
    """A file in onnxruntime, on the CPU with as many threads as torch has."""

    name = "onnxruntime"

    def __init__(self, path: Path):
        try:
            import onnxruntime
        except ImportError:
            raise UserError("onnxruntime is not installed: pip install -r requirements-extra.txt") from None
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        self.session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])

    def __call__(self, images: np.ndarray, **labels: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"images": images, **labels})[0]


class OpenVino:
    """A ``.xml`` file, or an ``.onnx`` one, in OpenVINO, on the CPU in full precision."""

    name = "openvino"

    def __init__(self, path: Path):
        try:
            import openvino
        except ImportError:
            raise UserError("openvino is not installed: pip install -r requirements-extra.txt") from None
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }  # fmt: skip
        self.model = openvino.Core().compile_model(path, "CPU", settings)

    def __call__(self, images: np.ndarray, **labels: np.ndarray) -> np.ndarray:
        return np.array(self.model({"images": images, **labels})[0])


class TorchScript:
    """A traced network. Takes the network itself: a file of others would run code when it is loaded."""

    name = "torchscript"

    def __init__(self, traced: Callable[..., torch.Tensor]):
        self.traced = traced

    @torch.no_grad()
    def __call__(self, images: np.ndarray, **labels: np.ndarray) -> np.ndarray:
        return self.traced(torch.from_numpy(images), *map(torch.from_numpy, labels.values())).numpy()
