"""Small graphs for rules: a convolution with its quantizers, built piece by piece."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekd.lint.rule import Surroundings

TENSORRT = Surroundings(target="toy", runtimes=("tensorrt",), versions={"tensorrt": "8.6, 10.3"}, channel_multiple=8)
CPU = Surroundings(target="toy", runtimes=("onnxruntime", "openvino"), cpu=True, features=("avx2",))
ORT = Surroundings(target="toy", runtimes=("onnxruntime",), cpu=True)
CHANNELS, SIZE = 8, 6


class Builder:
    """Collects nodes and constants; `conv`, `qdq` and the like return the name of the value they make.

    Args:
        seed: Of weights.
    """

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def constant(self, name: str, values: Any, dtype: Any = np.float32) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(values, dtype), name))
        return name

    def node(self, kind: str, inputs: list[str], name: str, outputs: int = 1, **attributes: Any) -> str:
        names = [name if outputs == 1 else f"{name}.{index}" for index in range(outputs)]
        self.nodes.append(helper.make_node(kind, inputs, names, name, **attributes))
        return names[0]

    def qdq(
        self, value: str, name: str, *, scale: Any = 0.05, point: Any = 0, dtype: Any = np.int8, axis: int | None = None
    ) -> str:
        """A Q/DQ pair on a value."""
        point = np.broadcast_to(np.asarray(point, dtype), np.shape(scale))
        grid = [self.constant(f"{name}.scale", scale), self.constant(f"{name}.point", point, dtype)]
        extra = {} if axis is None else {"axis": axis}
        rounded = self.node("QuantizeLinear", [value, *grid], f"{name}.q", **extra)
        return self.node("DequantizeLinear", [rounded, *grid], f"{name}.dq", **extra)

    def codes(self, name: str, values: NDArray[Any], *, scale: Any, axis: int | None = None) -> str:
        """int8 codes behind DequantizeLinear."""
        extra = {} if axis is None else {"axis": axis}
        inputs = [
            self.constant(f"{name}.codes", values, np.int8),
            self.constant(f"{name}.scale", scale),
            self.constant(f"{name}.point", np.zeros(np.shape(scale)), np.int8),
        ]
        return self.node("DequantizeLinear", inputs, f"{name}.dq", **extra)

    def weight(self, name: str, shape: tuple[int, ...], *, axis: int = 0, largest: int = 64) -> str:
        """A per-channel int8 weight."""
        values = self.rng.integers(-largest, largest + 1, shape)
        values.flat[0] = largest
        return self.codes(name, values, scale=self.rng.uniform(0.002, 0.004, shape[axis]), axis=axis)

    def conv(
        self,
        value: str,
        name: str,
        *,
        quantized: bool = True,
        out: int = CHANNELS,
        into: int = CHANNELS,
        kernel: int = 3,
    ) -> str:
        """A convolution that keeps the size, with a bias."""
        shape = (out, into, kernel, kernel)
        weight = (
            self.weight(f"{name}.w", shape)
            if quantized
            else self.constant(f"{name}.w", self.rng.standard_normal(shape) * 0.1)
        )
        bias = self.constant(f"{name}.b", self.rng.standard_normal(out) * 0.1)
        return self.node("Conv", [value, weight, bias], name, pads=[1] * 4)

    def model(
        self,
        output: str,
        *,
        shape: list[Any] | None = None,
        inputs: dict[str, list[Any]] | None = None,
        opset: int = 17,
        output_type: int = TensorProto.FLOAT,
    ) -> onnx.ModelProto:
        """From `images` (N, 8, 6, 6), unless other inputs are given, to an output."""
        taken = inputs or {"images": ["N", CHANNELS, SIZE, SIZE]}
        graph = helper.make_graph(
            self.nodes,
            "toy",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, axes) for name, axes in taken.items()],
            [helper.make_tensor_value_info(output, output_type, shape)],
            self.constants,
        )
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
        made = onnx.shape_inference.infer_shapes(made)
        onnx.checker.check_model(made)
        return made


def int8_conv(*, signed: bool = True) -> onnx.ModelProto:
    """Q/DQ, a convolution, ReLU, and for unsigned codes Q/DQ once more: clean for TensorRT, or for ONNX Runtime."""
    b = Builder()
    dtype, point = (np.int8, 0) if signed else (np.uint8, 120)
    value = b.conv(b.qdq("images", "in", dtype=dtype, point=point), "conv")
    value = b.node("Relu", [value], "relu")
    if not signed:
        value = b.qdq(value, "out", dtype=np.uint8)
        pooled = b.node("MaxPool", [value], "pool", kernel_shape=[2, 2])
        return b.model(pooled)
    return b.model(value)


def float_conv() -> onnx.ModelProto:
    """A convolution and ReLU in float."""
    b = Builder()
    return b.model(b.node("Relu", [b.conv("images", "conv", quantized=False)], "relu"))
