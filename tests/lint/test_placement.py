"""Rules on where quantizers stand around layers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx

from edgekd.lint.finding import Finding
from edgekd.lint.view import LintGraph
from edgekd.testing.conformance_lint import LintConformance
from tests.lint.graphs import CHANNELS, ORT, SIZE, TENSORRT, Builder, float_conv, int8_conv


class TestFloatLayer(LintConformance):
    name, where = "float-layer", TENSORRT

    def firing(self) -> onnx.ModelProto:
        b = Builder()
        first = b.conv(b.qdq("images", "in"), "first")
        return b.model(b.conv(first, "second", quantized=False))

    def clean(self) -> onnx.ModelProto:
        b = Builder()
        pooled = b.node("MaxPool", [b.qdq("images", "in")], "pool", kernel_shape=[2, 2])
        return b.model(b.conv(pooled, "conv"))

    def test_it_gives_the_share_of_the_layer(self) -> None:
        (found,) = self.found(self.firing())
        assert (found.node, found.found) == ("second", "its input and weight are not quantized")
        assert found.macs_share == 0.5

    def test_a_float_graph_is_no_finding_and_quantized_weights_alone_are_one(self) -> None:
        assert self.found(float_conv()) == []
        b = Builder()
        (found,) = self.found(b.model(b.conv("images", "conv")))
        assert (found.severity, found.node) == ("info", "")
        assert found.found == "the weights of 1 layers are quantized, and no activation is"


class TestCutFusion(LintConformance):
    name, where = "cut-fusion", TENSORRT

    def firing(self) -> onnx.ModelProto:
        b = Builder()
        value = b.qdq(b.conv(b.qdq("images", "in"), "conv"), "cut")
        return b.model(b.node("Relu", [value], "relu"))

    def clean(self) -> onnx.ModelProto:
        return int8_conv()


class TestMissingOutputQuantizer(LintConformance):
    name, where = "missing-output-quantizer", ORT

    def firing(self) -> onnx.ModelProto:
        b = Builder()
        value = b.conv(b.qdq("images", "in", dtype=np.uint8, point=120), "conv")
        return b.model(b.node("Sigmoid", [value], "gate"))

    def clean(self) -> onnx.ModelProto:
        return int8_conv(signed=False)

    def test_it_names_the_reader(self) -> None:
        (found,) = self.found(self.firing())
        assert found.found == "its output goes to Sigmoid gate in float"


class TestSignedAfterRelu(LintConformance):
    name, where = "signed-after-relu", ORT

    def firing(self) -> onnx.ModelProto:
        b = Builder()
        value = b.node("Relu", [b.conv(b.qdq("images", "in"), "conv")], "relu")
        return b.model(b.qdq(value, "out"))

    def clean(self) -> onnx.ModelProto:
        return int8_conv(signed=False)

    def test_a_clip_from_below_zero_is_no_relu(self) -> None:
        def clipped(low: float) -> list[Finding]:
            b = Builder()
            bounds = [b.constant("low", low), b.constant("high", 6.0)]
            value = b.node("Clip", [b.conv(b.qdq("images", "in"), "conv"), *bounds], "clip")
            return self.found(b.model(b.qdq(value, "out")))

        assert len(clipped(0.0)) == 1
        assert clipped(-1.0) == []


class TestPoolInFloat(LintConformance):
    name, where = "pool-in-float", TENSORRT

    def firing(self) -> onnx.ModelProto:
        b = Builder()
        value = b.node("Relu", [b.conv(b.qdq("images", "in"), "conv")], "relu")
        return b.model(b.node("GlobalAveragePool", [value], "pool"))

    def clean(self) -> onnx.ModelProto:
        b = Builder()
        value = b.node("Relu", [b.conv(b.qdq("images", "in"), "conv")], "relu")
        return b.model(b.node("GlobalAveragePool", [b.qdq(value, "out")], "pool"))

    def test_a_stream_that_is_normalised_is_averaged_in_float_on_purpose(self) -> None:
        def summed(*, normalised: bool) -> onnx.ModelProto:
            b = Builder()
            depthwise = b.constant("d", np.ones((CHANNELS, 1, 3, 3)))
            value = b.node("Conv", ["images", depthwise], "deep", pads=[1] * 4, group=CHANNELS)
            if normalised:
                value = b.node("LayerNormalization", [value, b.constant("gain", np.ones(SIZE))], "norm")
            added = b.node("Add", [b.qdq(value, "in"), b.conv("in.dq", "conv")], "add")
            return b.model(b.node("GlobalAveragePool", [added], "pool"))

        assert [len(self.found(summed(normalised=given))) for given in (False, True)] == [1, 0]

    def test_a_pooling_that_opens_a_gate_is_left_alone(self) -> None:
        b = Builder()
        value = b.conv(b.qdq("images", "in"), "conv")
        gate = b.node("Sigmoid", [b.node("GlobalAveragePool", [value], "pool")], "gate")
        assert self.found(b.model(b.node("Mul", [value, gate], "gated"))) == []


def test_the_first_layer_of_a_group_is_not_half_quantized_by_a_missing_input_alone() -> None:
    b = Builder()
    b.qdq("images", "elsewhere")
    model = b.model(b.conv("images", "conv", out=CHANNELS))
    rule = TestFloatLayer().rule()
    (found,) = rule.findings(LintGraph(model), replace(TENSORRT))
    assert found.found == "its input is not quantized"
