"""Changes a finished Q/DQ graph: other activation ranges, or layers back in float.

For graphs that kept their activation functions: a quantizer that fuses a ReLU into the zero point of what follows
cannot be undone this way, and its graphs are built anew.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgekd.quant.layers import GraphView, drop_unused_
from edgekd.quant.ranges import Range


def set_ranges_(model: onnx.ModelProto, ranges: Mapping[str, Range]) -> None:
    """Gives activation quantizers of one scale other ranges, in place.

    Quantizers that had equal scales and zero points (the inputs of a concatenation) get one range, which covers those
    of all of them. A zero point 0 of a signed quantizer stays: its range is symmetric.
    """
    view = GraphView(model)
    groups: dict[tuple[float, int, str], list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in ranges:
            before, point = view.array(node.input[1]), view.array(node.input[2])
            if before.size == 1:
                groups.setdefault((float(before), int(point), str(point.dtype)), []).append(node)
    for (_, zero, dtype), nodes in groups.items():
        low = min(ranges[node.input[0]].low for node in nodes)
        high = max(ranges[node.input[0]].high for node in nodes)
        scale, point = grid_of(Range(low, high), dtype, symmetric=dtype == "int8" and zero == 0)
        for node in nodes:
            shape = view.array(node.input[1]).shape
            view.write(node.input[1], scale.reshape(shape))
            view.write(node.input[2], point.reshape(shape))


def grid_of(found: Range, dtype: str, *, symmetric: bool) -> tuple[NDArray[np.float32], NDArray[Any]]:
    """(scale, zero point) of a range, as scalars; a range of nothing has scale 1.

    Args:
        found: To be covered.
        dtype: `int8` or `uint8`.
        symmetric: The zero point is 0.
    """
    low, high = (-128, 127) if dtype == "int8" else (0, 255)
    if symmetric:
        scale = max(-found.low, found.high) / high or 1.0
        return np.asarray(scale, dtype=np.float32), np.zeros((), dtype)
    scale = (found.high - found.low) / (high - low) or 1.0
    point = np.clip(np.rint(low - found.low / scale), low, high)
    return np.asarray(scale, dtype=np.float32), np.asarray(point, dtype=dtype)


def reverted(model: onnx.ModelProto, full: onnx.ModelProto, names: Collection[str]) -> onnx.ModelProto:
    """A copy in which some nodes compute in float with their FP32 weights and biases.

    What they read stays rounded to 8 bits where an INT8 node made it or also reads it; a rounding that no INT8 node
    takes part in is removed, that of the graph's outputs aside.

    Args:
        model: A Q/DQ graph whose nodes are named as in `full`.
        full: Its FP32 twin.
        names: The nodes.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    view, plain = GraphView(made), GraphView(full)
    for name in names:
        if name in view.nodes:
            _restore_constants_(view, plain, name)
    floats = set(names) | {
        node.name for node in full.graph.node if node.name in view.nodes and not _reads_rounded(view, node.name)
    }
    drop_unused_(made)
    view = GraphView(made)
    for node in list(made.graph.node):
        if node.op_type == "QuantizeLinear" and node.input[0] not in view.constants:
            _drop_if_idle_(view, node, floats)
    drop_unused_(made)
    return made


def _restore_constants_(view: GraphView, plain: GraphView, name: str) -> None:
    """The node reads its FP32 constants again."""
    node, before = view.nodes[name], plain.nodes[name]
    for slot, constant in enumerate(before.input):
        if constant in plain.constants:
            restored = f"{constant}_fp32"
            if restored not in view.constants:
                entry = view.model.graph.initializer.add()
                entry.CopyFrom(numpy_helper.from_array(plain.array(constant), restored))
                view.constants[restored] = entry
            node.input[slot] = restored


def _reads_rounded(view: GraphView, name: str) -> bool:
    makers = [view.maker.get(value) for value in view.nodes[name].input]
    return any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


def _drop_if_idle_(view: GraphView, quantize: onnx.NodeProto, floats: set[str]) -> None:
    """Lets readers read the value itself when neither its maker nor any of them computes in INT8."""
    value, maker = quantize.input[0], view.maker.get(quantize.input[0])
    while maker is not None and maker.op_type in ("Relu", "Clip"):  # part of the layer before
        maker = view.maker.get(maker.input[0])
    dequantized = [node.output[0] for node in view.readers.get(quantize.output[0], [])]
    readers = [node for name in dequantized for node in view.readers.get(name, [])]
    if (maker is None or maker.name in floats) and all(node.name in floats for node in readers):
        for node in readers:
            for slot, name in enumerate(node.input):
                if name in dequantized:
                    node.input[slot] = value
