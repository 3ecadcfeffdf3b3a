"""An ONNX graph as its readers want it: nodes by name, makers and readers of values, constants; and small edits of it.

Quantizers and lints both walk graphs this way. Nothing here knows what a graph is for, and nothing runs one.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

FIRST_IR = 4
"""The first version of the format that lets weights be no inputs."""
LEAST_IR = 8
"""Of graphs that are written anew: it goes with opset 15."""


class GraphView:
    """Nodes by name, makers and readers of values, constants of a graph; changes of the graph need a new view.

    Args:
        model: Its nodes have distinct names, as `name_nodes_` gives them.

    Attributes:
        outputs: Names of the graph's outputs.
        captured: Values that the branches of an If, or the body of a Loop or Scan, read from around them; `readers`
            does not have those.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.nodes = {node.name: node for node in model.graph.node}
        self.constants = {entry.name: entry for entry in model.graph.initializer}
        self.maker = {name: node for node in model.graph.node for name in node.output}
        self.readers: dict[str, list[onnx.NodeProto]] = {}
        for node in model.graph.node:
            for name in node.input:
                self.readers.setdefault(name, []).append(node)
        self.outputs = {value.name for value in model.graph.output}
        self.captured = captured_values(model.graph)

    def leaves(self, value: str) -> bool:
        """Whether something beside the nodes of this graph reads a value: a caller, or the body of a node."""
        return value in self.outputs or value in self.captured

    def array(self, name: str) -> NDArray[Any]:
        """The content of a constant."""
        return numpy_helper.to_array(self.constants[name])

    def write(self, name: str, values: NDArray[Any]) -> None:
        """Replaces the content of a constant, in place."""
        self.constants[name].CopyFrom(numpy_helper.from_array(np.array(values, order="C"), name))


def name_nodes_(model: onnx.ModelProto) -> None:
    """Gives every node without a name, or with another's, one after its operator and first output."""
    seen: set[str] = set()
    for node in model.graph.node:
        if not node.name or node.name in seen:
            node.name = f"{node.op_type}_{node.output[0]}"
        seen.add(node.name)


def attribute(node: onnx.NodeProto, name: str, default: Any) -> Any:
    """An attribute's value."""
    found = next((entry for entry in node.attribute if entry.name == name), None)
    return default if found is None else onnx.helper.get_attribute_value(found)


def output_axis(node: onnx.NodeProto, ndim: int) -> int:
    """The axis of output channels in a layer's weight."""
    if node.op_type in ("Conv", "ConvTranspose"):
        return 0 if node.op_type == "Conv" else 1
    if node.op_type == "Gemm":
        return 0 if attribute(node, "transB", 0) else 1
    return ndim - 1


def drop_unused_(model: onnx.ModelProto) -> None:
    """Removes nodes and constants that no output depends on."""
    graph = model.graph
    while True:
        used = {name for node in graph.node for name in node.input} | {value.name for value in graph.output}
        used |= captured_values(graph)
        kept = [node for node in graph.node if any(name in used for name in node.output)]
        if len(kept) == len(graph.node):
            break
        replace_(graph.node, kept)
    replace_(graph.initializer, [entry for entry in graph.initializer if entry.name in used])


def captured_values(graph: onnx.GraphProto) -> frozenset[str]:
    """Names that the bodies of a graph's nodes read and do not make themselves, to any depth."""
    found: set[str] = set()
    for node in graph.node:
        for entry in node.attribute:
            for body in (entry.g, *entry.graphs):
                read = {name for inner in body.node for name in inner.input} | captured_values(body)
                read |= {value.name for value in body.output}
                made = {name for inner in body.node for name in inner.output}
                made |= {value.name for value in (*body.input, *body.initializer)}
                found |= read - made - {""}
    return frozenset(found)


def forget_weights_as_inputs_(model: onnx.ModelProto) -> None:
    """Takes the weights from the list of inputs, where old exporters put them as defaults that a caller may replace.

    Otherwise nothing may fold them, and one that is dropped turns into an input that somebody must feed.
    """
    constants = {entry.name for entry in model.graph.initializer}
    replace_(model.graph.input, [value for value in model.graph.input if value.name not in constants])
    if model.ir_version < FIRST_IR:
        model.ir_version = LEAST_IR


def replace_(field: Any, entries: Iterable[Any]) -> None:
    """Puts other entries into a repeated field of a message."""
    kept = list(entries)
    del field[:]
    field.extend(kept)
