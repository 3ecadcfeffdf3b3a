"""The rule on 64-bit integers: where TensorRT converts them, and where 32 bits do as well."""

from __future__ import annotations

from collections.abc import Iterator
from typing import ClassVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from edgekd.lint.finding import Finding, Severity
from edgekd.lint.rule import Rule, Surroundings
from edgekd.lint.view import LintGraph
from edgekd.runtimes.onnx_view import drop_unused_

INDEXED = ("Gather", "GatherElements", "ScatterElements", "OneHot")
"""Operators that read indices while they run; those of Slice, Reshape and the like are folded at build time."""
_LOW, _HIGH = -(2**31), 2**31 - 1


class Int64(Rule):
    """64-bit integers at the graph's border and in arithmetic.

    Shapes, axes and the like must be 64-bit in ONNX and are constants that TensorRT folds: they are left alone.
    TensorRT casts 64-bit constants to 32 bits up to 8.6, with a warning that hides others, and computes in 64 bits from
    9.0 on.
    """

    name: ClassVar[str] = "int64"
    severity: ClassVar[Severity] = "warning"
    runtimes: ClassVar[frozenset[str]] = frozenset({"tensorrt"})
    summary: ClassVar[str] = "64-bit integers as inputs, outputs, or operands that could have 32 bits"
    why: ClassVar[str] = (
        "TensorRT up to 8.6 binds and computes 32-bit integers; from 9.0 on a 64-bit input needs 64-bit bindings."
    )
    fix: ClassVar[str] = "Feed and give 32-bit integers, or take the integer part out of the engine."
    repairs: ClassVar[bool] = True

    def findings(self, graph: LintGraph, where: Surroundings) -> Iterator[Finding]:
        for kind, values in (("input", graph.model.graph.input), ("output", graph.model.graph.output)):
            for value in values:
                if value.type.tensor_type.elem_type == TensorProto.INT64 and value.name not in graph.constants:
                    yield self.finding(where, None, f"the {kind} {value.name!r} is int64")
        for name, entry in graph.constants.items():
            if entry.data_type != TensorProto.INT64 or not graph.readers.get(name):
                continue
            reader = graph.readers[name][0]
            values = graph.array(name)
            if _is_sentinel(reader):
                continue
            if values.size and (values.min() < _LOW or values.max() > _HIGH):
                found = f"the constant {name!r} holds {_extreme(values)}, which 32 bits do not"
                yield self.finding(where, reader, found, fix="Use a smaller number.")
        for node, slots in _narrowable(graph):
            names = ", ".join(node.input[slot] for slot in slots)
            yield self.finding(
                where,
                node,
                f"its indices {names} are int64, and int32 does",
                severity="info",
                why="TensorRT up to 8.6 casts them and warns; later versions carry 64 bits along.",
                fix="Store them in 32 bits.",
                fixable=True,
            )

    def repair_(self, model: onnx.ModelProto) -> list[str]:
        graph, said = LintGraph(model), []
        nodes = {node.name: node for node in model.graph.node}
        for node, slots in _narrowable(graph):
            for slot in slots:
                name = f"{node.input[slot]}_int32"
                if all(entry.name != name for entry in model.graph.initializer):
                    values = graph.array(node.input[slot]).astype(np.int32)
                    model.graph.initializer.append(numpy_helper.from_array(values, name))
                nodes[node.name].input[slot] = name
            said.append(f"{node.name}: its constant indices became int32.")
        drop_unused_(model)
        return said


def _extreme(values: NDArray[np.int64]) -> int:
    flat = values.ravel()
    return int(flat[np.abs(flat.astype(np.float64)).argmax()])


def _is_sentinel(reader: onnx.NodeProto) -> bool:
    """Whether a Slice means "to the end" by the largest number there is; TensorRT clips it to the size."""
    return reader.op_type == "Slice"


def _narrowable(graph: LintGraph) -> list[tuple[onnx.NodeProto, list[int]]]:
    """Nodes with constant 64-bit operands whose type no other input or output shares, and which may be 32-bit."""
    found = []
    for node in graph.model.graph.node:
        if node.op_type not in INDEXED or not onnx.defs.has(node.op_type, graph.opset, node.domain):
            continue
        schema = onnx.defs.get_schema(node.op_type, graph.opset, node.domain)
        formals, results = list(schema.inputs), {formal.type_str for formal in schema.outputs}
        for constraint in schema.type_constraints:
            allowed = set(constraint.allowed_type_strs)
            variable = constraint.type_param_str
            if variable in results or not {"tensor(int32)", "tensor(int64)"} <= allowed or not formals:
                continue
            slots = [
                slot
                for slot, name in enumerate(node.input)
                if name and formals[min(slot, len(formals) - 1)].type_str == variable
            ]
            if slots and all(_fits(graph, node.input[slot]) for slot in slots):
                found.append((node, slots))
    return found


def _fits(graph: LintGraph, name: str) -> bool:
    """Whether a constant of 64-bit integers fits into 32 bits."""
    entry = graph.constants.get(name)
    if entry is None or entry.data_type != TensorProto.INT64:
        return False
    values = graph.array(name)
    return not values.size or bool(values.min() >= _LOW and values.max() <= _HIGH)
