"""Q/DQ graphs on their way to ones that can be trained: floats in the place of codes, fake quantizers of pairs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekd.errors import BuildFailed
from edgekd.quant.averaged import Grid

DOMAIN = "edgekd"
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
class Rewrite:
    """A Q/DQ graph on its way to one that can be trained.

    Its nodes of the domain `edgekd`: `FakeQuantize` (value, step, zero point), `RoundBias` (bias, step of the input,
    step of the weight), and `WideStep` (step of the weight, step of the input, bias).

    Attributes:
        model: The graph; rewritten at the end.
        constants: Initialisers by name; those with codes become floats.
        nodes: Of the graph to come.
        weights: The quantized constants, by name.
        biases: The biases in 32-bit codes, by name.
        activations: Step initialiser of every quantized activation, by the name of the value that is quantized.
        grids: The same activations' whole grids.
        copies: Step initialisers that repeat another one per channel, with the one that they repeat.
    """

    model: onnx.ModelProto
    constants: dict[str, TensorProto]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, Weight] = field(default_factory=dict)
    biases: dict[str, Bias] = field(default_factory=dict)
    activations: dict[str, str] = field(default_factory=dict)
    grids: dict[str, Grid] = field(default_factory=dict)
    copies: dict[str, str] = field(default_factory=dict)


def rewritten(model: onnx.ModelProto) -> Rewrite:
    """The graph with fake quantizers in the place of its Q/DQ pairs, and floats in the place of codes.

    Args:
        model: Left as it was.

    Raises:
        BuildFailed: It has no Q/DQ pairs, or other forms of quantization.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    rewrite = Rewrite(model=made, constants={entry.name: entry for entry in made.graph.initializer})
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
    widening = _widen_steps_(rewrite)
    del made.graph.node[:]
    made.graph.node.extend([*widening, *rewrite.nodes])
    return rewrite


def _widen_steps_(rewrite: Rewrite) -> list[onnx.NodeProto]:
    """Lets weights and biases read steps that hold the biases; returns the nodes that compute these."""
    steps = {weight.step for weight in rewrite.weights.values()}
    wide: dict[str, str] = {}
    made = []
    for bias in rewrite.biases.values():
        if bias.weight_step in steps:
            given = wide.get(bias.weight_step, bias.weight_step)
            wide[bias.weight_step] = f"{given}/wide"
            made.append(
                helper.make_node("WideStep", [given, bias.input_step, bias.name], [f"{given}/wide"], domain=DOMAIN)
            )
    for node in rewrite.nodes:
        if node.domain == DOMAIN and node.input[0] in rewrite.weights:
            node.input[1] = wide.get(node.input[1], node.input[1])
        elif node.domain == DOMAIN and node.op_type == "RoundBias":
            node.input[2] = wide.get(node.input[2], node.input[2])
    return made


def _rewrite_quantize(rewrite: Rewrite, node: onnx.NodeProto, readers: list[onnx.NodeProto]) -> None:
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
    rewrite: Rewrite,
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


def _repeats(rewrite: Rewrite, dequantize: onnx.NodeProto, quantize: onnx.NodeProto) -> bool:
    """Whether a grid is one scale, or that scale repeated per channel (`edgekd.lint.requantized`)."""
    pairs = list(zip_longest(dequantize.input[1:], quantize.input[1:], fillvalue=""))
    if any(name not in rewrite.constants for pair in pairs for name in pair):
        return False
    grids = [[numpy_helper.to_array(rewrite.constants[name]) for name in pair] for pair in pairs]
    return all(one.size == 1 and bool((many == one.item()).all()) for many, one in grids)


def _rewrite_bias(
    rewrite: Rewrite,
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
    made = helper.make_node("RoundBias", [name, *steps], list(node.output), node.name, domain=DOMAIN)
    rewrite.nodes.append(made)


def _add_fake(rewrite: Rewrite, node: onnx.NodeProto, name: str, low: int, high: int, *, batched: bool) -> None:
    axis = _axis(rewrite, node, node.input[1])
    made = helper.make_node("FakeQuantize", [name, *node.input[1:]], list(node.output), node.name, domain=DOMAIN)
    attributes = {"low": low, "high": high, "batched": int(batched)} | ({} if axis is None else {"axis": axis})
    made.attribute.extend(helper.make_attribute(key, value) for key, value in attributes.items())
    rewrite.nodes.append(made)


def _axis(rewrite: Rewrite, node: onnx.NodeProto, step: str) -> int | None:
    """The axis of the channels; None for one step size."""
    if step not in rewrite.constants:
        raise _unknown(node, "its scale is not a constant")
    if any(entry.name == "block_size" and entry.i for entry in node.attribute):
        raise _unknown(node, "it has a scale per block")
    if int(np.prod(rewrite.constants[step].dims)) == 1:
        return None
    return next((entry.i for entry in node.attribute if entry.name == "axis"), 1)


def _limits(rewrite: Rewrite, node: onnx.NodeProto, zero: str) -> tuple[int, int]:
    kind = rewrite.constants[zero].data_type if zero else TensorProto.UINT8
    if not zero and node.op_type == "DequantizeLinear":
        kind = TensorProto.INT8
    if kind == TensorProto.INT32:
        return -(2**31), 2**31 - 1
    if kind not in _LIMITS:
        raise _unknown(node, f"its codes are {TensorProto.DataType.Name(kind)}")
    return _LIMITS[kind]


def _decoded(
    rewrite: Rewrite, codes: NDArray[np.generic], step: str, zero: str, axis: int | None
) -> NDArray[np.float32]:
    shape = [] if axis is None else [-1 if index == axis % codes.ndim else 1 for index in range(codes.ndim)]
    steps = numpy_helper.to_array(rewrite.constants[step]).reshape(shape)
    zeros = numpy_helper.to_array(rewrite.constants[zero]).reshape(shape).astype(np.float32) if zero else 0
    floats: NDArray[np.float32] = ((codes.astype(np.float64) - zeros) * steps).astype(np.float32)
    return floats


def _unknown(node: onnx.NodeProto, why: str) -> BuildFailed:
    return BuildFailed(
        f"{node.op_type} {node.name!r} cannot be trained: {why}.",
        hint="quantization-aware training takes graphs of the quantize stage: Q/DQ pairs with constant 8-bit grids",
    )
