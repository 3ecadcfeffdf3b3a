"""A graph as rules read it: what is quantized and on which grid, what is constant, and what each node computes.

Built once for all rules from a copy, so that they may ask for anything by name; nothing here judges.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgekd.core.cost import OpCost
from edgekd.errors import UserError
from edgekd.nn.onnx_count import onnx_costs, onnx_shapes
from edgekd.runtimes.onnx_view import (
    GraphView,
    attribute,
    forget_weights_as_inputs_,
    name_nodes_,
    output_axis,
    replace_,
)

Message = TypeVar("Message", onnx.NodeProto, onnx.ValueInfoProto)
HEAVY = ("Conv", "ConvTranspose", "Gemm", "MatMul")
"""Operators that quantization is for."""
ACTIVATIONS = frozenset({"Relu", "Clip", "HardSwish", "HardSigmoid", "Sigmoid", "Gelu", "LeakyRelu", "PRelu", "Elu"})
VIEWS = frozenset({"Transpose", "Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""Operators that move values and change none."""
HANDING_ON = VIEWS | {"MaxPool", "Relu", "Clip", "Slice", "Split", "Gather", "Identity"}
"""Operators that leave values on the levels they were on."""


@dataclass(frozen=True)
class Grid:
    """Where a QuantizeLinear or DequantizeLinear puts its levels.

    Attributes:
        scale: None where it is computed.
        point: The zero points; None where the node has none, or they are computed.
        dtype: Of the codes, as ONNX reads the node: `uint8` for a QuantizeLinear that does not say.
        axis: That several scales lie along, from 0; None with one scale.
        explicit: The node has zero points.
    """

    scale: NDArray[Any] | None
    point: NDArray[Any] | None
    dtype: str
    axis: int | None
    explicit: bool

    def same(self, other: Grid) -> bool:
        """Whether both round alike."""
        if self.scale is None or other.scale is None:
            return False
        if (self.dtype, self.axis, self.scale.size) != (other.dtype, other.axis, other.scale.size):
            return False
        points = [np.zeros(1) if grid.point is None else grid.point.astype(np.int64) for grid in (self, other)]
        return bool(np.array_equal(self.scale.ravel(), other.scale.ravel()) and np.all(points[0] == points[1]))


class LintGraph(GraphView):
    """A named copy of a graph with its constants, shapes, costs and quantizers.

    Args:
        model: Left as it was.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        super().__init__(normalised(model))
        self.place = {node.name: index for index, node in enumerate(self.model.graph.node)}

    @cached_property
    def opset(self) -> int:
        """Of the default domain."""
        found = [entry.version for entry in self.model.opset_import if entry.domain in ("", "ai.onnx")]
        return max(found, default=0)

    @cached_property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Of the values whose shape follows, at batch 1; of constants alone where an input is open."""
        try:
            return onnx_shapes(self.model)
        except UserError:
            return {name: tuple(entry.dims) for name, entry in self.constants.items()}

    @cached_property
    def costs(self) -> dict[str, OpCost]:
        """By node; empty where shapes do not follow."""
        try:
            return {cost.name: cost for cost in onnx_costs(self.model, skips_unknown=True)}
        except UserError:
            return {}

    @cached_property
    def macs(self) -> int:
        """Multiply-accumulates of one image; 0 where unknown."""
        return sum(cost.macs for cost in self.costs.values())

    def share(self, *names: str) -> float | None:
        """Share of the graph's multiply-accumulates in these nodes; None where unknown."""
        if not self.macs:
            return None
        return sum(self.costs[name].macs for name in names if name in self.costs) / self.macs

    @cached_property
    def computed_constants(self) -> frozenset[str]:
        """Constants, and what follows from constants alone, such as a dequantized weight."""
        known = set(self.constants)
        for node in self.model.graph.node:
            if all(name in known for name in node.input if name) and node.op_type not in ("RandomNormal", "Shape"):
                known.update(node.output)
        return frozenset(known)

    def is_constant(self, name: str) -> bool:
        """Whether a value is the same for every image."""
        return name in self.computed_constants

    def moving(self, node: onnx.NodeProto) -> list[str]:
        """The inputs of a node that depend on the image."""
        return [name for name in node.input if name and not self.is_constant(name)]

    def sole_reader(self, value: str) -> onnx.NodeProto | None:
        """The node that alone reads a value; None for several, and where an output or the body of a node is it."""
        readers = self.readers.get(value, [])
        return readers[0] if len(readers) == 1 and not self.leaves(value) else None

    def grid(self, node: onnx.NodeProto) -> Grid:
        """Of a QuantizeLinear or DequantizeLinear."""
        scale = self.maybe_array(node.input[1])
        explicit = len(node.input) > 2 and bool(node.input[2])
        point = self.maybe_array(node.input[2]) if explicit else None
        axis = None
        if scale is not None and scale.size > 1:
            rank = len(self.shapes.get(node.input[0], ())) or 4
            axis = int(attribute(node, "axis", 1)) % rank
        return Grid(scale, point, self._code_type(node, point), axis, explicit)

    def _code_type(self, node: onnx.NodeProto, point: NDArray[Any] | None) -> str:
        if point is not None:
            return str(point.dtype)
        if node.op_type == "DequantizeLinear":
            stored = self.constants.get(node.input[0])
            if stored is not None:
                return onnx.helper.tensor_dtype_to_np_dtype(stored.data_type).name
            maker = self.maker.get(node.input[0])
            if maker is not None and maker.op_type == "QuantizeLinear":
                return self.grid(maker).dtype
        stated = attribute(node, "output_dtype", 0)
        return onnx.helper.tensor_dtype_to_np_dtype(stated).name if stated else "uint8"

    def maybe_array(self, name: str) -> NDArray[Any] | None:
        """The content of a constant; None of anything else."""
        return self.array(name) if name in self.constants else None

    @cached_property
    def quantizers(self) -> tuple[onnx.NodeProto, ...]:
        """QuantizeLinear nodes of values that depend on the image."""
        return tuple(n for n in self.model.graph.node if n.op_type == "QuantizeLinear" and self.moving(n))

    @cached_property
    def dequantizers(self) -> tuple[onnx.NodeProto, ...]:
        """All DequantizeLinear nodes."""
        return tuple(node for node in self.model.graph.node if node.op_type == "DequantizeLinear")

    @property
    def quantized(self) -> bool:
        """Whether values that depend on the image are quantized anywhere."""
        return bool(self.quantizers)

    def dequantized_by(self, value: str) -> onnx.NodeProto | None:
        """The DequantizeLinear whose levels a value is on: what hands them on is passed over."""
        maker = self.maker.get(value)
        while maker is not None and maker.op_type in HANDING_ON:
            maker = self.maker.get(maker.input[0])
        return maker if maker is not None and maker.op_type == "DequantizeLinear" else None

    def in_int8(self, node: onnx.NodeProto) -> bool:
        """Whether a heavy node reads 8-bit values in both operands."""
        return node.op_type in HEAVY and all(self.dequantized_by(name) is not None for name in node.input[:2])

    @cached_property
    def layers(self) -> tuple[onnx.NodeProto, ...]:
        """Convolutions and products with a weight, in the graph's order."""
        return tuple(
            node
            for node in self.model.graph.node
            if node.op_type in HEAVY
            and len(node.input) > 1
            and self.is_constant(node.input[1])
            and not self.is_constant(node.input[0])
        )

    @cached_property
    def products(self) -> tuple[onnx.NodeProto, ...]:
        """Matrix products of two values that depend on the image: attention."""
        return tuple(n for n in self.model.graph.node if n.op_type == "MatMul" and len(self.moving(n)) == 2)

    @property
    def int8_share(self) -> float | None:
        """Share of the multiply-accumulates whose operands are 8-bit values."""
        return self.share(*(node.name for node in self.model.graph.node if self.in_int8(node)))

    def weight_axis(self, node: onnx.NodeProto) -> int:
        """The axis of output channels in the weight of a layer."""
        return output_axis(node, len(self.shapes.get(node.input[1], ())) or 2)

    def is_gate(self, node: onnx.NodeProto) -> bool:
        """Whether a pooling begins a squeeze-and-excitation: what it pools is also multiplied by what follows."""
        return any(reader.op_type == "Mul" for reader in self.readers.get(node.input[0], []))

    def before_activation(self, value: str) -> onnx.NodeProto | None:
        """What made a value, its activation function passed over."""
        maker = self.maker.get(value)
        while maker is not None and maker.op_type in ACTIVATIONS:
            maker = self.maker.get(maker.input[0])
        return maker

    def after_activation(self, value: str) -> str:
        """The value behind the activation functions that alone read it."""
        reader = self.sole_reader(value)
        while reader is not None and reader.op_type in ACTIVATIONS:
            value = reader.output[0]
            reader = self.sole_reader(value)
        return value


def normalised(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy with distinct node names, the tensors of Constant nodes among the initializers, and no weight an input."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    forget_weights_as_inputs_(made)
    kept = []
    for node in made.graph.node:
        tensor = _constant(node)
        if tensor is None:
            kept.append(node)
        else:
            made.graph.initializer.add().CopyFrom(tensor)
    replace_(made.graph.node, [_copy(node) for node in kept])
    name_nodes_(made)
    return made


def _constant(node: onnx.NodeProto) -> onnx.TensorProto | None:
    """The tensor of a Constant node under the name of its output; None for another node, or a sparse or text one."""
    if node.op_type != "Constant" or not node.attribute:
        return None
    entry = node.attribute[0]
    numbers = {"value_float": np.float32, "value_floats": np.float32, "value_int": np.int64, "value_ints": np.int64}
    if entry.name == "value":
        tensor = onnx.TensorProto()
        tensor.CopyFrom(entry.t)
    elif entry.name in numbers:
        values = np.asarray(onnx.helper.get_attribute_value(entry), numbers[entry.name])
        tensor = numpy_helper.from_array(values)
    else:
        return None
    tensor.name = node.output[0]
    return tensor


def _copy(part: Message) -> Message:
    made = type(part)()
    made.CopyFrom(part)
    return made
