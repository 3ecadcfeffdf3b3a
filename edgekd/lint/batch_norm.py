"""The rule on batch normalisation that was not folded into the layer before it, and the folding.

W' = W f and b' = (b - mean) f + beta, f = gamma / sqrt(var + eps), by output channel. Where the weight is quantized,
its scales are multiplied by |f| and its codes turned where f is negative: the same levels, so the same rounding.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgekd.lint.finding import Finding, Severity
from edgekd.lint.rule import Rule, Surroundings
from edgekd.lint.view import LintGraph
from edgekd.runtimes.onnx_view import attribute, drop_unused_, replace_

FOLDED_INTO = ("Conv", "ConvTranspose", "Gemm")
_SMALLEST = 1e-12
"""Stands for a factor of 0, whose scale would be none."""

Floats = NDArray[np.float64]


class BatchNorm(Rule):
    """BatchNormalization behind a layer.

    Runtimes fold it into float weights themselves; into quantized weights none does.
    """

    name: ClassVar[str] = "batch-norm"
    severity: ClassVar[Severity] = "warning"
    summary: ClassVar[str] = "BatchNormalization that is not folded into the layer before it"
    why: ClassVar[str] = (
        "Behind quantized weights no runtime folds it: the layer writes float, and the normalisation runs alone "
        "(ResNet-18 in ONNX Runtime: 53.3 ms so, 11.2 ms folded)."
    )
    fix: ClassVar[str] = "Fold it into weight, scales and bias."
    repairs: ClassVar[bool] = True

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        for node in graph.model.graph.node:
            if node.op_type != "BatchNormalization":
                continue
            layer = graph.maker.get(node.input[0])
            if layer is None or layer.op_type not in FOLDED_INTO or graph.sole_reader(node.input[0]) is None:
                what = "the graph's input" if layer is None else f"{layer.op_type} {layer.name}"
                yield self.finding(
                    where,
                    node,
                    f"it follows {what}, which cannot take it up",
                    severity="info",
                    why="It runs as a layer of its own, one multiplication and addition per value.",
                    fix="In the model, normalise behind a convolution instead of before it.",
                )
                continue
            folded = _folded(graph, layer, node)
            quantized = graph.dequantized_by(layer.input[1]) is not None
            plain = "Runtimes fold it into float weights while they load; quantizers do better when it is folded."
            yield self.finding(
                where,
                node,
                f"it follows {layer.op_type} {layer.name}",
                severity="warning" if quantized else "info",
                why=None if quantized else plain,
                fixable=folded is not None,
                macs_share=graph.share(layer.name),
            )

    def repair_(self, model: onnx.ModelProto) -> list[str]:
        said = []
        while True:
            graph = LintGraph(model)
            found = next(_foldable(graph), None)
            if found is None:
                break
            layer, norm, folded = found
            _write_(model, graph, layer, norm, folded)
            said.append(f"{norm.name}: folded into {layer.name}.")
        return said


@dataclass(frozen=True, kw_only=True)
class _Folded:
    """What a layer reads afterwards: a weight, or codes or float values with their scales; and a bias."""

    weight: NDArray[np.float32] | NDArray[np.int8]
    scale: NDArray[np.float32] | None
    bias: NDArray[np.float32]


def _foldable(graph: LintGraph) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto, _Folded]]:
    for node in graph.model.graph.node:
        layer = graph.maker.get(node.input[0]) if node.op_type == "BatchNormalization" else None
        if layer is None or layer.op_type not in FOLDED_INTO or graph.sole_reader(node.input[0]) is None:
            continue
        folded = _folded(graph, layer, node)
        if folded is not None:
            yield layer, node, folded


def _folded(graph: LintGraph, layer: onnx.NodeProto, norm: onnx.NodeProto) -> _Folded | None:
    """The layer's new constants; None where they are not to be had exactly."""
    values = [graph.maybe_array(name) for name in norm.input[1:5]]
    bias = _bias(graph, layer)
    if any(value is None for value in values) or bias is None or attribute(norm, "training_mode", 0):
        return None
    if layer.op_type == "ConvTranspose" and attribute(layer, "group", 1) != 1:
        return None  # its output channels lie on two axes of the weight
    if layer.op_type == "Gemm" and (attribute(layer, "alpha", 1.0) != 1.0 or attribute(layer, "beta", 1.0) != 1.0):
        return None
    if any(value is not None and value.dtype != np.float32 for value in values):
        return None  # in half precision the folded weight is rounded where the original was not
    gamma, beta, mean, variance = (np.asarray(value, np.float64) for value in values)
    factor = gamma / np.sqrt(variance + attribute(norm, "epsilon", 1e-5))
    shifted = ((bias - mean) * factor + beta).astype(np.float32)
    axis = graph.weight_axis(layer)
    weight = graph.maybe_array(layer.input[1])
    if weight is not None:
        scaled = (weight.astype(np.float64) * _along(factor, weight.ndim, axis)).astype(np.float32)
        return _Folded(weight=scaled, scale=None, bias=shifted)
    return _folded_quantized(graph, layer, factor, shifted, axis)


def _folded_quantized(
    graph: LintGraph, layer: onnx.NodeProto, factor: Floats, bias: NDArray[np.float32], axis: int
) -> _Folded | None:
    dequantize = graph.maker.get(layer.input[1])
    if dequantize is None or dequantize.op_type != "DequantizeLinear":
        return None
    grid = graph.grid(dequantize)
    if grid.scale is None or grid.dtype != "int8" or (grid.point is not None and grid.point.any()):
        return None
    if grid.axis not in (None, axis):
        return None
    source = _source(graph, dequantize)
    if source is None:
        return None
    stored, signs = graph.array(source), _along(np.where(factor < 0, -1.0, 1.0), graph.array(source).ndim, axis)
    scales = np.broadcast_to(grid.scale.astype(np.float64).ravel(), factor.shape)
    scale = (scales * np.maximum(np.abs(factor), _SMALLEST)).astype(np.float32)
    if stored.dtype == np.int8:
        turned = stored.astype(np.int16) * signs.astype(np.int16)
        if turned.max(initial=0) > 127:
            return None  # the code -128 has no counterpart
        return _Folded(weight=turned.astype(np.int8), scale=scale, bias=bias)
    magnitude = _along(np.maximum(np.abs(factor), _SMALLEST), stored.ndim, axis)
    codes = np.rint(stored / _along(scales, stored.ndim, axis))
    if codes.min(initial=0) <= -128 or (signs * codes).min(initial=0) <= -128:
        return None  # what was cut off at 127 would be cut off at -128
    return _Folded(weight=(stored * signs * magnitude).astype(np.float32), scale=scale, bias=bias)


def _source(graph: LintGraph, dequantize: onnx.NodeProto) -> str | None:
    """The constant behind a weight's DequantizeLinear, or behind its Q/DQ pair."""
    quantize = graph.maker.get(dequantize.input[0])
    name = str(dequantize.input[0] if quantize is None else quantize.input[0])
    if quantize is not None and quantize.op_type != "QuantizeLinear":
        return None
    return name if name in graph.constants else None


def _bias(graph: LintGraph, layer: onnx.NodeProto) -> Floats | None:
    """The layer's bias as float, zero for none; None where it is not constant."""
    if len(layer.input) < 3 or not layer.input[2]:
        return np.zeros(1)
    name = layer.input[2]
    if name in graph.constants:
        return graph.array(name).astype(np.float64)
    dequantize = graph.maker.get(name)
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.input[0] not in graph.constants:
        return None
    grid = graph.grid(dequantize)
    if grid.scale is None or (grid.point is not None and grid.point.any()):
        return None
    return graph.array(dequantize.input[0]).astype(np.float64) * grid.scale.astype(np.float64)


def _along(values: Floats, ndim: int, axis: int) -> Floats:
    shape = [1] * ndim
    shape[axis] = values.size
    return values.reshape(shape)


def _write_(
    model: onnx.ModelProto, graph: LintGraph, layer: onnx.NodeProto, norm: onnx.NodeProto, folded: _Folded
) -> None:
    """Puts the new constants into the graph; the layer writes what the normalisation wrote."""

    def constant(values: NDArray[np.generic], what: str) -> str:
        name = f"{layer.name}_{what}_folded"
        model.graph.initializer.append(numpy_helper.from_array(np.array(values, order="C"), name))
        return name

    weight, before = constant(folded.weight, "weight"), []
    if folded.scale is not None:
        scale = constant(folded.scale, "scale")
        zero = constant(np.zeros(folded.scale.shape, np.int8), "zero")
        axis = graph.weight_axis(layer)
        kinds = ["DequantizeLinear"] if folded.weight.dtype == np.int8 else ["QuantizeLinear", "DequantizeLinear"]
        for kind in kinds:
            made = f"{layer.name}_{kind}_folded"
            before.append(helper.make_node(kind, [weight, scale, zero], [made], made, axis=axis))
            weight = made
    bias = constant(folded.bias, "bias")
    changed = onnx.NodeProto()
    changed.CopyFrom(layer)
    replace_(changed.input, [layer.input[0], weight, bias])
    changed.output[0] = norm.output[0]
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        if node.name == layer.name:
            nodes += [*before, changed]
        elif node.name != norm.name:
            nodes.append(node)
    kept = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        kept.append(copy)
    replace_(model.graph.node, kept)
    drop_unused_(model)
