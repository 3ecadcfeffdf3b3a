"""A graph that a library does not open: operator, node and the other runtimes are told, from recorded sentences."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from edgekd.errors import BuildFailed, UserError
from edgekd.runtimes.refused import refusal
from edgekd.runtimes.session import RUNTIMES

ACME = (
    "[ONNXRuntimeError] : 1 : FAIL : Load model from {path} failed:Fatal error: com.acme:Fancy(-1) is not a registered "
    "function/op"
)
UNKNOWN = (
    '[ONNXRuntimeError] : 10 : INVALID_GRAPH : Load model from {path} failed:This is an invalid model. In Node, ("b", '
    'NoSuch, "", -1) : ("x": tensor(float),) -> ("y": tensor(float),) , Error No Op registered for NoSuch with '
    "domain_version of 17"
)
NO_KERNEL = (
    "[ONNXRuntimeError] : 9 : NOT_IMPLEMENTED : Could not find an implementation for NoSuch(17) node with name 'b'"
)
OPENVINO = (
    "Exception from src/inference/src/cpp/core.cpp:84:\nModel wasn't fully converted.\nSummary:\n-- No conversion rule "
    "found for operations: com.acme.Fancy, NoSuch-17\n"
)


@pytest.fixture
def graph(tmp_path: Path) -> Path:
    """`Fancy` of a foreign domain inside an If, and then `NoSuch`, which no opset has."""
    value = helper.make_tensor_value_info
    fancy = helper.make_node("Fancy", ["x"], ["f"], name="a", domain="com.acme")
    body = helper.make_graph([fancy], "body", [], [value("f", TensorProto.FLOAT, [1, 3])])
    nodes = [
        helper.make_node("If", ["c"], ["i"], name="choice", then_branch=body, else_branch=body),
        helper.make_node("NoSuch", ["i"], ["y"], name="b"),
    ]
    inputs = [value("x", TensorProto.FLOAT, [1, 3]), value("c", TensorProto.BOOL, [])]
    whole = helper.make_graph(nodes, "whole", inputs, [value("y", TensorProto.FLOAT, [1, 3])])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("com.acme", 1)]
    path = tmp_path / "model.onnx"
    onnx.save(helper.make_model(whole, opset_imports=opsets, ir_version=9), path)
    return path


@pytest.mark.parametrize(
    ("said", "told"),
    [
        (ACME, r"has no com\.acme::Fancy at a \(com\.acme opset 1\); it says: com\.acme:Fancy\(-1\) is not"),
        (UNKNOWN, r"has no NoSuch at b \(ONNX opset 17\); it says: No Op registered for NoSuch"),
        (NO_KERNEL, r"has no NoSuch at b \(ONNX opset 17\); it says: Could not find an implementation"),
        (OPENVINO, r"has no com\.acme::Fancy at a .*, and 1 more; it says: No conversion rule found for operations"),
    ],
)
def test_an_operator_that_a_library_lacks_is_told_with_its_node_and_opset(said: str, told: str, graph: Path) -> None:
    error = refusal("Library 1.0", said.format(path=graph), graph, runtime="onnxruntime")
    assert isinstance(error, BuildFailed)
    with pytest.raises(BuildFailed, match=told):
        raise error
    assert str(graph) not in error.message
    assert error.hint is not None
    assert "openvino" in error.hint
    assert "onnxruntime," not in error.hint


def test_other_refusals_keep_the_words_of_the_library(graph: Path, tmp_path: Path) -> None:
    error = refusal("Library 1.0", "out of luck", graph, runtime="onnxruntime")
    assert isinstance(error, UserError)
    assert error.message == f"Library 1.0 cannot load {graph}: out of luck"
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"not a graph")
    assert "not a registered" in refusal("Library 1.0", ACME.format(path=broken), broken, runtime="openvino").message


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_the_installed_library_still_says_it_in_these_words(runtime: str, graph: Path) -> None:
    if not RUNTIMES.get(runtime).availability().ok:
        pytest.skip(f"needs {runtime}")
    with pytest.raises(BuildFailed, match=r"has no (com\.acme::Fancy at a|NoSuch at b) "):
        RUNTIMES.get(runtime).open(graph)
