"""Why a low-precision engine is slow, read from recorded layers: every count and share in the sentence is measured."""

from __future__ import annotations

from edgekd.core.layers import LayerReport, LayerTime, layer_report
from edgekd.core.report import Budget
from edgekd.gate.choose import choose
from edgekd.gate.reasons import CONVOLUTIONS, PRODUCTS, family_of, why_from_layers
from tests.gate.results import accuracy, candidates, entry, profile


def layer(name: str, op: str, arithmetic: str, ms: float, provider: str = "CPU") -> LayerTime:
    return LayerTime.model_validate(
        {"name": name, "op": op, "arithmetic": arithmetic, "median_ms": ms, "provider": provider}
    )


def told(*layers: LayerTime, quantized: bool = True) -> LayerReport:
    return layer_report(layers, source="test", calls=3, provider="CPU", quantized=quantized)


BUDGET = Budget(max_drop=0.01)
FULL = told(*(layer(f"conv{i}", "Conv", "float", 2.0) for i in range(4)), quantized=False)
SLOW = told(
    layer("q", "QuantizeLinear", "conversion", 2.0),
    layer("a", "QLinearConv", "int8", 3.0),
    layer("dq", "DequantizeLinear", "conversion", 2.0),
    layer("b", "Conv", "float", 2.0),
    layer("add", "Add", "float", 0.5),
    layer("q2", "QuantizeLinear", "conversion", 2.0),
    layer("c", "QLinearConv", "int8", 3.0),
    layer("d", "QLinearConv", "int8", 4.0),
    layer("fc", "QGemm", "int8", 1.5),
)


def test_the_sentence_counts_layers_in_float_conversions_and_islands_and_compares_the_work_itself() -> None:
    assert why_from_layers(SLOW, FULL, int8=True) == (
        "1 of 4 convolutions run in float (10% of the time), "
        "3 conversions between types or layouts (2 QuantizeLinear, 1 DequantizeLinear) take 30% of the time, in FP32 "
        "0%, 2 float layers stand between int8 ones, its convolutions take 1.5 times as long as those of FP32"
    )


def test_an_engine_whose_every_layer_gained_has_no_single_reason() -> None:
    fast = told(*(layer(f"conv{i}", "QLinearConv", "int8", 1.0) for i in range(4)))
    assert why_from_layers(fast, None, int8=True) == "the times of its layers show no single reason"
    assert "0.50 times as long" in why_from_layers(fast, FULL, int8=True)


def test_conversions_that_take_no_time_are_not_named() -> None:
    low = told(layer("q", "QuantizeLinear", "conversion", 0.001), layer("a", "QLinearConv", "int8", 3.0))
    assert "QuantizeLinear" not in why_from_layers(low, None, int8=True)


def test_a_runtime_that_tells_no_layers_is_not_guessed_about() -> None:
    assert why_from_layers(None, FULL, int8=True) == "its runtime tells no times of layers, so the reason is not known"


def test_layers_on_another_provider_are_a_reason_unless_the_twin_has_them_too() -> None:
    parts = (layer("a", "QLinearConv", "int8", 3.0), layer("b", "QLinearConv", "int8", 3.0))
    low = told(*parts, layer("s", "Softmax", "float", 3.0, "Other"))
    assert "1 on Other instead of CPU" in why_from_layers(low, None, int8=True)
    twin = told(*(layer(f"c{i}", "Conv", "float", 3.0) for i in range(2)), layer("s", "Softmax", "float", 3.0, "Other"))
    assert "Other" not in why_from_layers(low, twin, int8=True)


def test_layers_of_an_fp16_engine_are_not_called_float_because_one_ran_elsewhere() -> None:
    parts = (layer("a", "Conv", "float", 3.0), layer("s", "Softmax", "float", 3.0, "Other"))
    said = why_from_layers(told(*parts, quantized=False), None, int8=False)
    assert "run in float" not in said
    assert "1 on Other instead of CPU" in said


def test_families_are_recognised_in_every_runtimes_words() -> None:
    convolutions = ("Conv", "QLinearConv", "GroupConvolution", "CaskConvolution", "ConvTranspose")
    assert {family_of(op) for op in convolutions} == {CONVOLUTIONS}
    assert {family_of(op) for op in ("Gemm", "QGemm", "MatMulIntegerToFloat", "FullyConnected")} == {PRODUCTS}
    assert [family_of(op) for op in ("Convert", "Add", "QuantizeLinear")] == [None, None, None]


def test_the_choice_says_why_int8_is_slower_with_the_ratio_in_the_same_runtime() -> None:
    full = entry("teacher-fp32", 2.0).model_copy(update={"layers": FULL})
    low = entry("teacher-int8", 3.0).model_copy(update={"layers": SLOW})
    evaluations = [accuracy("teacher-fp32", 0.9), accuracy("teacher-int8", 0.9)]
    choice = choose(
        candidates("teacher-fp32", "teacher-int8"), profile(full, low), evaluations,
        BUDGET, reference="teacher-fp32", runtimes={},
    )  # fmt: skip
    why = choice.rejected["teacher-int8@onnxruntime"]
    assert why.startswith("INT8 is slower: 3.00 ms against 2.00 ms of its fp32 twin teacher-fp32@onnxruntime. INT8 ")
    assert "INT8 takes 1.5 times as long as FP32 in onnxruntime: 1 of 4 convolutions run in float" in why


def test_fp16_that_is_slower_says_why_as_well() -> None:
    half = told(layer("cast", "Cast", "conversion", 3.0), *(layer(f"c{i}", "Conv", "float", 2.0) for i in range(4)))
    full = entry("teacher-fp32", 2.0).model_copy(update={"layers": FULL})
    low = entry("teacher-fp16", 3.0).model_copy(update={"layers": half})
    evaluations = [accuracy("teacher-fp32", 0.9), accuracy("teacher-fp16", 0.9)]
    choice = choose(
        candidates("teacher-fp32", "teacher-fp16"), profile(full, low), evaluations,
        BUDGET, reference="teacher-fp32", runtimes={},
    )  # fmt: skip
    why = choice.rejected["teacher-fp16@onnxruntime"]
    assert why.startswith("slower: 3.00 ms against 2.00 ms. FP16 takes 1.5 times as long as FP32 in onnxruntime")
    assert "1 conversion between types or layouts (1 Cast) takes 27% of the time" in why
