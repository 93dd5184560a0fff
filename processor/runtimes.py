"""Exported files in the runtimes that read them, behind one call: images and labels in, features out."""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from utils.errors import UserError, cut, one_line
from utils.signal_stack import kept_signal_stack

TORCH = "torch"
"""The word of TEST.RUNTIME for the network itself."""

Shape = tuple[int | None, ...]
"""Sizes of an input, None for one that may be any."""


class Runtime(Protocol):
    """A network in a runtime. Takes images as its layout says, and int64 (B,) arrays of further inputs by name."""

    name: str

    def __call__(self, images: np.ndarray, **labels: np.ndarray) -> np.ndarray: ...


class FileRuntime(Runtime, Protocol):
    """A runtime that has opened a file. inputs: the shape of each input of the file, by name."""

    inputs: dict[str, Shape]


def import_runtime(name: str) -> Any:
    """Returns the package of a runtime, which has its name. Raises ``UserError`` if it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        raise UserError(f"{name} is not installed: pip install -r requirements-extra.txt") from None


class OnnxRuntime:
    """A file in onnxruntime, on the CPU with as many threads as torch has.

    Raises ``UserError`` if onnxruntime is not installed or cannot read the file.
    """

    name = "onnxruntime"

    def __init__(self, path: Path):
        onnxruntime = import_runtime(self.name)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = torch.get_num_threads()
        try:
            self.session: Any = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # noqa: BLE001 - the library raises many kinds of errors
            raise unreadable(path, f"onnxruntime {onnxruntime.__version__}", error) from None
        self.inputs = {
            entry.name: tuple(size if isinstance(size, int) else None for size in entry.shape)
            for entry in self.session.get_inputs()
        }

    def __call__(self, images: np.ndarray, **labels: np.ndarray) -> np.ndarray:
        return self.session.run(None, {"images": images, **labels})[0]


class OpenVino:
    """A ``.xml`` file, or an ``.onnx`` one, in OpenVINO, on the CPU in full precision.

    Raises ``UserError`` if openvino is not installed or cannot read the file.
    """

    name = "openvino"

    def __init__(self, path: Path):
        openvino = import_runtime(self.name)
        settings = {
            "INFERENCE_NUM_THREADS": torch.get_num_threads(), "INFERENCE_PRECISION_HINT": "f32",
            "PERFORMANCE_HINT": "LATENCY",
        }  # fmt: skip
        try:
            with kept_signal_stack():
                self.model = openvino.Core().compile_model(path, "CPU", settings)
        except Exception as error:  # noqa: BLE001 - the library raises RuntimeError for everything
            raise unreadable(path, f"openvino {openvino.__version__.partition('-')[0]}", error) from None
        self.inputs = {
            name: tuple(None if size.is_dynamic else size.get_length() for size in entry.partial_shape)
            for entry in self.model.inputs for name in entry.names  # one input may have several
        }  # fmt: skip

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


RUNTIMES: dict[str, Callable[[Path], FileRuntime]] = {OnnxRuntime.name: OnnxRuntime, OpenVino.name: OpenVino}
"""By the word of TEST.RUNTIME."""

READERS = {".onnx": (OnnxRuntime.name, OpenVino.name), ".xml": (OpenVino.name,)}
"""The runtimes that read a file, by its ending; the first is its own."""


class Unreadable(UserError):
    """A file that a runtime refuses. reason: which runtime, its version and why."""

    def __init__(self, path: Path, reason: str):
        super().__init__(f"{path}: {reason}; install another version of it, or export the model again")
        self.reason = reason


REASON = re.compile(
    r"Could not find an implementation for \S+|Opset \d+ is under development|Unsupported model IR version: \d+"
    r"|Protobuf parsing failed|Unable to read the model|No conversion rule found for operations?: .{,80}"
)
"""The words of a runtime's long error that say what is wrong."""


def unreadable(path: Path, reader: str, error: Exception) -> Unreadable:
    """Returns the one line for a file that a runtime refuses. reader: the runtime and its version."""
    text = " ".join(line for line in str(error).splitlines() if not line.startswith("Exception from"))
    known, opset = REASON.search(text), opset_of(path)
    version = f" (opset {opset})" if opset else ""
    return Unreadable(path, f"{reader} cannot read it{version}: {known[0] if known else cut(one_line(text), 300)}")


def opset_of(path: Path) -> int | None:
    """Returns the version of ONNX's operators that a file uses; None for another file, or without onnx."""
    try:
        import onnx

        imports = onnx.load(path, load_external_data=False).opset_import
        return max(entry.version for entry in imports if not entry.domain)
    except Exception:  # noqa: BLE001 - only the message of another error needs it
        return None
