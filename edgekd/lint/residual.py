"""Rules on where branches meet: residual additions and concatenations."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import onnx

from edgekd.lint.family import family_of_graph
from edgekd.lint.finding import Finding, Severity
from edgekd.lint.rule import Rule, Surroundings
from edgekd.lint.view import LintGraph


class ResidualAdd(Rule):
    """A residual addition that cannot be fused into the convolution before it.

    TensorRT adds the shortcut inside the kernel of the branch's last convolution when that convolution reaches the Add
    unrounded and the shortcut comes as 8-bit values; ModelOpt and NVIDIA's toolkit for TensorFlow place Q/DQ so.
    ONNX Runtime adds 8-bit values to 8-bit values, and takes both inputs rounded or none. In networks with
    LayerNormalization the residual stream stays in float on purpose.
    """

    name: ClassVar[str] = "residual-add"
    severity: ClassVar[Severity] = "warning"
    runtimes: ClassVar[frozenset[str]] = frozenset({"tensorrt", "onnxruntime"})
    summary: ClassVar[str] = "residual additions whose inputs do not let them fuse"
    why: ClassVar[str] = "The addition runs as a layer of its own, on values that are written and read once more."
    fix: ClassVar[str] = "Put Q/DQ on the shortcut only (edgekd quantize --scheme tensorrt-s8 does)."

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        if not graph.quantized or family_of_graph(graph) in ("transformer", "convnext"):
            return
        for node in graph.model.graph.node:
            if node.op_type == "Add" and len(graph.moving(node)) == 2 and node.input[0] != node.input[1]:
                if "tensorrt" in where.runtimes and (found := _for_tensorrt(graph, node)):
                    yield self.finding(where, node, found, runtimes=("tensorrt",))
                if "onnxruntime" in where.runtimes and (found := _for_onnxruntime(graph, node)):
                    fix = "Put Q/DQ on both inputs, or on none."
                    yield self.finding(where, node, found, fix=fix, runtimes=("onnxruntime",))


class ConcatScales(Rule):
    """A concatenation of values on different grids, or of rounded and unrounded ones."""

    name: ClassVar[str] = "concat-scales"
    severity: ClassVar[Severity] = "warning"
    runtimes: ClassVar[frozenset[str]] = frozenset({"tensorrt", "openvino", "onnxruntime"})
    summary: ClassVar[str] = "concatenations whose inputs are rounded on different grids, or only in part"
    why: ClassVar[str] = "Joining 8-bit values without copying them needs one grid; here each part is converted first."
    fix: ClassVar[str] = "Give all inputs one scale: that of the widest range among them."

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        for node in graph.model.graph.node:
            if node.op_type != "Concat":
                continue
            names = graph.moving(node)
            makers = [graph.dequantized_by(name) for name in names]
            rounded = [maker for maker in makers if maker is not None]
            if len(names) < 2 or not rounded:
                continue
            if len(rounded) < len(names):
                readers = graph.readers.get(node.output[0], [])
                if not readers or any(reader.op_type != "QuantizeLinear" for reader in readers):
                    continue  # it is joined in float on purpose
                floats = [name for name, maker in zip(names, makers, strict=True) if maker is None]
                yield self.finding(where, node, f"{len(floats)} of {len(names)} inputs are float: {', '.join(floats)}")
                continue
            grids = [graph.grid(maker) for maker in rounded]
            # ONNX Runtime's 8-bit concatenation converts through a table, which costs nearly nothing.
            others = tuple(name for name in self.concerned(where) if name != "onnxruntime")
            if others and any(not grid.same(grids[0]) for grid in grids[1:]):
                scales = ", ".join("?" if grid.scale is None else f"{grid.scale.ravel()[0]:.4g}" for grid in grids)
                yield self.finding(where, node, f"its inputs have the scales {scales}", runtimes=others)


def _for_tensorrt(graph: LintGraph, node: onnx.NodeProto) -> str:
    """What keeps an Add from fusing in TensorRT; empty when nothing does."""
    rounded = [graph.dequantized_by(name) for name in node.input]
    branches = [_branch(graph, name) for name in node.input]
    if all(maker is None for maker in rounded):
        layer = next((branch for branch in branches if branch is not None and graph.in_int8(branch)), None)
        return "" if layer is None else f"neither input is quantized, although {layer.name} computes on 8-bit values"
    if all(maker is not None for maker in rounded):
        layer = next((branch for branch in branches if branch is not None), None)
        return "" if layer is None else f"a Q/DQ pair stands between {layer.op_type} {layer.name} and it"
    place = next(index for index, maker in enumerate(rounded) if maker is not None)
    shortcut = graph.maker.get(node.input[1 - place])
    if branches[place] is not None and branches[1 - place] is None:
        what = "the graph's input" if shortcut is None else f"{shortcut.op_type} {shortcut.name}"
        return f"the convolution's side is quantized, and the shortcut, from {what}, is not"
    return ""


def _branch(graph: LintGraph, value: str) -> onnx.NodeProto | None:
    """The layer that reaches a value directly or through one Q/DQ pair, and reaches nothing else."""
    maker = graph.maker.get(value)
    if maker is not None and maker.op_type == "DequantizeLinear":
        if graph.sole_reader(value) is None or graph.sole_reader(maker.input[0]) is None:
            return None
        quantize = graph.maker.get(maker.input[0])
        value = quantize.input[0] if quantize is not None else ""
        maker = graph.maker.get(value)
    if maker is None or maker.op_type not in ("Conv", "ConvTranspose", "Gemm"):
        return None
    return maker if graph.sole_reader(value) is not None else None


def _for_onnxruntime(graph: LintGraph, node: onnx.NodeProto) -> str:
    floats = [name for name in node.input if graph.dequantized_by(name) is None]
    return f"one input is quantized, {floats[0]} is not" if len(floats) == 1 else ""
