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
from functools import partial
from typing import Literal

import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import Tensor

from edgekd.nn.onnx_module import TRAINED_SLOTS, OnnxModule, weights_into_graph_
from edgekd.nn.onnx_ops import OPERATORS, Attributes, Operator
from edgekd.quant.averaged import Grid, RangeAverages
from edgekd.quant.fake_quant import fake_quantized, positive_step, rounded_to, wide_step
from edgekd.quant.qat_rewrite import DOMAIN, Weight, rewritten

Ranges = Literal["learned", "average", "calibrated"]


class QatNetwork(OnnxModule):
    """A quantized graph as a module whose forward pass computes what the graph computes, and that trains.

    Attributes:
        weights: The quantized constants, by name.
        biases: The biases in 32-bit codes, by name.
        activations: Step initialiser of every quantized activation, by the name of the value that is quantized.
        grids: The same activations' whole grids.
        copies: Step initialisers that repeat another one per channel, with the one that they repeat.

    Args:
        model: A Q/DQ graph; left as it was.
        ranges: `learned`: step sizes are parameters; `average`: those of activations follow a moving average;
            `calibrated`: they stay.
        followed_steps: Training steps that the moving average follows.

    Raises:
        BuildFailed: The graph has no Q/DQ pairs, other forms of quantization, or operators without a torch form.
    """

    def __init__(self, model: onnx.ModelProto, ranges: Ranges = "learned", *, followed_steps: int = 0) -> None:
        rewrite = rewritten(model)
        learned: Mapping[str, tuple[int, ...]] = {
            "FakeQuantize": (0, 1) if ranges == "learned" else (0,),
            "WideStep": (0,) if ranges == "learned" else (),
        }
        operators = {
            **OPERATORS,
            f"{DOMAIN}.FakeQuantize": _fake_quantize,
            f"{DOMAIN}.RoundBias": lambda _: lambda bias, x_step, w_step: rounded_to(bias, _product(x_step, w_step)),
            f"{DOMAIN}.WideStep": lambda _: wide_step,
        }
        super().__init__(rewrite.model, operators, {**TRAINED_SLOTS, **learned, "RoundBias": (0,)})
        self.weights, self.biases, self.activations = rewrite.weights, rewrite.biases, rewrite.activations
        self.grids, self.copies, self._source = rewrite.grids, rewrite.copies, model
        self.averages = RangeAverages(followed_steps) if ranges == "average" else None

    def forward(self, images: Tensor) -> Tensor:
        """(N, K) logits of images (N, C, H, W); in training, ranges that follow it move after the pass."""
        if self.averages is None or not self.training or not self.averages.active:
            return self.run(images)
        seen: dict[str, tuple[Tensor, Tensor]] = {}

        def watch(name: str, value: Tensor) -> None:
            if name in self.grids:
                low, high = value.detach().aminmax()
                seen[name] = low, high

        watch(self._input, images)
        logits = self.run(images, watch)
        self.averages.follow_(seen, {name: self._grid(name) for name in seen})
        return logits

    def _grid(self, name: str) -> tuple[Tensor, Tensor, Grid]:
        grid = self.grids[name]
        step = self.constant(grid.step)
        return step, self.constant(grid.zero) if grid.zero else torch.zeros_like(step), grid

    @torch.no_grad()
    def step(self, name: str) -> Tensor:
        """The step sizes that `forward` computes with, by their initialiser: positive, and wide enough for biases."""
        step = positive_step(self.constant(name))
        for bias in self.biases.values():
            if bias.weight_step == name:
                step = wide_step(step, self.constant(bias.input_step), self.constant(bias.name))
        return step

    @torch.no_grad()
    def widened(self) -> tuple[str, ...]:
        """Weights whose step a bias keeps wider than training made it, as `name[channel]`, or `name` without."""
        found = []
        for weight in self.weights.values():
            wider = (self.step(weight.step) > positive_step(self.constant(weight.step))).reshape(-1)
            channels = [int(at) for at in wider.nonzero()]
            found += [weight.name if weight.axis is None else f"{weight.name}[{channel}]" for channel in channels]
        return tuple(found)

    @torch.no_grad()
    def graph(self) -> onnx.ModelProto:
        """The graph it was made from, with the trained numbers; codes and floats round to what `forward` uses."""
        made = onnx.ModelProto()
        made.CopyFrom(self._source)
        weights_into_graph_(self, made)
        entries = {entry.name: entry for entry in made.graph.initializer}
        for name in {*self.activations.values(), *(w.step for w in self.weights.values())}:
            _write(entries[name], self.step(name))
        for name, weight in self.weights.items():
            codes, step, zero = self._codes(weight)
            _write(entries[name], codes if weight.coded else (codes - zero) * step)
        for name, step_name in self.copies.items():
            _write(entries[name], self.step(step_name).expand(tuple(entries[name].dims)))
        for name, bias in self.biases.items():
            step = _product(self.step(bias.input_step), self.step(bias.weight_step))
            _write(entries[bias.step], step)
            _write(entries[name], torch.round(self.constant(name) / step))
        return made

    def _codes(self, weight: Weight) -> tuple[Tensor, Tensor, Tensor]:
        """Codes of a weight in floating point, its step and its zero point, which broadcast against them."""
        values, step = self.constant(weight.name), self.step(weight.step)
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


def _write(entry: TensorProto, value: Tensor) -> None:
    """Replaces an initialiser's numbers; its name, shape and type stay."""
    kind = helper.tensor_dtype_to_np_dtype(entry.data_type)
    array = value.detach().cpu().numpy().reshape(tuple(entry.dims)).astype(kind)
    entry.CopyFrom(numpy_helper.from_array(array, entry.name))
