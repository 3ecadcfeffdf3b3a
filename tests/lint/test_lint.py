"""Running the rules: the report, what stages say, and that every rule is tested and documented."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgekd.errors import BuildFailed, UserError
from edgekd.lint.family import family_of
from edgekd.lint.lint import check_built, lint
from edgekd.lint.rule import LINTS, surroundings_of
from edgekd.targets.load import load_target
from edgekd.testing.conformance_lint import LintConformance
from tests.lint import (
    test_branches,
    test_grids,
    test_measured,
    test_placement,
    test_requantized,
    test_structure,
    test_support,
)
from tests.lint.graphs import CHANNELS, TENSORRT, Builder, float_conv, int8_conv
from tests.quant.attention import attention

PAGE = (Path(__file__).resolve().parents[2] / "docs" / "lints.md").read_text()
MODULES = (test_branches, test_grids, test_measured, test_placement, test_requantized, test_structure, test_support)


def test_every_rule_has_its_suite() -> None:
    suites = {
        value.name
        for module in MODULES
        for value in vars(module).values()
        if isinstance(value, type) and issubclass(value, LintConformance) and value is not LintConformance
    }
    assert suites == set(LINTS)


def test_every_rule_is_on_the_page_with_what_the_code_says() -> None:
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in PAGE.splitlines() if line.startswith("| `")]
    rows = [row for row in rows if len(row) == 5]
    expected = []
    for name in LINTS:
        rule = LINTS.get(name)
        runtimes = ", ".join(sorted(rule.runtimes)) or "any"
        expected.append([f"`{name}`", rule.severity, runtimes, "yes" if rule.repairs else "", rule.summary])
    assert rows == expected


def test_findings_come_worst_first_and_then_in_the_graphs_order() -> None:
    b = Builder()
    first = b.conv(b.qdq("images", "in", dtype=np.uint8, point=3), "first")
    second = b.conv(b.qdq(first, "mid", dtype=np.uint8, point=3), "second", out=10)
    report = lint(b.model(second), TENSORRT)
    assert [finding.severity for finding in report.findings] == ["error", "error", "info"]
    assert [finding.node for finding in report.findings[:2]] == ["in.q", "mid.q"]
    assert (report.count("error"), report.family, report.int8_macs_share) == (2, "cnn", 1.0)


def test_an_unknown_rule_is_refused_with_the_near_one() -> None:
    with pytest.raises(UserError, match=r"Unknown lint 'zero-pont'\. Did you mean 'zero-point'"):
        lint(float_conv(), TENSORRT, rules=["zero-pont"])


def test_shares_that_cannot_be_known_are_said_to_be_missing() -> None:
    b = Builder()
    model = b.model(b.conv("images", "conv", quantized=False), inputs={"images": ["N", CHANNELS, "H", "W"]})
    report = lint(model, TENSORRT)
    assert report.macs_m is None
    assert any(text.startswith("Shares of multiply-accumulates") for text in report.not_checked)


def test_a_stage_refuses_what_the_runtime_refuses() -> None:
    b = Builder()
    model = b.model(b.conv(b.qdq("images", "in", dtype=np.uint8, point=3), "conv"))
    with pytest.raises(BuildFailed, match=r"does not suit tensorrt: in\.q: uint8 with zero point 3") as err:
        check_built(model, "tensorrt-s8", "the toy stage")
    assert err.value.hint == "Quantize the FP32 graph for this target (edgekd quantize --scheme tensorrt-s8)."


def test_a_stage_says_a_sentence_for_each_rule_that_warns() -> None:
    b = Builder()
    value = b.qdq(b.conv(b.qdq("images", "in"), "conv"), "cut")
    (said,) = check_built(b.model(b.node("Relu", [value], "relu")), "tensorrt-s8", "the toy stage")
    assert said.startswith("Lint cut-fusion: conv: cut.q stands between conv and Relu relu.")
    assert check_built(int8_conv(), "tensorrt-s8", "the toy stage") == ()
    assert check_built(int8_conv(), "weight-only", "the toy stage") == ()


def test_the_surroundings_of_a_card_are_those_of_the_runtimes_asked_about() -> None:
    jetson = surroundings_of(load_target("jetson"))
    assert (jetson.runtimes, jetson.channel_multiple, jetson.cpu) == (("tensorrt",), 16, False)
    x86 = surroundings_of(load_target("x86-cpu"), runtimes=("openvino",))
    assert (x86.runtimes, x86.cpu, "fp16" in x86.precisions) == (("openvino",), True, False)


def depthwise(*, norm: bool) -> onnx.ModelProto:
    b = Builder()
    weight = b.constant("w", np.ones((CHANNELS, 1, 3, 3)))
    value = b.node("Conv", ["images", weight], "depth", group=CHANNELS)
    if norm:
        value = b.node("LayerNormalization", [value, b.constant("s", np.ones(4))], "norm")
    return b.model(value)


def test_families_are_told_by_what_the_graph_holds() -> None:
    b = Builder()
    flat = b.node("Flatten", ["images"], "flat")
    mlp = b.model(b.node("MatMul", [flat, b.constant("w", np.ones((CHANNELS * 36, 3)))], "product"))
    graphs = [float_conv(), int8_conv(), depthwise(norm=False), depthwise(norm=True), attention(), mlp]
    assert [family_of(graph) for graph in graphs] == ["cnn", "cnn", "depthwise", "convnext", "transformer", "mlp"]
