"""Rules that ask ONNX Runtime and OpenVINO."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest

from edgekd.lint import measured
from edgekd.lint.lint import lint
from edgekd.lint.rule import Surroundings
from edgekd.lint.view import LintGraph
from edgekd.runtimes.session import RUNTIMES, Availability
from edgekd.testing.conformance_lint import LintConformance
from tests.lint.graphs import CHANNELS, CPU, ORT, Builder, float_conv, int8_conv

OPENVINO = Surroundings(target="toy", runtimes=("openvino",), cpu=True)


def float_output() -> onnx.ModelProto:
    """A convolution on 8-bit values whose output nobody quantizes."""
    b = Builder()
    value = b.conv(b.qdq("images", "in", dtype=np.uint8, point=120), "conv")
    return b.model(b.node("Sigmoid", [value], "gate"))


class TestRefused(LintConformance):
    name, where = "refused", ORT

    def firing(self) -> onnx.ModelProto:
        b = Builder()
        model = b.model(b.node("Relu", ["images"], "relu"))
        model.graph.node[0].op_type = "NoSuchOperator"
        return model

    def clean(self) -> onnx.ModelProto:
        return float_conv()

    def test_it_says_who_refused_and_in_which_version(self) -> None:
        (found,) = self.found(self.firing())
        assert found.runtimes == ("onnxruntime",)
        assert found.measured.startswith("onnxruntime 1.")
        assert "NoSuchOperator" in found.found


class TestOnnxRuntimeFloat(LintConformance):
    name, where = "onnxruntime-float", ORT

    def firing(self) -> onnx.ModelProto:
        return float_output()

    def clean(self) -> onnx.ModelProto:
        return int8_conv(signed=False)

    def test_it_says_what_the_layer_became_and_how_much_of_the_graph_it_is(self) -> None:
        (found,) = self.found(float_output())
        assert (found.node, found.macs_share) == ("conv", 1.0)
        assert "reading DequantizeLinear and DequantizeLinear" in found.found

    def test_the_signed_form_runs_in_float_behind_a_relu(self) -> None:
        b = Builder()
        value = b.node("Relu", [b.conv(b.qdq("images", "in"), "conv")], "relu")
        (found,) = self.found(b.model(b.qdq(value, "out")))
        assert found.node == "conv"


class TestOpenVinoFloat(LintConformance):
    name, where = "openvino-float", OPENVINO

    def firing(self) -> onnx.ModelProto:
        b = Builder()
        value = b.qdq("images", "in", scale=np.linspace(0.04, 0.06, CHANNELS), dtype=np.uint8, point=120, axis=1)
        return b.model(b.conv(value, "conv"))

    def clean(self) -> onnx.ModelProto:
        return int8_conv(signed=False)


@pytest.mark.parametrize("rule", ["refused", "onnxruntime-float"])
def test_a_runtime_that_is_not_installed_is_not_asked_and_the_report_says_so(
    monkeypatch: pytest.MonkeyPatch, rule: str
) -> None:
    gone = Availability(ok=False, reason="onnxruntime: no module", install="pip install onnxruntime")
    monkeypatch.setattr(type(RUNTIMES.get("onnxruntime")), "availability", lambda self: gone)
    report = lint(float_output(), ORT, rules=[rule])
    assert report.findings == ()
    assert "What onnxruntime makes of the graph: onnxruntime: no module; pip install onnxruntime" in report.not_checked


def test_stages_ask_no_runtime(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(model: onnx.ModelProto) -> onnx.ModelProto:
        raise AssertionError("asked")

    monkeypatch.setattr(measured, "optimised_graph", asked)
    assert lint(float_output(), replace(CPU, measures=False)).count("error") == 0


def test_a_message_names_the_node_with_the_longest_name_in_it() -> None:
    graph = LintGraph(float_conv())
    found = measured._named_in(graph, "kernel not found for the node conv of type Conv")
    assert found is not None
    assert found.name == "conv"
