"""What an ONNX graph costs, operation by operation, in the terms in which `nn/count.py` counts a module.

Only shapes are propagated: nothing runs, and large weights are not read, so it takes milliseconds. Operations are
counted as they stand in the graph, with what every runtime folds marked as fused; Q/DQ nodes are how INT8 is written,
not work. Bodies of `If`, `Loop` and `Scan` are not counted.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

from edgekd.core.cost import OpCost, OpKind
from edgekd.errors import UserError
from edgekd.nn.onnx_outline import outline_from_file

Shape = tuple[int, ...]

_SMALL = 1024
"""Constants of up to so many elements stay in the graph during shape inference: shapes are computed from them."""
_ACTIVATIONS = (
    *("Relu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Gelu", "Elu", "Selu", "Celu", "LeakyRelu", "PRelu"),
    *("Mish", "Tanh", "Softplus", "Swish", "ThresholdedRelu"),
)
_NORMS = ("LayerNormalization", "GroupNormalization", "InstanceNormalization", "RMSNormalization", "LpNormalization")
_POOLS = ("MaxPool", "AveragePool", "LpPool", "GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax")
_ARITHMETIC = ("Add", "Sub", "Mul", "Div", "Sum")
_CONVS = {"Conv": 1, "FusedConv": 1, "ConvTranspose": 1, "QLinearConv": 3, "ConvInteger": 1}
"""Operator to the place of its weight among the inputs."""
_PRODUCTS = {"MatMul": 1, "Gemm": 1, "FusedMatMul": 1, "FusedGemm": 1, "QLinearMatMul": 3, "MatMulInteger": 1}
_KINDS: dict[str, OpKind] = {
    **dict.fromkeys(_ACTIVATIONS, "activation"),
    **dict.fromkeys((*_NORMS, "BatchNormalization"), "norm"),
    **dict.fromkeys(_POOLS, "pool"),
    **dict.fromkeys(_ARITHMETIC, "add"),
    **dict.fromkeys(_PRODUCTS, "linear"),
}
_FREE = frozenset(
    {
        *("Identity", "Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Slice", "Split", "Expand", "Dropout"),
        *("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "Cast", "CastLike"),
    }
)
"""Views, as a module's own count has them, and the notation of precisions."""
_CONSTANT = frozenset({"Constant", "ConstantOfShape", "Shape", "Size", "Range"})
_FOLDS_INTO: dict[str, frozenset[OpKind]] = {
    "BatchNormalization": frozenset({"conv", "depthwise", "linear"}),
    **dict.fromkeys(_ACTIVATIONS, frozenset({"conv", "depthwise", "linear", "norm", "add"})),
}
_GATES = ("Sigmoid", "HardSigmoid")


def onnx_costs_from_file(path: Path, shapes: Mapping[str, Sequence[int]] | None = None) -> tuple[OpCost, ...]:
    """The operations of one inference of the graph in a file; see `onnx_costs`.

    Raises:
        UserError: Not an ONNX file, or its shapes cannot be known.
    """
    try:
        model = outline_from_file(path)
    except (DecodeError, OSError) as err:
        raise UserError(f"{path} is not a readable ONNX file: {err}") from err
    return onnx_costs(model, shapes)


def onnx_costs(
    model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None, *, skips_unknown: bool = False
) -> tuple[OpCost, ...]:
    """The operations of one inference at batch 1, in the order of the graph.

    Args:
        model: Left as it was.
        shapes: Of inputs, by name, where the graph leaves more open than the first axis.
        skips_unknown: Leaves out operations on tensors whose shape does not follow.

    Raises:
        UserError: A dynamic axis beside the batch without a given size, or a tensor whose shape does not follow.
    """
    counter = _Counter(onnx_shapes(model, shapes), constants={tensor.name for tensor in model.graph.initializer})
    for node in model.graph.node:
        try:
            counter.see(node)
        except UserError:
            if not skips_unknown:
                raise
    return tuple(counter.costs)


def onnx_shapes(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]] | None = None) -> dict[str, Shape]:
    """Shapes by name, constants included, of one inference at batch 1; values whose shape does not follow are left out.

    Args:
        model: Left as it was.
        shapes: As for `onnx_costs`.

    Raises:
        UserError: A dynamic axis beside the batch without a given size.
    """
    sizes = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
    return {**_inferred(_slim(model, shapes or {})), **sizes}


class _Counter:
    """Follows a graph's nodes in order and keeps the cost of each."""

    def __init__(self, shapes: Mapping[str, Shape], constants: set[str]) -> None:
        self.shapes, self.constants = shapes, constants
        self.costs: list[OpCost] = []
        self.made_by: dict[str, OpKind] = {}
        self.gates: dict[str, tuple[str, int]] = {}
        """Output of a sigmoid to (its input, place of its cost): times its input it is one activation."""

    def see(self, node: onnx.NodeProto) -> None:
        inputs = [name for name in node.input if name]
        moving = [name for name in inputs if name not in self.constants]
        if not moving or node.op_type in _CONSTANT:
            self.constants.update(node.output)
        elif node.op_type in _FREE:
            for name in node.output:
                if moving[0] in self.made_by:
                    self.made_by[name] = self.made_by[moving[0]]
        elif not self._closes_gate(node, moving):
            self._count(node, inputs, moving)

    def _count(self, node: onnx.NodeProto, inputs: list[str], moving: list[str]) -> None:
        kind, macs = self._kind_and_macs(node)
        before = self.made_by.get(moving[0])
        fused = before in _FOLDS_INTO.get(node.op_type, frozenset())
        if node.op_type == "Add" and len(moving) == 1 and before in ("linear", "conv", "depthwise"):
            fused = True  # a bias
        params = sum(self._size(name, node) for name in inputs if name in self.constants)
        cost = OpCost(
            name=node.name or node.op_type,
            kind=kind,
            macs=macs,
            params=params if kind in ("conv", "depthwise", "linear", "norm") or fused else 0,
            activations=sum(self._size(name, node) for name in (*moving, node.output[0])),
            fused=fused,
        )
        if node.op_type in _GATES:
            self.gates[node.output[0]] = moving[0], len(self.costs)
        self.costs.append(cost)
        # A bias leaves its product what it was: an activation behind it still folds.
        self.made_by[node.output[0]] = before if fused and before and node.op_type == "Add" else kind

    def _closes_gate(self, node: onnx.NodeProto, moving: list[str]) -> bool:
        """Whether the node is the product of x * sigmoid(x), whose sigmoid was counted: both are one activation."""
        if node.op_type != "Mul" or len(moving) != 2:
            return False
        for gate, other in (moving, moving[::-1]):
            source, place = self.gates.get(gate, ("", -1))
            if source == other:
                self.made_by[node.output[0]] = self.costs[place].kind
                return True
        return False

    def _kind_and_macs(self, node: onnx.NodeProto) -> tuple[OpKind, int]:
        output = self._shape(node.output[0], node)
        if node.op_type in _CONVS:
            weight = self._shape(node.input[_CONVS[node.op_type]], node)
            image = self._shape(node.input[0], node)
            groups = next((entry.i for entry in node.attribute if entry.name == "group"), 1)
            values = image if node.op_type == "ConvTranspose" else output
            kind: OpKind = "depthwise" if groups == image[1] > 1 else "conv"
            return kind, math.prod(values) * math.prod(weight[1:])
        kind = _KINDS.get(node.op_type, "other")
        if kind != "linear":
            return kind, 0
        first = self._shape(node.input[0], node)
        turned = any(entry.name == "transA" and entry.i for entry in node.attribute)
        return kind, math.prod(output) * (first[-2] if turned else first[-1])

    def _shape(self, name: str, node: onnx.NodeProto) -> Shape:
        found = self.shapes.get(name)
        if found is None:
            raise UserError(
                f"The shape of {name!r} is not known at {node.op_type} {node.name!r}, so its cost cannot be counted.",
                hint="operators outside the ONNX standard have no shape rule; count the model before they were put in",
            )
        return found

    def _size(self, name: str, node: onnx.NodeProto) -> int:
        return math.prod(self._shape(name, node))


def _slim(model: onnx.ModelProto, shapes: Mapping[str, Sequence[int]]) -> onnx.ModelProto:
    """The graph with fixed input shapes and without large weights, which become inputs: inference reads shapes only."""
    slim = onnx.ModelProto()
    slim.ir_version = max(model.ir_version, 4)
    slim.opset_import.extend(model.opset_import)
    slim.functions.extend(model.functions)
    graph, held = slim.graph, {tensor.name for tensor in model.graph.initializer}
    graph.name = "shapes"
    graph.node.extend(model.graph.node)
    graph.output.extend(model.graph.output)
    for value in model.graph.input:
        if value.name not in held:
            graph.input.append(_fixed(value, shapes.get(value.name)))
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) <= _SMALL and tensor.data_location != onnx.TensorProto.EXTERNAL:
            graph.initializer.append(tensor)
        else:
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims)))
    return slim


def _fixed(value: onnx.ValueInfoProto, shape: Sequence[int] | None) -> onnx.ValueInfoProto:
    axes = value.type.tensor_type.shape.dim
    if shape is not None and len(shape) != len(axes):
        raise UserError(f"Input {value.name!r} has {len(axes)} axes, but the shape given for it has {len(shape)}.")
    sizes = []
    for place, axis in enumerate(axes):
        if shape is not None:
            sizes.append(int(shape[place]))
        elif axis.HasField("dim_value"):
            sizes.append(axis.dim_value)
        elif place == 0:
            sizes.append(1)
        else:
            raise UserError(
                f"Input {value.name!r} leaves axis {place} open, so the cost of the graph is not known.",
                hint="give its shape, such as --input-shape images:1x3x224x224",
            )
    return onnx.helper.make_tensor_value_info(value.name, value.type.tensor_type.elem_type, sizes)


def _inferred(model: onnx.ModelProto) -> dict[str, Shape]:
    """Shapes of all tensors for which they follow."""
    # Stated output shapes hold an open batch; what is inferred must not be merged with them.
    for value in model.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        found = onnx.shape_inference.infer_shapes(model, data_prop=True).graph
    except onnx.shape_inference.InferenceError as err:
        raise UserError(f"The shapes of the ONNX graph do not fit together: {err}") from err
    shapes = {}
    for value in (*found.input, *found.value_info, *found.output):
        axes = value.type.tensor_type.shape.dim
        if value.type.tensor_type.HasField("shape") and all(axis.HasField("dim_value") for axis in axes):
            shapes[value.name] = tuple(axis.dim_value for axis in axes)
    return shapes
