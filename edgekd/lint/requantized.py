"""The rule on float weights behind 8-bit values, which ONNX Runtime quantizes by itself; and the form that it leaves.

Its optimiser (`WeightBiasQuantization`, on at every level but `ORT_DISABLE_ALL`) takes a convolution or Gemm with a
constant float32 weight between 8-bit values for a layer that a quantizer forgot, and rounds the weight to int8 with
one scale for the whole tensor. Tried: 1.20 and older leave it alone; 1.21 asks for an 8-bit input only; 1.22 for an
8-bit output too, and from 1.23 (to 1.31 at least) it looks past a ReLU or Clip for that. A layer that was left in
float for its accuracy then loses more than in INT8: MobileNetV2 with its first depthwise convolution in float fell
from 85 % to 2 % top-1 on ImageNet images, and exact rounding shows nothing of it. The input's scale repeated per
channel is no form that it knows: values stay as they are, and so does the weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekd.lint.finding import Finding, Severity
from edgekd.lint.rule import Rule, Surroundings
from edgekd.lint.view import VIEWS, LintGraph
from edgekd.runtimes.onnx_view import attribute, drop_unused_, replace_

_QUANTIZED_BY_IT = ("Conv", "ConvTranspose", "Gemm")
_MOVING = VIEWS - {"Flatten"} | {"MaxPool", "Slice"}
"""Operators past which ONNX Runtime moves a DequantizeLinear of one scale."""
_PASSED = ("Relu", "Clip")
_LEAST_OPSET = 13
"""The first one in which a DequantizeLinear has an axis."""
_ONLY_1_21 = (
    "ONNX Runtime 1.21 rounds its weight to int8 with one scale for the whole tensor; other versions do so only where "
    "its output is 8-bit too."
)


class RequantizedWeight(Rule):
    """A layer in float whose weight ONNX Runtime rounds nevertheless."""

    name: ClassVar[str] = "requantized-weight"
    severity: ClassVar[Severity] = "error"
    runtimes: ClassVar[frozenset[str]] = frozenset({"onnxruntime", "ort-web-node", "ort-web-browser"})
    summary: ClassVar[str] = "float weights of layers that read 8-bit values: ONNX Runtime rounds them per tensor"
    why: ClassVar[str] = (
        "ONNX Runtime (from 1.21) takes the layer for one that a quantizer forgot, and rounds its weight to int8 with "
        "one scale for the whole tensor (MobileNetV2: 85 % top-1 with exact rounding, 2 % so)."
    )
    fix: ClassVar[str] = "Repeat the scale of its input per channel (--fix), or let it read the value in float."
    repairs: ClassVar[bool] = True

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        for layer, dequantize in _requantized(graph):
            found = f"its weight is float, and {dequantize.name} gives it 8-bit values of one scale"
            severity: Severity = "error" if _rounded_behind(graph, layer) else "warning"
            yield self.finding(
                where,
                layer,
                found,
                severity=severity,
                why=None if severity == "error" else _ONLY_1_21,
                fixable=_channels(graph, layer) is not None,
                macs_share=graph.share(layer.name),
            )

    def repair_(self, model: onnx.ModelProto) -> list[str]:
        return keep_float_weights_(model)


def keep_float_weights_(model: onnx.ModelProto) -> list[str]:
    """Writes layers with float weights behind 8-bit values so that ONNX Runtime leaves the weights alone, in place.

    What the graph computes stays the same.

    Args:
        model: Its nodes have distinct names.

    Returns:
        A sentence for each layer; those that cannot be written so are left as they are.
    """
    graph, said = LintGraph(model), []
    for layer, dequantize in _requantized(graph):
        channels = _channels(graph, layer)
        if channels is not None:
            _give_own_dequantizer_(model, graph, layer, dequantize, *channels)
            said.append(f"{layer.name}: it reads a DequantizeLinear of its own, with the scale repeated per channel.")
    drop_unused_(model)
    return said


def _requantized(graph: LintGraph) -> list[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Layers whose weights ONNX Runtime rounds, each with the DequantizeLinear whose values it reads."""
    found = []
    for layer in graph.layers:
        if layer.op_type not in _QUANTIZED_BY_IT or not _is_float(graph, layer.input[1]):
            continue
        bias = layer.input[2] if len(layer.input) > 2 else ""
        if bias and not (_is_float(graph, bias) and len(graph.shapes.get(bias, (1,))) == 1):
            continue
        dequantize = _dequantizer(graph, layer.input[0])
        if dequantize is not None and (scale := graph.grid(dequantize).scale) is not None and scale.size == 1:
            found.append((layer, dequantize))
    return found


def _rounded_behind(graph: LintGraph, layer: onnx.NodeProto) -> bool:
    """Whether what a layer gives is rounded to 8 bits, perhaps behind an activation function."""
    value = layer.output[0]
    while (reader := graph.sole_reader(value)) is not None and reader.op_type in _PASSED:
        value = reader.output[0]
    return any(reader.op_type == "QuantizeLinear" for reader in graph.readers.get(value, []))


def _is_float(graph: LintGraph, name: str) -> bool:
    """Whether a value is a float32 constant, or folded into one, and was never rounded."""
    entry = graph.constants.get(name)
    if entry is not None:
        return bool(entry.data_type == TensorProto.FLOAT)
    return graph.is_constant(name) and graph.dequantized_by(name) is None


def _dequantizer(graph: LintGraph, value: str) -> onnx.NodeProto | None:
    maker = graph.maker.get(value)
    while maker is not None and maker.op_type in _MOVING:
        maker = graph.maker.get(maker.input[0])
    return maker if maker is not None and maker.op_type == "DequantizeLinear" else None


def _channels(graph: LintGraph, layer: onnx.NodeProto) -> tuple[int, int] | None:
    """(axis, number) of the input channels of a layer; None where a scale per channel cannot be written."""
    shape = graph.shapes.get(layer.input[1], ())
    if graph.opset < _LEAST_OPSET or len(shape) < 2:
        return None
    axis = 1
    if layer.op_type == "Conv":
        count = shape[1] * attribute(layer, "group", 1)
    elif layer.op_type == "ConvTranspose":
        count = shape[0]
    else:
        axis = 0 if attribute(layer, "transA", 0) else 1
        count = shape[1] if attribute(layer, "transB", 0) else shape[0]
    return (axis, count) if count > 1 else None


def _give_own_dequantizer_(
    model: onnx.ModelProto, graph: LintGraph, layer: onnx.NodeProto, dequantize: onnx.NodeProto, axis: int, count: int
) -> None:
    """Puts a DequantizeLinear with a scale per channel before a layer; behind a view, a QuantizeLinear before that."""
    grid = graph.grid(dequantize)
    scale = np.asarray(grid.scale).reshape(())
    point = np.zeros((), grid.dtype) if grid.point is None else grid.point.reshape(())
    stem, made = f"{layer.name}_input", []

    def constant(name: str, values: NDArray[Any]) -> str:
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, order="C"), f"{stem}_{name}"))
        return f"{stem}_{name}"

    codes = dequantize.input[0]
    if graph.maker[layer.input[0]].name != dequantize.name:
        one = [constant("scale", scale), constant("zero_point", point)]
        codes = f"{stem}_codes"
        made.append(helper.make_node("QuantizeLinear", [layer.input[0], *one], [codes], f"{stem}_QuantizeLinear"))
    many = [constant("scales", np.full(count, scale)), constant("zero_points", np.full(count, point))]
    own = helper.make_node("DequantizeLinear", [codes, *many], [stem], f"{stem}_DequantizeLinear", axis=axis)
    made.append(own)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.name == layer.name:
            nodes += made
            node.input[0] = stem
        nodes.append(node)
    replace_(model.graph.node, nodes)
