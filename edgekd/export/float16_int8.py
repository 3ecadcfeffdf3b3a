"""Prepares a Q/DQ graph for float16 around its 8-bit layers: an opset that has float16 scales, and scales that fit it.

The 8-bit codes of the weights stay what they are; what the float layers in between become is in `float16.py`.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper, version_converter

from edgekd.errors import BuildFailed
from edgekd.export.float16 import FLOAT16_SCALES, opset_of
from edgekd.lint.float16_ranges import FLOAT16_MAX

_SMALLEST_NORMAL, _STEP = 2.0**-14, 2.0**-24
"""Of float16; below its normal numbers it has steps of one size."""


def prepared(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in opset 19 or newer, all in float32 still, whose scales float16 holds exactly.

    Args:
        model: A Q/DQ graph with zero points 0, weights in float32 behind a QuantizeLinear.

    Raises:
        BuildFailed: ONNX cannot convert an operator to that opset.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    if opset_of(made) < FLOAT16_SCALES:
        try:
            made = version_converter.convert_version(made, FLOAT16_SCALES)
        except Exception as err:  # the library raises whatever its C++ part does
            raise BuildFailed(
                f"ONNX cannot convert the graph from opset {opset_of(model)} to {FLOAT16_SCALES}: {err}",
                hint=f"export it with --opset {FLOAT16_SCALES + 1}, which TensorRT reads from 10 on",
            ) from err
        _constants_outside_(made.graph)
    _round_scales_(made.graph)
    return made


def float16_scales(scales: NDArray[np.float32]) -> NDArray[np.float32]:
    """Scales that float16 holds, as near as it can: rounded up below its normal numbers, so that nothing is clipped.

    A scale above its range stays as it is; what it belongs to is then kept in float32.
    """
    near = np.minimum(scales, FLOAT16_MAX).astype(np.float16).astype(np.float32)
    found = np.where(scales < _SMALLEST_NORMAL, np.ceil(scales / _STEP) * _STEP, near)
    return np.where(scales > FLOAT16_MAX, scales, found).astype(np.float32)


def _constants_outside_(graph: onnx.GraphProto) -> None:
    """Makes initializers of the Constant nodes that the conversion added; TensorRT wants axes to be known."""
    nodes = []
    for node in graph.node:
        if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
            constant = graph.initializer.add()
            constant.CopyFrom(node.attribute[0].t)
            constant.name = node.output[0]
        else:
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(nodes)


def _round_scales_(graph: onnx.GraphProto) -> None:
    """Rounds every scale to float16, and puts the constants that are quantized with it on its levels."""
    constants = {entry.name: entry for entry in graph.initializer}
    for node in graph.node:
        if node.op_type in ("QuantizeLinear", "DequantizeLinear") and node.input[1] in constants:
            entry = constants[node.input[1]]
            if entry.data_type == TensorProto.FLOAT:
                entry.CopyFrom(numpy_helper.from_array(float16_scales(numpy_helper.to_array(entry)), entry.name))
    for node in graph.node:
        weight = constants.get(node.input[0]) if node.op_type == "QuantizeLinear" else None
        scale = constants.get(node.input[1]) if weight is not None else None
        if weight is not None and scale is not None and weight.data_type == TensorProto.FLOAT:
            # On a level, a value keeps its code when it is rounded to float16; between two it may change it.
            level = _along(numpy_helper.to_array(scale), node, len(weight.dims))
            codes = np.clip(np.rint(numpy_helper.to_array(weight) / level), -128, 127)
            weight.CopyFrom(numpy_helper.from_array((codes * level).astype(np.float32), weight.name))


def _along(scale: NDArray[np.float32], node: onnx.NodeProto, rank: int) -> NDArray[np.float32]:
    """The scale in a shape that divides a constant of a rank."""
    if scale.size == 1:
        return scale.reshape(())
    axis = next((int(entry.i) for entry in node.attribute if entry.name == "axis"), 1)
    shape = [1] * rank
    shape[axis] = scale.size
    return scale.reshape(shape)
