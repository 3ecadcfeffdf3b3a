"""Rules on nodes that stand between a DequantizeLinear and its layer, and on values that are rounded twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgekd.lint.finding import Finding, Severity
from edgekd.lint.rule import Rule, Surroundings
from edgekd.lint.view import HEAVY, VIEWS, LintGraph
from edgekd.runtimes.onnx_view import attribute, drop_unused_, replace_


class ViewBehindDequantize(Rule):
    """A Transpose or Reshape between DequantizeLinear and the layer that would absorb it."""

    name: ClassVar[str] = "view-behind-dequantize"
    severity: ClassVar[Severity] = "warning"
    runtimes: ClassVar[frozenset[str]] = frozenset({"tensorrt"})
    summary: ClassVar[str] = "Transpose, Reshape and the like between DequantizeLinear and a layer"
    why: ClassVar[str] = (
        "A layer takes 8-bit values when DequantizeLinear stands directly before it; whether TensorRT moves it there "
        "depends on its version, and where it does not, the layer runs in float."
    )
    fix: ClassVar[str] = "Put the view before the Q/DQ pair: moving values and rescaling them commute."
    repairs: ClassVar[bool] = True

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        for view, dequantize, layer in _behind(graph):
            found = f"{view.op_type} {view.name} stands between {dequantize.name} and it"
            share = graph.share(layer.name)
            yield self.finding(where, layer, found, fixable=_commutes(graph, view, dequantize), macs_share=share)

    def repair_(self, model: onnx.ModelProto) -> list[str]:
        said = []
        # A view that was moved may have another behind it: one at a time, each on a fresh look.
        while True:
            graph = LintGraph(model)
            found = next((entry for entry in _behind(graph) if _commutes(graph, entry[0], entry[1])), None)
            if found is None:
                break
            view, dequantize, layer = found
            _commute_(model, graph, view, dequantize)
            said.append(f"{view.name}: moved before {dequantize.name}, which now stands before {layer.name}.")
        return said


class QuantizedTwice(Rule):
    """A value that several QuantizeLinear read."""

    name: ClassVar[str] = "quantized-twice"
    severity: ClassVar[Severity] = "warning"
    summary: ClassVar[str] = "values that are rounded by several quantizers"
    why: ClassVar[str] = "Each copy is computed and written; on different grids the branches also disagree."
    fix: ClassVar[str] = "Let all readers share one Q/DQ pair."
    repairs: ClassVar[bool] = True

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        for value, quantizers in _rounded_again(graph).items():
            grids = [graph.grid(node) for node in quantizers]
            how = "on one grid" if all(grid.same(grids[0]) for grid in grids[1:]) else "on different grids"
            found = f"{value!r} is rounded {len(grids)} times, {how}"
            yield self.finding(where, quantizers[0], found, fixable=bool(_like_first(graph, quantizers)))

    def repair_(self, model: onnx.ModelProto) -> list[str]:
        graph, said = LintGraph(model), []
        for value, quantizers in _rounded_again(graph).items():
            same = _like_first(graph, quantizers)
            for node in same:
                _rename_reads_(model, node.output[0], quantizers[0].output[0])
            if same:
                said.append(f"{value}: {len(same)} more equal quantizers became one.")
        drop_unused_(model)
        return said


def _rounded_again(graph: LintGraph) -> dict[str, list[onnx.NodeProto]]:
    found: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.quantizers:
        found.setdefault(node.input[0], []).append(node)
    return {value: nodes for value, nodes in found.items() if len(nodes) > 1}


def _like_first(graph: LintGraph, quantizers: list[onnx.NodeProto]) -> list[onnx.NodeProto]:
    """Those on the grid of the first one that can go: nobody outside the graph's nodes reads their codes."""
    first = graph.grid(quantizers[0])
    return [n for n in quantizers[1:] if graph.grid(n).same(first) and not graph.leaves(n.output[0])]


def _rename_reads_(model: onnx.ModelProto, old: str, new: str) -> None:
    for node in model.graph.node:
        for slot, name in enumerate(node.input):
            if name == old:
                node.input[slot] = new


def _behind(graph: LintGraph) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto, onnx.NodeProto]]:
    """(view, DequantizeLinear before it, layer behind it), the view nearest to its DequantizeLinear first."""
    for layer in graph.model.graph.node:
        for value in layer.input[:2] if layer.op_type in HEAVY else ():
            view = graph.maker.get(value)
            while view is not None and view.op_type in VIEWS:
                before = graph.maker.get(view.input[0])
                if before is not None and before.op_type == "DequantizeLinear":
                    yield view, before, layer
                    break
                view = before


def _commutes(graph: LintGraph, view: onnx.NodeProto, dequantize: onnx.NodeProto) -> bool:
    """Whether a view may go before its DequantizeLinear: with one scale always, else a Transpose."""
    grid = graph.grid(dequantize)
    return grid.scale is not None and (grid.axis is None or view.op_type == "Transpose")


def _commute_(model: onnx.ModelProto, graph: LintGraph, view: onnx.NodeProto, dequantize: onnx.NodeProto) -> None:
    """Puts the view before the DequantizeLinear, and before its QuantizeLinear where that rounds a constant."""
    quantize = graph.maker.get(dequantize.input[0])
    chain = [dequantize]
    if quantize is not None and quantize.op_type == "QuantizeLinear" and quantize.input[0] in graph.constants:
        chain.insert(0, quantize)
    source, made = chain[0].input[0], []
    if source in graph.constants and view.op_type == "Transpose":
        turned = np.ascontiguousarray(np.transpose(graph.array(source), _permutation(graph, view)))
        name = f"{source}_{view.name}"
        model.graph.initializer.append(numpy_helper.from_array(turned, name))
    else:
        name = f"{source}_{view.name}"
        moved = onnx.NodeProto()
        moved.CopyFrom(view)
        moved.input[0], moved.output[0] = source, name
        made.append(moved)
    for node in chain:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name}_{view.name}"
        copy.input[0] = name
        name = view.output[0] if node is chain[-1] else f"{node.output[0]}_{view.name}"
        copy.output[0] = name
        axis = graph.grid(node).axis
        if axis is not None:
            _set_axis_(copy, _permutation(graph, view).index(axis))
        made.append(copy)
    nodes: list[onnx.NodeProto] = []
    for node in model.graph.node:
        nodes += made if node.name == view.name else [node]
    replace_(model.graph.node, [_copied(node) for node in nodes])
    drop_unused_(model)


def _permutation(graph: LintGraph, view: onnx.NodeProto) -> list[int]:
    rank = len(graph.shapes.get(view.input[0], graph.shapes.get(view.output[0], ())))
    stated = attribute(view, "perm", None)
    return list(stated) if stated is not None else list(reversed(range(rank)))


def _set_axis_(node: onnx.NodeProto, axis: int) -> None:
    kept = [_attribute_copy(entry) for entry in node.attribute if entry.name != "axis"]
    replace_(node.attribute, [*kept, helper.make_attribute("axis", axis)])


def _attribute_copy(entry: onnx.AttributeProto) -> onnx.AttributeProto:
    made = onnx.AttributeProto()
    made.CopyFrom(entry)
    return made


def _copied(node: onnx.NodeProto) -> onnx.NodeProto:
    made = onnx.NodeProto()
    made.CopyFrom(node)
    return made
