"""The rule on float weights that ONNX Runtime rounds, against what ONNX Runtime makes of them."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from edgekd.lint.requantized import keep_float_weights_
from edgekd.lint.view import LintGraph, normalised
from edgekd.runtimes.onnxruntime import exact_outputs
from edgekd.testing.conformance_lint import LintConformance
from tests.lint.graphs import CHANNELS, ORT, SIZE, Builder

SLICED = (("start", 0), ("end", 1), ("axis", 1))
IMAGES = np.random.default_rng(0).standard_normal((4, CHANNELS, SIZE, SIZE)).astype(np.float32)
IMAGES[:, 0] = 0


def wide(b: Builder, shape: tuple[int, ...], axis: int) -> str:
    """A weight that one scale for the whole tensor ruins: what the first input channel meets is large, and it is 0."""
    values = b.rng.standard_normal(shape) * 0.1
    values[(slice(None),) * axis + (slice(shape[axis] // CHANNELS),)] *= 500
    return b.constant("float.w", values)


def behind(b: Builder, value: str, kind: str) -> str:
    """A layer with a float weight that reads a value."""
    if kind == "Gemm":
        weight = wide(b, (4, CHANNELS * SIZE * SIZE), 1)
        return b.node("Gemm", [value, weight, b.constant("float.b", np.zeros(4))], "float", transB=1)
    if kind == "ConvTranspose":
        return b.node("ConvTranspose", [value, wide(b, (CHANNELS, 4, 3, 3), 0)], "float")
    if kind == "depthwise":
        weight = wide(b, (CHANNELS, 1, 3, 3), 0)
        return b.node("Conv", [value, weight, b.constant("float.b", np.zeros(CHANNELS))], "float", group=CHANNELS)
    if kind == "pooled":
        value = b.node("MaxPool", [value], "pool", kernel_shape=[2, 2])
    return b.node("Conv", [value, wide(b, (CHANNELS, CHANNELS, 3, 3), 1)], "float")


def firing(kind: str, *, rounded: bool = True) -> onnx.ModelProto:
    b = Builder()
    value = b.node("Flatten", ["images"], "flat") if kind == "Gemm" else "images"
    made = b.node("Relu", [behind(b, b.qdq(value, "in"), kind)], "relu")
    return b.model(b.qdq(made, "out", scale=0.01, point=0, dtype=np.uint8) if rounded else made)


def by_default(model: onnx.ModelProto) -> np.ndarray[Any, Any]:
    """What a user of ONNX Runtime gets who sets no option but a quiet log."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"images": IMAGES})
    return np.asarray(found, np.float64)


def noise(model: onnx.ModelProto, of: onnx.ModelProto) -> float:
    """The error beside the exact outputs as a share of these."""
    (expected,) = exact_outputs(of, {"images": IMAGES})
    return float(np.linalg.norm(by_default(model) - expected) / np.linalg.norm(expected))


class TestRequantizedWeight(LintConformance):
    name, where = "requantized-weight", ORT

    def firing(self) -> onnx.ModelProto:
        return firing("Conv")

    def clean(self) -> onnx.ModelProto:
        b = Builder()
        return b.model(b.conv(b.conv(b.qdq("images", "in"), "first"), "second", quantized=False))

    @pytest.mark.parametrize("kind", ["Conv", "depthwise", "pooled", "Gemm", "ConvTranspose"])
    def test_onnxruntime_ruins_the_weight_until_the_layer_has_a_dequantizer_of_its_own(self, kind: str) -> None:
        model = firing(kind)
        (found,) = self.found(model)
        assert (found.node, found.severity, found.fixable) == ("float", "error", True)
        assert noise(model, model) > 0.1
        mended = normalised(model)
        (said,) = self.rule().repair_(mended)
        onnx.checker.check_model(mended, full_check=True)
        assert said.startswith("float: ")
        assert self.found(mended) == []
        assert noise(mended, model) < 0.01

    def test_without_an_8_bit_output_only_one_version_does_it(self) -> None:
        model = firing("Conv", rounded=False)
        (found,) = self.found(model)
        assert (found.severity, found.fixable) == ("warning", True)
        assert "1.21" in found.why

    def test_other_readers_of_the_value_keep_their_dequantizer(self) -> None:
        b = Builder()
        shared = b.qdq("images", "in")
        both = b.node("Add", [b.conv(shared, "int8"), b.conv(shared, "float", quantized=False)], "sum")
        mended = b.model(both)
        assert len(keep_float_weights_(mended)) == 1
        graph = LintGraph(mended)
        assert graph.nodes["int8"].input[0] == "in.dq"
        assert graph.grid(graph.maker[graph.nodes["float"].input[0]]).axis == 1

    def test_a_layer_of_one_channel_has_no_such_form(self) -> None:
        b = Builder()
        value = b.node("Slice", [b.qdq("images", "in"), *(b.constant(n, [v], np.int64) for n, v in SLICED)], "one")
        model = b.model(b.conv(value, "float", quantized=False, into=1))
        (found,) = self.found(model)
        assert not found.fixable
        assert keep_float_weights_(model) == []
