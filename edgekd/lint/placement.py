"""Rules on where quantizers stand around layers: what keeps a layer out of an 8-bit kernel."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx

from edgekd.lint.family import family_of_graph
from edgekd.lint.finding import Finding, Severity
from edgekd.lint.rule import Rule, Surroundings
from edgekd.lint.view import LintGraph

FUSED_ACTIVATIONS = ("Relu", "Clip", "LeakyRelu")
SMALL_SHARE = 0.01
"""Of the multiply-accumulates, below which a layer in float is no warning."""
ABSORBED = ("Relu", "Clip")
"""Activation functions that ONNX Runtime drops in favour of the zero point of an unsigned quantizer."""
_POOLS = ("AveragePool", "GlobalAveragePool", "ReduceMean")


class FloatLayer(Rule):
    """A layer in float inside a quantized graph."""

    name: ClassVar[str] = "float-layer"
    severity: ClassVar[Severity] = "warning"
    summary: ClassVar[str] = "convolutions and products with weights that stay in float inside a quantized graph"
    why: ClassVar[str] = "It runs at the speed of float, and its inputs and outputs are converted."
    fix: ClassVar[str] = "Quantize its input and its weight, unless it was left in float for its accuracy."

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        if not graph.quantized:
            yield from self._weights_only(graph, where)
            return
        for layer in graph.layers:
            missing = [
                what for slot, what in enumerate(("input", "weight")) if graph.dequantized_by(layer.input[slot]) is None
            ]
            if missing:
                share = graph.share(layer.name)
                small = share is not None and share < SMALL_SHARE
                found = f"its {' and '.join(missing)} {'is' if len(missing) == 1 else 'are'} not quantized"
                yield self.finding(where, layer, found, severity="info" if small else None, macs_share=share)

    def _weights_only(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        coded = [layer for layer in graph.layers if graph.dequantized_by(layer.input[1]) is not None]
        if coded:
            yield self.finding(
                where,
                None,
                f"the weights of {len(coded)} layers are quantized, and no activation is",
                severity="info",
                why="The file is smaller; everything is computed in float.",
                fix="Calibrate activations too, where speed is wanted (edgekd quantize).",
                macs_share=graph.share(*(layer.name for layer in coded)),
            )


class CutFusion(Rule):
    """A Q/DQ pair between a layer and what it would be fused with."""

    name: ClassVar[str] = "cut-fusion"
    severity: ClassVar[Severity] = "warning"
    summary: ClassVar[str] = "a Q/DQ pair between a layer and its BatchNormalization or activation function"
    why: ClassVar[str] = "The pair forces the layer's output to memory and rounds it twice; the function runs alone."
    fix: ClassVar[str] = "Quantize behind the activation function, not before it."

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        layers = {layer.output[0]: layer for layer in graph.layers}
        for quantize in graph.quantizers:
            layer = layers.get(quantize.input[0])
            dequantize = graph.sole_reader(quantize.output[0]) if layer is not None else None
            reader = graph.sole_reader(dequantize.output[0]) if dequantize is not None else None
            if layer is None or reader is None or reader.op_type not in (*FUSED_ACTIVATIONS, "BatchNormalization"):
                continue
            found = f"{quantize.name} stands between {layer.name} and {reader.op_type} {reader.name}"
            yield self.finding(where, layer, found, macs_share=graph.share(layer.name))


class MissingOutputQuantizer(Rule):
    """A convolution on 8-bit values whose output nobody quantizes.

    ONNX Runtime has a QLinearConv with 8-bit outputs only; products it also computes from 8 bits to float.
    """

    name: ClassVar[str] = "missing-output-quantizer"
    severity: ClassVar[Severity] = "warning"
    runtimes: ClassVar[frozenset[str]] = frozenset({"onnxruntime"})
    summary: ClassVar[str] = "convolutions on 8-bit values whose output is read in float"
    why: ClassVar[str] = (
        "ONNX Runtime's 8-bit convolution writes 8 bits; without that it dequantizes and computes in float."
    )
    fix: ClassVar[str] = "Quantize its output, or leave the layer in float."

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        for layer in graph.layers:
            if layer.op_type != "Conv" or not graph.in_int8(layer):
                continue
            value = layer.output[0]
            reader = graph.sole_reader(value)
            if reader is not None and reader.op_type in ABSORBED:
                value = reader.output[0]
            others = [node for node in graph.readers.get(value, []) if node.op_type != "QuantizeLinear"]
            if others or graph.leaves(value):
                body = "the body of a node" if value in graph.captured else "the graph's output"
                who = f"{others[0].op_type} {others[0].name}" if others else body
                yield self.finding(
                    where, layer, f"its output goes to {who} in float", macs_share=graph.share(layer.name)
                )


class SignedAfterRelu(Rule):
    """Signed codes for values that are never negative, in ONNX Runtime."""

    name: ClassVar[str] = "signed-after-relu"
    severity: ClassVar[Severity] = "warning"
    runtimes: ClassVar[frozenset[str]] = frozenset({"onnxruntime"})
    summary: ClassVar[str] = "int8 with zero point 0 behind ReLU"
    why: ClassVar[str] = (
        "The zero point cannot stand for the ReLU, so the layer before it is not fused and runs in float (ResNet-18: "
        "29.1 ms so, 10.7 ms unsigned, 27.9 ms in FP32); half of the levels are never used."
    )
    fix: ClassVar[str] = "Use unsigned activations (edgekd quantize --scheme ort-u8s8); the signed form is TensorRT's."

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        for quantize in graph.quantizers:
            maker = graph.maker.get(quantize.input[0])
            grid = graph.grid(quantize)
            if maker is None or grid.dtype != "int8" or not _never_negative(graph, maker):
                continue
            if grid.point is not None and (grid.point <= -127).all():
                continue  # a zero point at the lowest code drops the ReLU as an unsigned one does
            layer = graph.before_activation(quantize.input[0])
            share = graph.share(layer.name) if layer is not None and layer.op_type == "Conv" else None
            yield self.finding(where, quantize, f"signed codes behind {maker.op_type} {maker.name}", macs_share=share)


class PoolInFloat(Rule):
    """A pooling that averages float values between 8-bit layers."""

    name: ClassVar[str] = "pool-in-float"
    severity: ClassVar[Severity] = "info"
    runtimes: ClassVar[frozenset[str]] = frozenset({"tensorrt", "onnxruntime"})
    summary: ClassVar[str] = "average pooling of float values behind 8-bit layers"
    why: ClassVar[str] = "Averaging does not commute with rounding, so the layer before it writes four times the bytes."
    fix: ClassVar[str] = "Quantize the input of the pooling."

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        stream = family_of_graph(graph) in ("transformer", "convnext")  # stays in float on purpose
        for node in graph.model.graph.node:
            if node.op_type not in _POOLS or graph.is_constant(node.input[0]) or graph.is_gate(node):
                continue
            maker = graph.before_activation(node.input[0])
            if maker is not None and (graph.in_int8(maker) or (not stream and _adds_int8(graph, maker))):
                yield self.finding(where, node, f"it averages what {maker.op_type} {maker.name} writes in float")


def _adds_int8(graph: LintGraph, node: onnx.NodeProto) -> bool:
    return node.op_type == "Add" and any(graph.dequantized_by(name) is not None for name in graph.moving(node))


def _never_negative(graph: LintGraph, node: onnx.NodeProto) -> bool:
    """Whether a node gives no negative values, as ReLU and ReLU6 do."""
    if node.op_type == "Relu":
        return True
    low = graph.maybe_array(node.input[1]) if node.op_type == "Clip" and len(node.input) > 1 else None
    return low is not None and bool(np.all(low >= 0))
