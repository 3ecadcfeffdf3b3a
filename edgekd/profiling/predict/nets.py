"""The small networks that a latency model is fitted to: designed so that each of its numbers shows up in some of them.

Wide layers on large maps show the rate of convolutions, narrow layers on small maps the cost of one more operation,
depthwise layers theirs, additions and pooling the memory. Weights are arbitrary: only time matters.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekd.core.cost import OpCost, OpKind
from edgekd.targets.schema import Precision

OPSET = 17
IR_VERSION = 9
_SCALE = 0.02


@dataclass(frozen=True, kw_only=True)
class Net:
    """A network to time, and what it costs.

    Attributes:
        name: For messages.
        precision: `fp32`, or `int8` with Q/DQ nodes around every convolution.
        model: ONNX, input `images` (1, C, H, W) float32.
        costs: One entry per operation.
    """

    name: str
    precision: Precision
    model: onnx.ModelProto
    costs: tuple[OpCost, ...]


def probe_nets(precision: Precision) -> tuple[Net, ...]:
    """The designed set for one precision, `fp32` or `int8`; the latter only has what INT8 changes."""
    dense: list[tuple[str, int, int, Callable[[_Draft], None]]] = [
        ("overhead", 8, 8, lambda net: net.repeat(24, lambda: net.conv(8, 3))),
        ("conv16", 16, 32, lambda net: net.repeat(10, lambda: net.conv(16, 3))),
        ("conv32", 32, 16, lambda net: net.repeat(12, lambda: net.conv(32, 3))),
        ("conv64", 64, 8, lambda net: net.repeat(14, lambda: net.conv(64, 3))),
        ("conv64-large", 64, 56, lambda net: net.repeat(2, lambda: net.conv(64, 3))),
        ("point64", 64, 28, lambda net: net.repeat(10, lambda: net.conv(64, 1))),
        ("point256", 256, 14, lambda net: net.repeat(5, lambda: net.conv(256, 1))),
        ("residual16", 16, 32, lambda net: net.repeat(6, net.residual)),
        ("residual64", 64, 8, lambda net: net.repeat(6, net.residual)),
    ]
    other: list[tuple[str, int, int, Callable[[_Draft], None]]] = [
        ("separable32", 32, 32, lambda net: net.repeat(6, net.separable)),
        ("separable96", 96, 28, lambda net: net.repeat(5, net.separable)),
        ("separable128", 128, 14, lambda net: net.repeat(6, net.separable)),
        ("linear512", 512, 1, lambda net: net.repeat(10, lambda: net.linear(512))),
        ("linear1024", 1024, 1, lambda net: net.repeat(4, lambda: net.linear(1024))),
    ]
    nets = []
    for name, channels, size, build in dense + (other if precision == "fp32" else []):
        draft = _Draft(channels=channels, size=size, precision=precision)
        build(draft)
        nets.append(draft.finished(f"{name}-{precision}"))
    return tuple(nets)


@dataclass
class _Draft:
    """An ONNX graph while it is being written, together with its costs."""

    channels: int
    size: int
    precision: Precision
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    tensors: list[onnx.TensorProto] = field(default_factory=list)
    costs: list[OpCost] = field(default_factory=list)
    top: str = "images"
    count: int = 0

    def __post_init__(self) -> None:
        self.shape = (1, self.channels, self.size, self.size)

    def repeat(self, times: int, block: Callable[[], None]) -> None:
        for _ in range(times):
            block()

    def conv(self, width: int, kernel: int, groups: int = 1) -> None:
        """A convolution with stride 1 that keeps the map's size, and a ReLU, which runtimes fuse."""
        source = self._quantized(self.top)
        weight = self._weight((width, self.channels // groups, kernel, kernel))
        bias = self._bias(width)
        pads = [kernel // 2] * 4
        out = self._node("Conv", [source, weight, bias], group=groups, kernel_shape=[kernel, kernel], pads=pads)
        pixels = self.size**2
        weights = width * (self.channels // groups) * kernel**2
        kind: OpKind = "depthwise" if groups > 1 and groups == self.channels else "conv"
        self._cost(kind, weights * pixels, weights + width, (self.channels + width) * pixels)
        self.top, self.channels = self._node("Relu", [out]), width

    def residual(self) -> None:
        """Two 3x3 convolutions and an addition."""
        shortcut, width = self.top, self.channels
        self.conv(width, 3)
        self.conv(width, 3)
        self.top = self._node("Add", [self._quantized(self.top), self._quantized(shortcut)])
        self._cost("add", 0, 0, 3 * width * self.size**2)

    def separable(self) -> None:
        """A 3x3 depthwise and a 1x1 convolution."""
        self.conv(self.channels, 3, groups=self.channels)
        self.conv(self.channels, 1)

    def linear(self, width: int) -> None:
        if len([n for n in self.nodes if n.op_type == "Flatten"]) == 0:
            self.top = self._node("Flatten", [self.top])
        weight = self._weight((self.channels, width))
        self.top = self._node("Gemm", [self.top, weight, self._float(np.zeros(width, np.float32))])
        self._cost("linear", self.channels * width, self.channels * width + width, self.channels + width)
        self.channels = width

    def finished(self, name: str) -> Net:
        """The network; a map is pooled first, so that its output is small."""
        if self.size > 1:
            self.top = self._node("GlobalAveragePool", [self._quantized(self.top)])
            self._cost("pool", 0, 0, self.channels * (self.size**2 + 1))
        value = helper.make_tensor_value_info
        graph = helper.make_graph(
            self.nodes,
            name,
            [value("images", TensorProto.FLOAT, list(self.shape))],
            [value(self.top, TensorProto.FLOAT, [1, self.channels, *([1, 1] if self.size > 1 else [])])],
            self.tensors,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=IR_VERSION)
        return Net(name=name, precision=self.precision, model=model, costs=tuple(self.costs))

    def _cost(self, kind: OpKind, macs: int, params: int, activations: int) -> None:
        name = f"{kind}{len(self.costs)}"
        self.costs.append(OpCost(name=name, kind=kind, macs=macs, params=params, activations=activations))

    def _node(self, op: str, inputs: list[str], **attributes: Any) -> str:
        name = self._name(op.lower())
        self.nodes.append(helper.make_node(op, inputs, [name], name=name, **attributes))
        return name

    def _quantized(self, source: str) -> str:
        """Q and DQ on an activation, in the unsigned form that runtimes fuse."""
        if self.precision == "fp32":
            return source
        scale, zero = self._float(np.float32(_SCALE)), self._tensor(np.uint8(0))
        stored = self._node("QuantizeLinear", [source, scale, zero])
        return self._node("DequantizeLinear", [stored, scale, zero])

    def _weight(self, shape: tuple[int, ...]) -> str:
        values = np.random.default_rng(0).integers(-127, 128, shape, dtype=np.int8)
        if self.precision == "fp32":
            return self._float(values.astype(np.float32) / (127 * np.sqrt(np.prod(shape[1:]))))
        return self._node("DequantizeLinear", [self._tensor(values), self._float(np.float32(_SCALE))])

    def _bias(self, width: int) -> str:
        if self.precision == "fp32":
            return self._float(np.zeros(width, np.float32))
        zeros = self._tensor(np.zeros(width, np.int32))
        return self._node("DequantizeLinear", [zeros, self._float(np.float32(_SCALE * _SCALE))])

    def _float(self, values: NDArray[np.float32] | np.float32) -> str:
        return self._tensor(np.asarray(values, dtype=np.float32))

    def _tensor(self, values: object) -> str:
        name = self._name("tensor")
        self.tensors.append(numpy_helper.from_array(np.asarray(values), name))
        return name

    def _name(self, stem: str) -> str:
        self.count += 1
        return f"{stem}_{self.count}"
