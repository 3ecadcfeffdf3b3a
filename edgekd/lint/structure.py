"""Rules on the graph itself, quantized or not: what does nothing, what stays open, what is badly shaped."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import onnx

from edgekd.lint.finding import Finding, Severity
from edgekd.lint.rule import Rule, Surroundings
from edgekd.lint.view import LintGraph
from edgekd.runtimes.onnx_view import attribute, drop_unused_

DATA_DEPENDENT = frozenset({"NonZero", "NonMaxSuppression", "Unique", "Compress", "Loop", "SequenceAt"})
"""Operators whose output has a size that values decide."""


class NoOp(Rule):
    """Nodes that change nothing."""

    name: ClassVar[str] = "no-op"
    severity: ClassVar[Severity] = "info"
    summary: ClassVar[str] = "Identity, Dropout, a Transpose that keeps the order, and DQ/Q pairs on one grid"
    why: ClassVar[str] = "It may cost a copy, and hides from fusion what stands before and behind it."
    fix: ClassVar[str] = "Remove it."
    repairs: ClassVar[bool] = True

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        for node, what, _ in _idle(graph):
            yield self.finding(where, node, what, fixable=True)

    def repair_(self, model: onnx.ModelProto) -> list[str]:
        said = []
        while True:
            graph = LintGraph(model)
            found = next(iter(_idle(graph)), None)
            if found is None:
                break
            node, what, value = found
            _bypass_(model, node, value)
            said.append(f"{node.name}: removed, {what}.")
        drop_unused_(model)
        return said


class DynamicAxes(Rule):
    """Open axes beside the batch, and sizes that values decide."""

    name: ClassVar[str] = "dynamic-axes"
    severity: ClassVar[Severity] = "error"
    runtimes: ClassVar[frozenset[str]] = frozenset({"tensorrt"})
    summary: ClassVar[str] = "open axes beside the batch, and outputs whose size depends on values"
    why: ClassVar[str] = "TensorRT builds for a range of sizes; edgekd gives one for the batch only."
    fix: ClassVar[str] = "Export with fixed height and width."

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        for value in graph.model.graph.input:
            if value.name in graph.constants:
                continue
            axes = value.type.tensor_type.shape.dim
            open_ = [place for place, axis in enumerate(axes) if not axis.HasField("dim_value") and place > 0]
            if open_:
                named = ", ".join(f"{place} ({axes[place].dim_param or 'no name'})" for place in open_)
                yield self.finding(where, None, f"the input {value.name!r} leaves the axes {named} open")
        for node in graph.model.graph.node:
            if node.op_type in DATA_DEPENDENT:
                yield self.finding(
                    where,
                    node,
                    f"the size of what {node.op_type} gives depends on values",
                    severity="warning",
                    why="TensorRT allocates for the largest size and stops the GPU to learn the real one.",
                    fix="Do this step outside the engine, or use a form with a fixed number of results.",
                )


class ChannelMultiple(Rule):
    """Channel counts that fill no vector."""

    name: ClassVar[str] = "channel-multiple"
    severity: ClassVar[Severity] = "info"
    summary: ClassVar[str] = "channel counts that are no multiple of the target's"
    why: ClassVar[str] = "Kernels compute whole vectors of channels; the rest of the last one is padding."
    fix: ClassVar[str] = "Prune or design to multiples (edgekd prune keeps the target's channel_multiple)."

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        multiple = where.channel_multiple
        layers = [layer for layer in graph.layers if layer.op_type in ("Conv", "ConvTranspose")]
        for layer in layers:
            weight = graph.shapes.get(layer.input[1], ())
            if len(weight) < 3:
                continue
            groups = int(attribute(layer, "group", 1))
            first, second = (weight[0], weight[1] * groups)
            incoming, outgoing = (second, first) if layer.op_type == "Conv" else (first, second)
            odd = [size for size in dict.fromkeys((incoming, outgoing)) if size % multiple]
            # The first layer reads colours.
            if incoming <= 4:
                odd = [outgoing] if outgoing % multiple else []
            if odd:
                found = f"{incoming} to {outgoing} channels; {multiple} is the multiple"
                yield self.finding(where, layer, found, macs_share=graph.share(layer.name))


def _idle(graph: LintGraph) -> Iterator[tuple[onnx.NodeProto, str, str]]:
    """(node, what it is, the value that its output equals); what is read from outside keeps the node that makes it."""
    for node in graph.model.graph.node:
        if not node.output or graph.leaves(node.output[0]):
            continue
        if node.op_type == "Identity" or (node.op_type == "Dropout" and _is_inference(graph, node)):
            yield node, f"{node.op_type} hands its input on", node.input[0]
        elif node.op_type == "Transpose" and _keeps_order(node):
            yield node, "the order of axes stays as it was", node.input[0]
        elif node.op_type == "QuantizeLinear":
            before = graph.maker.get(node.input[0])
            if before is None or before.op_type != "DequantizeLinear" or graph.is_constant(node.input[0]):
                continue
            if graph.grid(before).same(graph.grid(node)):
                yield node, f"it undoes {before.name} on the same grid", before.input[0]


def _is_inference(graph: LintGraph, node: onnx.NodeProto) -> bool:
    if any(name in graph.readers for name in node.output[1:]):
        return False
    training = graph.maybe_array(node.input[2]) if len(node.input) > 2 and node.input[2] else None
    return (training is None and len(node.input) < 3) or (training is not None and not training.any())


def _keeps_order(node: onnx.NodeProto) -> bool:
    order = attribute(node, "perm", None)
    return order is not None and list(order) == sorted(order)


def _bypass_(model: onnx.ModelProto, node: onnx.NodeProto, value: str) -> None:
    """Readers of a node's output read `value`; the node goes."""
    for reader in model.graph.node:
        for slot, name in enumerate(reader.input):
            if name == node.output[0]:
                reader.input[slot] = value
    model.graph.node.remove(next(entry for entry in model.graph.node if entry.name == node.name))
