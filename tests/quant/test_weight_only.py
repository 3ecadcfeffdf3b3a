from __future__ import annotations

import numpy as np
import onnx
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from onnx import TensorProto, helper, numpy_helper

from edgekd.quant.weight_only import quantized_weight, weight_only_from_float32
from edgekd.runtimes.onnxruntime import values_in_graph
from edgekd.runtimes.samples import random_images
from edgekd.testing.toy_graphs import toy_graph


@given(
    arrays(np.float32, array_shapes(min_dims=2, max_dims=4, max_side=5), elements=st.floats(-1e3, 1e3, width=32)),
    st.data(),
)
def test_every_weight_is_within_half_a_step_of_its_code(weight: np.ndarray, data: st.DataObject) -> None:
    axis = data.draw(st.integers(0, weight.ndim - 1))
    codes, scales = quantized_weight(weight, axis)
    step = scales.reshape([-1 if index == axis else 1 for index in range(weight.ndim)])
    assert codes.shape == weight.shape
    assert scales.shape == (weight.shape[axis],)
    assert np.abs(codes.astype(int)).max() <= 127
    assert (np.abs(codes * step - weight) <= step * (0.5 + 1e-4) + 1e-30).all()


def test_the_largest_weight_of_a_channel_has_the_largest_code_and_zeros_stay_zero() -> None:
    codes, scales = quantized_weight(np.array([[1.0, -2.0], [0.0, 0.0]], np.float32), 0)
    np.testing.assert_array_equal(codes, [[64, -127], [0, 0]])
    np.testing.assert_allclose(scales, [2 / 127, 1.0])


def test_large_weights_become_int8_and_small_ones_stay() -> None:
    graph = toy_graph(channels=3)
    made = weight_only_from_float32(graph)
    onnx.checker.check_model(made, full_check=True)
    types = {entry.name: entry.data_type for entry in made.graph.initializer}
    assert types["stem.weight_int8"] == types["block.weight_int8"] == TensorProto.INT8
    assert types["head.weight"] == types["stem.bias"] == TensorProto.FLOAT


def test_the_quantized_graph_computes_nearly_the_same() -> None:
    graph, feeds = toy_graph(), {"images": random_images((3, 8, 8), samples=4, seed=0)}
    expected = values_in_graph(graph, feeds)["logits"]
    found = values_in_graph(weight_only_from_float32(graph), feeds)["logits"]
    assert 0 < np.abs(found - expected).max() < 0.02 * np.abs(expected).max()


def matrix_graph(*nodes: onnx.NodeProto) -> onnx.ModelProto:
    weight = np.random.default_rng(0).standard_normal((32, 32)).astype(np.float32)
    graph = helper.make_graph(
        list(nodes),
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32])],
        [helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)


def dequantized_axes(model: onnx.ModelProto) -> list[int]:
    return [
        attribute.i
        for node in weight_only_from_float32(model).graph.node
        if node.op_type == "DequantizeLinear"
        for attribute in node.attribute
    ]


def test_the_channel_axis_follows_the_operator() -> None:
    assert dequantized_axes(matrix_graph(helper.make_node("MatMul", ["x", "w"], ["y"]))) == [1]
    assert dequantized_axes(matrix_graph(helper.make_node("Gemm", ["x", "w"], ["y"]))) == [1]
    assert dequantized_axes(matrix_graph(helper.make_node("Gemm", ["x", "w"], ["y"], transB=1))) == [0]


def test_a_weight_that_two_operators_read_differently_stays_float() -> None:
    nodes = helper.make_node("Gemm", ["x", "w"], ["a"], transB=1), helper.make_node("MatMul", ["a", "w"], ["y"])
    assert dequantized_axes(matrix_graph(*nodes)) == []
