from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgekd.core.stage import Context
from edgekd.errors import BuildFailed, UserError
from edgekd.export.float16 import float16_from_float32
from edgekd.export.precision import Fp16Config, Fp16Stage
from edgekd.lint.float16_ranges import Kept, magnitudes, overflowing, risky
from edgekd.runtimes.onnxruntime import values_in_graph
from edgekd.runtimes.samples import Samples, bundle_from_samples, random_images
from edgekd.runtimes.session import open_bundle
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_graphs import toy_graph, toy_onnx_bundle

IMAGES = random_images((3, 8, 8), samples=4, seed=0)
OVERFLOWING = 1e5
"""Scale of the stem's weights that carries inner values past 65504."""


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return make_context(tmp_path)


def value_types(model: onnx.ModelProto) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*inferred.value_info, *inferred.output)}


def test_everything_inside_is_half_and_the_outside_stays_float() -> None:
    half = float16_from_float32(toy_graph())
    onnx.checker.check_model(half, full_check=True)
    assert {entry.data_type for entry in half.graph.initializer} == {TensorProto.FLOAT16}
    assert half.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert half.graph.output[0].type.tensor_type.elem_type == TensorProto.FLOAT
    assert [node.op_type for node in half.graph.node].count("Cast") == 2
    assert value_types(half)["stem.relu"] == TensorProto.FLOAT16


def test_a_kept_value_and_what_touches_it_stay_float_with_one_cast_on_each_side() -> None:
    half = float16_from_float32(toy_graph(), Kept(values=frozenset({"block"})))
    types = value_types(half)
    assert types["block"] == types["sum"] == TensorProto.FLOAT  # made by, and read by, operators in float32
    assert types["stem.relu"] == types["pool"] == TensorProto.FLOAT16
    # images down, stem.relu up once for both of its readers, sum down, logits up
    assert [node.op_type for node in half.graph.node].count("Cast") == 4


def test_a_kept_operator_computes_in_float_between_casts() -> None:
    half = float16_from_float32(toy_graph(), Kept(operators=frozenset({"pool"})))
    made = {name: node for node in half.graph.node for name in node.output}
    types = value_types(half)
    assert types["pool"] == types[made["pool"].input[0]] == TensorProto.FLOAT
    assert types["sum.relu"] == types["features"] == TensorProto.FLOAT16


def test_the_original_is_left_as_it_was() -> None:
    graph = toy_graph()
    before = graph.SerializeToString(deterministic=True)
    float16_from_float32(graph)
    assert graph.SerializeToString(deterministic=True) == before


def test_inputs_that_onnx_wants_in_float_stay_float() -> None:
    nodes = [
        helper.make_node("Relu", ["images"], ["a"]),
        helper.make_node("Resize", ["a", "", "scales"], ["logits"], mode="nearest"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 1, 2, 2])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [1, 1, 4, 4])],
        [helper.make_tensor("scales", TensorProto.FLOAT, [4], [1, 1, 2, 2])],
    )
    half = float16_from_float32(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9))
    onnx.checker.check_model(half, full_check=True)
    assert half.graph.initializer[0].data_type == TensorProto.FLOAT


def test_values_near_the_limit_are_found_from_what_samples_show() -> None:
    graph = toy_graph(scale=OVERFLOWING)
    keep = overflowing(graph, magnitudes({"images": IMAGES, **values_in_graph(graph, {"images": IMAGES})}))
    assert {"stem", "stem.relu", "block", "sum"} <= keep.values
    assert not keep.values & {"images", "logits"}


def test_what_cannot_be_seen_inside_a_squaring_operator_counts() -> None:
    node = helper.make_node("LayerNormalization", ["a", "scale"], ["b"])
    graph = onnx.ModelProto(graph=onnx.GraphProto(node=[node]))
    assert overflowing(graph, {"a": 300.0, "b": 1.0}) == Kept(operators=frozenset({"b"}))
    assert overflowing(graph, {"a": 100.0, "b": 1.0}) == Kept()


def test_nan_and_infinity_count_as_out_of_range() -> None:
    seen = magnitudes({"a": np.array([np.nan], np.float32), "b": np.array([-np.inf], np.float32)})
    assert overflowing(onnx.ModelProto(), seen).values == {"a", "b"}


def test_without_samples_risky_operators_are_kept() -> None:
    assert risky(toy_graph()).names == ["pool"]


def test_a_graph_with_control_flow_is_refused() -> None:
    graph = toy_graph()
    graph.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=helper.make_graph([], "t", [], [])))
    with pytest.raises(BuildFailed, match="If holds a subgraph"):
        float16_from_float32(graph)


def test_a_quantized_graph_is_refused() -> None:
    graph = toy_graph()
    graph.graph.node.append(helper.make_node("QuantizeLinear", ["sum", "s"], ["q"]))
    with pytest.raises(UserError, match="convert its FP32 twin"):
        float16_from_float32(graph)


@pytest.mark.parametrize("scale", [1.0, OVERFLOWING])
def test_the_fp16_twin_is_half_the_size_and_close_even_where_plain_half_would_overflow(
    ctx: Context, scale: float
) -> None:
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch, scale=scale)
    samples = bundle_from_samples(
        Samples(IMAGES, None, "real"),
        preprocessing=model.model.preprocessing,
        source="a test",
        blobs=ctx.blobs,
        scratch=ctx.scratch,
    )
    result = run_stage(Fp16Stage(Fp16Config()), make_inputs(model=model, samples=samples), ctx)
    assert result.bundle.tags["precision"] == "fp16"
    assert result.metrics["samples_origin"] == "real"
    assert float(str(result.metrics["parity_max_abs"])) < 0.02 * float(str(result.metrics["parity_spread"]))
    assert any(sentence.startswith("Kept in FP32: block, ") for sentence in result.decisions) == (scale > 1)
    with open_bundle(model, ctx.blobs, "openvino") as full, open_bundle(result.bundle, ctx.blobs, "openvino") as half:
        feeds = {"images": IMAGES}
        np.testing.assert_allclose(half.infer(feeds)["logits"], full.infer(feeds)["logits"], rtol=0.05, atol=0.05)


def test_an_overflow_that_the_samples_did_not_show_is_an_error(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch, scale=OVERFLOWING)
    monkeypatch.setattr("edgekd.export.precision.risky", lambda _graph: Kept())
    with pytest.raises(BuildFailed, match="Values of the FP16 graph overflow: stem"):
        run_stage(Fp16Stage(Fp16Config()), make_inputs(model=model), ctx)


def test_only_an_fp32_graph_is_taken(ctx: Context) -> None:
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch).model_copy(update={"tags": {"precision": "int8"}})
    with pytest.raises(UserError, match="takes an FP32 graph, but its input is int8"):
        run_stage(Fp16Stage(Fp16Config()), make_inputs(model=model), ctx)
