"""Layers of a graph that is quantized in part: what ran in int8, and what fell back to float."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, quantize_static

from edgekd.core.bundle import ModelBundle
from edgekd.core.layers import LayerReport
from edgekd.core.stage import Context
from edgekd.runtimes.onnxruntime_layers import arithmetic, layers_from_trace
from edgekd.runtimes.openvino import arithmetic as openvino_arithmetic
from edgekd.runtimes.session import RUNTIMES
from edgekd.testing.harness import make_context
from edgekd.testing.toy_graphs import toy_graph, toy_onnx_bundle

IMAGES = np.random.default_rng(0).standard_normal((1, 3, 32, 32), dtype=np.float32)


class Reader(CalibrationDataReader):
    def __init__(self) -> None:
        self.left = [{"images": IMAGES}] * 2

    def get_next(self) -> dict[str, np.ndarray] | None:
        return self.left.pop() if self.left else None


@pytest.fixture(scope="module")
def partly_quantized(tmp_path_factory: pytest.TempPathFactory) -> tuple[Context, ModelBundle]:
    """Its first convolution is quantized in both runtimes' form; the classifier is not quantized at all."""
    folder = tmp_path_factory.mktemp("layers")
    ctx = make_context(folder)
    onnx.save(toy_graph(size=32), folder / "float.onnx")
    quantize_static(
        folder / "float.onnx", folder / "int8.onnx", Reader(), quant_format=QuantFormat.QDQ, per_channel=True,
        op_types_to_quantize=["Conv"],
    )  # fmt: skip
    bundle = toy_onnx_bundle(ctx.blobs, ctx.scratch, size=32)
    files = {"model.onnx": ctx.blobs.add(folder / "int8.onnx")}
    return ctx, bundle.model_copy(update={"files": files, "tags": {"precision": "int8", "scheme": "ort-u8s8"}})


def layers_of(found: tuple[Context, ModelBundle], runtime: str) -> LayerReport:
    ctx, bundle = found
    report = RUNTIMES.get(runtime).layers(bundle, ctx.blobs, {"images": IMAGES}, threads=1, batch=1, calls=3)
    assert report is not None
    return report


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_time_is_shared_out_between_int8_and_float(partly_quantized: tuple[Context, ModelBundle], runtime: str) -> None:
    found = layers_of(partly_quantized, runtime)
    assert found.share_by_arithmetic["int8"] > 0
    assert found.share_by_arithmetic["float"] > 0
    assert found.total_ms == pytest.approx(sum(layer.median_ms for layer in found.layers))
    assert all(layer.provider in found.nodes_by_provider for layer in found.layers)


@pytest.mark.parametrize(("runtime", "operator"), [("onnxruntime", "Gemm"), ("openvino", "FullyConnected")])
def test_a_layer_that_stayed_in_float_is_named_with_its_share(
    partly_quantized: tuple[Context, ModelBundle], runtime: str, operator: str
) -> None:
    assert any(f"({operator}) computed in float" in text for text in layers_of(partly_quantized, runtime).fell_back)


@pytest.mark.parametrize(
    ("op", "first", "expected"),
    [
        ("QLinearConv", "uint8", "int8"),
        ("ConvInteger", "int8", "int8"),
        ("DynamicQuantizeMatMul", "float", "int8"),
        ("Conv", "float", "float"),
        ("Conv", "float16", "float"),
        ("QuantizeLinear", "float", "conversion"),
        ("Transpose", "uint8", "conversion"),
        ("Shape", "int64", "other"),
    ],
)
def test_an_onnx_runtime_node_computes_in_what_its_first_input_says(op: str, first: str, expected: str) -> None:
    assert arithmetic({"op_name": op, "input_type_shape": [{first: [1]}]}) == expected


@pytest.mark.parametrize(
    ("op", "kernel", "expected"),
    [
        ("Convolution", "brgconv_avx512_I8", "int8"),
        ("Subgraph", "jit_avx512_i8", "int8"),
        ("Convolution", "brgconv_avx512_1x1_f32", "float"),
        ("MatMul", "brgemm_avx512_amx_bf16", "float"),
        ("Reorder", "jit_uni_I8", "conversion"),
        ("Result", "undef", "other"),
    ],
)
def test_an_openvino_layer_computes_in_what_its_kernel_is_named_for(op: str, kernel: str, expected: str) -> None:
    assert openvino_arithmetic(op, kernel) == expected


def test_a_trace_is_summed_over_a_call_and_medians_are_taken_over_calls(tmp_path: Path) -> None:
    def node(ts: int, dur: int, provider: str = "A") -> dict[str, object]:
        args = {"op_name": "Conv", "provider": provider, "node_index": "0", "input_type_shape": [{"float": [1]}]}
        return {"cat": "Node", "name": "conv_kernel_time", "ts": ts, "dur": dur, "args": args}

    runs = [{"cat": "Session", "name": "model_run", "ts": ts, "dur": 90} for ts in (0, 100, 200, 300)]
    # The first call warmed up; in the last one the node ran twice, as in a loop; one call was interrupted.
    nodes = [node(10, 5000), node(110, 4), node(210, 900), node(310, 2), node(320, 3)]
    path = tmp_path / "trace.json"
    path.write_text(json.dumps([*nodes, *runs]))
    (found,) = layers_from_trace(path, calls=3)
    assert found.median_ms == pytest.approx(0.005)
    assert (found.name, found.op, found.provider) == ("conv", "Conv", "A")
