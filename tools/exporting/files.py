"""Writes the file of a layout in a precision: the network, and its preprocessing in front of it in full precision."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from pathlib import Path

from torch import Tensor, nn

from model.deployed import Deployed, Preprocess
from model.exporting import (
    WHOLE,
    example_images,
    join_onnx,
    write_onnx,
    write_openvino,
    write_torchscript,
)
from model.half_precision import write_bfloat16, write_float16
from model.layouts import LAYOUTS
from model.quantising_onnx import OnnxQuantiser
from model.quantising_openvino import OpenVinoQuantiser
from model.recipes import Feed, Quantiser
from processor.runtimes import READERS, RUNTIMES, OnnxRuntime, OpenVino, Runtime, TorchScript


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


class FileWriter:
    """Writes the files of one layout, all from one trace of the network.

    deployed: the network with the layout's preprocessing. layout: of ``LAYOUTS``, one of ONNX or OpenVINO. scratch: a
    folder for parts.
    """

    def __init__(self, deployed: Deployed, layout: str, scratch: Path):
        self.deployed, self.ending, self.scratch = deployed, LAYOUTS[layout].ending, scratch
        self.network, self.front = scratch / "network.onnx", scratch / "front.onnx"
        alone = deployed.network()
        write_onnx(alone, self.network, example_images(alone), deployed.sides)
        if self.ending == "onnx":
            write_onnx(deployed.preprocess, self.front, example_images(deployed), output="pixels")

    def write(self, precision: str, path: Path) -> None:
        """Writes the file. precision: fp32, fp16 or bf16."""
        if precision == "fp16" and self.ending == "onnx":
            write_float16(self.network, self.scratch / "half.onnx")
            self.finish(self.scratch / "half.onnx", path)
        elif precision == "bf16":
            write_bfloat16(self.network, self.scratch / "bfloat.xml")
            self.finish(self.scratch / "bfloat.xml", path)
        else:
            self.finish(self.network, path, half=precision == "fp16")

    def quantiser(self, feeds: list[Feed]) -> Quantiser:
        """Returns what writes 8-bit networks, which ``finish`` completes. feeds: calibration images in batches."""
        if self.ending == "xml":
            return OpenVinoQuantiser(self.network, feeds)
        return OnnxQuantiser(self.network, feeds, self.scratch)

    def finish(self, network: Path, path: Path, half: bool = False) -> None:
        """Writes the file of a network in the layout's format. half: OpenVINO stores floats in 16 bits."""
        if self.ending == "onnx":
            join_onnx(self.front, network, path)
        else:
            assert isinstance(self.deployed.preprocess, Preprocess)
            write_openvino(network, path, self.deployed.preprocess, half)

    def resize(self) -> Runtime:
        """Returns the resize alone of a layout that takes whole images."""
        pre = self.deployed.preprocess
        assert isinstance(pre, Preprocess)
        if self.ending == "onnx":
            write_onnx(Resize(pre), self.scratch / "resize.onnx", output="pixels")
            return OnnxRuntime(self.scratch / "resize.onnx")
        alone = self.deployed.network()
        write_onnx(Levels(), self.scratch / "levels.onnx", example_images(alone), output="pixels")
        write_openvino(self.scratch / "levels.onnx", self.scratch / "resize.xml", pre, normalise=False)
        return OpenVino(self.scratch / "resize.xml")

    def openers(self, path: Path) -> dict[str, Callable[[], Runtime]]:
        """Returns what opens a file, by the name of each runtime that reads it and is installed."""
        return {name: partial(RUNTIMES[name], path) for name in READERS[path.suffix] if find_spec(name)}

    def open(self, path: Path) -> Runtime:
        """Returns a file in the layout's own runtime."""
        return RUNTIMES[READERS[path.suffix][0]](path)


def write_traced(deployed: Deployed, path: Path, scratch: Path) -> tuple[Runtime, Runtime]:
    """Writes the TorchScript file; returns it, and its resize alone."""
    pre = deployed.preprocess
    assert isinstance(pre, Preprocess)
    resize = write_torchscript(Resize(pre), WHOLE, scratch / "resize.torchscript")
    return TorchScript(write_torchscript(deployed, WHOLE, path, deployed.sides)), TorchScript(resize)


def megabytes(path: Path) -> float:
    """Returns the size of a file, with the weights that OpenVINO keeps beside it, in 10^6 bytes."""
    beside = path.with_suffix(".bin") if path.suffix == ".xml" else path
    return sum(file.stat().st_size for file in {path, beside}) / 1e6
