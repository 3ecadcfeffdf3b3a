"""Rules on scales and zero points: grids that a runtime refuses, or that cost it accuracy."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from edgekd.lint.finding import Finding, Severity
from edgekd.lint.rule import Rule, Surroundings
from edgekd.lint.view import Grid, LintGraph
from edgekd.runtimes.onnx_view import drop_unused_, replace_

TENSORRT = frozenset({"tensorrt"})
CPU_RUNTIMES = frozenset({"onnxruntime", "openvino"})
VNNI = frozenset({"avx512_vnni", "avx_vnni", "amx_int8"})
AVX = frozenset({"avx2", "avx512f"})
SAFE_CODE = 64
"""Largest code of a weight for which two products of 8-bit values fit into 16 bits."""
_UNSIGNED_MIDDLE = 128


class ZeroPoint(Rule):
    """uint8 codes, or a zero point other than 0, for TensorRT.

    Its ONNX parser checks both (onnx-tensorrt, `QuantDequantLinearHelper`): zero points must be all zeros, codes are
    int8, and a node without zero point is read as int8 where ONNX says uint8.
    """

    name: ClassVar[str] = "zero-point"
    severity: ClassVar[Severity] = "error"
    runtimes: ClassVar[frozenset[str]] = TENSORRT
    summary: ClassVar[str] = "zero points other than 0, and unsigned codes"
    why: ClassVar[str] = "TensorRT quantizes symmetrically to int8 and refuses anything else."
    fix: ClassVar[str] = "Quantize the FP32 graph for this target (edgekd quantize --scheme tensorrt-s8)."
    repairs: ClassVar[bool] = True

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        shiftable = {node.name for group in _shiftable(graph) for node in group}
        for node in (*graph.quantizers, *graph.dequantizers):
            grid = graph.grid(node)
            # What a DequantizeLinear reads was said of its QuantizeLinear.
            if node.op_type == "DequantizeLinear" and not graph.is_constant(node.input[0]):
                continue
            if grid.dtype in ("int32", "float32") or grid.dtype.startswith("float8"):
                continue
            if not grid.explicit and node.op_type == "QuantizeLinear" and grid.dtype == "uint8":
                yield self.finding(
                    where, node, "no zero point: ONNX reads uint8, TensorRT reads int8, so values above 127 are cut off"
                )
            elif grid.dtype == "uint8" or (grid.point is not None and grid.point.any()):
                points = "unknown" if grid.point is None else _few(grid.point)
                found = f"{grid.dtype} with zero point {points}"
                yield self.finding(where, node, found, fixable=node.name in shiftable)

    def repair_(self, model: onnx.ModelProto) -> list[str]:
        graph = LintGraph(model)
        said = []
        for group in _shiftable(graph):
            for node in group:
                _shift_(model, graph, node.name)
            stale = {name for node in group for name in node.output}
            replace_(model.graph.value_info, [value for value in model.graph.value_info if value.name not in stale])
            said.append(f"{group[0].name}: uint8 with zero point 128 became int8 with 0, the same levels.")
        drop_unused_(model)
        return said


class Scale(Rule):
    """Scales that are not positive, not finite, or not constant."""

    name: ClassVar[str] = "scale"
    severity: ClassVar[Severity] = "error"
    summary: ClassVar[str] = "scales that are zero, negative, not finite, or computed"
    why: ClassVar[str] = "A value divided by such a scale is no number; TensorRT refuses the node."
    fix: ClassVar[str] = "Calibrate again: the range of this value was empty or broken."

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        seen: set[str] = set()
        for node in (*graph.quantizers, *graph.dequantizers):
            name = node.input[1]
            if name in seen:
                continue
            seen.add(name)
            scale = graph.grid(node).scale
            if scale is None:
                if not graph.is_constant(name):
                    yield self.finding(
                        where,
                        node,
                        "the scale is computed from the image",
                        severity="warning",
                        why="Kernels that fuse the scale need a constant; the layer stays in float.",
                        fix="Quantize statically, with calibrated ranges.",
                    )
            elif not (np.isfinite(scale) & (scale > 0)).all():
                bad = int((~(np.isfinite(scale) & (scale > 0))).sum())
                yield self.finding(where, node, f"{bad} of {scale.size} scales are not positive numbers")


class WeightAxis(Rule):
    """Scales of a weight along another axis than its output channels."""

    name: ClassVar[str] = "weight-axis"
    severity: ClassVar[Severity] = "error"
    summary: ClassVar[str] = "per-channel scales of a weight along an axis that is not the output channels"
    why: ClassVar[str] = "A scale per input channel cannot leave the sum over inputs, so no 8-bit kernel takes it."
    fix: ClassVar[str] = "Quantize along the output channels: axis 0 of Conv, 1 of ConvTranspose, by transB of Gemm."

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        for layer in graph.layers:
            dequantize = graph.maker.get(layer.input[1])
            if dequantize is None or dequantize.op_type != "DequantizeLinear":
                continue
            grid, wanted = graph.grid(dequantize), graph.weight_axis(layer)
            size = dict(enumerate(graph.shapes.get(layer.input[1], ()))).get(wanted)
            if grid.axis is None or grid.scale is None:
                continue
            if grid.axis != wanted:
                found = f"scales of {dequantize.name} lie along axis {grid.axis}, output channels along {wanted}"
            elif size is not None and grid.scale.size != size:
                found = f"{grid.scale.size} scales for {size} output channels"
            else:
                continue
            severity: Severity = "error" if "tensorrt" in where.runtimes else "warning"
            yield self.finding(where, layer, found, severity=severity, macs_share=graph.share(layer.name))


class ActivationPerChannel(Rule):
    """One scale per channel of an activation."""

    name: ClassVar[str] = "activation-per-channel"
    severity: ClassVar[Severity] = "error"
    runtimes: ClassVar[frozenset[str]] = frozenset({"tensorrt", "onnxruntime"})
    summary: ClassVar[str] = "activations with one scale per channel"
    why: ClassVar[str] = (
        "8-bit kernels sum over input channels and take one scale; the layer behind is computed in float, around "
        "conversions (EfficientNet-Lite0 in ONNX Runtime: 36.9 ms so, 10.4 ms per tensor)."
    )
    fix: ClassVar[str] = "Quantize activations per tensor."

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        for node in graph.quantizers:
            grid = graph.grid(node)
            if grid.axis is not None and grid.scale is not None:
                severity: Severity = "error" if "tensorrt" in where.runtimes else "warning"
                yield self.finding(where, node, f"{grid.scale.size} scales along axis {grid.axis}", severity=severity)


class IntegerBias(Rule):
    """A bias in int32 behind DequantizeLinear, which TensorRT does not read."""

    name: ClassVar[str] = "integer-bias"
    severity: ClassVar[Severity] = "error"
    runtimes: ClassVar[frozenset[str]] = TENSORRT
    summary: ClassVar[str] = "biases as int32 behind DequantizeLinear"
    why: ClassVar[str] = "TensorRT dequantizes int8 only, and adds biases in float."
    fix: ClassVar[str] = "Keep the bias in float: it is added to 32-bit sums either way."
    repairs: ClassVar[bool] = True

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        for node in graph.dequantizers:
            if node.input[0] in graph.constants and graph.grid(node).dtype == "int32":
                readers = ", ".join(reader.name for reader in graph.readers.get(node.output[0], []))
                yield self.finding(where, node, f"int32 bias of {readers}", fixable=_bias_of(graph, node) is not None)

    def repair_(self, model: onnx.ModelProto) -> list[str]:
        graph = LintGraph(model)
        said = []
        for node in graph.dequantizers:
            if node.input[0] not in graph.constants or graph.grid(node).dtype != "int32":
                continue
            values = _bias_of(graph, node)
            if values is not None:
                _replace_by_constant_(model, node, values)
                said.append(f"{node.name}: the int32 bias became float, the same numbers.")
        drop_unused_(model)
        return said


class SaturatingWeights(Rule):
    """8-bit weights on an x86 processor without VNNI."""

    name: ClassVar[str] = "saturating-weights"
    severity: ClassVar[Severity] = "warning"
    runtimes: ClassVar[frozenset[str]] = CPU_RUNTIMES
    summary: ClassVar[str] = "weights with all 8 bits on x86 processors without VNNI"
    why: ClassVar[str] = "Such processors add two products in 16 bits and cut off what does not fit."
    fix: ClassVar[str] = "Quantize with reduce_range=true: weights of 7 bits."

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        features = set(where.features)
        if not where.cpu or not features & AVX or features & VNNI:
            return
        large = [layer for layer in graph.layers if _largest_code(graph, layer) > SAFE_CODE]
        if large:
            most = max(_largest_code(graph, layer) for layer in large)
            yield self.finding(
                where,
                large[0],
                f"{len(large)} layers have weights with codes up to {most}; up to {SAFE_CODE} is safe",
                macs_share=graph.share(*(layer.name for layer in large)),
            )


def _few(point: NDArray[Any]) -> str:
    low, high = int(point.min()), int(point.max())
    return str(low) if low == high else f"{low} to {high}"


def _shifts(grid: Grid) -> bool:
    """Whether unsigned codes less 128 are signed ones with zero point 0."""
    return grid.dtype == "uint8" and grid.point is not None and bool((grid.point == _UNSIGNED_MIDDLE).all())


def _shiftable(graph: LintGraph) -> list[list[onnx.NodeProto]]:
    """Nodes that share codes and can all be shifted: a QuantizeLinear with all that read it, or one on stored codes."""
    found = []
    for node in graph.model.graph.node:
        if node.op_type == "QuantizeLinear" and not graph.leaves(node.output[0]):
            group = [node, *graph.readers.get(node.output[0], [])]
            if all(entry.op_type == "DequantizeLinear" for entry in group[1:]):
                found.append(group)
        elif node.op_type == "DequantizeLinear" and node.input[0] in graph.constants:
            found.append([node])
    return [group for group in found if all(_shifts(graph.grid(node)) for node in group)]


def _shift_(model: onnx.ModelProto, graph: LintGraph, name: str) -> None:
    """Gives a node of a uint8 grid around 128 the same grid in int8; constants that it reads are copied."""
    node = next(entry for entry in model.graph.node if entry.name == name)
    point = graph.array(node.input[2])
    node.input[2] = _add_constant_(model, np.zeros(point.shape, np.int8), f"{name}_zero")
    if node.op_type == "DequantizeLinear" and node.input[0] in graph.constants:
        codes = (graph.array(node.input[0]).astype(np.int16) - _UNSIGNED_MIDDLE).astype(np.int8)
        node.input[0] = _add_constant_(model, codes, f"{name}_codes")
    for attribute in node.attribute:
        if attribute.name == "output_dtype" and attribute.i == TensorProto.UINT8:
            attribute.i = TensorProto.INT8


def _add_constant_(model: onnx.ModelProto, values: NDArray[Any], name: str) -> str:
    model.graph.initializer.append(numpy_helper.from_array(np.array(values, order="C"), name))
    return name


def _bias_of(graph: LintGraph, node: onnx.NodeProto) -> NDArray[Any] | None:
    """The float bias that an int32 one stands for, in the type of its scale; None where it is not constant."""
    scale, point = graph.grid(node).scale, graph.grid(node).point
    if scale is None or (point is not None and point.any()):
        return None
    return (graph.array(node.input[0]).astype(np.float32) * scale.astype(np.float32)).astype(scale.dtype)


def _replace_by_constant_(model: onnx.ModelProto, node: onnx.NodeProto, values: NDArray[Any]) -> None:
    name = node.output[0]
    kept = next(entry for entry in model.graph.node if name in entry.output)
    model.graph.node.remove(kept)
    _add_constant_(model, values, name)


def _largest_code(graph: LintGraph, layer: onnx.NodeProto) -> int:
    """The largest magnitude among the int8 codes of a layer's weight; 0 for a weight in float."""
    dequantize = graph.maker.get(layer.input[1])
    if dequantize is None or dequantize.op_type != "DequantizeLinear" or dequantize.input[0] not in graph.constants:
        return 0
    codes = graph.array(dequantize.input[0])
    return int(np.abs(codes.astype(np.int32)).max(initial=0)) if codes.dtype == np.int8 else 0
