"""Weight-only INT8: a quarter of the file without any calibration data, computed in float32 as before.

    scale_c = max |w_c| / 127,   q = round(w / scale_c) in [-127, 127],   w' = q * scale_c     for each output channel c

Symmetric and per channel, so the error of a weight is at most scale_c / 2. It makes files smaller, not inference
faster: runtimes expand the weights when they load the graph. ONNX Runtime does so on every run unless it is told not to
(see `edgekd.runtimes.onnxruntime.FOLD_WEIGHTS`).
"""

from __future__ import annotations

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

LEVELS = 127
MIN_ELEMENTS = 256
"""Smaller weights stay float32: the node and the scales would take what the weight saves."""


def weight_only_from_float32(model: onnx.ModelProto) -> onnx.ModelProto:
    """A new graph whose convolution and matrix weights are INT8 initialisers behind DequantizeLinear nodes.

    Args:
        model: A float32 graph of opset 13 or later; left as it was.
    """
    made = onnx.ModelProto()
    made.CopyFrom(model)
    graph = made.graph
    weights = {entry.name: entry for entry in graph.initializer}
    axes = _channel_axes(graph, weights)
    nodes = []
    for name, axis in axes.items():
        codes, scales = quantized_weight(numpy_helper.to_array(weights[name]), axis)
        graph.initializer.remove(weights[name])
        graph.initializer.append(numpy_helper.from_array(codes, f"{name}_int8"))
        graph.initializer.append(numpy_helper.from_array(scales, f"{name}_scale"))
        # The result takes the weight's own name, so that its users need no change.
        nodes.append(
            helper.make_node(
                "DequantizeLinear", [f"{name}_int8", f"{name}_scale"], [name], name=f"{name}_dq", axis=axis
            )
        )
    users = list(graph.node)
    del graph.node[:]
    graph.node.extend([*nodes, *users])
    return made


def quantized_weight(weight: NDArray[np.float32], axis: int) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    """Codes in [-127, 127] of the weight's shape, and one scale per index of `axis`; a channel of zeros has scale 1."""
    others = tuple(index for index in range(weight.ndim) if index != axis)
    largest = np.abs(weight).max(axis=others, keepdims=True)
    scales = np.where(largest > 0, largest / LEVELS, 1).astype(np.float32)
    codes = np.clip(np.rint(weight / scales), -LEVELS, LEVELS).astype(np.int8)
    return codes, scales.ravel()


def _channel_axes(graph: onnx.GraphProto, weights: dict[str, TensorProto]) -> dict[str, int]:
    """The output-channel axis of every weight to quantize; one that users read along different axes stays float32."""
    found: dict[str, set[int | None]] = {}
    for node in graph.node:
        for slot, name in enumerate(node.input):
            if name in weights:
                found.setdefault(name, set()).add(_channel_axis(node, slot, len(weights[name].dims)))
    return {
        name: next(axis for axis in axes if axis is not None)
        for name, axes in found.items()
        if len(axes) == 1
        and None not in axes
        and weights[name].data_type == TensorProto.FLOAT
        and int(np.prod(weights[name].dims)) >= MIN_ELEMENTS
    }


def _channel_axis(node: onnx.NodeProto, slot: int, ndim: int) -> int | None:
    """Output-channel axis of the weight in this input of the node, None when it is no weight."""
    if slot != 1:
        return None
    if node.op_type == "Conv":
        return 0
    if node.op_type == "Gemm":
        return 0 if any(entry.name == "transB" and entry.i for entry in node.attribute) else 1
    return ndim - 1 if node.op_type == "MatMul" and ndim >= 2 else None
