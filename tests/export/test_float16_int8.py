"""INT8 graphs that compute in float16 between their 8-bit layers: types, codes, scales, what stays float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgekd.core.bundle import ModelBundle
from edgekd.core.stage import Context
from edgekd.errors import BuildFailed, UserError
from edgekd.export.float16 import float16_around_int8, opset_of
from edgekd.export.float16_int8 import float16_scales, prepared
from edgekd.export.precision import Fp16Config
from edgekd.export.precision_int8 import Int8Fp16Stage
from edgekd.lint.float16_ranges import Kept
from edgekd.lint.lint import lint
from edgekd.lint.rule import Surroundings
from edgekd.quant.ptq_stage import QuantizeConfig, QuantizeStage
from edgekd.runtimes.compare import compare_logits, logits_of
from edgekd.runtimes.onnx_file import MODEL_FILE, graph_from_file
from edgekd.runtimes.onnxruntime import emulated
from edgekd.runtimes.samples import Samples, bundle_from_samples, random_images
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_graphs import toy_onnx_bundle

IMAGES = random_images((3, 8, 8), samples=48, seed=0)
QDQ = ("QuantizeLinear", "DequantizeLinear")


@pytest.fixture(scope="module")
def ctx(tmp_path_factory: pytest.TempPathFactory) -> Context:
    return make_context(tmp_path_factory.mktemp("int8"))


@pytest.fixture(scope="module")
def full(ctx: Context) -> ModelBundle:
    return toy_onnx_bundle(ctx.blobs, ctx.scratch)


@pytest.fixture(scope="module")
def samples(ctx: Context, full: ModelBundle) -> ModelBundle:
    return bundle_from_samples(
        Samples(IMAGES, None, "real"),
        preprocessing=full.model.preprocessing,
        source="a test",
        blobs=ctx.blobs,
        scratch=ctx.scratch,
    )


@pytest.fixture(scope="module")
def int8(ctx: Context, full: ModelBundle, samples: ModelBundle) -> ModelBundle:
    stage = QuantizeStage(QuantizeConfig(scheme="tensorrt-s8", calib_method="minmax"))
    return run_stage(stage, make_inputs(model=full, calibration=samples), ctx).bundle


@pytest.fixture(scope="module")
def graph(ctx: Context, int8: ModelBundle) -> onnx.ModelProto:
    return graph_from_file(ctx.path(int8, MODEL_FILE))


def types_of(model: onnx.ModelProto) -> dict[str, int]:
    found = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    return {value.name: value.type.tensor_type.elem_type for value in (*found.value_info, *found.output)}


def constants_of(model: onnx.ModelProto) -> dict[str, NDArray[np.generic]]:
    return {entry.name: numpy_helper.to_array(entry) for entry in model.graph.initializer}


def codes_of_weights(model: onnx.ModelProto) -> list[NDArray[np.float64]]:
    """The 8-bit codes of each weight, in the order of the nodes."""
    constants, found = constants_of(model), []
    for node in model.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in constants:
            scale = constants[node.input[1]].astype(np.float64)
            weight = constants[node.input[0]].astype(np.float64)
            axis = next((entry.i for entry in node.attribute if entry.name == "axis"), 1)
            shape = [-1 if place == axis else 1 for place in range(weight.ndim)] if scale.size > 1 else []
            found.append(np.clip(np.rint(weight / scale.reshape(shape)), -128, 127))
    return found


def test_everything_between_the_8_bit_layers_is_half_and_no_cast_stands_beside_a_pair(graph: onnx.ModelProto) -> None:
    made = float16_around_int8(prepared(graph), Kept())
    onnx.checker.check_model(made, full_check=True)
    assert opset_of(made) == 19
    assert [node.output[0] for node in made.graph.node if node.op_type == "Cast"] == ["logits"]
    inner = {name: kind for name, kind in types_of(made).items() if name != "logits"}
    assert set(inner.values()) <= {TensorProto.FLOAT16, TensorProto.INT8, TensorProto.INT64}
    assert sum(kind == TensorProto.FLOAT16 for kind in inner.values()) > 5
    assert made.graph.input[0].type.tensor_type.elem_type == TensorProto.FLOAT
    # The image is rounded in float32, by the same step that its codes are read with.
    first = next(node for node in made.graph.node if node.input[0] == "images")
    second = next(node for node in made.graph.node if node.input[0] == first.output[0])
    constants = constants_of(made)
    scales = constants[first.input[1]], constants[second.input[1]]
    assert (scales[0].dtype, scales[1].dtype) == (np.float32, np.float16)
    assert scales[0] == scales[1].astype(np.float32)


def test_the_codes_of_the_weights_stay_what_they_were(graph: onnx.ModelProto) -> None:
    before, after = codes_of_weights(graph), codes_of_weights(float16_around_int8(prepared(graph), Kept()))
    assert len(before) >= 3
    changed = [float(np.mean(one != other)) for one, other in zip(before, after, strict=True)]
    assert max(changed) < 0.02  # those on the border of two codes, as the step moved by its last digit
    assert max(float(np.abs(one - other).max()) for one, other in zip(before, after, strict=True)) <= 1


def test_weights_on_their_levels_keep_every_code(graph: onnx.ModelProto) -> None:
    on_levels = prepared(graph)
    before = codes_of_weights(on_levels)
    after = codes_of_weights(float16_around_int8(on_levels, Kept()))
    assert all(np.array_equal(one, other) for one, other in zip(before, after, strict=True))


def test_tiny_scales_are_rounded_up_and_never_become_zero() -> None:
    scales = np.array([1e-12, 3e-7, 1e-5, 0.01, 1.0, 1e6], np.float32)
    found = float16_scales(scales)
    assert (found[:3] >= scales[:3]).all()
    assert (found[:3] - scales[:3] <= 2.0**-24).all()
    assert np.allclose(found[3:5], scales[3:5], rtol=2.0**-11)
    assert found[5] == scales[5]  # beyond float16: what it belongs to stays float32
    assert np.array_equal(found[:5].astype(np.float16).astype(np.float32), found[:5])


def test_a_kept_value_stays_float_and_is_rounded_without_a_cast(graph: onnx.ModelProto) -> None:
    ready = prepared(graph)
    quantize = next(
        node for node in ready.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] not in {"images", *constants_of(ready)}
    )  # fmt: skip
    value = quantize.input[0]
    made = float16_around_int8(ready, Kept(values=frozenset({value})))
    onnx.checker.check_model(made, full_check=True)
    types, makers = types_of(made), {name: node for node in made.graph.node for name in node.output}
    assert types[value] == TensorProto.FLOAT
    reading = next(node for node in made.graph.node if node.op_type == "QuantizeLinear" and node.name == quantize.name)
    assert reading.input[0] == value
    for node in made.graph.node:
        if node.op_type == "QuantizeLinear" and node.input[0] in makers:
            assert makers[node.input[0]].op_type != "Cast"


def test_an_older_opset_and_control_flow_are_refused(graph: onnx.ModelProto) -> None:
    with pytest.raises(BuildFailed, match=r"take ONNX opset 19, and the graph is of 17"):
        float16_around_int8(graph, Kept())
    ready = prepared(graph)
    branch = helper.make_graph([], "b", [], [])
    ready.graph.node.append(helper.make_node("If", ["c"], ["d"], then_branch=branch, else_branch=branch))
    with pytest.raises(BuildFailed, match="If holds a subgraph"):
        float16_around_int8(ready, Kept())


def test_the_stage_computes_what_int8_computes_and_its_graph_suits_tensorrt(
    ctx: Context, full: ModelBundle, int8: ModelBundle, samples: ModelBundle
) -> None:
    result = run_stage(Int8Fp16Stage(Fp16Config()), make_inputs(model=int8, samples=samples), ctx)
    assert (result.bundle.tags["precision"], result.bundle.tags["scheme"]) == ("int8", "tensorrt-s8-fp16")
    assert result.decisions == ()
    path = ctx.path(result.bundle, MODEL_FILE)
    assert path.stat().st_size < 0.75 * ctx.path(int8, MODEL_FILE).stat().st_size
    with emulated(ctx.path(full, MODEL_FILE)) as one, emulated(ctx.path(int8, MODEL_FILE)) as two:
        wanted, plain = logits_of(one, IMAGES), logits_of(two, IMAGES)
    with emulated(path) as session:
        found = logits_of(session, IMAGES)
    lost, before = compare_logits(wanted, found), compare_logits(wanted, plain)
    assert lost.sqnr_db > before.sqnr_db - 3
    assert result.metrics["parity_cosine"] == pytest.approx(compare_logits(plain, found).cosine)
    where = Surroundings(target="jetson", runtimes=("tensorrt",), precisions=("int8",), versions={"tensorrt": "10.3"})
    asked = [f for f in lint(graph_from_file(path), where).findings if f.severity in ("error", "warning")]
    before_it = [
        f for f in lint(graph_from_file(ctx.path(int8, MODEL_FILE)), where).findings
        if f.severity in ("error", "warning")
    ]  # fmt: skip
    assert [(f.rule, f.node) for f in asked] == [(f.rule, f.node) for f in before_it]


def test_without_samples_what_may_overflow_stays_float(ctx: Context, int8: ModelBundle) -> None:
    result = run_stage(Int8Fp16Stage(Fp16Config()), make_inputs(model=int8), ctx)
    assert any(sentence.startswith("Kept in FP32: ") for sentence in result.decisions)


def test_other_graphs_are_refused_with_the_scheme_to_use(ctx: Context, full: ModelBundle) -> None:
    with pytest.raises(
        UserError, match=r"takes an INT8 graph of the scheme tensorrt-s8, but its input has .*''"
    ) as err:
        run_stage(Int8Fp16Stage(Fp16Config()), make_inputs(model=full), ctx)
    assert "quantize with scheme tensorrt-s8" in (err.value.hint or "")


def test_the_file_is_the_same_each_time(graph: onnx.ModelProto, tmp_path: Path) -> None:
    texts = [float16_around_int8(prepared(graph), Kept()).SerializeToString(deterministic=True) for _ in range(2)]
    assert texts[0] == texts[1]
