from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import TensorProto, numpy_helper

from edgekd.core.bundle import ModelBundle
from edgekd.core.events import RecordingReporter
from edgekd.core.report_io import report_from_bundle
from edgekd.core.stage import Context, StageResult
from edgekd.errors import BuildFailed, UserError
from edgekd.quant import ptq_stage
from edgekd.quant.limit import Limit
from edgekd.quant.ptq_stage import QuantizeConfig, QuantizeStage, Scheme, measured_loss, quantized_share
from edgekd.quant.sensitivity import SensitivityReport
from edgekd.quant.sensitivity_stage import SensitivityConfig, SensitivityStage
from edgekd.quant.trial import Score
from edgekd.runtimes.onnx_file import bundle_from_graph, graph_from_file, write_graph
from edgekd.runtimes.samples import Samples, bundle_from_samples, random_images
from edgekd.runtimes.session import open_bundle
from edgekd.testing.harness import make_context, make_inputs, run_stage
from edgekd.testing.toy_graphs import toy_graph, toy_onnx_bundle

IMAGES = random_images((3, 8, 8), samples=40, seed=0)
CALIBRATED: tuple[Scheme, ...] = ("ort-u8s8", "openvino", "tensorrt-s8")


@pytest.fixture
def ctx(tmp_path: Path) -> Context:
    return make_context(tmp_path)


def quantize(
    ctx: Context, config: QuantizeConfig, *, samples: bool = True, labels: NDArray[np.int64] | None = None
) -> StageResult:
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    if not samples:
        return run_stage(QuantizeStage(config), make_inputs(model=model), ctx)
    data = calibration(ctx, model, labels=labels)
    return run_stage(QuantizeStage(config), make_inputs(model=model, calibration=data), ctx)


def calibration(
    ctx: Context, model: ModelBundle, origin: str = "real", labels: NDArray[np.int64] | None = None
) -> ModelBundle:
    return bundle_from_samples(
        Samples(IMAGES, labels, "real" if origin == "real" else "synthetic"),
        preprocessing=model.model.preprocessing,
        source="a test",
        blobs=ctx.blobs,
        scratch=ctx.scratch,
    )


def graph_of(ctx: Context, result: StageResult) -> onnx.GraphProto:
    return graph_from_file(ctx.path(result.bundle, "model.onnx")).graph


def recorded(ctx: Context) -> list[dict[str, Any]]:
    assert isinstance(ctx.reporter, RecordingReporter)
    return ctx.reporter.events


def number(result: StageResult, name: str) -> float:
    value = result.metrics[name]
    assert isinstance(value, (int, float))
    return float(value)


@pytest.mark.parametrize("scheme", [*CALIBRATED, "weight-only"])
def test_every_scheme_gives_a_graph_close_to_its_fp32_twin(ctx: Context, scheme: Scheme) -> None:
    result = quantize(ctx, QuantizeConfig(scheme=scheme), samples=scheme != "weight-only")
    assert result.bundle.tags == {"precision": "int8", "scheme": scheme}
    assert number(result, "sqnr_db") > 20
    assert number(result, "agreement") >= 0.9
    if scheme == "tensorrt-s8":
        return  # full-range weights: what this CPU's kernels make of them says nothing about a GPU
    with (
        open_bundle(toy_onnx_bundle(ctx.blobs, ctx.scratch), ctx.blobs, "openvino") as full,
        open_bundle(result.bundle, ctx.blobs, "openvino") as small,
    ):
        expected, found = (session.infer({"images": IMAGES})["logits"] for session in (full, small))
    assert np.abs(found - expected).max() < 0.25 * np.abs(expected).max()


@pytest.mark.parametrize("scheme", CALIBRATED)
def test_a_rerun_gives_the_same_bytes(ctx: Context, scheme: Scheme) -> None:
    config = QuantizeConfig(scheme=scheme)
    assert quantize(ctx, config).bundle.content == quantize(ctx, config).bundle.content


def test_cpu_graphs_have_unsigned_activations_and_signed_weights_per_channel(ctx: Context) -> None:
    graph = graph_of(ctx, quantize(ctx, QuantizeConfig(scheme="ort-u8s8")))
    constants = {entry.name: entry for entry in graph.initializer}
    for node in graph.node:
        if node.op_type == "QuantizeLinear":
            assert constants[node.input[2]].data_type == TensorProto.UINT8
    stem = constants["stem.weight_quantized"]
    assert (stem.data_type, list(stem.dims)) == (TensorProto.INT8, [16, 3, 3, 3])
    assert list(constants["stem.weight_scale"].dims) == [16]


def test_reduced_range_keeps_weights_to_seven_bits(ctx: Context) -> None:
    for reduce_range, limit in ((True, 64), (False, 127)):
        graph = graph_of(ctx, quantize(ctx, QuantizeConfig(scheme="ort-u8s8", reduce_range=reduce_range)))
        weights = next(entry for entry in graph.initializer if entry.name == "stem.weight_quantized")
        assert limit - 1 <= np.abs(numpy_helper.to_array(weights).astype(int)).max() <= limit


def test_tensorrt_graphs_are_symmetric_and_signed_with_float_biases(ctx: Context) -> None:
    result = quantize(ctx, QuantizeConfig(scheme="tensorrt-s8"))
    graph = graph_of(ctx, result)
    constants = {entry.name: numpy_helper.to_array(entry) for entry in graph.initializer}
    quantizers = [node for node in graph.node if node.op_type == "QuantizeLinear"]
    assert quantizers
    for node in quantizers:
        assert constants[node.input[2]].dtype == np.int8
        assert not constants[node.input[2]].any()
    made = {name: node for node in graph.node for name in node.output}
    for node in graph.node:
        if node.op_type in ("Conv", "Gemm"):
            assert made[node.input[1]].op_type == "DequantizeLinear"
            assert constants[node.input[2]].dtype == np.float32
        if node.op_type == "Add":
            # The branch's convolution reaches it unrounded, so that the addition fuses; the shortcut is in 8 bits.
            assert {made[name].op_type for name in node.input} == {"Conv", "DequantizeLinear"}
        if node.op_type == "Relu":
            assert made[node.input[0]].op_type in ("Conv", "Add")
    assert "The weights stay FP32 in the ONNX file" in result.decisions[0]
    assert "sqnr_here_db" not in result.metrics


@pytest.mark.parametrize("method", ["auto", "percentile", "entropy", "mse"])
@pytest.mark.parametrize("scheme", ["ort-u8s8", "openvino"])
def test_the_other_calibration_methods_work(ctx: Context, scheme: Scheme, method: str) -> None:
    config = QuantizeConfig.parse({"scheme": scheme, "calib_method": method}, "test")
    result = quantize(ctx, config)
    assert number(result, "sqnr_db") > 15
    assert (result.metrics["calib_method"] == method) == (method != "auto")


def test_methods_are_compared_on_samples_that_no_range_was_found_on(ctx: Context) -> None:
    result = quantize(ctx, QuantizeConfig(scheme="ort-u8s8", bias_correction=False))
    said = result.decisions[0]
    assert re.match(r"Ranges are found by \w+, compared on 13 held-out samples: minmax [\d.]+ dB, ", said)
    assert said.count("agreement") == 4


def test_a_named_layer_stays_in_float_and_a_wrong_name_is_refused(ctx: Context) -> None:
    result = quantize(ctx, QuantizeConfig(scheme="ort-u8s8", exclude=("block",)))
    constants = {entry.name: entry for entry in graph_of(ctx, result).initializer}
    assert constants["block.weight"].data_type == TensorProto.FLOAT
    assert constants["stem.weight_quantized"].data_type == TensorProto.INT8
    assert result.metrics["layers_in_float"] == 1
    with pytest.raises(UserError, match=r"exclude names 'blok', which no INT8 node has.*block"):
        quantize(ctx, QuantizeConfig(scheme="ort-u8s8", exclude=("blok",)))


@pytest.mark.parametrize(("scheme", "repeated"), [("ort-u8s8", 1), ("openvino", 1), ("tensorrt-s8", 0)])
def test_onnxruntime_is_kept_from_rounding_the_weight_of_a_layer_in_float(
    ctx: Context, scheme: Scheme, repeated: int
) -> None:
    result = quantize(ctx, QuantizeConfig(scheme=scheme, exclude=("block",)))
    graph = graph_of(ctx, result)
    (layer,) = (node for node in graph.node if node.name == "block")
    (reads,) = (node for node in graph.node if layer.input[0] in node.output)
    sizes = {entry.name: int(np.prod(entry.dims)) for entry in graph.initializer}
    assert reads.op_type == "DequantizeLinear"
    assert (sizes[reads.input[1]] > 1) == bool(repeated)
    assert sum("the scale repeated per channel" in text for text in result.decisions) == repeated
    assert result.metrics.get("sqnr_here_db", result.metrics["sqnr_db"]) == pytest.approx(
        number(result, "sqnr_db"), abs=1.0
    )


@pytest.mark.parametrize("scheme", ["ort-u8s8", "openvino", "tensorrt-s8"])
def test_reverting_the_worst_layers_brings_the_graph_nearer_to_fp32(ctx: Context, scheme: Scheme) -> None:
    plain = quantize(ctx, QuantizeConfig(scheme=scheme, calib_method="minmax"))
    better = quantize(ctx, QuantizeConfig(scheme=scheme, calib_method="minmax", revert=2))
    assert number(better, "sqnr_db") > number(plain, "sqnr_db") + 1
    assert better.metrics["layers_in_float"] == 2
    assert any("In float, the most sensitive first: " in text for text in better.decisions)


def test_a_sensitivity_table_of_another_scheme_or_with_other_options_is_refused(ctx: Context) -> None:
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    data = calibration(ctx, model)
    stage = SensitivityStage(SensitivityConfig(scheme="tensorrt-s8", calib_method="minmax"))
    table = run_stage(stage, make_inputs(model=model, calibration=data), ctx).bundle
    inputs = make_inputs(model=model, calibration=data, sensitivity=table)
    config = QuantizeConfig(scheme="ort-u8s8", revert=1)
    with pytest.raises(UserError, match=r"another graph or scheme \(tensorrt-s8, "):
        run_stage(QuantizeStage(config), inputs, ctx)
    config = QuantizeConfig(scheme="tensorrt-s8", revert=1, bias_correction=False)
    with pytest.raises(
        UserError,
        match="made with calib_method=minmax, bias_correction=True, but this graph is made with calib_method=auto, "
        "bias_correction=False",
    ):
        run_stage(QuantizeStage(config), inputs, ctx)
    followed = QuantizeStage(QuantizeConfig(scheme="tensorrt-s8", calib_method="minmax", revert=1))
    result = run_stage(followed, inputs, ctx)
    worst = report_from_bundle(table, SensitivityReport, ctx, "test").worst(1)
    assert f"In float, the most sensitive first: {worst[0]}." in result.decisions


def test_excluded_layers_are_not_counted_among_those_reverted_and_layers_are_ranked_once(
    ctx: Context, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranked = 0
    measured = ptq_stage.sensitivity

    def counted(*args: Any, **kwargs: Any) -> SensitivityReport:
        nonlocal ranked
        ranked += 1
        return measured(*args, **kwargs)

    monkeypatch.setattr(ptq_stage, "sensitivity", counted)
    monkeypatch.setattr(Limit, "score", lambda *_: Score(n=100, sqnr_db=10.0, agreement=0.5))
    plain = quantize(ctx, QuantizeConfig(scheme="ort-u8s8", calib_method="minmax", revert=1))
    (worst,) = (text.split(": ")[1][:-1] for text in plain.decisions if text.startswith("In float"))
    ranked = 0
    config = QuantizeConfig(scheme="ort-u8s8", calib_method="minmax", exclude=(worst,), revert=1, max_drop=0.1)
    result = quantize(ctx, config)
    assert ranked == 1
    (said,) = (text for text in result.decisions if text.startswith("In float"))
    assert worst not in said
    assert number(result, "layers_in_float") >= 2
    assert result.metrics["limit_held"] is False


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("exclude", ("stem",)),
        ("revert", 1),
        ("max_drop", 0.1),
        ("equalize", True),
        ("rounding", "reconstruct"),
        ("bias_correction", False),
        ("calib_method", "mse"),
        ("weight_scales", "tensor"),
    ],
)
def test_weight_only_takes_no_option_that_does_nothing(ctx: Context, option: str, value: object) -> None:
    config = QuantizeConfig.parse({"scheme": "weight-only", option: value}, "test")
    with pytest.raises(UserError, match=f"'weight-only' rounds no activations .* has no use for {option}"):
        quantize(ctx, config, samples=False)


def test_weight_only_takes_defaults_that_are_spelled_out(ctx: Context) -> None:
    config = QuantizeConfig(scheme="weight-only", rounding="nearest", equalize=False, reduce_range=False)
    assert number(quantize(ctx, config, samples=False), "sqnr_db") > 20


def test_how_a_limit_is_kept_needs_a_limit(ctx: Context) -> None:
    config = QuantizeConfig(scheme="ort-u8s8", drop_type="relative", max_trials=3)
    with pytest.raises(UserError, match="drop_type and max_trials say how max_drop is kept, but there is no max_drop"):
        quantize(ctx, config)


def test_weight_only_needs_no_samples_and_says_what_it_was_measured_on(ctx: Context) -> None:
    result = quantize(ctx, QuantizeConfig(scheme="weight-only"), samples=False)
    assert result.metrics["calibration_samples"] == 0
    assert (result.metrics["loss_samples"], result.metrics["samples_origin"]) == (32, "random")
    assert "The loss was measured on 32 images of random noise: no samples were given." in result.decisions


def test_a_weight_only_graph_expands_its_weights_once(ctx: Context) -> None:
    result = quantize(ctx, QuantizeConfig(scheme="weight-only"), samples=False)
    with open_bundle(result.bundle, ctx.blobs, "onnxruntime") as session:
        assert session.environment()["weights_dequantized"] == "at loading"


def test_a_calibrated_scheme_without_samples_is_refused(ctx: Context) -> None:
    with pytest.raises(UserError, match=r"'ort-u8s8' finds activation ranges on calibration samples, and none"):
        quantize(ctx, QuantizeConfig(scheme="ort-u8s8"), samples=False)


def test_only_an_fp32_graph_is_taken(ctx: Context) -> None:
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch).model_copy(update={"tags": {"precision": "fp16"}})
    with pytest.raises(UserError, match="takes an FP32 graph, but its input is fp16"):
        run_stage(QuantizeStage(QuantizeConfig(scheme="weight-only")), make_inputs(model=model), ctx)


def test_synthetic_samples_are_named_as_such(ctx: Context) -> None:
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    inputs = make_inputs(model=model, calibration=calibration(ctx, model, "synthetic"))
    result = run_stage(QuantizeStage(QuantizeConfig(scheme="ort-u8s8")), inputs, ctx)
    assert "Ranges and loss come from synthetic images." in result.decisions


def test_a_graph_without_quantized_weights_breaks_the_promise(ctx: Context) -> None:
    model = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    stage = QuantizeStage(QuantizeConfig(scheme="weight-only"))
    with pytest.raises(BuildFailed, match="Only 0% of the graph's weights are INT8"):
        stage.ensures(make_inputs(model=model), StageResult(bundle=model), ctx)
    assert quantized_share(toy_graph()) == 0.0


def test_kernels_that_lose_more_than_rounding_are_reported(ctx: Context, monkeypatch: pytest.MonkeyPatch) -> None:
    result = quantize(ctx, QuantizeConfig(scheme="ort-u8s8"))
    source = ctx.path(toy_onnx_bundle(ctx.blobs, ctx.scratch), "model.onnx")
    quantized = ctx.path(result.bundle, "model.onnx")
    _, said = measured_loss(source, quantized, IMAGES, kernels=True)
    assert said == ()
    # A graph that computes something else stands for kernels that compute it wrongly.
    other = ctx.path(toy_onnx_bundle(ctx.blobs, ctx.scratch, seed=1), "model.onnx")
    monkeypatch.setattr(ptq_stage, "emulated", lambda _path: ptq_stage.RUNTIME.open(quantized))
    metrics, said = measured_loss(source, other, IMAGES, kernels=True)
    assert "loses more than rounding does" in said[0]
    assert float(str(metrics["sqnr_here_db"])) < float(str(metrics["sqnr_db"]))


def attention_bundle(ctx: Context) -> ModelBundle:
    """The toy network with a Softmax inside, which stands for attention."""
    plain = toy_onnx_bundle(ctx.blobs, ctx.scratch)
    graph = toy_graph()
    nodes = list(graph.graph.node)
    nodes[-1].input[0] = "weights"
    nodes.insert(-1, onnx.helper.make_node("Softmax", ["features"], ["weights"], "softmax"))
    del graph.graph.node[:]
    graph.graph.node.extend(nodes)
    path = ctx.scratch / "attention.onnx"
    write_graph(graph, path, made_by="test")
    return bundle_from_graph(path, carry=plain, tags={}, blobs=ctx.blobs)


@pytest.mark.parametrize("scheme", ["ort-u8s8", "tensorrt-s8"])
def test_a_graph_with_attention_keeps_its_residual_sums_in_float(ctx: Context, scheme: Scheme) -> None:
    model = attention_bundle(ctx)
    for bundle, quantized in ((toy_onnx_bundle(ctx.blobs, ctx.scratch), True), (model, False)):
        inputs = make_inputs(model=bundle, calibration=calibration(ctx, model))
        graph = graph_of(ctx, run_stage(QuantizeStage(QuantizeConfig(scheme=scheme)), inputs, ctx))
        rounded = {node.input[0] for node in graph.node if node.op_type == "QuantizeLinear"}
        assert bool(rounded & {"sum", "sum.relu"}) == quantized


def test_nncf_takes_a_graph_with_attention(ctx: Context) -> None:
    model = attention_bundle(ctx)
    inputs = make_inputs(model=model, calibration=calibration(ctx, model))
    result = run_stage(QuantizeStage(QuantizeConfig(scheme="openvino")), inputs, ctx)
    assert number(result, "sqnr_db") > 20
    assert "The graph has attention" in result.decisions[0]


@pytest.mark.slow
@pytest.mark.parametrize("scheme", CALIBRATED)
def test_other_processes_give_the_same_bytes(tmp_path: Path, scheme: Scheme) -> None:
    script = (
        "import sys; from pathlib import Path; from tests.quant.test_ptq_stage import *\n"
        f"ctx = make_context(Path(sys.argv[1])); print(quantize(ctx, QuantizeConfig(scheme={scheme!r})).bundle.content)"
    )
    root = str(Path(__file__).parents[2])
    found = set()
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": root}
        command = [sys.executable, "-c", script, str(tmp_path / seed)]
        done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, check=True)
        found.add(done.stdout.strip().splitlines()[-1])
    assert len(found) == 1
