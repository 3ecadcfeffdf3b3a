"""Other ranges and layers in float in a finished graph, and inner values of an optimised one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from edgekd.quant.form import quantized_nodes
from edgekd.quant.layers import GraphView
from edgekd.quant.nncf import NncfForm, openvino_form
from edgekd.quant.observe import observe
from edgekd.quant.onnxruntime import OrtForm, prepared_graph, tensorrt_form
from edgekd.quant.ranges import Range, range_of
from edgekd.quant.revert import grid_of, reverted, set_ranges_
from edgekd.runtimes.compare import batches
from edgekd.runtimes.onnx_file import write_graph
from edgekd.runtimes.onnxruntime import inner_values, values_in_graph
from tests.quant.attention import attention
from tests.quant.chains import chain, images


@pytest.fixture(scope="module")
def form(tmp_path_factory: pytest.TempPathFactory) -> OrtForm:
    """TensorRT's form keeps its activation functions, as NNCF's does."""
    folder = tmp_path_factory.mktemp("chain")
    write_graph(chain(), folder / "model.onnx", made_by="test")
    return tensorrt_form(prepared_graph(folder / "model.onnx", folder), attention=False)


@pytest.fixture(scope="module")
def quantized(form: OrtForm) -> onnx.ModelProto:
    seen = observe(form.full, images())
    return form.build({name: range_of(found, "minmax", symmetric=True) for name, found in seen.histograms.items()})


def logits(model: onnx.ModelProto) -> np.ndarray:
    return values_in_graph(model, {"images": images()})["logits"]


def test_with_every_node_in_float_nothing_is_rounded(form: OrtForm, quantized: onnx.ModelProto) -> None:
    made = reverted(quantized, form.full, [node.name for node in form.full.graph.node])
    assert [node for node in made.graph.node if node.op_type == "QuantizeLinear"] == []
    np.testing.assert_array_equal(logits(made), logits(form.full))
    assert np.abs(logits(quantized) - logits(form.full)).max() > 1e-3


def test_the_rounding_of_the_graphs_output_stays_whatever_is_in_float(
    form: OrtForm, quantized: onnx.ModelProto
) -> None:
    rounded = onnx.ModelProto()
    rounded.CopyFrom(quantized)
    (head,) = [node for node in rounded.graph.node if "logits" in node.output]
    head.output[0] = "logits.raw"
    rounded.graph.initializer.append(numpy_helper.from_array(np.float32(0.1), "logits.scale"))
    rounded.graph.initializer.append(numpy_helper.from_array(np.int8(0), "logits.zero"))
    grid = ["logits.scale", "logits.zero"]
    rounded.graph.node.append(helper.make_node("QuantizeLinear", ["logits.raw", *grid], ["logits.codes"], "logits.q"))
    rounded.graph.node.append(helper.make_node("DequantizeLinear", ["logits.codes", *grid], ["logits"], "logits.dq"))
    made = reverted(rounded, form.full, [node.name for node in form.full.graph.node])
    (left,) = [node for node in made.graph.node if node.op_type == "QuantizeLinear"]
    assert left.name == "logits.q"
    assert np.abs(logits(made) - logits(form.full)).max() <= 0.051


@pytest.fixture(scope="module")
def smoothed(tmp_path_factory: pytest.TempPathFactory) -> tuple[onnx.ModelProto, NncfForm]:
    """(FP32 graph, NNCF's form): with attention NNCF moves outliers from activations into weights."""
    folder = tmp_path_factory.mktemp("attention")
    write_graph(attention(), folder / "model.onnx", made_by="test")
    full = prepared_graph(folder / "model.onnx", folder)
    feeds = [{"images": image} for image in batches(images(16), 1)]
    return full, openvino_form(full, feeds, reduce_range=False, attention=True)


def ranges_of(form: NncfForm) -> dict[str, Range]:
    return {name: range_of(found, "minmax") for name, found in observe(form.full, images(16)).histograms.items()}


def test_the_fp32_twin_of_a_smoothed_graph_is_smoothed_too_and_computes_the_same(
    smoothed: tuple[onnx.ModelProto, NncfForm],
) -> None:
    full, form = smoothed
    muls = [node.output[0] for node in form.full.graph.node if node.op_type == "Mul"]
    assert len(muls) == 2
    onnx.checker.check_model(form.full, full_check=True)
    assert np.allclose(logits(form.full), logits(full), rtol=1e-4, atol=1e-4)
    rounded = {node.input[0] for node in form.quantized.graph.node if node.op_type == "QuantizeLinear"}
    assert set(muls) <= rounded <= set(observe(form.full, images(2)).histograms)


def test_with_every_node_in_float_a_graph_with_attention_is_its_fp32_twin(
    smoothed: tuple[onnx.ModelProto, NncfForm],
) -> None:
    full, form = smoothed
    ranges = ranges_of(form)
    names = quantized_nodes(form.build(ranges))
    assert {"query", "key", "value", "scores", "mixed"} <= set(names)
    made = form.build(ranges, names)
    assert not [node for node in made.graph.node if node.op_type == "QuantizeLinear"]
    assert np.allclose(logits(made), logits(full), rtol=1e-4, atol=1e-4)


def test_each_layer_of_a_graph_with_attention_can_be_left_in_float(smoothed: tuple[onnx.ModelProto, NncfForm]) -> None:
    full, form = smoothed
    ranges, expected = ranges_of(form), logits(full)
    noise = ((logits(form.build(ranges)) - expected) ** 2).sum()
    for name in quantized_nodes(form.build(ranges)):
        assert ((logits(form.build(ranges, [name])) - expected) ** 2).sum() < 1.5 * noise


def test_a_node_in_float_reads_its_own_weights_and_its_neighbours_stay_int8(
    form: OrtForm, quantized: onnx.ModelProto
) -> None:
    made = reverted(quantized, form.full, ["depth"])
    onnx.checker.check_model(made, full_check=True)
    assert set(quantized_nodes(made)) == set(quantized_nodes(quantized)) - {"depth"}
    view = GraphView(made)
    assert np.array_equal(view.array(view.nodes["depth"].input[1]), GraphView(form.full).array("depth.w"))
    # Its input is read by nobody else, but an INT8 layer made it: it stays rounded.
    assert view.maker[view.nodes["depth"].input[0]].op_type == "DequantizeLinear"


def test_ranges_are_replaced_and_symmetric_ones_stay_so(quantized: onnx.ModelProto) -> None:
    made = onnx.ModelProto()
    made.CopyFrom(quantized)
    set_ranges_(made, {"images": Range(-1.0, 2.54)})
    view = GraphView(made)
    (node,) = [node for node in view.readers["images"] if node.op_type == "QuantizeLinear"]
    assert view.array(node.input[1]) == pytest.approx(0.02)
    assert view.array(node.input[2]) == 0
    assert view.array(node.input[1]).shape == GraphView(quantized).array(node.input[1]).shape


def test_quantizers_that_meet_in_a_concatenation_share_the_wider_range_and_equal_numbers_alone_do_not() -> None:
    """a, b and, through a second concatenation and a pooling, c meet; d and e have the same scale by chance."""
    model = onnx.ModelProto()
    graph, helper = model.graph, onnx.helper
    for name in "abcde":
        for kind, source, made in (
            ("QuantizeLinear", name, f"{name}.q"),
            ("DequantizeLinear", f"{name}.q", f"{name}.d"),
        ):
            graph.node.append(helper.make_node(kind, [source, f"{name}.s", f"{name}.z"], [made], made))
        graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.5), f"{name}.s"))
        graph.initializer.append(onnx.numpy_helper.from_array(np.uint8(10), f"{name}.z"))
    graph.node.append(helper.make_node("Concat", ["a.d", "b.d"], ["ab"], "ab", axis=1))
    graph.node.append(helper.make_node("MaxPool", ["c.d"], ["c.p"], "c.p", kernel_shape=[1, 1]))
    graph.node.append(helper.make_node("Concat", ["ab", "c.p"], ["abc"], "abc", axis=1))
    graph.node.append(helper.make_node("Add", ["d.d", "e.d"], ["sum"], "sum"))
    found = {
        "a": Range(0.0, 5.1),
        "b": Range(-5.1, 0.0),
        "c": Range(0.0, 1.0),
        "d": Range(0.0, 2.55),
        "e": Range(-1, 0),
    }
    set_ranges_(model, found)
    view = GraphView(model)
    for name in "abc":
        assert view.array(f"{name}.s") == pytest.approx(10.2 / 255)
        assert view.array(f"{name}.z") in (127, 128)
    assert view.array("d.s") == pytest.approx(2.55 / 255)
    assert view.array("e.s") == pytest.approx(1 / 255)


def test_a_grid_holds_zero_exactly_and_a_range_of_nothing_has_scale_one() -> None:
    scale, point = grid_of(Range(-1.0, 3.0), "uint8", symmetric=False)
    assert (float(scale), int(point)) == (pytest.approx(4 / 255), 64)
    scale, point = grid_of(Range(0.0, 0.0), "int8", symmetric=True)
    assert (float(scale), int(point)) == (1.0, 0)


def test_inner_values_of_an_optimised_graph_are_those_of_the_plain_one(tmp_path: Path) -> None:
    model = chain()
    feeds = [{"images": images(3)}, {"images": images(2, seed=4)}]
    for feed, values in zip(feeds, inner_values(model, ["depth.act", "logits"], feeds), strict=True):
        plain = values_in_graph(model, feed)
        assert list(values) == ["depth.act", "logits"]
        assert np.allclose(values["depth.act"], plain["depth.act"], atol=1e-5)
        assert np.allclose(values["logits"], plain["logits"], atol=1e-5)


def test_nncf_corrects_biases_only_where_it_is_asked_to(form: OrtForm) -> None:
    """Without correction the float biases of a graph stay the same bits."""
    name = form.full.graph.input[0].name
    feeds = [{name: image} for image in batches(images(8), 1)]

    def vectors(model: onnx.ModelProto) -> set[bytes]:
        tensors = (numpy_helper.to_array(entry) for entry in model.graph.initializer if len(entry.dims) == 1)
        return {tensor.tobytes() for tensor in tensors if tensor.dtype == np.float32 and len(tensor) > 1}

    left, corrected = (
        vectors(openvino_form(form.full, feeds, reduce_range=False, attention=False, corrects=corrects).quantized)
        for corrects in (False, True)
    )
    assert vectors(form.full) <= left
    assert not vectors(form.full) <= corrected
