"""Rules on views, on batch normalisation, and on the graph itself."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgekd.lint.rule import LINTS
from edgekd.lint.view import LintGraph, normalised
from edgekd.testing.conformance_lint import LintConformance
from tests.lint.graphs import CHANNELS, ORT, SIZE, TENSORRT, Builder, float_conv, int8_conv


class TestViewBehindDequantize(LintConformance):
    name, where = "view-behind-dequantize", TENSORRT

    def firing(self) -> onnx.ModelProto:
        """Turned weights of both forms, and turned activations."""
        b = Builder()
        flat = b.node("Flatten", [b.qdq("images", "in")], "flat")
        size = CHANNELS * SIZE * SIZE
        coded = b.node("Transpose", [b.weight("w", (4, size), axis=0)], "turn", perm=[1, 0])
        first = b.node("MatMul", [flat, coded], "first")
        plain = b.constant("v", b.rng.standard_normal((5, 4)) * 0.1)
        rounded = b.qdq(plain, "v", scale=np.linspace(0.01, 0.02, 5), axis=0)
        second = b.node("Transpose", [rounded], "turn2", perm=[1, 0])
        return b.model(b.node("MatMul", [b.qdq(first, "mid"), second], "second"))

    def clean(self) -> onnx.ModelProto:
        return int8_conv()

    def test_per_channel_scales_follow_the_axis(self) -> None:
        model = self.firing()
        assert len(self.rule().repair_(model)) == 3
        nodes = {node.name: node for node in model.graph.node}
        assert not [node for node in model.graph.node if node.op_type == "Transpose"]
        (axis,) = (entry.i for entry in nodes["v.dq_turn2"].attribute if entry.name == "axis")
        assert axis == 1

    def test_a_reshape_of_per_channel_values_stays(self) -> None:
        b = Builder()
        weight = b.weight("w", (4, 2 * CHANNELS * SIZE * 3), axis=0)
        shaped = b.node("Reshape", [weight, b.constant("shape", [CHANNELS * SIZE * SIZE, 4], np.int64)], "shaped")
        model = b.model(b.node("MatMul", [b.qdq(b.node("Flatten", ["images"], "flat"), "in"), shaped], "product"))
        (found,) = self.found(model)
        assert not found.fixable
        assert self.rule().repair_(model) == []


class TestQuantizedTwice(LintConformance):
    name, where = "quantized-twice", TENSORRT

    def firing(self) -> onnx.ModelProto:
        b = Builder()
        parts = [b.conv(b.qdq("images", f"in{place}"), f"conv{place}") for place in range(2)]
        return b.model(b.node("Add", parts, "add"))

    def clean(self) -> onnx.ModelProto:
        return int8_conv()

    def test_different_grids_are_said_and_left(self) -> None:
        b = Builder()
        parts = [b.conv(b.qdq("images", f"in{s}", scale=s), f"conv{s}") for s in (0.04, 0.05)]
        model = b.model(b.node("Add", parts, "add"))
        (found,) = self.found(model)
        assert found.found == "'images' is rounded 2 times, on different grids"
        assert not found.fixable
        assert self.rule().repair_(model) == []

    def test_codes_that_are_an_output_keep_their_quantizer(self) -> None:
        model = self.firing()
        codes = helper.make_tensor_value_info("in1.q", TensorProto.INT8, ["N", CHANNELS, SIZE, SIZE])
        model.graph.output.append(codes)
        (found,) = self.found(model)
        assert not found.fixable
        assert self.rule().repair_(model) == []


def normalised_conv(
    *, form: str = "codes", signs: float = 1.0, kind: str = "Conv", bias: bool = True
) -> onnx.ModelProto:
    """A layer and its BatchNormalization; its weight as int8 codes, as Q/DQ, or in float."""
    b = Builder()
    shape, axis = ((CHANNELS, CHANNELS, 3, 3), 0) if kind == "Conv" else ((CHANNELS, CHANNELS, 3, 3), 1)
    if form == "codes":
        weight = b.weight("w", shape, axis=axis)
    else:
        weight = b.constant("w", b.rng.standard_normal(shape) * 0.1)
        if form == "pair":
            weight = b.qdq(weight, "w", scale=np.linspace(0.003, 0.004, CHANNELS), axis=axis)
    value = b.qdq("images", "in") if form != "float" else "images"
    inputs = [value, weight, *([b.constant("b", b.rng.standard_normal(CHANNELS))] if bias else [])]
    layer = b.node(kind, inputs, "layer")
    numbers = [
        b.constant("gamma", b.rng.uniform(0.5, 2, CHANNELS) * np.where(np.arange(CHANNELS) % 2, signs, 1)),
        b.constant("beta", b.rng.standard_normal(CHANNELS)),
        b.constant("mean", b.rng.standard_normal(CHANNELS)),
        b.constant("var", b.rng.uniform(0.5, 2, CHANNELS)),
    ]
    return b.model(b.node("BatchNormalization", [layer, *numbers], "norm"))


class TestBatchNorm(LintConformance):
    name, where = "batch-norm", ORT

    def firing(self) -> onnx.ModelProto:
        return normalised_conv()

    def clean(self) -> onnx.ModelProto:
        return int8_conv()

    def test_behind_float_weights_it_is_worth_knowing_only(self) -> None:
        severities = [self.found(normalised_conv(form=form))[0].severity for form in ("codes", "pair", "float")]
        assert severities == ["warning", "warning", "info"]

    def test_before_a_layer_it_cannot_be_folded(self) -> None:
        b = Builder()
        numbers = [b.constant(name, np.ones(CHANNELS)) for name in ("gamma", "beta", "mean", "var")]
        model = b.model(b.conv(b.node("BatchNormalization", ["images", *numbers], "norm"), "conv", quantized=False))
        (found,) = self.found(model)
        assert found.found == "it follows the graph's input, which cannot take it up"
        assert self.rule().repair_(model) == []

    def test_the_code_that_cannot_be_negated_prevents_the_folding(self) -> None:
        model = normalised_conv(signs=-1.0)
        (codes,) = (entry for entry in model.graph.initializer if entry.name == "w.codes")
        values = onnx.numpy_helper.to_array(codes).copy()
        values[1, 0, 0, 0] = -128
        codes.CopyFrom(onnx.numpy_helper.from_array(values, "w.codes"))
        assert not self.found(model)[0].fixable
        assert self.rule().repair_(model) == []


def test_a_weight_that_is_cut_off_at_127_is_not_folded_where_its_sign_turns() -> None:
    for signs, changes in ((1.0, 1), (-1.0, 0)):
        model = normalised_conv(form="pair", signs=signs)
        (weight,) = (entry for entry in model.graph.initializer if entry.name == "w")
        weight.CopyFrom(numpy_helper.from_array(np.abs(numpy_helper.to_array(weight)) * 10, "w"))
        assert len(LINTS.get("batch-norm")().repair_(normalised(model))) == changes


@pytest.mark.parametrize("form", ["codes", "pair", "float"])
@pytest.mark.parametrize("kind", ["Conv", "ConvTranspose"])
@pytest.mark.parametrize("bias", [True, False])
def test_folding_changes_no_output_whatever_the_signs(form: str, kind: str, bias: bool) -> None:
    class Folding(TestBatchNorm):
        __test__ = False

        def firing(self) -> onnx.ModelProto:
            return normalised_conv(form=form, signs=-1.0, kind=kind, bias=bias)

    Folding().test_its_repair_does_what_it_promises_and_changes_no_output()


class TestNoOp(LintConformance):
    name, where = "no-op", TENSORRT

    def firing(self) -> onnx.ModelProto:
        b = Builder()
        value = b.node("Identity", ["images"], "same")
        value = b.node("Transpose", [b.node("Dropout", [value], "drop")], "kept", perm=[0, 1, 2, 3])
        value = b.qdq(value, "in")
        grid = [b.constant("again.scale", 0.05), b.constant("again.point", 0, np.int8)]
        value = b.node("DequantizeLinear", [b.node("QuantizeLinear", [value, *grid], "again.q"), *grid], "again.dq")
        return b.model(b.conv(value, "conv"))

    def clean(self) -> onnx.ModelProto:
        return int8_conv()

    def test_each_kind_is_found_and_removed(self) -> None:
        model = self.firing()
        assert [finding.node for finding in self.found(model)] == ["same", "drop", "kept", "again.q"]
        assert len(self.rule().repair_(model)) == 4
        assert sorted(node.name for node in model.graph.node) == ["again.dq", "conv", "conv.w.dq", "in.q"]

    def test_a_node_that_makes_an_output_stays(self) -> None:
        b = Builder()
        assert self.found(b.model(b.node("Identity", ["images"], "same"))) == []


class TestDynamicAxes(LintConformance):
    name, where = "dynamic-axes", TENSORRT

    def firing(self) -> onnx.ModelProto:
        b = Builder()
        value = b.node("NonZero", [b.conv("images", "conv", quantized=False)], "found")
        return b.model(value, inputs={"images": ["N", CHANNELS, "H", 6]}, output_type=TensorProto.INT64)

    def clean(self) -> onnx.ModelProto:
        return float_conv()

    def test_an_open_axis_is_an_error_and_an_open_size_a_warning(self) -> None:
        first, second = self.found(self.firing())
        assert (first.severity, first.found) == ("error", "the input 'images' leaves the axes 2 (H) open")
        assert (second.severity, second.node) == ("warning", "found")


class TestChannelMultiple(LintConformance):
    name, where = "channel-multiple", TENSORRT

    def firing(self) -> onnx.ModelProto:
        b = Builder()
        return b.model(b.conv("images", "conv", quantized=False, out=10))

    def clean(self) -> onnx.ModelProto:
        return float_conv()

    def test_the_colours_of_the_first_layer_are_no_finding(self) -> None:
        b = Builder()
        value = b.conv("images", "conv", quantized=False, into=3)
        assert self.found(b.model(value, inputs={"images": ["N", 3, SIZE, SIZE]})) == []


class TestInt64(LintConformance):
    name, where = "int64", TENSORRT

    def firing(self) -> onnx.ModelProto:
        b = Builder()
        return b.model(b.node("Gather", ["images", b.constant("rows", [1, 3], np.int64)], "rows.g", axis=1))

    def clean(self) -> onnx.ModelProto:
        b = Builder()
        ends: Any = [np.iinfo(np.int64).max]
        slots = [b.constant(n, v, np.int64) for n, v in (("starts", [1]), ("ends", ends), ("axes", [1]))]
        return b.model(b.node("Slice", ["images", *slots], "part"))

    def test_a_64_bit_output_and_a_number_that_32_bits_do_not_hold_are_warnings(self) -> None:
        b = Builder()
        large = b.node("Add", [b.node("NonZero", ["images"], "where"), b.constant("big", 2**40, np.int64)], "sum")
        found = self.found(b.model(large, output_type=TensorProto.INT64))
        assert [(finding.severity, finding.node) for finding in found] == [("warning", ""), ("warning", "sum")]
        assert found[1].found == f"the constant 'big' holds {2**40}, which 32 bits do not"


def test_the_multiple_is_the_targets() -> None:
    rule = TestChannelMultiple()
    assert list(rule.rule().findings(LintGraph(rule.firing()), replace(TENSORRT, channel_multiple=2))) == []
