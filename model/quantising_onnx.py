"""8-bit ONNX networks by onnxruntime's static quantisation (QDQ)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from model.recipes import Feed, Recipe, groups_of, quiet
from utils.errors import UserError

WEIGHTED = ("Conv", "Gemm", "MatMul")
BETWEEN = ("Add", "Mul", "Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "Concat")
"""What runs in integers between convolutions; transformers lose more by it than they gain."""


class OnnxQuantiser:
    """Quantises an ONNX network; the range of every activation is measured once for each kind of range.

    network: of normalised pixels, in float. feeds: calibration images in batches. scratch: a folder. Raises
    ``UserError`` if onnxruntime is not installed.
    """

    ending = "onnx"
    starts = tuple(
        Recipe(ranges, per_channel) for ranges in ("minmax", "percentile", "entropy") for per_channel in (False, True)
    )

    def __init__(self, network: Path, feeds: list[Feed], scratch: Path):
        try:
            import onnx
            from onnxruntime import quantization
        except ImportError as error:
            raise UserError(f"--precision int8 needs {error.name}: pip install -r requirements-extra.txt") from None
        self.library: Any = quantization
        self.feeds, self.scratch, self.network = feeds, scratch, scratch / "to_quantise.onnx"
        with quiet():
            quantization.quant_pre_process(str(network), str(self.network), skip_symbolic_shape=True)
        self.load = onnx.load
        nodes = self.load(self.network).graph.node
        kinds = Counter(node.op_type for node in nodes)
        convolutional = kinds["Conv"] > kinds["Gemm"] + kinds["MatMul"]
        self.kinds = [*WEIGHTED, *(BETWEEN if convolutional else ())]
        layers = [(node.name, node.op_type in WEIGHTED) for node in nodes if node.op_type in self.kinds]
        self.groups = groups_of(layers)
        self._ranges: dict[str, Any] = {}

    def write(self, recipe: Recipe, path: Path, only: Sequence[str] | None = None) -> None:
        """Writes the quantised network. See ``Quantiser``."""
        kinds, ranges = self.library.QuantType, self.ranges(recipe.ranges)
        with quiet():
            # weights of 7 bits: processors without VNNI add two products in 16 bits, which 8 overflow
            quantizer = self.library.QDQQuantizer(
                self.load(self.network), recipe.per_channel, True, kinds.QInt8, kinds.QUInt8, ranges,
                list(only or ()), list(recipe.floats), self.kinds, {"MatMulConstBOnly": True},
            )  # fmt: skip
            quantizer.quantize_model()
            quantizer.model.save_model_to_file(str(path))

    def ranges(self, name: str) -> Any:
        """Returns the range of every activation. name: minmax, percentile or entropy."""
        if name not in self._ranges:
            methods = self.library.CalibrationMethod
            method, options = {
                "minmax": (methods.MinMax, {}),
                "percentile": (methods.Percentile, {"percentile": 99.99, "symmetric": False}),
                "entropy": (methods.Entropy, {}),
            }[name]
            with quiet():
                calibrator = self.library.create_calibrator(
                    self.network, self.kinds, str(self.scratch / "calibrated.onnx"), method, extra_options=options
                )
                for feed in self.feeds:  # one by one: it holds the activations of all it gets
                    calibrator.collect_data(Reader(feed))
                self._ranges[name] = calibrator.compute_data()
        return self._ranges[name]


class Reader:
    """Gives one batch, as onnxruntime's calibrators ask for it."""

    def __init__(self, feed: Feed):
        self.feeds: Iterator[Feed] = iter([feed])

    def get_next(self) -> Feed | None:
        """Returns the batch, then None."""
        return next(self.feeds, None)
