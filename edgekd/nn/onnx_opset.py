"""Writes an ONNX graph of opset 18 in opset 17, which is what TensorRT 8.5 and 8.6 (JetPack 5 and 6.0) read.

The exporter does not go below 18, whatever it is asked for, and its own way down stops at the first reduction. Only
what image networks contain is rewritten; anything else that changed with opset 18 is refused by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from edgekd.errors import BuildFailed

NEWER, OLDER = 18, 17


@dataclass(frozen=True)
class _Known:
    """Constants and shapes of a graph by name; an open axis is 0."""

    constants: dict[str, NDArray[Any]]
    shapes: dict[str, tuple[int, ...]]


_Rewrite: TypeAlias = Callable[[onnx.NodeProto, _Known], bool]


def in_opset_17(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy that computes the same by the rules of opset 17.

    Args:
        model: Of opset 18.

    Raises:
        BuildFailed: An operator has no form of opset 17 that is known here.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    constants = {entry.name: numpy_helper.to_array(entry) for entry in made.graph.initializer}
    for node in made.graph.node:
        if node.op_type == "Constant" and node.attribute[0].name == "value":
            constants[node.output[0]] = numpy_helper.to_array(node.attribute[0].t)
    values = (*made.graph.input, *made.graph.value_info)
    shapes = {value.name: tuple(axis.dim_value for axis in value.type.tensor_type.shape.dim) for value in values}
    known = _Known(constants, shapes)
    for node in made.graph.node:
        if node.domain in ("", "ai.onnx") and _changed(node):
            rewrite = _REWRITES.get("Reduce" if node.op_type.startswith("Reduce") else node.op_type)
            if rewrite is None or not rewrite(node, known):
                raise BuildFailed(
                    f"The operator {node.op_type} {node.name!r} as it stands has no form in ONNX opset {OLDER}.",
                    hint=f"export with --opset {NEWER} or higher, which TensorRT reads from version 10 on",
                )
    for entry in made.opset_import:
        if entry.domain in ("", "ai.onnx"):
            entry.version = OLDER
    return made


def _changed(node: onnx.NodeProto) -> bool:
    """Whether an operator came or changed with opset 18."""
    return not onnx.defs.has(node.op_type, OLDER) or bool(
        onnx.defs.get_schema(node.op_type, NEWER).since_version == NEWER
    )


def _reduce(node: onnx.NodeProto, known: _Known) -> bool:
    """The axes become an attribute again; ReduceSum has had them as an input before."""
    if any(entry.name == "noop_with_empty_axes" and entry.i for entry in node.attribute):
        return False
    if len(node.input) > 1 and node.input[1]:
        axes = known.constants.get(node.input[1])
        if axes is None:
            return False
        node.attribute.append(helper.make_attribute("axes", [int(axis) for axis in axes.ravel()]))
    del node.input[1:]
    kept = [entry for entry in node.attribute if entry.name != "noop_with_empty_axes"]
    _set_attributes_(node, kept)
    return True


def _split(node: onnx.NodeProto, known: _Known) -> bool:
    """Without sizes all parts are equal, as many as there are outputs: opset 18 lets the last one be smaller."""
    axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 0)
    shape = known.shapes.get(node.input[0], ())
    size = shape[axis] if -len(shape) <= axis < len(shape) else 0
    _set_attributes_(node, [entry for entry in node.attribute if entry.name != "num_outputs"])
    return len(node.input) > 1 or (size > 0 and size % len(node.output) == 0)


def _pad(node: onnx.NodeProto, known: _Known) -> bool:
    return len(node.input) < 4 or not node.input[3]


def _resize(node: onnx.NodeProto, known: _Known) -> bool:
    """What opset 18 added is left out where it says nothing new."""
    plain = {"antialias": 0, "keep_aspect_ratio_policy": b"stretch"}
    kept = []
    for entry in node.attribute:
        if entry.name == "axes" or entry.name in plain:
            if helper.get_attribute_value(entry) != plain.get(entry.name):
                return False
        else:
            kept.append(entry)
    _set_attributes_(node, kept)
    return True


def _scatter(node: onnx.NodeProto, known: _Known) -> bool:
    return all(entry.s not in (b"max", b"min") for entry in node.attribute if entry.name == "reduction")


def _set_attributes_(node: onnx.NodeProto, kept: list[onnx.AttributeProto]) -> None:
    copies = []
    for entry in kept:
        copy = onnx.AttributeProto()
        copy.CopyFrom(entry)
        copies.append(copy)
    del node.attribute[:]
    node.attribute.extend(copies)


_REWRITES: dict[str, _Rewrite] = {
    "Reduce": _reduce,
    "Split": _split,
    "Pad": _pad,
    "Resize": _resize,
    "ScatterElements": _scatter,
    "ScatterND": _scatter,
}
