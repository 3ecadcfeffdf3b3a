"""Turns an ONNX graph into one that computes in float16 what it computed in float32; inputs and outputs stay float32.

A value that leaves float16's range stays float32 until it is back inside, and so does every operator that touches it;
an operator that would overflow within itself computes in float32, between casts. Casts stand exactly where the
precision changes, once per value.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from onnx.defs import OpSchema

from edgekd.errors import BuildFailed, UserError
from edgekd.lint.float16_ranges import FLOAT16_MAX, Kept

_FLOAT, _HALF = TensorProto.FLOAT, TensorProto.FLOAT16
FLOAT16_SCALES = 19
"""First opset in which the scales of Q/DQ nodes may be float16."""


def float16_from_float32(model: onnx.ModelProto, keep: Kept | None = None) -> onnx.ModelProto:
    """A new graph that computes in float16 wherever `keep` allows it and ONNX has a float16 form of the operator.

    Args:
        model: A float32 graph without Q/DQ nodes and without subgraphs; left as it was.
        keep: What stays float32; None keeps nothing but constants that are too large.

    Raises:
        UserError: The graph is quantized.
        BuildFailed: The graph has control flow, whose inner graphs this does not convert, or operators that ONNX does
            not know.
    """
    if any(node.op_type in ("QuantizeLinear", "DequantizeLinear") for node in model.graph.node):
        raise UserError("A quantized graph cannot be turned into FP16; convert its FP32 twin.")
    _require_flat(model)
    return _Conversion(model, keep or Kept()).result()


def float16_around_int8(model: onnx.ModelProto, keep: Kept) -> onnx.ModelProto:
    """A new Q/DQ graph that computes in float16 between its 8-bit layers, wherever `keep` allows it.

    No cast stands beside a Q/DQ node, where it would keep TensorRT from fusing the pair: a QuantizeLinear takes what it
    is given, and the scale of a DequantizeLinear decides what it gives.

    Args:
        model: Of opset 19 or newer, in which scales may be float16; see `float16_int8.py`. Left as it was.
        keep: What stays float32.

    Raises:
        BuildFailed: An older opset, or as `float16_from_float32`.
    """
    if opset_of(model) < FLOAT16_SCALES:
        raise BuildFailed(
            f"Scales in float16 take ONNX opset {FLOAT16_SCALES}, and the graph is of {opset_of(model)}.",
            hint="convert the graph with float16_int8.prepared first",
        )
    _require_flat(model)
    return _Conversion(model, keep).result()


def opset_of(model: onnx.ModelProto) -> int:
    """Of the ONNX domain."""
    return next(int(entry.version) for entry in model.opset_import if entry.domain in ("", "ai.onnx"))


def _require_flat(model: onnx.ModelProto) -> None:
    """Refuses control flow, whose inner graphs are not converted."""
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            raise BuildFailed(f"The operator {node.op_type} holds a subgraph, which FP16 conversion does not handle.")


class _Conversion:
    """The state of one pass over the nodes in order."""

    def __init__(self, model: onnx.ModelProto, keep: Kept) -> None:
        self.model = onnx.shape_inference.infer_shapes(model)
        self.keep = keep
        self.opset = opset_of(model)
        graph = self.model.graph
        self.constants = {constant.name: constant for constant in graph.initializer}
        known = (*graph.input, *graph.output, *graph.value_info)
        self.types: dict[str, int] = {value.name: value.type.tensor_type.elem_type for value in known}
        self.types |= {name: constant.data_type for name, constant in self.constants.items()}
        self.outputs = {value.name for value in graph.output}
        untyped = [node.op_type for node in graph.node for name in node.output if name and name not in self.types]
        if untyped:
            raise BuildFailed(f"The type of what {untyped[0]} computes is unknown, so FP16 casts cannot be placed.")
        self.nodes: list[onnx.NodeProto] = []
        self.casts: dict[tuple[str, int], str] = {}
        self.new_constants: dict[str, TensorProto] = {}

    def result(self) -> onnx.ModelProto:
        for node in self.model.graph.node:
            self._convert(node)
        graph = self.model.graph
        used = {name for node in self.nodes for name in node.input} | self.outputs
        kept = [constant for name, constant in self.constants.items() if name in used]
        del graph.node[:], graph.initializer[:], graph.value_info[:]
        graph.node.extend(self.nodes)
        graph.initializer.extend([*kept, *self.new_constants.values()])
        return self.model

    def _convert(self, node: onnx.NodeProto) -> None:
        slots = self._half_slots(node)
        touched = [node.input[slot] for slot in slots] + list(node.output)
        half = bool(slots) and node.output[0] not in self.keep.operators
        half = half and not any(name in self.keep.values or self._too_large(name) for name in touched)
        half = half and not self._would_be_cast(node)
        made = onnx.NodeProto()
        made.CopyFrom(node)
        for slot, name in enumerate(node.input):
            if self.types.get(name) in (_FLOAT, _HALF):
                wanted = _HALF if half and slot in slots else _FLOAT
                made.input[slot] = self._as(name, wanted)
        self.nodes.append(made)
        if half:
            for position, name in enumerate(node.output):
                if self.types.get(name) == _FLOAT:
                    self._make_half_(made, position, name)

    def _would_be_cast(self, node: onnx.NodeProto) -> bool:
        """Whether a QuantizeLinear could take float16 only behind a cast: it rounds float32 as well."""
        source = node.input[0] if node.op_type == "QuantizeLinear" else None
        return source is not None and source not in self.constants and self.types[source] == _FLOAT

    def _make_half_(self, made: onnx.NodeProto, position: int, name: str) -> None:
        """Marks an output as float16; a graph output keeps its name and type behind a cast."""
        if name in self.outputs:
            made.output[position] = f"{name}_half"
            self.nodes.append(_cast(f"{name}_half", name, _FLOAT))
        else:
            self.types[name] = _HALF

    def _as(self, name: str, wanted: int) -> str:
        """The name under which a value is available in the wanted type."""
        if self.types[name] == wanted:
            return name
        if (name, wanted) not in self.casts:
            suffix = "half" if wanted == _HALF else "float"
            self.casts[name, wanted] = f"{name}_as_{suffix}"
            if name in self.constants:
                value = numpy_helper.to_array(self.constants[name]).astype(np.float16)
                self.new_constants[name] = numpy_helper.from_array(value, self.casts[name, wanted])
            else:
                self.nodes.append(_cast(name, self.casts[name, wanted], wanted))
        return self.casts[name, wanted]

    def _half_slots(self, node: onnx.NodeProto) -> frozenset[int]:
        """Inputs that the operator takes as float16, empty when it must stay as it is.

        An operator is converted as a whole: its float32 outputs must have a type that its float16 inputs decide.
        """
        if node.op_type == "Cast" or not onnx.defs.has(node.op_type, self.opset, node.domain):
            return frozenset()
        schema = onnx.defs.get_schema(node.op_type, self.opset, node.domain)
        both = {
            constraint.type_param_str
            for constraint in schema.type_constraints
            if {"tensor(float16)", "tensor(float)"} <= set(constraint.allowed_type_strs)
        }
        slots = frozenset(
            slot
            for slot, name in enumerate(node.input)
            if self.types.get(name) in (_FLOAT, _HALF) and _type_of(schema.inputs, slot) in both
        )
        deciding = {_type_of(schema.inputs, slot) for slot in slots}
        follows = all(
            _type_of(schema.outputs, slot) in deciding
            for slot, name in enumerate(node.output)
            if self.types.get(name) == _FLOAT
        )
        return slots if follows else frozenset()

    def _too_large(self, name: str) -> bool:
        constant = self.constants.get(name)
        if constant is None or constant.data_type != _FLOAT:
            return False
        return bool(np.abs(numpy_helper.to_array(constant)).max(initial=0.0) > FLOAT16_MAX)


def _type_of(formals: Iterable[OpSchema.FormalParameter], slot: int) -> str:
    """The type variable of an input or output; the last one repeats when the operator takes any number."""
    parameters = list(formals)
    return parameters[min(slot, len(parameters) - 1)].type_str


def _cast(source: str, target: str, dtype: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=dtype)
