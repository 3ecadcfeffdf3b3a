"""Layers of an ONNX graph with weights, and the grids of those that are quantized: read, and written in place.

A quantized weight is an 8-bit constant behind DequantizeLinear, or a float32 one behind a Q/DQ pair (the form that
TensorRT takes); both read the same here. Which layers there are is this file's affair; which weights they should have
is not.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto

from edgekd.runtimes.onnx_view import GraphView as GraphView
from edgekd.runtimes.onnx_view import attribute as attribute
from edgekd.runtimes.onnx_view import drop_unused_ as drop_unused_
from edgekd.runtimes.onnx_view import name_nodes_ as name_nodes_
from edgekd.runtimes.onnx_view import output_axis as output_axis
from edgekd.runtimes.session import FloatArray

WEIGHTED = ("Conv", "Gemm", "MatMul")


def own_biases_(model: onnx.ModelProto) -> None:
    """Gives every layer a bias that nobody else reads: optimisers merge equal constants, such as biases of zeros."""
    view = GraphView(model)
    counts = {name: len(nodes) for name, nodes in view.readers.items()}
    for layer in list(view.nodes):
        place = bias_place(view, layer)
        if place is None:
            continue
        node, at = place
        name = node.input[at]
        if name in view.constants and counts[name] > 1:
            node.input[at] = f"{name}_of_{node.name}"
            model.graph.initializer.add().CopyFrom(view.constants[name])
            model.graph.initializer[-1].name = node.input[at]
            counts[name] -= 1


def bias_place(view: GraphView, layer: str) -> tuple[onnx.NodeProto, int] | None:
    """(node, input) at which a layer's bias is read; None for a layer without one.

    Of a matrix product that is the Add behind it, seen through a Q/DQ pair, when it adds one constant number to each
    output channel and nothing else reads the product.
    """
    node = view.nodes[layer]
    if node.op_type in ("Conv", "Gemm"):
        return (node, 2) if len(node.input) > 2 and node.input[2] else None
    if node.op_type != "MatMul":
        return None
    value = node.output[0]
    while True:
        readers = view.readers.get(value, [])
        if len(readers) != 1 or view.leaves(value):
            return None
        (reader,) = readers
        if reader.op_type not in ("QuantizeLinear", "DequantizeLinear") or reader.input[0] != value:
            break
        value = reader.output[0]
    if reader.op_type != "Add":
        return None
    at = 1 - list(reader.input).index(value)
    bias = view.constants.get(reader.input[at])
    if bias is None or bias.data_type != TensorProto.FLOAT or not bias.dims:
        return None
    return (reader, at) if bias.dims[-1] > 1 and int(np.prod(bias.dims)) == bias.dims[-1] else None


def weighted_layers(view: GraphView) -> tuple[str, ...]:
    """Names of convolutions and matrix products with constant float32 weights, in the graph's order."""
    return tuple(
        node.name
        for node in view.model.graph.node
        if node.op_type in WEIGHTED
        and len(node.input) > 1
        and node.input[1] in view.constants
        and view.constants[node.input[1]].data_type == TensorProto.FLOAT
    )


@dataclass(kw_only=True)
class QuantizedWeight:
    """Where a layer's quantized weight lies.

    Attributes:
        constant: The 8-bit or float32 constant.
        scales: Broadcast to the weight's dimensions.
        coded: The constant holds codes and not float32 values.
        codes: Whole numbers, of the weight's shape.
        limits: Smallest and largest code that the layer may use.
    """

    constant: str
    scales: FloatArray
    coded: bool
    codes: NDArray[np.int64]
    limits: tuple[int, int]

    @property
    def values(self) -> FloatArray:
        """The weight that the runtime computes with."""
        return (self.codes * self.scales.astype(np.float64)).astype(np.float32)


def quantized_weight_of(view: GraphView, layer: str) -> QuantizedWeight | None:
    """The quantized weight of a layer; None for one in float, or with zero points other than 0."""
    node = view.nodes[layer]
    dequantize = view.maker.get(node.input[1])
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    name, coded = dequantize.input[0], True
    if name not in view.constants:
        quantize = view.maker[name]
        if quantize.op_type != "QuantizeLinear" or quantize.input[0] not in view.constants:
            return None
        name, coded = quantize.input[0], False
    if len(dequantize.input) > 2 and view.array(dequantize.input[2]).any():
        return None
    stored, scales = view.array(name), view.array(dequantize.input[1]).astype(np.float32)
    if scales.ndim == 1 and scales.size > 1:
        shape = [1] * stored.ndim
        shape[attribute(dequantize, "axis", 1)] = scales.size
        scales = scales.reshape(shape)
    codes = np.rint(stored if coded else stored / scales.astype(np.float64)).astype(np.int64)
    codes = np.clip(codes, -128, 127)
    # A reduced range shows in the codes: the largest weight of a channel has the largest code.
    largest = int(np.abs(codes).max(initial=1))
    limit = largest if largest <= 64 else 127
    return QuantizedWeight(constant=name, scales=scales, coded=coded, codes=codes, limits=(-limit, limit))


def write_codes_(view: GraphView, weight: QuantizedWeight, codes: NDArray[np.int64]) -> None:
    """Puts other codes into the graph, on the same grid."""
    if weight.coded:
        view.write(weight.constant, codes.astype(np.int8))
    else:
        view.write(weight.constant, (codes * weight.scales.astype(np.float64)).astype(np.float32))


def add_to_bias_(view: GraphView, layer: str, shift: FloatArray) -> bool:
    """Adds (O,) to a layer's bias, float or 32-bit; False for a layer without a constant bias.

    Codes end at the limits of 32 bits: next to a channel with next to no weights they lie so near to these that no
    correction fits between (the quantizer widens the steps of such a channel just as far as its bias needs).
    """
    place = bias_place(view, layer)
    if place is None:
        return False
    name = place[0].input[place[1]]
    if name in view.constants:
        bias = view.array(name)
        view.write(name, bias + shift.astype(np.float32).reshape(bias.shape))
        return True
    dequantize = view.maker[name]
    if dequantize.op_type != "DequantizeLinear" or dequantize.input[0] not in view.constants:
        return False
    scales = view.array(dequantize.input[1]).astype(np.float64)
    codes = view.array(dequantize.input[0])
    limits = np.iinfo(codes.dtype)
    view.write(dequantize.input[0], (codes + np.rint(shift / scales)).clip(limits.min, limits.max).astype(codes.dtype))
    return True
