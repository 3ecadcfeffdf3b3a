"""Rules on scales and zero points."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto

from edgekd.lint.rule import LINTS
from edgekd.lint.view import LintGraph, normalised
from edgekd.testing.conformance_lint import LintConformance
from tests.lint.graphs import CHANNELS, CPU, ORT, TENSORRT, Builder, int8_conv


class TestZeroPoint(LintConformance):
    name, where = "zero-point", TENSORRT

    def firing(self) -> onnx.ModelProto:
        b = Builder()
        value = b.conv(b.qdq("images", "in", dtype=np.uint8, point=128), "conv")
        return b.model(b.qdq(value, "out", dtype=np.uint8, point=3))

    def clean(self) -> onnx.ModelProto:
        return int8_conv()

    def test_codes_around_128_are_shifted_and_others_are_not(self) -> None:
        fixable = {finding.node: finding.fixable for finding in self.found(self.firing())}
        assert fixable == {"in.q": True, "out.q": False}

    def test_a_quantizer_without_zero_point_is_read_in_two_ways(self) -> None:
        b = Builder()
        scale = b.constant("scale", 0.05)
        rounded = b.node("QuantizeLinear", ["images", scale], "q")
        (found,) = self.found(b.model(b.node("DequantizeLinear", [rounded, scale], "dq")))
        assert found.node == "q"
        assert "ONNX reads uint8, TensorRT reads int8" in found.found

    def test_codes_that_two_read_are_shifted_once_and_codes_with_other_readers_stay(self) -> None:
        def shared(*, other: bool) -> onnx.ModelProto:
            b = Builder()
            first = b.qdq("images", "in", dtype=np.uint8, point=128)
            again = b.node("DequantizeLinear", ["in.q", "in.scale", "in.point"], "again")
            values = [b.conv(first, "one"), b.conv(again, "two")]
            if other:
                most = b.node("MaxPool", ["in.q"], "most", kernel_shape=[1, 1])
                values[1] = b.conv(b.node("DequantizeLinear", [most, "in.scale", "in.point"], "behind"), "three")
            return b.model(b.node("Add", values, "sum"))

        assert [finding.fixable for finding in self.found(shared(other=False))] == [True]
        assert [finding.fixable for finding in self.found(shared(other=True))] == [False]
        made = normalised(shared(other=False))
        assert len(LINTS.get("zero-point")().repair_(made)) == 1
        assert not self.found(made)
        onnx.checker.check_model(made, full_check=True)


class TestScale(LintConformance):
    name, where = "scale", TENSORRT

    def firing(self) -> onnx.ModelProto:
        b = Builder()
        return b.model(b.qdq(b.conv(b.qdq("images", "in"), "conv"), "out", scale=0.0))

    def clean(self) -> onnx.ModelProto:
        return int8_conv()

    def test_a_scale_that_follows_from_the_image_is_a_warning(self) -> None:
        b = Builder()
        scale = b.node("ReduceMax", ["images"], "scale", keepdims=0)
        rounded = b.node("QuantizeLinear", ["images", scale, b.constant("zero", 0, np.int8)], "q")
        (found,) = self.found(b.model(b.node("DequantizeLinear", [rounded, scale, "zero"], "dq")))
        assert (found.severity, found.found) == ("warning", "the scale is computed from the image")


class TestWeightAxis(LintConformance):
    name, where = "weight-axis", TENSORRT

    def firing(self) -> onnx.ModelProto:
        b = Builder()
        weight = b.weight("w", (CHANNELS, CHANNELS, 1, 1), axis=1)
        return b.model(b.node("Conv", [b.qdq("images", "in"), weight], "conv"))

    def clean(self) -> onnx.ModelProto:
        b = Builder()
        turned = b.weight("t", (CHANNELS, 4, 2, 2), axis=1)
        value = b.node("ConvTranspose", [b.conv(b.qdq("images", "in"), "conv"), turned], "turned")
        flat = b.node("Flatten", [b.node("GlobalAveragePool", [value], "pool")], "flat")
        first = b.node("Gemm", [flat, b.weight("g", (6, 4), axis=0)], "gemm", transB=1)
        return b.model(b.node("MatMul", [first, b.weight("m", (6, 5), axis=1)], "product"))

    def test_it_names_both_axes_and_is_a_warning_where_nothing_refuses(self) -> None:
        (found,) = LINTS.get(self.name)().findings(LintGraph(self.firing()), ORT)
        assert found.severity == "warning"
        assert found.found == "scales of w.dq lie along axis 1, output channels along 0"


class TestActivationPerChannel(LintConformance):
    name, where = "activation-per-channel", TENSORRT

    def firing(self) -> onnx.ModelProto:
        b = Builder()
        return b.model(b.conv(b.qdq("images", "in", scale=np.full(CHANNELS, 0.05), axis=1), "conv"))

    def clean(self) -> onnx.ModelProto:
        return int8_conv()


def integer_bias() -> onnx.ModelProto:
    """A convolution with an int32 bias behind DequantizeLinear."""
    b = Builder()
    value, weight = b.qdq("images", "in"), b.weight("w", (CHANNELS, CHANNELS, 1, 1))
    codes = b.constant("codes", np.arange(CHANNELS) * 100, np.int32)
    scale = b.constant("scale", np.linspace(0.001, 0.002, CHANNELS))
    bias = b.node("DequantizeLinear", [codes, scale], "bias", axis=0)
    return b.model(b.node("Conv", [value, weight, bias], "conv"))


class TestIntegerBias(LintConformance):
    name, where = "integer-bias", TENSORRT

    def firing(self) -> onnx.ModelProto:
        return integer_bias()

    def clean(self) -> onnx.ModelProto:
        return int8_conv()

    def test_the_bias_becomes_a_float_constant(self) -> None:
        model = self.firing()
        assert self.rule().repair_(model) == ["bias: the int32 bias became float, the same numbers."]
        (bias,) = (entry for entry in model.graph.initializer if entry.name == "bias")
        assert bias.data_type == TensorProto.FLOAT
        assert onnx.numpy_helper.to_array(bias)[3] == np.float32(300 * np.linspace(0.001, 0.002, CHANNELS)[3])


class TestSaturatingWeights(LintConformance):
    name, where = "saturating-weights", CPU

    def firing(self) -> onnx.ModelProto:
        b = Builder()
        weight = b.weight("w", (CHANNELS, CHANNELS, 1, 1), largest=127)
        return b.model(b.node("Conv", [b.qdq("images", "in"), weight], "conv"))

    def clean(self) -> onnx.ModelProto:
        return int8_conv(signed=False)

    def test_processors_with_vnni_and_of_other_makes_may_use_all_bits(self) -> None:
        graph = LintGraph(self.firing())
        for features in (("avx2", "avx_vnni"), ("asimddp",), ()):
            assert list(self.rule().findings(graph, replace(CPU, features=features))) == []
