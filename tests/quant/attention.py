"""A small graph with attention, as transformers have it: LayerNorm, matrix products, Softmax, outliers."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tests.quant.chains import classifier

WIDTH = 8


def attention(*, outlier: float = 30.0, seed: int = 0) -> onnx.ModelProto:
    """Patches -> LayerNorm -> query, key and value -> Softmax -> sum -> LayerNorm -> mean -> head.

    Args:
        outlier: What LayerNorm multiplies two channels by, as trained transformers do.
        seed: Of the weights.
    """
    rng = np.random.default_rng(seed)
    scale = np.ones(WIDTH)
    scale[[1, 5]] = outlier
    weights = {
        "patch.w": rng.standard_normal((WIDTH, 3, 2, 2)) * 0.4,
        "patch.b": rng.standard_normal(WIDTH) * 0.1,
        "norm.s": scale,
        "norm.b": rng.standard_normal(WIDTH) * 0.1,
        "last.s": scale,
        "last.b": rng.standard_normal(WIDTH) * 0.1,
        "head.w": rng.standard_normal((WIDTH, 5)) / scale[:, None],
    }
    for name in ("query", "key", "value"):
        weights[f"{name}.w"] = rng.standard_normal((WIDTH, WIDTH)) * 0.4 / scale[:, None]
        weights[f"{name}.b"] = rng.standard_normal(WIDTH) * 0.1
    constants = [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in weights.items()]
    constants.append(numpy_helper.from_array(np.array([0, WIDTH, -1], np.int64), "tokens"))
    constants.append(numpy_helper.from_array(np.array([1], np.int64), "axes"))
    node = helper.make_node
    nodes = [
        node("Conv", ["images", "patch.w", "patch.b"], ["patch"], "patch", strides=[2, 2]),
        node("Reshape", ["patch", "tokens"], ["flat"], "flat"),
        node("Transpose", ["flat"], ["stream"], "stream", perm=[0, 2, 1]),
        node("LayerNormalization", ["stream", "norm.s", "norm.b"], ["norm"], "norm"),
    ]
    for name in ("query", "key", "value"):
        nodes.append(node("MatMul", ["norm", f"{name}.w"], [f"{name}.p"], name))
        nodes.append(node("Add", [f"{name}.p", f"{name}.b"], [f"{name}.a"], f"{name}.bias"))
    nodes += [
        node("Transpose", ["key.a"], ["key.t"], "key.t", perm=[0, 2, 1]),
        node("MatMul", ["query.a", "key.t"], ["scores"], "scores"),
        node("Softmax", ["scores"], ["weights"], "softmax", axis=-1),
        node("MatMul", ["weights", "value.a"], ["mixed"], "mixed"),
        node("Add", ["stream", "mixed"], ["sum"], "sum"),
        node("LayerNormalization", ["sum", "last.s", "last.b"], ["last"], "last"),
        node("ReduceMean", ["last", "axes"], ["pooled"], "pool", keepdims=0),
        node("MatMul", ["pooled", "head.w"], ["logits"], "head"),
    ]
    return classifier(nodes, constants)
