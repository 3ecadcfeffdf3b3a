"""Small graphs for calibration tests: convolutions as mobile networks chain them, with channels of any scale."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekd.quant.layers import name_nodes_
from edgekd.runtimes.session import FloatArray

CHANNELS = 8


def chain(*, cap: float | None = None, spread: float = 1.0, seed: int = 0) -> onnx.ModelProto:
    """expand (1x1) -> ReLU or Clip(0, cap) -> depthwise (3x3) -> the same -> project (1x1) -> mean -> Gemm.

    Args:
        cap: None for ReLU.
        spread: Channels' weights differ by up to this factor, which the next layer takes back: the network computes
            nearly the same whatever it is.
        seed: Of the weights.
    """
    rng = np.random.default_rng(seed)
    factors = np.geomspace(1, spread, CHANNELS).astype(np.float32)
    weights = {
        "expand.w": rng.standard_normal((CHANNELS, 3, 1, 1)) * factors[:, None, None, None],
        "expand.b": rng.standard_normal(CHANNELS) * 0.1 * factors,
        "depth.w": rng.standard_normal((CHANNELS, 1, 3, 3)) * 0.4 / factors[:, None, None, None],
        "depth.b": rng.standard_normal(CHANNELS) * 0.1,
        "project.w": rng.standard_normal((6, CHANNELS, 1, 1)) * 0.4,
        "project.b": rng.standard_normal(6) * 0.1,
        "head.w": rng.standard_normal((5, 6)),
        "head.b": rng.standard_normal(5) * 0.1,
    }
    constants = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()]
    constants.append(numpy_helper.from_array(np.array([2, 3], np.int64), "axes"))
    if cap is not None:
        constants += [numpy_helper.from_array(np.float32(value), name) for name, value in (("zero", 0), ("cap", cap))]

    def activation(name: str) -> onnx.NodeProto:
        inputs = [name] if cap is None else [name, "zero", "cap"]
        return helper.make_node("Relu" if cap is None else "Clip", inputs, [f"{name}.act"], f"{name}.act")

    nodes = [
        helper.make_node("Conv", ["images", "expand.w", "expand.b"], ["expand"], "expand"),
        activation("expand"),
        helper.make_node(
            "Conv", ["expand.act", "depth.w", "depth.b"], ["depth"], "depth", pads=[1] * 4, group=CHANNELS
        ),
        activation("depth"),
        helper.make_node("Conv", ["depth.act", "project.w", "project.b"], ["project"], "project"),
        helper.make_node("ReduceMean", ["project", "axes"], ["pooled"], "pool", keepdims=0),
        helper.make_node("Gemm", ["pooled", "head.w", "head.b"], ["logits"], "head", transB=1),
    ]
    return classifier(nodes, constants)


def classifier(nodes: list[onnx.NodeProto], constants: list[onnx.TensorProto]) -> onnx.ModelProto:
    """Nodes from `images` (N, 3, 10, 10) to `logits` (N, 5) as a model, named and with inferred types."""
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", 3, 10, 10])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 5])],
        constants,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    name_nodes_(model)
    return onnx.shape_inference.infer_shapes(model)


def images(count: int = 48, seed: int = 1) -> FloatArray:
    """(N, 3, 10, 10) with some structure: every image has a level of its own, and neighbours are alike."""
    rng = np.random.default_rng(seed)
    noise = rng.standard_normal((count, 3, 10, 10)) + rng.standard_normal((count, 3, 1, 1))
    return ((noise + np.roll(noise, 1, axis=3)) / 2).astype(np.float32)
