"""Rules on what a runtime reads, and on what half precision holds."""

from __future__ import annotations

from dataclasses import replace

import onnx
import pytest

from edgekd.lint.rule import Surroundings
from edgekd.lint.tensorrt_operators import OPSETS, REFUSED, SINCE, newest_opset, versions_in
from edgekd.lint.view import LintGraph
from edgekd.testing.conformance_lint import LintConformance
from tests.lint.graphs import TENSORRT, Builder, float_conv

OLD_AND_NEW = replace(TENSORRT, versions={"tensorrt": "8.5 (JetPack 5.1), 10.3 (JetPack 6.2)"})


def made_by(kind: str, *, opset: int = 17, domain: str = "") -> onnx.ModelProto:
    b = Builder()
    b.node(kind, ["images"], "made", domain=domain)
    model = b.model("made", opset=opset) if not domain else float_conv()
    if domain:
        model.graph.node[-1].domain = domain
    return model


class TestOpset(LintConformance):
    name, where = "opset", OLD_AND_NEW

    def firing(self) -> onnx.ModelProto:
        return made_by("Relu", opset=18)

    def clean(self) -> onnx.ModelProto:
        return made_by("Relu", opset=17)

    def test_it_is_an_error_only_where_no_version_reads_it(self) -> None:
        (one,) = self.found(made_by("Relu", opset=20))
        assert (one.severity, one.fix) == ("warning", "Export with --opset 17.")
        assert one.found == "the graph is of opset 20, which is too new for TensorRT 8.5 (opset 17)"
        (all_,) = self.found(made_by("Relu", opset=22))
        assert all_.severity == "error"


class TestUnsupportedOp(LintConformance):
    name, where = "unsupported-op", OLD_AND_NEW

    def firing(self) -> onnx.ModelProto:
        b = Builder()
        return b.model(b.node("HardSwish", [b.node("Det", ["images"], "det")], "act"))

    def clean(self) -> onnx.ModelProto:
        return float_conv()

    def test_a_refused_operator_is_an_error_and_one_of_later_versions_a_warning(self) -> None:
        refused, later = self.found(self.firing())
        assert (refused.severity, refused.found) == ("error", "TensorRT 10.1 lists Det as unsupported")
        assert (later.severity, later.found) == ("warning", "TensorRT 8.5 does not import HardSwish; 8.6 does")
        old = replace(TENSORRT, versions={"tensorrt": "8.2, 8.5"})
        assert [f.severity for f in self.rule().findings(LintGraph(self.firing()), old)] == ["error", "error"]

    def test_an_operator_of_another_domain_is_an_error(self) -> None:
        (found,) = self.found(made_by("Relu", domain="com.microsoft"))
        assert found.found == "com.microsoft.Relu is not of the ONNX standard"

    def test_an_operator_that_is_in_no_list_is_a_warning(self) -> None:
        (found,) = self.found(made_by("Swish", opset=24))
        assert (found.severity, found.found) == ("warning", "Swish is not in NVIDIA's list for 10.1")


class TestFloat16Range(LintConformance):
    name, where = "float16-range", replace(TENSORRT, ranges={"conv": 40000.0, "relu": 10.0, "images": 1.0})

    def firing(self) -> onnx.ModelProto:
        return float_conv()

    def clean(self) -> onnx.ModelProto:
        b = Builder()
        return b.model(b.node("Relu", ["images"], "relu"))

    def test_without_samples_the_suspects_are_named_once(self) -> None:
        b = Builder()
        value = b.node("Exp", [b.node("GlobalAveragePool", ["images"], "pool")], "exp")
        (found,) = self.rule().findings(LintGraph(b.model(value)), TENSORRT)
        assert (found.severity, found.node) == ("info", "pool")
        assert found.found.startswith("2 operators sum or square many values (Exp, GlobalAveragePool)")

    def test_a_target_without_fp16_is_not_asked(self) -> None:
        where = replace(self.where, precisions=("fp32", "int8"))
        assert list(self.rule().findings(LintGraph(self.firing()), where)) == []

    def test_squares_are_judged_by_what_enters_them(self) -> None:
        b = Builder()
        model = b.model(b.node("ReduceL2", ["images"], "norm", keepdims=0))
        (found,) = self.rule().findings(LintGraph(model), replace(TENSORRT, ranges={"images": 300.0, "norm": 2000.0}))
        assert found.found == "it squares values up to 300"


@pytest.mark.parametrize(
    ("words", "versions"),
    [
        ("8.5 (JetPack 5), 8.6 (JetPack 6.0), 10.3 (JetPack 6.1 and 6.2)", ((8, 5), (8, 6), (10, 3))),
        (">=8.6", ((8, 6),)),
        ("", ()),
    ],
)
def test_the_versions_of_a_card_are_read_without_its_remarks(words: str, versions: tuple[tuple[int, int], ...]) -> None:
    assert versions_in(words) == versions


def test_a_version_reads_what_the_one_before_it_reads() -> None:
    assert [newest_opset(version) for version in ((7, 2), (8, 4), (8, 6), (9, 3), (10, 3), (11, 4))] == [
        13, 13, 17, 17, 20, 25,
    ]  # fmt: skip
    assert list(OPSETS) == sorted(OPSETS)


def test_no_operator_is_both_read_and_refused() -> None:
    assert not set(SINCE) & REFUSED
    assert {"Conv", "QuantizeLinear", "LayerNormalization"} <= set(SINCE)


def test_surroundings_without_versions_are_judged_by_the_newest_list() -> None:
    where = Surroundings(target="toy", runtimes=("tensorrt",))
    (found,) = TestUnsupportedOp().rule().findings(LintGraph(TestUnsupportedOp().firing()), where)
    assert found.op == "Det"
