"""Carries the smoothing that NNCF did to a graph with attention over to its FP32 twin, so that both compute alike.

SmoothQuant (Xiao et al. 2023, arXiv 2211.10438) multiplies the channels of what a matrix product reads and divides the
rows of its weight, so that outliers move from activations into weights:

    y = x W = (x s) (W / s)

NNCF writes a Mul before the product and folds 1 / s into the INT8 weight. Ranges, rounding and layers in float are all
taken from the FP32 graph: it needs the same Mul and the same weights. Which s is NNCF's choice.
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from edgekd.quant.layers import GraphView, attribute, drop_unused_

MARK = "/nncf_smooth_quant"


def smoothed(full: onnx.ModelProto, quantized: onnx.ModelProto) -> onnx.ModelProto:
    """A copy of an FP32 graph that has the Muls of its INT8 twin, and computes what it did.

    Args:
        full: FP32, nodes named and types inferred.
        quantized: Its twin by NNCF, with the same names.
    """
    made = onnx.ModelProto()
    made.CopyFrom(full)
    view = GraphView(quantized)
    for node in quantized.graph.node:
        if node.op_type == "Mul" and node.name.endswith(MARK):
            _smooth_(made, node, view.array(node.input[1]), _layers_behind(view, node))
    drop_unused_(made)
    return made


def _layers_behind(view: GraphView, mul: onnx.NodeProto) -> list[tuple[str, int]]:
    """(name, slot) of the nodes that read a Mul's result, rounded or not."""
    found, values = [], list(mul.output)
    while values:
        value = values.pop()
        for reader in view.readers.get(value, []):
            if reader.op_type in ("QuantizeLinear", "DequantizeLinear"):
                values.extend(reader.output)
            else:
                found += [(reader.name, slot) for slot, name in enumerate(reader.input) if name == value]
    return found


def _smooth_(
    made: onnx.ModelProto, mul: onnx.NodeProto, factors: NDArray[np.float32], layers: list[tuple[str, int]]
) -> None:
    """Puts one Mul into the FP32 graph, and its inverse into the weights of the layers behind it."""
    view = GraphView(made)
    for name, slot in layers:
        node, other = view.nodes[name], 1 - slot
        weight = view.array(node.input[other])
        axis = _input_axis(node, other, weight.ndim)
        shape = [-1 if at == axis else 1 for at in range(weight.ndim)]
        # Under a name of its own: another layer may read the same weight behind another Mul.
        own = f"{name}_smoothed_weight"
        made.graph.initializer.append(numpy_helper.from_array(weight / factors.reshape(shape), own))
        node.input[slot], node.input[other] = mul.output[0], own
    made.graph.initializer.append(numpy_helper.from_array(factors, mul.input[1]))
    made.graph.value_info.append(onnx.helper.make_tensor_value_info(mul.output[0], TensorProto.FLOAT, None))
    behind = {name for name, _ in layers}
    first = next(at for at, node in enumerate(made.graph.node) if node.name in behind)
    made.graph.node.insert(first, mul)


def _input_axis(node: onnx.NodeProto, slot: int, ndim: int) -> int:
    """The axis of input channels in the weight that a matrix product reads at `slot`."""
    turned = node.op_type == "Gemm" and attribute(node, "transB" if slot else "transA", 0)
    return ndim - 2 if (slot == 1) != bool(turned) else ndim - 1
