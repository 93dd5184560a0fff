"""8-bit OpenVINO networks by NNCF's post-training quantisation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from model.exporting import read_openvino
from model.recipes import Feed, Recipe, groups_of, quiet
from utils.errors import UserError
from utils.signal_stack import kept_signal_stack

WEIGHTED = ("Convolution", "GroupConvolution", "MatMul")
NOT_LAYERS = ("Parameter", "Result", "Constant", "Convert")

ALONE = 8
"""Calibration images where a few layers are quantised alone, at most."""


class OpenVinoQuantiser:
    """Quantises an ONNX network for OpenVINO; weights have a scale for each channel.

    network: of normalised pixels, in float. feeds: calibration images, one each. Raises ``UserError`` if openvino or
    nncf is not installed.
    """

    ending = "xml"
    starts = (Recipe("minmax", True), Recipe("percentile", True))

    def __init__(self, network: Path, feeds: list[Feed]):
        self.model = read_openvino(network)
        try:
            with quiet():
                import nncf
        except ImportError as error:
            raise UserError(f"--precision int8 needs {error.name}: pip install -r requirements-extra.txt") from None
        self.library: Any = nncf
        self.feeds = feeds
        layers = [op for op in self.model.get_ordered_ops() if op.get_type_name() not in NOT_LAYERS]
        kinds = Counter(op.get_type_name() for op in layers)
        self.transformer = kinds["MatMul"] > kinds["Convolution"] + kinds["GroupConvolution"]
        self.groups = groups_of([(op.get_friendly_name(), op.get_type_name() in WEIGHTED) for op in layers])

    def write(self, recipe: Recipe, path: Path, only: Sequence[str] | None = None) -> None:
        """Writes the quantised network. See ``Quantiser``."""
        import openvino

        nncf, names, feeds = self.library, list(recipe.floats), self.feeds
        if only is not None:
            names, feeds = [name for group in self.groups for name in group if name not in set(only)], feeds[:ALONE]
        with quiet(), kept_signal_stack():
            model = nncf.quantize(
                self.model, nncf.Dataset(feeds), subset_size=len(feeds),
                model_type=nncf.ModelType.TRANSFORMER if self.transformer else None,
                ignored_scope=nncf.IgnoredScope(names=names, validate=False) if names else None,
                advanced_parameters=self._advanced(recipe.ranges),
            )  # fmt: skip
            openvino.save_model(model, path, compress_to_fp16=False)

    def _advanced(self, ranges: str) -> Any:
        """Returns NNCF's further settings. ranges: minmax or percentile."""
        if ranges == "minmax":
            return None
        nncf, module = self.library, self.library.quantization.range_estimator
        part = module.StatisticsCollectorParameters(
            statistics_type=module.StatisticsType.QUANTILE, aggregator_type=module.AggregatorType.MEAN,
            quantile_outlier_prob=1e-4,
        )  # fmt: skip
        estimator = module.RangeEstimatorParameters(min=part, max=part)
        return nncf.AdvancedQuantizationParameters(activations_range_estimator_params=estimator)
