"""ONNX graphs as torch modules: each operator against ONNX Runtime, then gradients, refusals and what trains."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekd.errors import BuildFailed
from edgekd.nn.onnx_module import OnnxModule, weights_into_graph_
from edgekd.nn.onnx_ops import OPERATORS
from edgekd.runtimes.onnxruntime import values_in_graph
from edgekd.testing.toy_graphs import toy_graph

RNG = np.random.default_rng(0)
MAP = [2, 4, 7, 6]
Constants = dict[str, NDArray[Any]]


def floats(*shape: int) -> NDArray[np.float32]:
    return RNG.standard_normal(shape).astype(np.float32)


def whole(*numbers: int) -> NDArray[np.int64]:
    return np.array(numbers, np.int64)


def graph_of(nodes: list[onnx.NodeProto], constants: Constants, shape: list[int], opset: int = 20) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(value, name) for name, value in constants.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)


def node(kind: str, constants: Constants | None = None, outputs: tuple[str, ...] = ("y",), **attributes: object) -> Any:
    """(nodes, constants) of one operator from x to y."""
    constants = constants or {}
    return [helper.make_node(kind, ["x", *constants], list(outputs), kind, **attributes)], constants


POOL = {"kernel_shape": [3, 3], "strides": [2, 2]}
CASES: dict[str, Any] = {
    "conv": node("Conv", {"w": floats(6, 2, 3, 3), "b": floats(6)}, group=2, pads=[1, 1, 1, 1], strides=[2, 1]),
    "conv strided 1x1": node("Conv", {"w": floats(6, 4, 1, 1)}, strides=[2, 2]),
    "conv uneven": node("Conv", {"w": floats(6, 4, 3, 3)}, pads=[0, 1, 2, 1], dilations=[1, 2]),
    "conv same upper": node("Conv", {"w": floats(6, 4, 2, 3)}, auto_pad="SAME_UPPER", strides=[2, 2]),
    "conv same lower": node("Conv", {"w": floats(6, 4, 2, 3)}, auto_pad="SAME_LOWER"),
    "conv valid": node("Conv", {"w": floats(6, 4, 2, 3)}, auto_pad="VALID"),
    "norm": node("BatchNormalization", {"s": floats(4), "b": floats(4), "m": floats(4), "v": abs(floats(4))}),
    "layer norm": node("LayerNormalization", {"s": floats(6), "b": floats(6)}, axis=-1),
    "max pool": node("MaxPool", None, **POOL, pads=[1, 1, 1, 1], ceil_mode=1),
    "max pool uneven": node("MaxPool", None, **POOL, pads=[0, 0, 1, 1]),
    "mean pool": node("AveragePool", None, **POOL, pads=[1, 1, 1, 1]),
    "mean pool counted": node("AveragePool", None, **POOL, pads=[0, 1, 1, 0], count_include_pad=1),
    "mean pool uneven": node("AveragePool", None, **POOL, pads=[0, 1, 1, 0]),
    "global mean": node("GlobalAveragePool"),
    "global max": node("GlobalMaxPool"),
    "reduce mean": node("ReduceMean", {"axes": whole(2, -1)}, keepdims=0),
    "reduce all": node("ReduceSum"),
    "reduce nothing": node("ReduceSum", {"axes": whole()}, noop_with_empty_axes=1),
    "reduce max": node("ReduceMax", {"axes": whole(1)}),
    "clip": node("Clip", {"low": np.float32(-0.5), "high": np.float32(0.7)}),
    "clip one side": ([helper.make_node("Clip", ["x", "", "high"], ["y"])], {"high": np.array(0.1, np.float32)}),
    "prelu": node("PRelu", {"slope": floats(4, 1, 1)}),
    "gelu": node("Gelu"),
    "gelu tanh": node("Gelu", approximate="tanh"),
    "hard sigmoid": node("HardSigmoid", alpha=0.3, beta=0.4),
    "leaky": node("LeakyRelu", alpha=0.2),
    "elu": node("Elu", alpha=0.5),
    "softmax": node("Softmax", axis=1),
    "power": node("Pow", {"two": np.array(2, np.float32)}),
    "divide": node("Div", {"d": abs(floats(4, 1, 1)) + 1}),
    "least": node("Min", {"a": floats(6), "b": floats(4, 1, 1)}),
    "most": node("Max", {"a": floats(6)}),
    "sum": node("Sum", {"a": floats(6), "b": floats(6)}),
    "reshape": node("Reshape", {"shape": whole(0, -1, 3)}),
    "flatten": node("Flatten"),
    "flatten all": node("Flatten", axis=0),
    "transpose": node("Transpose", perm=[0, 2, 3, 1]),
    "transpose reversed": node("Transpose"),
    "unsqueeze": node("Unsqueeze", {"axes": whole(0, -1)}),
    "slice": node("Slice", {"s": whole(1, -3), "e": whole(2**62, -1), "a": whole(2, 3), "p": whole(2, 1)}),
    "slice first": node("Slice", {"s": whole(0), "e": whole(1)}),
    "gather one": node("Gather", {"i": np.array(-1, np.int64)}, axis=1),
    "gather some": node("Gather", {"i": whole(2, 0, -1)}, axis=2),
    "pad": node("Pad", {"pads": whole(0, 0, 1, 2, 0, 0, 0, 1), "value": np.array(0.5, np.float32)}),
    "slice backwards": node(
        "Slice", {"s": whole(-1, 4), "e": whole(-(2**62), 0), "a": whole(3, 2), "p": whole(-1, -2)}
    ),
    "pad some axes": node(
        "Pad",
        {"pads": whole(1, 2, 0, 1), "value": np.array(0.5, np.float32), "a": whole(-1, 2)},
    ),
    "pad mirrored": node("Pad", {"pads": whole(0, 0, 1, 2, 0, 0, 0, 1)}, mode="reflect"),
    "expand": node("Expand", {"shape": whole(3, 1, 1, 1, 1)}),
    "split": node("Split", {"sizes": whole(1, 3)}, ("rest", "y"), axis=1),
    "split evenly": node("Split", None, ("y", "rest"), axis=3, num_outputs=2),
    "squeeze": (
        [helper.make_node("GlobalAveragePool", ["x"], ["g"]), helper.make_node("Squeeze", ["g", "axes"], ["y"])],
        {"axes": whole(2, 3)},
    ),
    "matrices": (
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w", "b"], ["y"], alpha=0.5)],
        {"w": floats(168, 3), "b": floats(1, 3)},
    ),
    "matrices transposed": (
        [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w", "b"], ["y"], transB=1)],
        {"w": floats(3, 168), "b": floats(3)},
    ),
    "matmul": node("MatMul", {"w": floats(6, 5)}),
    "shapes": (
        [
            helper.make_node("Shape", ["x"], ["n"], start=0, end=1),
            helper.make_node("Cast", ["n"], ["f"], to=TensorProto.FLOAT),
            helper.make_node("Div", ["seven", "n"], ["half"]),
            helper.make_node("Concat", ["n", "half", "minus"], ["shape"], axis=0),
            helper.make_node("ConstantOfShape", ["one"], ["filled"], value=helper.make_tensor("v", 1, [1], [2.0])),
            helper.make_node("Reshape", ["x", "shape"], ["r"]),
            helper.make_node("Mul", ["r", "filled"], ["m"]),
            helper.make_node("Add", ["m", "f"], ["y"]),
        ],
        {"seven": whole(8), "minus": whole(-1), "one": whole(1)},
    ),
    "choice": (
        [
            helper.make_node("Equal", ["a", "b"], ["same"]),
            helper.make_node("Range", ["zero", "six", "two"], ["r"]),
            helper.make_node("Cast", ["r"], ["c"], to=TensorProto.FLOAT),
            helper.make_node("ReduceMean", ["c"], ["mean"], keepdims=0),
            helper.make_node("Where", ["same", "x", "mean"], ["y"]),
        ],
        {"a": whole(*range(6)), "b": whole(0, 1, 0, 3, 0, 5)}
        | {n: np.array(v, np.int64) for n, v in (("zero", 0), ("six", 6), ("two", 2))},
    ),
}
PLAIN = "Relu Sigmoid HardSwish Mish Softplus Tanh Erf Exp Neg Abs Identity Dropout"
for _plain in PLAIN.split():
    CASES[_plain] = node(_plain)
for _combining in ("Add", "Sub", "Mul"):
    CASES[_combining] = node(_combining, {"c": floats(4, 1, 1)})
for _positive in ("Sqrt", "Reciprocal"):
    CASES[_positive] = ([helper.make_node("Exp", ["x"], ["e"]), helper.make_node(_positive, ["e"], ["y"])], {})


@pytest.mark.parametrize("case", CASES)
def test_an_operator_computes_what_onnx_runtime_computes(case: str) -> None:
    nodes, constants = CASES[case]
    model, x = graph_of(nodes, constants, MAP), floats(*MAP)
    expected = values_in_graph(model, {"x": x})["y"]
    for images in (torch.from_numpy(x), torch.from_numpy(x).contiguous(memory_format=torch.channels_last)):
        found = OnnxModule(model)(images).detach().numpy()
        assert found.shape == expected.shape
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


def test_every_operator_has_a_case() -> None:
    shown = {node.op_type for nodes, _ in CASES.values() for node in nodes}
    assert set(OPERATORS) - shown == {"Swish"}  # of opset 24, which ONNX Runtime does not compute yet


def test_swish_is_the_product_with_its_sigmoid() -> None:
    model = graph_of(*node("Swish", alpha=2.0), MAP, opset=24)
    x = torch.from_numpy(floats(*MAP))
    torch.testing.assert_close(OnnxModule(model)(x), x * torch.sigmoid(2 * x))


def test_old_axes_are_attributes() -> None:
    x = floats(*MAP)
    for kind, axes in (("ReduceMean", [2, 3]), ("Unsqueeze", [1])):
        opset = 17 if kind == "ReduceMean" else 11
        model = graph_of([helper.make_node(kind, ["x"], ["y"], axes=axes)], {}, MAP, opset=opset)
        expected = values_in_graph(model, {"x": x})["y"]
        np.testing.assert_allclose(OnnxModule(model)(torch.from_numpy(x)).numpy(), expected, rtol=1e-5, atol=1e-6)


def test_constants_in_nodes_are_constants() -> None:
    nodes = [
        helper.make_node("Constant", [], ["c"], value=numpy_helper.from_array(floats(6))),
        helper.make_node("Constant", [], ["axes"], value_ints=[1]),
        helper.make_node("Add", ["x", "c"], ["s"]),
        helper.make_node("ReduceSum", ["s", "axes"], ["y"]),
    ]
    model, x = graph_of(nodes, {}, MAP), floats(*MAP)
    expected = values_in_graph(model, {"x": x})["y"]
    np.testing.assert_allclose(OnnxModule(model)(torch.from_numpy(x)).detach().numpy(), expected, rtol=1e-5, atol=1e-5)


def test_weights_train_numbers_of_formulas_do_not_and_trained_weights_go_back_into_the_graph() -> None:
    nodes = [
        helper.make_node("Add", ["x", "bias"], ["a"]),
        helper.make_node("Mul", ["a", "three"], ["m"]),
        helper.make_node("MatMul", ["m", "w"], ["y"]),
    ]
    constants = {"bias": floats(6), "three": np.array(3, np.float32), "w": floats(6, 2), "unused": floats(3)}
    model = graph_of(nodes, constants, MAP)
    module = OnnxModule(model)
    assert set(module.trained()) == {"bias", "w"}
    with torch.no_grad():
        module.trained()["w"].add_(1)
    weights_into_graph_(module, model)
    found = {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}
    np.testing.assert_array_equal(found["w"], constants["w"] + 1)
    np.testing.assert_array_equal(found["unused"], constants["unused"])


def test_gradients_agree_with_finite_differences() -> None:
    module = OnnxModule(toy_graph()).double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    weight = module.trained()["block.weight"]

    def loss() -> torch.Tensor:
        return module(images).pow(2).sum()

    loss().backward()
    assert weight.grad is not None
    with torch.no_grad():
        before = loss()
        weight[3, 5, 1, 2] += 1e-6
        slope = float(loss() - before) / 1e-6
    assert float(weight.grad[3, 5, 1, 2]) == pytest.approx(slope, rel=1e-4)


def test_inner_values_are_freed_when_nobody_reads_them_any_more_and_can_be_watched() -> None:
    module, seen = OnnxModule(toy_graph()), []
    module.run(torch.zeros(1, 3, 8, 8), lambda name, _: seen.append(name))
    assert seen[0] == "stem"
    assert seen[-1] == "logits"


def test_an_operator_without_a_torch_form_is_named() -> None:
    with pytest.raises(BuildFailed, match="The graph has Hardmax, which edgekd cannot train"):
        OnnxModule(graph_of(*node("Hardmax"), MAP))


def test_a_graph_with_two_inputs_is_refused() -> None:
    model = toy_graph()
    model.graph.input.append(helper.make_tensor_value_info("more", TensorProto.FLOAT, [1]))
    with pytest.raises(BuildFailed, match="one input, got 2: images, more"):
        OnnxModule(model)


def test_an_operator_that_had_another_meaning_in_the_opset_of_its_graph_is_refused() -> None:
    with pytest.raises(BuildFailed, match="of ONNX opset 12, and Softmax had another meaning before opset 13"):
        OnnxModule(graph_of(*node("Softmax"), MAP, opset=12))
    with pytest.raises(BuildFailed, match="of ONNX opset 6, and operators had another meaning before opset 7"):
        OnnxModule(graph_of(*node("Relu"), MAP, opset=6))


def test_what_operators_make_anew_is_on_the_device_of_what_they_are_given() -> None:
    device = torch.device("meta")
    sizes = SimpleNamespace(device=device, tolist=lambda: [2, 3])
    number = SimpleNamespace(device=device, dtype=torch.int64, item=lambda: 2)
    assert OPERATORS["Shape"]({})(torch.zeros(MAP, device=device)).device == device
    assert OPERATORS["ConstantOfShape"]({})(sizes).device == device
    assert OPERATORS["Range"]({})(number, SimpleNamespace(item=lambda: 8), number).device == device
