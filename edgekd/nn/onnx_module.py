"""An ONNX graph as a torch module that computes and trains: where a graph is all there is of a model.

The graph stays what it is: same values, same names. Its weights become parameters under the names of its initialisers,
and go back into it with `weights_into_graph_`. This is how a quantized graph is trained (`edgekd.quant.qat`) and how a
network that exists as a graph only can teach.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from edgekd.errors import BuildFailed
from edgekd.nn.onnx_ops import OPERATORS, Maker, Operator, attributes_of

SINCE_OPSET: Mapping[str, int] = {"Softmax": 13}
"""Operators that meant something else before: Softmax normalised over all axes from one on."""
OLDEST_OPSET = 7
"""Of the default domain, as for ONNX Runtime. Before it, sums and products broadcast by another rule."""

TRAINED_SLOTS: Mapping[str, tuple[int, ...]] = {
    "Conv": (1, 2),
    "Gemm": (1, 2),
    "MatMul": (0, 1),
    "BatchNormalization": (1, 2),
    "LayerNormalization": (1, 2),
    "PRelu": (1,),
    "Add": (0, 1),
    "Mul": (0, 1),
}
"""Inputs that hold weights; of `Add` and `Mul` those with more than one element, the others are constants."""


@dataclass(frozen=True, kw_only=True)
class _Step:
    run: Operator
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    done_with: tuple[str, ...]


class OnnxModule(nn.Module):
    """Computes a graph's first output from its only input, node by node.

    BatchNorm runs on its stored statistics in either mode, and there is no dropout: a graph is an inference graph.

    Args:
        model: Left as it was. One input without a default.
        operators: By operator name; more than the default domain's for graphs that were rewritten.
        trained_slots: Which inputs of which operators are weights to train.

    Raises:
        BuildFailed: An operator without a torch form or of an older meaning, or a control-flow or sparse graph; the
            message names it.
    """

    def __init__(
        self,
        model: onnx.ModelProto,
        operators: Mapping[str, Maker] = OPERATORS,
        trained_slots: Mapping[str, tuple[int, ...]] = TRAINED_SLOTS,
    ) -> None:
        super().__init__()
        graph = model.graph
        constants = _constants(graph)
        inputs = [value.name for value in graph.input if value.name not in constants]
        if len(inputs) != 1:
            raise BuildFailed(f"Expected a graph with one input, got {len(inputs)}: {', '.join(inputs) or 'none'}.")
        _check_opset(model)
        self._check_operators(graph, operators)
        self._input, self._output = inputs[0], graph.output[0].name
        self._keys = self._register(graph, constants, trained_slots)
        self._steps = _steps(graph, operators, keep={self._output})
        self.eval()

    @staticmethod
    def _check_operators(graph: onnx.GraphProto, operators: Mapping[str, Maker]) -> None:
        unknown = {n.op_type if not n.domain else f"{n.domain}.{n.op_type}" for n in graph.node} - set(operators)
        unknown -= {"Constant"}
        if unknown or graph.sparse_initializer:
            what = ", ".join(sorted(unknown)) or "sparse weights"
            raise BuildFailed(
                f"The graph has {what}, which edgekd cannot train: it knows no torch form of it.",
                hint="leave quantization-aware training out for this model; its quantized graph stays as it is",
            )

    def _register(
        self, graph: onnx.GraphProto, constants: Mapping[str, Tensor], slots: Mapping[str, tuple[int, ...]]
    ) -> dict[str, str]:
        """Parameters and buffers for what the nodes read; returns the key of each by its name in the graph."""
        read = {name for node in graph.node for name in node.input if name} | {graph.output[0].name}
        trained = {
            node.input[slot]
            for node in graph.node
            for slot in slots.get(node.op_type, ())
            if slot < len(node.input) and node.input[slot] in constants and not _is_number(node, slot, constants)
        }
        keys = {}
        for name, value in constants.items():
            if name not in read:
                continue
            key = keys[name] = name.replace(".", "/")
            if name in trained and value.is_floating_point():
                self.register_parameter(key, nn.Parameter(value))
            else:
                self.register_buffer(key, value)
        return keys

    def forward(self, images: Tensor) -> Tensor:
        """(N, K) logits of images (N, C, H, W)."""
        return self.run(images)

    def run(self, images: Tensor, watch: Callable[[str, Tensor], None] | None = None) -> Tensor:
        """The logits; `watch` is called with the name and value of everything the nodes compute, in order."""
        values = {name: self.constant(name) for name in self._keys}
        values[self._input] = images
        for step in self._steps:
            given = [values[name] if name else None for name in step.inputs]
            made = step.run(*given)
            for name, value in zip(step.outputs, made if isinstance(made, tuple) else (made,), strict=False):
                values[name] = value
                if watch is not None and name:
                    watch(name, value)
            for name in step.done_with:
                del values[name]
        return values[self._output]

    def constant(self, name: str) -> Tensor:
        """The parameter or buffer of an initialiser, by its name in the graph."""
        found = getattr(self, self._keys[name])
        assert isinstance(found, Tensor)
        return found

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters by their names in the graph."""
        found = {name: getattr(self, key) for name, key in self._keys.items()}
        return {name: value for name, value in found.items() if isinstance(value, nn.Parameter)}


def _check_opset(model: onnx.ModelProto) -> None:
    opset = min(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=OLDEST_OPSET
    )
    kinds = {node.op_type for node in model.graph.node if not node.domain}
    changed = {kind: first for kind, first in SINCE_OPSET.items() if kind in kinds and opset < first}
    if opset < OLDEST_OPSET or changed:
        oldest = max((OLDEST_OPSET, *changed.values()))
        what = " and ".join(sorted(changed)) or "operators"
        raise BuildFailed(
            f"The graph is of ONNX opset {opset}, and {what} had another meaning before opset {oldest}.",
            hint=f"export it anew with opset {oldest} or higher, or convert it with onnx.version_converter",
        )


@torch.no_grad()
def weights_into_graph_(module: OnnxModule, model: onnx.ModelProto) -> None:
    """Writes the module's parameters into the float32 initialisers of the same names."""
    trained = module.trained()
    for entry in model.graph.initializer:
        if entry.name in trained and entry.data_type == onnx.TensorProto.FLOAT:
            value = trained[entry.name].detach().cpu().contiguous().numpy()
            entry.CopyFrom(numpy_helper.from_array(value, entry.name))


def _is_number(node: onnx.NodeProto, slot: int, constants: Mapping[str, Tensor]) -> bool:
    """Whether an operand is one number of a formula (the 3 and the 6 of a hard swish) and no bias."""
    return node.op_type in ("Add", "Mul") and constants[node.input[slot]].numel() == 1


def _constants(graph: onnx.GraphProto) -> dict[str, Tensor]:
    found = {entry.name: torch.from_numpy(numpy_helper.to_array(entry).copy()) for entry in graph.initializer}
    for node in graph.node:
        if node.op_type == "Constant":
            ((kind, value),) = attributes_of(node).items()
            array = numpy_helper.to_array(value).copy() if kind == "value" else value
            found[node.output[0]] = torch.as_tensor(array)
    return found


def _steps(graph: onnx.GraphProto, operators: Mapping[str, Maker], keep: set[str]) -> tuple[_Step, ...]:
    """The nodes in order, each with the values that nobody reads after it."""
    nodes = [node for node in graph.node if node.op_type != "Constant"]
    made = {name for node in nodes for name in node.output if name}
    last = {name: index for index, node in enumerate(nodes) for name in (*node.output, *node.input) if name in made}
    ending: dict[int, list[str]] = {}
    for name, index in last.items():
        if name not in keep:
            ending.setdefault(index, []).append(name)
    return tuple(
        _Step(
            run=operators[node.op_type if not node.domain else f"{node.domain}.{node.op_type}"](attributes_of(node)),
            inputs=tuple(node.input),
            outputs=tuple(node.output),
            done_with=tuple(ending.get(index, ())),
        )
        for index, node in enumerate(nodes)
    )
