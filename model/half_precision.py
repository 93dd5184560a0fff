"""Networks whose weights have 16 bits; their inputs and outputs stay in 32."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from model.exporting import read_openvino
from model.recipes import quiet
from utils.errors import UserError
from utils.signal_stack import kept_signal_stack

SCALING = ["ReduceL2", "ReduceSumSquare", "Clip", "Div"]
"""Operators that stay in full precision: the squares of a feature's entries add up beyond what 16 bits hold."""

LEAST_BFLOAT = 16
"""Numbers of a weight from which on it is stored as bfloat16; scalars and shapes stay."""


def write_float16(network: Path, path: Path) -> None:
    """Writes an ONNX network in float16. Raises ``UserError`` if onnxruntime's converter is not installed."""
    try:
        import onnx
        from onnxruntime.transformers import float16
        from onnxruntime.transformers.onnx_model import OnnxModel
    except ImportError as error:
        raise UserError(f"--precision fp16 needs {error.name}: pip install -r requirements-extra.txt") from None
    blocked, whole = [*float16.DEFAULT_OP_BLOCK_LIST, *SCALING], onnx.load(network)
    with quiet():  # a line for every weight below float16's range
        half = OnnxModel(float16.convert_float_to_float16(whole, keep_io_types=True, op_block_list=blocked))
    casts = {node.output[0]: node for node in half.model.graph.node if node.op_type == "Cast"}
    half.remove_nodes([n for n in half.model.graph.node if n.op_type == "Cast" and n is not casts[n.output[0]]])
    half.topological_sort()  # the converter puts the casts of inputs last, and casts a value once for each of its users
    onnx.save(half.model, path)


def refuse_without_bfloat16() -> None:
    """Raises ``UserError`` if OpenVINO does not run bfloat16 on this processor."""
    try:
        import openvino
    except ImportError:
        raise UserError("--precision bf16 needs openvino: pip install -r requirements-extra.txt") from None
    with kept_signal_stack():
        abilities = openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "BF16" not in abilities:
        raise UserError(
            "--precision bf16: OpenVINO runs bfloat16 on processors with AVX512_BF16 or AMX, and this one has neither; "
            "--precision fp16 halves the file too"
        )


def write_bfloat16(network: Path, path: Path) -> None:
    """Writes a network for OpenVINO with its weights in bfloat16; each is converted back where it is used."""
    model = read_openvino(network)
    import openvino as ov
    from openvino import opset13 as ops

    for node in model.get_ordered_ops():
        if node.get_type_name() != "Constant" or node.get_element_type() != ov.Type.f32:
            continue
        values = node.get_data()
        if values.size < LEAST_BFLOAT:
            continue
        users = list(node.output(0).get_target_inputs())
        back = ops.convert(ops.constant(values, dtype=ov.Type.bf16), np.float32)
        for user in users:
            user.replace_source_output(back.output(0))
    ov.save_model(model, path, compress_to_fp16=False)
