"""ONNX graphs made by hand: what export would give for a tiny network, in a millisecond and without PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgekd.core.blobs import Blobs
from edgekd.core.bundle import BundleKind, ModelBundle, TensorSpec
from edgekd.core.preprocess import Preprocessing
from edgekd.core.recipe import ModelRecipe
from edgekd.runtimes.onnx_file import MODEL_FILE, write_graph

WIDTH = 16


def toy_graph(
    *, classes: int = 4, channels: int = 3, size: int = 8, seed: int = 0, scale: float = 1.0
) -> onnx.ModelProto:
    """Convolution, residual block, global pooling, classifier; input `images`, output `logits`, dynamic batch `N`.

    Args:
        classes: K.
        channels: C.
        size: H and W.
        seed: Of the random weights.
        scale: Factor of the first convolution's weights: large ones push inner values out of float16's range, and the
            classifier brings them back.
    """
    rng = np.random.default_rng(seed)

    def weight(name: str, *shape: int, factor: float = 1.0) -> TensorProto:
        fan_in = int(np.prod(shape[1:])) or 1
        values = rng.standard_normal(shape).astype(np.float32) * np.float32(factor * np.sqrt(2 / fan_in))
        return numpy_helper.from_array(values, name)

    constants = [
        weight("stem.weight", WIDTH, channels, 3, 3, factor=scale),
        weight("stem.bias", WIDTH),
        weight("block.weight", WIDTH, WIDTH, 3, 3),
        weight("block.bias", WIDTH),
        weight("head.weight", classes, WIDTH, factor=1 / scale),
        weight("head.bias", classes),
    ]
    nodes = [
        helper.make_node("Conv", ["images", "stem.weight", "stem.bias"], ["stem"], "stem", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["stem"], ["stem.relu"], "stem.relu"),
        helper.make_node("Conv", ["stem.relu", "block.weight", "block.bias"], ["block"], "block", pads=[1, 1, 1, 1]),
        helper.make_node("Add", ["block", "stem.relu"], ["sum"], "sum"),
        helper.make_node("Relu", ["sum"], ["sum.relu"], "sum.relu"),
        helper.make_node("GlobalAveragePool", ["sum.relu"], ["pool"], "pool"),
        helper.make_node("Flatten", ["pool"], ["features"], "features"),
        helper.make_node("Gemm", ["features", "head.weight", "head.bias"], ["logits"], "head", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "toy",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["N", channels, size, size])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", classes])],
        constants,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def toy_onnx_bundle(
    blobs: Blobs,
    scratch: Path,
    *,
    classes: int = 4,
    channels: int = 3,
    size: int = 8,
    seed: int = 0,
    scale: float = 1.0,
) -> ModelBundle:
    """An FP32 ONNX bundle of `toy_graph`; equal arguments give equal content."""
    path = scratch / MODEL_FILE
    write_graph(
        toy_graph(classes=classes, channels=channels, size=size, seed=seed, scale=scale), path, made_by="toy_graph"
    )
    return ModelBundle(
        kind=BundleKind.ONNX,
        inputs=(TensorSpec(name="images", shape=("N", channels, size, size)),),
        outputs=(TensorSpec(name="logits", shape=("N", classes)),),
        files={MODEL_FILE: blobs.add(path)},
        recipe=ModelRecipe(
            builder="onnx",
            preprocessing=Preprocessing(size=(size, size), mean=(0.5,) * channels, std=(0.5,) * channels),
            labels=tuple(f"class{index}" for index in range(classes)),
        ),
        tags={"precision": "fp32", "scheme": ""},
    )
