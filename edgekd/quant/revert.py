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

from edgekd.quant.form import hands_on
from edgekd.quant.layers import GraphView, drop_unused_
from edgekd.quant.ranges import Range


def set_ranges_(model: onnx.ModelProto, ranges: Mapping[str, Range]) -> None:
    """Gives activation quantizers of one scale other ranges, in place.

    Quantizers that shared a scale because they meet in a concatenation get one range, which covers those of all of
    them. A zero point 0 of a signed quantizer stays: its range is symmetric.
    """
    view = GraphView(model)
    changed = [
        node
        for node in model.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] in ranges and view.array(node.input[1]).size == 1
    ]
    for nodes in _sharing(view, changed):
        low = min(ranges[node.input[0]].low for node in nodes)
        high = max(ranges[node.input[0]].high for node in nodes)
        before = view.array(nodes[0].input[2])
        dtype = str(before.dtype)
        scale, point = grid_of(Range(low, high), dtype, symmetric=dtype == "int8" and not before.any())
        for node in nodes:
            shape = view.array(node.input[1]).shape
            view.write(node.input[1], scale.reshape(shape))
            view.write(node.input[2], point.reshape(shape))


def _sharing(view: GraphView, quantizers: list[onnx.NodeProto]) -> list[list[onnx.NodeProto]]:
    """Quantizers in groups that share a scale: on one grid, and the inputs of one concatenation or of a chain of them.

    Equal numbers alone say nothing: behind ReLU6, half of a network has the scale 6 / 255.
    """
    groups = {node.name: [node] for node in quantizers}
    for concat in view.model.graph.node:
        if concat.op_type == "Concat":
            grids: dict[tuple[float, int, str], list[onnx.NodeProto]] = {}
            for node in _quantizers_before(view, concat):
                point = view.array(node.input[2])
                grid = (float(view.array(node.input[1]).item()), int(point.item()), str(point.dtype))
                if node.name in groups:
                    met = grids.setdefault(grid, groups[node.name])
                    met += [other for other in groups[node.name] if other not in met]
                    groups |= {other.name: met for other in met}
    return list({id(group): group for group in groups.values()}.values())


def _quantizers_before(view: GraphView, node: onnx.NodeProto) -> list[onnx.NodeProto]:
    """Quantizers of one scale each whose values a node reads, handed on or joined meanwhile or not."""
    found: dict[str, onnx.NodeProto] = {}
    values = list(node.input)
    while values:
        maker = view.maker.get(values.pop())
        if maker is None:
            continue
        if maker.op_type == "QuantizeLinear":
            found[maker.name] = maker
        elif maker.op_type == "Concat":
            values += maker.input
        elif maker.op_type == "DequantizeLinear" or hands_on(maker):
            values.append(maker.input[0])
    return [maker for maker in found.values() if view.array(maker.input[1]).size == 1]


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
        for constant_reader in (name, *_bias_after(plain, name)):
            if constant_reader in view.nodes:
                _restore_constants_(view, plain, constant_reader)
    floats = set(names) | {
        node.name for node in full.graph.node if node.name in view.nodes and not _reads_rounded(view, node)
    }
    drop_unused_(made)
    view = GraphView(made)
    for node in list(made.graph.node):
        if node.op_type == "QuantizeLinear" and node.input[0] not in view.constants:
            _drop_if_idle_(view, node, floats)
    drop_unused_(made)
    return made


def _bias_after(plain: GraphView, name: str) -> list[str]:
    """The Add of a matrix product's bias: bias correction may have moved the quantized graph's."""
    readers = [node for value in plain.nodes[name].output for node in plain.readers.get(value, [])]
    return [node.name for node in readers if node.op_type == "Add"]


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


def _reads_rounded(view: GraphView, node: onnx.NodeProto) -> bool:
    """Whether a node of the FP32 graph reads an 8-bit value in the other, handed on or not."""
    makers = [_computing_maker(view, value) for value in view.nodes[node.name].input]
    return any(maker is not None and maker.op_type == "DequantizeLinear" for maker in makers)


def _computing_maker(view: GraphView, value: str) -> onnx.NodeProto | None:
    """What computed a value or rounded it: the first node upstream that does not only hand on."""
    maker = view.maker.get(value)
    while maker is not None and hands_on(maker):
        maker = view.maker.get(maker.input[0])
    return maker


def _all_float(view: GraphView, value: str, floats: set[str]) -> bool:
    """Whether what reads a value, handed on or not, computes in float; the graph's output stays as it is."""
    if view.leaves(value):
        return False
    return all(
        node.op_type == "QuantizeLinear"
        or (all(_all_float(view, made, floats) for made in node.output) if hands_on(node) else node.name in floats)
        for node in view.readers.get(value, [])
    )


def _drop_if_idle_(view: GraphView, quantize: onnx.NodeProto, floats: set[str]) -> None:
    """Lets readers read the value itself when neither its maker nor any of them computes in INT8."""
    value, maker = quantize.input[0], _computing_maker(view, quantize.input[0])
    dequantized = [node.output[0] for node in view.readers.get(quantize.output[0], [])]
    readers = [node for name in dequantized for node in view.readers.get(name, [])]
    idle = all(_all_float(view, name, floats) for name in dequantized)
    if (maker is None or maker.name in floats) and idle:
        for node in readers:
            for slot, name in enumerate(node.input):
                if name in dequantized:
                    node.input[slot] = value
