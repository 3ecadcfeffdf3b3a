"""Which nodes are quantized: by family, and for TensorRT around residual additions."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgekd.core.events import SilentReporter
from edgekd.lint.lint import lint
from edgekd.lint.rule import Surroundings
from edgekd.lint.view import LintGraph
from edgekd.quant.form import quantized_nodes
from edgekd.quant.placement import Placement, is_linear, without_branch_rounding_
from edgekd.quant.ptq import CalibratedScheme, PtqConfig, int8_builder
from edgekd.runtimes.samples import Samples
from tests.quant.attention import attention
from tests.quant.chains import chain, classifier, images

TENSORRT = Surroundings(target="toy", runtimes=("tensorrt",), precisions=("int8",), measures=False)


def built(
    folder: Path, model: onnx.ModelProto, scheme: CalibratedScheme, placement: Placement = "auto"
) -> onnx.ModelProto:
    onnx.save(model, folder / "fp32.onnx")
    config = PtqConfig(calib_method="minmax", bias_correction=False, placement=placement)
    samples = Samples(images(4), None, "synthetic")
    made = int8_builder(
        folder / "fp32.onnx", samples, scheme, config, scratch=folder, seed=0, reporter=SilentReporter()
    )
    return made.build()


def residual(*, downsample: bool) -> onnx.ModelProto:
    """stem -> ReLU -> two convolutions, added to their input or to a 1x1 convolution of it -> ReLU -> mean -> head."""
    rng = np.random.default_rng(0)
    shapes = {"stem": (6, 3, 3, 3), "one": (6, 6, 3, 3), "two": (6, 6, 3, 3), "side": (6, 6, 1, 1)}
    constants = [
        numpy_helper.from_array((rng.standard_normal(shape) * 0.3).astype(np.float32), f"{name}.w")
        for name, shape in shapes.items()
    ]
    constants.append(numpy_helper.from_array(np.array([2, 3], np.int64), "axes"))
    constants.append(numpy_helper.from_array(rng.standard_normal((6, 5)).astype(np.float32), "head.w"))
    node = helper.make_node
    nodes = [
        node("Conv", ["images", "stem.w"], ["stem"], "stem", pads=[1] * 4),
        node("Relu", ["stem"], ["stem.r"], "stem.r"),
        node("Conv", ["stem.r", "one.w"], ["one"], "one", pads=[1] * 4),
        node("Relu", ["one"], ["one.r"], "one.r"),
        node("Conv", ["one.r", "two.w"], ["two"], "two", pads=[1] * 4),
        node("Conv", ["stem.r", "side.w"], ["side"], "side"),
        node("Add", ["two", "side" if downsample else "stem.r"], ["sum"], "sum"),
        node("Relu", ["sum"], ["sum.r"], "sum.r"),
        node("ReduceMean", ["sum.r", "axes"], ["pooled"], "pool", keepdims=0),
        node("MatMul", ["pooled", "head.w"], ["logits"], "head"),
    ]
    return classifier([entry for entry in nodes if downsample or entry.name != "side"], constants)


@pytest.mark.parametrize("downsample", [False, True])
def test_for_tensorrt_the_shortcut_alone_is_rounded_before_an_addition(tmp_path: Path, downsample: bool) -> None:
    made = built(tmp_path, residual(downsample=downsample), "tensorrt-s8")
    makers = {name: node for node in made.graph.node for name in node.output}
    (add,) = (node for node in made.graph.node if node.op_type == "Add")
    assert makers[add.input[0]].name == "two"
    assert makers[add.input[1]].op_type == "DequantizeLinear"


@pytest.mark.parametrize("model", ["residual", "chain", "attention"])
def test_the_lint_has_nothing_against_what_is_built_for_tensorrt(tmp_path: Path, model: str) -> None:
    graphs = {"residual": residual(downsample=True), "chain": chain(), "attention": attention()}
    report = lint(built(tmp_path, graphs[model], "tensorrt-s8"), TENSORRT)
    assert [finding for finding in report.findings if finding.severity != "info"] == []


def test_an_addition_of_two_other_values_is_left_alone(tmp_path: Path) -> None:
    made = built(tmp_path, residual(downsample=False), "tensorrt-s8")
    before = made.SerializeToString(deterministic=True)
    without_branch_rounding_(made)
    assert made.SerializeToString(deterministic=True) == before


@pytest.mark.parametrize("scheme", ["ort-u8s8", "openvino", "tensorrt-s8"])
def test_in_networks_with_attention_layers_with_weights_are_quantized_and_no_products(
    tmp_path: Path, scheme: CalibratedScheme
) -> None:
    made = built(tmp_path, attention(), scheme)
    graph = LintGraph(made)
    found = set(quantized_nodes(made))
    assert found & {"query", "key", "value", "head", "patch"}
    assert not found & {node.name for node in graph.products}
    assert not found & {"softmax", "sum", "last"}


@pytest.mark.parametrize("scheme", ["ort-u8s8", "tensorrt-s8"])
def test_where_layers_alone_are_quantized_the_shortcut_is_not_rounded(tmp_path: Path, scheme: CalibratedScheme) -> None:
    made = built(tmp_path, residual(downsample=False), scheme, "linear")
    (add,) = (node for node in made.graph.node if node.op_type == "Add")
    assert "stem.r" in add.input
    assert {"stem", "one", "two", "head"} <= set(quantized_nodes(made))


def test_a_placement_that_is_asked_for_is_taken(tmp_path: Path) -> None:
    for name in ("all", "linear"):
        (tmp_path / name).mkdir()
    every = set(quantized_nodes(built(tmp_path / "all", attention(), "ort-u8s8", "all")))
    layers = set(quantized_nodes(built(tmp_path / "linear", attention(), "ort-u8s8", "linear")))
    assert every - layers >= {"scores", "mixed"}
    assert layers >= {"query", "key", "value", "head"}


def test_products_on_the_processor_write_float(tmp_path: Path) -> None:
    made = built(tmp_path, attention(), "ort-u8s8")
    products = {node.output[0] for node in made.graph.node if node.op_type in ("MatMul", "Gemm")}
    assert not [node for node in made.graph.node if node.op_type == "QuantizeLinear" and node.input[0] in products]


@pytest.mark.parametrize(
    ("placement", "cnn", "transformer"), [("auto", False, True), ("all", False, False), ("linear", True, True)]
)
def test_auto_decides_by_family(placement: Literal["auto", "all", "linear"], cnn: bool, transformer: bool) -> None:
    assert (is_linear(chain(), placement), is_linear(attention(), placement)) == (cnn, transformer)
