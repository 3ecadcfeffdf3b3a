"""Quantization-aware training of a Q/DQ graph: the graph that was calibrated is the one that is trained and deployed.

The usual way puts fake quantizers into the float network and converts it afterwards; where the converter places them
otherwise than the trainer, what was trained is not what runs. Here the quantized ONNX graph itself becomes a torch
module: every Q/DQ pair is one `fake_quantized`, every quantized weight a float parameter, and after training weights,
step sizes and biases go back to where they came from. So placement, scheme, zero points, excluded layers and the bias
corrections of calibration are kept as they are, and both graphs differ in numbers only. BatchNorm has been folded
into the weights before, as in the deployed form: its statistics cannot drift apart from the quantized weights.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import zip_longest
from typing import Literal

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from edgekd.errors import BuildFailed
from edgekd.nn.onnx_module import TRAINED_SLOTS, OnnxModule, weights_into_graph_
from edgekd.nn.onnx_ops import OPERATORS, Attributes, Operator
from edgekd.quant.averaged import Grid, RangeAverages
from edgekd.quant.fake_quant import fake_quantized, positive_step, rounded_to

Ranges = Literal["learned", "average", "calibrated"]
_DOMAIN = "edgekd"
_LIMITS: Mapping[int, tuple[int, int]] = {TensorProto.INT8: (-128, 127), TensorProto.UINT8: (0, 255)}
_SEVEN_BITS = 64
"""Largest magnitude of weight codes where CPUs without VNNI would saturate: the range that calibration left them."""


@dataclass(frozen=True, kw_only=True)
class Weight:
    """A constant that is stored as codes, or behind a Q/DQ pair.

    Attributes:
        name: Of its initialiser; the parameter has the same.
        step: Initialiser of its step sizes.
        zero: Initialiser of its zero points, "" for 0.
        axis: Of its channels, None for one step size.
        low: Smallest code.
        high: Largest code.
        coded: The initialiser holds codes, and not floats.
    """

    name: str
    step: str
    zero: str
    axis: int | None
    low: int
    high: int
    coded: bool


@dataclass(frozen=True, kw_only=True)
class Bias:
    """A bias in 32-bit codes, whose step is always the product of the steps of input and weight.

    Attributes:
        name: Of its initialiser.
        step: Initialiser of its own step sizes.
        input_step: Initialiser of the step of what the layer reads.
        weight_step: Initialiser of the steps of the layer's weight.
    """

    name: str
    step: str
    input_step: str
    weight_step: str


@dataclass(kw_only=True)
class _Rewrite:
    """A Q/DQ graph on its way to one that can be trained."""

    model: onnx.ModelProto
    constants: dict[str, TensorProto]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    biases: dict[str, Bias] = field(default_factory=dict)
    activations: dict[str, str] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)


class QatNetwork(OnnxModule):
    """A quantized graph as a module whose forward pass computes what the graph computes, and that trains.

    Attributes:
        weights: The quantized constants, by name.
        biases: The biases in 32-bit codes, by name.
        activations: Step initialiser of every quantized activation, by the name of the value that is quantized.

    Args:
        model: A Q/DQ graph; left as it was.
        ranges: `learned`: step sizes are parameters; `average`: those of activations follow a moving average;
            `calibrated`: they stay.
        followed_steps: Training steps that the moving average follows.

    Raises:
        BuildFailed: The graph has no Q/DQ pairs, other forms of quantization, or operators without a torch form.
    """

    def __init__(self, model: onnx.ModelProto, ranges: Ranges = "learned", *, followed_steps: int = 0) -> None:
        rewrite = _rewritten(model)
        learned: Mapping[str, tuple[int, ...]] = {"FakeQuantize": (0, 1) if ranges == "learned" else (0,)}
        operators = {
            **OPERATORS,
            f"{_DOMAIN}.FakeQuantize": _fake_quantize,
            f"{_DOMAIN}.RoundBias": lambda _: lambda bias, x_step, w_step: rounded_to(bias, _product(x_step, w_step)),
        }
        super().__init__(rewrite.model, operators, {**TRAINED_SLOTS, **learned, "RoundBias": (0,)})
        self.weights, self.biases, self.activations = rewrite.weights, rewrite.biases, rewrite.activations
        self._source, self._grids, self._copies = model, rewrite.grids, rewrite.copies
        self.averages = RangeAverages(followed_steps) if ranges == "average" else None

    def forward(self, images: Tensor) -> Tensor:
        """(N, K) logits of images (N, C, H, W); in training, ranges that follow it move after the pass."""
        if self.averages is None or not self.training or not self.averages.active:
            return self.run(images)
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def watch(name: str, value: Tensor) -> None:
            if name in self._grids:
                low, high = value.detach().aminmax()
                seen[name] = low, high

        watch(self._input, images)
        logits = self.run(images, watch)
        self.averages.follow_(seen, {name: self._grid(name) for name in seen})
        return logits

    def _grid(self, name: str) -> tuple[Tensor, Tensor, Grid]:
        grid = self._grids[name]
        step = self.constant(grid.step)
        return step, self.constant(grid.zero) if grid.zero else torch.zeros_like(step), grid

    @torch.no_grad()
    def graph(self) -> onnx.ModelProto:
        """The graph it was made from, with the trained numbers; codes and floats round to what `forward` uses."""
        made = onnx.ModelProto()
        made.CopyFrom(self._source)
        weights_into_graph_(self, made)
        entries = {entry.name: entry for entry in made.graph.initializer}
        for name in {*self.activations.values(), *(w.step for w in self.weights.values())}:
            _write(entries[name], positive_step(self.constant(name)))
        for name, weight in self.weights.items():
            codes, step, zero = self._codes(weight)
            _write(entries[name], codes if weight.coded else (codes - zero) * step)
        for name, step_name in self._copies.items():
            _write(entries[name], positive_step(self.constant(step_name)).expand(tuple(entries[name].dims)))
        for name, bias in self.biases.items():
            step = _product(self.constant(bias.input_step), self.constant(bias.weight_step))
            _write(entries[bias.step], step)
            _write(entries[name], torch.round(self.constant(name).double() / step.double()))
        return made

    def _codes(self, weight: Weight) -> tuple[Tensor, Tensor, Tensor]:
        """Codes of a weight in floating point, its step and its zero point, which broadcast against them."""
        values, step = self.constant(weight.name), positive_step(self.constant(weight.step))
        zero = self.constant(weight.zero).to(values.dtype) if weight.zero else torch.zeros_like(step)
        if weight.axis is not None:
            shape = [-1 if axis == weight.axis % values.ndim else 1 for axis in range(values.ndim)]
            step, zero = step.reshape(shape), zero.reshape(shape)
        return (torch.round(values / step) + zero).clamp(weight.low, weight.high), step, zero

    @torch.no_grad()
    def constant_activations(self, images: Tensor) -> tuple[str, ...]:
        """Quantized values that are the same number everywhere on some images: nothing flows through them."""
        constant = []

        def watch(name: str, value: Tensor) -> None:
            if name in self.activations and value.numel() > 1 and bool((value == value.flatten()[0]).all()):
                constant.append(name)

        self.run(images, watch)
        return tuple(constant)


def _fake_quantize(a: Attributes) -> Operator:
    options = {name: a[name] for name in ("low", "high")}
    return partial(_quantize, axis=a.get("axis"), batched=bool(a["batched"]), **options)


def _quantize(x: Tensor, step: Tensor, zero: Tensor | None = None, **options: object) -> Tensor:
    zero = torch.zeros_like(step) if zero is None else zero
    return fake_quantized(x, step, zero, **options)  # type: ignore[arg-type]


def _product(x_step: Tensor, w_step: Tensor) -> Tensor:
    return positive_step(x_step) * positive_step(w_step)


def _rewritten(model: onnx.ModelProto) -> _Rewrite:
    """The graph with fake quantizers in the place of its Q/DQ pairs, and floats in the place of codes."""
    made = onnx.ModelProto()
    made.CopyFrom(model)
    rewrite = _Rewrite(model=made, constants={entry.name: entry for entry in made.graph.initializer})
    producers = {name: node for node in model.graph.node for name in node.output}
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear":
            _rewrite_quantize(rewrite, node, readers.get(node.output[0], []))
        elif node.op_type == "DequantizeLinear":
            _rewrite_dequantize(rewrite, node, producers, readers)
        else:
            rewrite.nodes.append(node)
    if not rewrite.weights and not rewrite.activations:
        raise BuildFailed("The graph has no Q/DQ pair to train.", hint="quantize it first: connect a quantize node")
    del made.graph.node[:]
    made.graph.node.extend(rewrite.nodes)
    return rewrite


def _rewrite_quantize(rewrite: _Rewrite, node: onnx.NodeProto, readers: list[onnx.NodeProto]) -> None:
    if any(reader.op_type != "DequantizeLinear" for reader in readers):
        raise _unknown(node, f"its codes go into {readers[0].op_type} and not into DequantizeLinear")
    name, step, zero = (*node.input, "")[:3]
    low, high = _limits(rewrite, node, zero)
    constant = name in rewrite.constants
    if constant:
        low = max(low, -high)  # Weights are symmetric: a code of -128 has no counterpart.
        axis = _axis(rewrite, node, step)
        rewrite.weights[name] = Weight(name=name, step=step, zero=zero, axis=axis, low=low, high=high, coded=False)
    else:
        rewrite.activations[name] = step
        rewrite.grids[name] = Grid(step=step, zero=zero, low=low, high=high)
    _add_fake(rewrite, node, name, low, high, batched=not constant)


def _rewrite_dequantize(
    rewrite: _Rewrite,
    node: onnx.NodeProto,
    producers: Mapping[str, onnx.NodeProto],
    readers: Mapping[str, list[onnx.NodeProto]],
) -> None:
    name, step, zero = (*node.input, "")[:3]
    source = producers.get(name)
    if source is not None and source.op_type == "QuantizeLinear":
        if list(source.input[1:]) != list(node.input[1:]):
            if not _repeats(rewrite, node, source):
                raise _unknown(node, f"its scale or zero point is another one than that of {source.name}")
            rewrite.copies[step] = source.input[1]
        rewrite.nodes.append(helper.make_node("Identity", [name], list(node.output), node.name))
        return
    if name not in rewrite.constants:
        raise _unknown(node, "what it dequantizes is neither constant nor made by QuantizeLinear")
    codes = numpy_helper.to_array(rewrite.constants[name])
    if name not in rewrite.weights and name not in rewrite.biases:
        floats = _decoded(rewrite, codes, step, zero, _axis(rewrite, node, step))
        rewrite.constants[name].CopyFrom(numpy_helper.from_array(floats, name))
    if codes.dtype == np.int32 or name in rewrite.biases:
        _rewrite_bias(rewrite, node, producers, readers)
        return
    if name not in rewrite.weights:
        low, high = _limits(rewrite, node, zero)
        if low < 0:
            high = _SEVEN_BITS if int(np.abs(codes.astype(np.int32)).max(initial=0)) <= _SEVEN_BITS else high
            low = min(-high, int(codes.min(initial=0)))
        axis = _axis(rewrite, node, step)
        rewrite.weights[name] = Weight(name=name, step=step, zero=zero, axis=axis, low=low, high=high, coded=True)
    weight = rewrite.weights[name]
    _add_fake(rewrite, node, name, weight.low, weight.high, batched=False)


def _repeats(rewrite: _Rewrite, dequantize: onnx.NodeProto, quantize: onnx.NodeProto) -> bool:
    """Whether a grid is one scale, or that scale repeated per channel (`edgekd.lint.requantized`)."""
    pairs = list(zip_longest(dequantize.input[1:], quantize.input[1:], fillvalue=""))
    if any(name not in rewrite.constants for pair in pairs for name in pair):
        return False
    grids = [[numpy_helper.to_array(rewrite.constants[name]) for name in pair] for pair in pairs]
    return all(one.size == 1 and bool((many == one.item()).all()) for many, one in grids)


def _rewrite_bias(
    rewrite: _Rewrite,
    node: onnx.NodeProto,
    producers: Mapping[str, onnx.NodeProto],
    readers: Mapping[str, list[onnx.NodeProto]],
) -> None:
    (layer,) = readers[node.output[0]] if len(readers[node.output[0]]) == 1 else (None,)
    sources = [] if layer is None else [producers.get(name) for name in layer.input[:2]]
    if len(sources) < 2 or any(source is None or source.op_type != "DequantizeLinear" for source in sources):
        raise _unknown(node, "its 32-bit codes are no bias of one quantized layer")
    steps = [source.input[1] for source in sources if source is not None]
    name = node.input[0]
    rewrite.biases[name] = Bias(name=name, step=node.input[1], input_step=steps[0], weight_step=steps[1])
    made = helper.make_node("RoundBias", [name, *steps], list(node.output), node.name, domain=_DOMAIN)
    rewrite.nodes.append(made)


def _add_fake(rewrite: _Rewrite, node: onnx.NodeProto, name: str, low: int, high: int, *, batched: bool) -> None:
    axis = _axis(rewrite, node, node.input[1])
    made = helper.make_node("FakeQuantize", [name, *node.input[1:]], list(node.output), node.name, domain=_DOMAIN)
    attributes = {"low": low, "high": high, "batched": int(batched)} | ({} if axis is None else {"axis": axis})
    made.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    rewrite.nodes.append(made)


def _axis(rewrite: _Rewrite, node: onnx.NodeProto, step: str) -> int | None:
    """The axis of the channels; None for one step size."""
    if step not in rewrite.constants:
        raise _unknown(node, "its scale is not a constant")
    if any(entry.name == "block_size" and entry.i for entry in node.attribute):
        raise _unknown(node, "it has a scale per block")
    if int(np.prod(rewrite.constants[step].dims)) == 1:
        return None
    return next((entry.i for entry in node.attribute if entry.name == "axis"), 1)


def _limits(rewrite: _Rewrite, node: onnx.NodeProto, zero: str) -> tuple[int, int]:
    kind = rewrite.constants[zero].data_type if zero else TensorProto.UINT8
    if not zero and node.op_type == "DequantizeLinear":
        kind = TensorProto.INT8
    if kind == TensorProto.INT32:
        return -(2**31), 2**31 - 1
    if kind not in _LIMITS:
        raise _unknown(node, f"its codes are {TensorProto.DataType.Name(kind)}")
    return _LIMITS[kind]


def _decoded(
    rewrite: _Rewrite, codes: NDArray[np.generic], step: str, zero: str, axis: int | None
) -> NDArray[np.float32]:
    shape = [] if axis is None else [-1 if index == axis % codes.ndim else 1 for index in range(codes.ndim)]
    steps = numpy_helper.to_array(rewrite.constants[step]).reshape(shape)
    zeros = numpy_helper.to_array(rewrite.constants[zero]).reshape(shape).astype(np.float32) if zero else 0
    floats: NDArray[np.float32] = ((codes.astype(np.float64) - zeros) * steps).astype(np.float32)
    return floats


def _write(entry: TensorProto, value: Tensor) -> None:
    """Replaces an initialiser's numbers; its name, shape and type stay."""
    kind = helper.tensor_dtype_to_np_dtype(entry.data_type)
    array = value.detach().cpu().numpy().reshape(tuple(entry.dims)).astype(kind)
    entry.CopyFrom(numpy_helper.from_array(array, entry.name))


def _unknown(node: onnx.NodeProto, why: str) -> BuildFailed:
    return BuildFailed(
        f"{node.op_type} {node.name!r} cannot be trained: {why}.",
        hint="quantization-aware training takes graphs of the quantize stage: Q/DQ pairs with constant 8-bit grids",
    )
