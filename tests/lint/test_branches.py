"""Rules on residual additions and concatenations, on sensitive operators, and on outputs."""

from __future__ import annotations

import numpy as np
import onnx

from edgekd.lint.view import LintGraph
from edgekd.testing.conformance_lint import LintConformance
from tests.lint.graphs import CHANNELS, ORT, TENSORRT, Builder, int8_conv


def residual(*, branch: bool, shortcut: bool) -> onnx.ModelProto:
    """A convolution added to its own input, with Q/DQ on either side of the addition."""
    b = Builder()
    rounded = b.qdq("images", "in")
    value = b.conv(rounded, "conv")
    sides = [b.qdq(value, "branch") if branch else value, rounded if shortcut else "images"]
    return b.model(b.node("Add", sides, "add"))


class TestResidualAdd(LintConformance):
    name, where = "residual-add", TENSORRT

    def firing(self) -> onnx.ModelProto:
        return residual(branch=True, shortcut=True)

    def clean(self) -> onnx.ModelProto:
        return residual(branch=False, shortcut=True)

    def test_each_way_of_not_fusing_is_told_apart(self) -> None:
        (both,) = self.found(residual(branch=True, shortcut=True))
        (wrong,) = self.found(residual(branch=True, shortcut=False))
        (none,) = self.found(residual(branch=False, shortcut=False))
        assert both.found == "a Q/DQ pair stands between Conv conv and it"
        assert wrong.found == "the convolution's side is quantized, and the shortcut, from the graph's input, is not"
        assert none.found == "neither input is quantized, although conv computes on 8-bit values"

    def test_onnx_runtime_wants_both_sides_or_none(self) -> None:
        rule = self.rule()

        def found(model: onnx.ModelProto) -> list[str]:
            return [finding.found for finding in rule.findings(LintGraph(model), ORT)]

        assert found(residual(branch=True, shortcut=True)) == []
        assert found(residual(branch=False, shortcut=False)) == []
        assert found(residual(branch=True, shortcut=False)) == ["one input is quantized, images is not"]

    def test_a_network_with_layer_normalisation_keeps_its_stream_in_float(self) -> None:
        b = Builder()
        scale, shift = b.constant("s", np.ones(6)), b.constant("t", np.zeros(6))
        normed = b.node("LayerNormalization", ["images", scale, shift], "norm")
        weight = b.weight("w", (CHANNELS, 1, 3, 3))
        value = b.node("Conv", [b.qdq(normed, "in"), weight], "conv", group=CHANNELS, pads=[1] * 4)
        assert self.found(b.model(b.node("Add", [value, "images"], "add"))) == []


class TestConcatScales(LintConformance):
    name, where = "concat-scales", TENSORRT

    def firing(self) -> onnx.ModelProto:
        return joined(0.05, 0.04)

    def clean(self) -> onnx.ModelProto:
        return joined(0.05, 0.05)

    def test_it_names_the_scales_and_minds_a_float_part_only_where_the_whole_is_rounded(self) -> None:
        (found,) = self.found(joined(0.05, 0.04))
        assert found.found == "its inputs have the scales 0.05, 0.04"
        b = Builder()
        whole = b.node("Concat", [b.qdq("images", "in"), "images"], "join", axis=1)
        assert self.found(b.model(whole)) == []
        b.qdq(whole, "out")
        (part,) = self.found(b.model("out.dq"))
        assert part.found == "1 of 2 inputs are float: images"


def joined(first: float, second: float) -> onnx.ModelProto:
    b = Builder()
    rounded = b.qdq("images", "in")
    parts = [b.qdq(b.conv(rounded, f"conv{place}"), f"part{place}", scale=s) for place, s in enumerate((first, second))]
    return b.model(b.node("Concat", parts, "join", axis=1))


def attention(*, products: bool) -> onnx.ModelProto:
    """Tokens (N, 6, 8), two products and a softmax between them, with Q/DQ before the products."""
    b = Builder()
    tokens = b.node("Reshape", ["images", b.constant("tokens", [0, CHANNELS, -1], np.int64)], "tokens.r")
    turned = b.node("Transpose", [tokens], "turned", perm=[0, 2, 1])
    left = b.qdq(tokens, "left") if products else tokens
    scores = b.node("MatMul", [turned, left], "scores")
    weights = b.node("Softmax", [b.qdq(scores, "scores") if products else scores], "softmax")
    return b.model(b.node("MatMul", [weights, turned], "mixed"))


class TestSensitiveQuantized(LintConformance):
    name, where = "sensitive-quantized", TENSORRT

    def firing(self) -> onnx.ModelProto:
        return attention(products=True)

    def clean(self) -> onnx.ModelProto:
        return attention(products=False)

    def test_what_onnx_runtimes_convolutions_must_round_is_not_held_against_the_graph(self) -> None:
        b = Builder()
        value = b.qdq(b.conv(b.qdq("images", "in", dtype=np.uint8, point=120), "conv"), "out", dtype=np.uint8)
        graph = LintGraph(b.model(b.node("Softmax", [value], "softmax")))
        assert list(self.rule().findings(graph, ORT)) == []
        assert [finding.node for finding in self.rule().findings(graph, TENSORRT)] == ["softmax"]

    def test_it_minds_the_softmax_and_the_product(self) -> None:
        assert [finding.node for finding in self.found(self.firing())] == ["scores", "softmax"]


class TestOutputQuantized(LintConformance):
    name, where = "output-quantized", TENSORRT

    def firing(self) -> onnx.ModelProto:
        b = Builder()
        return b.model(b.qdq(b.conv(b.qdq("images", "in"), "conv"), "out"))

    def clean(self) -> onnx.ModelProto:
        return int8_conv()
