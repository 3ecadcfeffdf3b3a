"""What calibrators, sensitivity and fallback need of a form of INT8: build it, with some layers left in float.

`edgekd.quant.onnxruntime.OrtForm` and `edgekd.quant.nncf.NncfForm` are the two. Also here: which nodes of a built graph
compute on 8-bit values.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Protocol

import onnx

from edgekd.quant.layers import WEIGHTED
from edgekd.quant.ranges import Range

PASSIVE = frozenset(
    {
        "QuantizeLinear", "DequantizeLinear", "Relu", "Clip", "MaxPool", "Flatten", "Reshape", "Transpose", "Squeeze",
        "Unsqueeze", "Slice", "Split", "Gather", "Pad", "Identity",
    }
)  # fmt: skip
"""Operators that hand 8-bit values on: leaving them in float gains no accuracy."""


class Int8Form(Protocol):
    """Writes Q/DQ graphs of one FP32 graph."""

    @property
    def full(self) -> onnx.ModelProto:
        """The FP32 graph, every node named; its values are what ranges are asked for."""

    @property
    def symmetric(self) -> bool:
        """Whether activation ranges are to be symmetric around zero."""

    def build(self, ranges: Mapping[str, Range], exclude: Collection[str] = ()) -> onnx.ModelProto:
        """The Q/DQ graph; nodes that compute keep their names.

        Args:
            ranges: By value name.
            exclude: Nodes that compute in float.
        """


def hands_on(node: onnx.NodeProto) -> bool:
    """Whether a node leaves the 8-bit values of its first input on their grid, as a Transpose behind Q/DQ does."""
    return node.op_type in PASSIVE and node.op_type not in ("QuantizeLinear", "DequantizeLinear")


def quantized_nodes(model: onnx.ModelProto) -> tuple[str, ...]:
    """Names of the nodes that compute on 8-bit values, in the graph's order; those that only hand on are left out."""
    dequantized: set[str] = set()
    constants = {entry.name for entry in model.graph.initializer}
    found = []
    for node in model.graph.node:
        if node.op_type == "DequantizeLinear" or (hands_on(node) and node.input[0] in dequantized):
            dequantized.update(node.output)
        # The axes of a reduction are a constant beside its input; the weight of a layer must be rounded too.
        operands = [name for name in node.input[:2] if name and (node.op_type in WEIGHTED or name not in constants)]
        if node.op_type not in PASSIVE and operands and all(name in dequantized for name in operands):
            found.append(node.name)
    return tuple(found)
