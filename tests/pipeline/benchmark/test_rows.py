"""The rows of the table: each outcome, its reason, and what the guard makes of them."""

from __future__ import annotations

import pytest

from edgekd.core.benchmark import BenchmarkRow
from edgekd.core.layers import LayerTime, layer_report
from edgekd.errors import BuildFailed, EdgekdError
from edgekd.pipeline.benchmark.draft import Absent
from edgekd.pipeline.benchmark.rows import Findings, choice_of, rows_of
from tests.pipeline.benchmark.fakes import answers, contestant, findings, made, timed

ORT = "onnxruntime"


def table(found: Findings) -> dict[str, BenchmarkRow]:
    choice, _ = choice_of(found)
    return {f"{row.engine}@{row.runtime}": row for row in rows_of(found, choice)}


def test_the_chosen_the_beaten_and_the_reference_each_have_their_outcome() -> None:
    rows = table(
        findings(
            [contestant("fp32", ORT), contestant("int8-ort", ORT), contestant("pytorch", "torch")],
            [timed("fp32", 2.0), timed("int8-ort", 1.0), timed("pytorch", 9.0, "torch")],
            [answers("fp32"), answers("int8-ort"), answers("pytorch", "torch")],
        )
    )
    assert {name: row.status for name, row in rows.items()} == {
        "int8-ort@onnxruntime": "chosen", "fp32@onnxruntime": "measured", "pytorch@torch": "reference",
    }  # fmt: skip
    int8 = rows["int8-ort@onnxruntime"]
    assert (int8.p50_ms, int8.against_fp32, int8.value, int8.metric, int8.images) == (1.0, 0.5, 0.9, "top1", 1000)
    assert (int8.fastest, int8.pareto) == (True, True)
    assert rows["fp32@onnxruntime"].reason == "slower: 2.00 ms against 1.00 ms"
    assert rows["fp32@onnxruntime"].against_fp32 is None


def test_a_slower_int8_says_so_with_what_its_layers_tell_and_is_never_chosen() -> None:
    def layer(op: str, arithmetic: str, ms: float) -> LayerTime:
        return LayerTime.model_validate(
            {"name": op, "op": op, "arithmetic": arithmetic, "median_ms": ms, "provider": "CPU"}
        )

    low = layer_report(
        [layer("QuantizeLinear", "conversion", 1.0), layer("QLinearConv", "int8", 1.0)],
        source="test", calls=1, provider="CPU", quantized=True,
    )  # fmt: skip
    rows = table(
        findings(
            [contestant("fp32", ORT), contestant("int8-ort", ORT)],
            [timed("fp32", 1.0), timed("int8-ort", 2.0).model_copy(update={"layers": low})],
            [answers("fp32"), answers("int8-ort")],
        )
    )
    int8 = rows["int8-ort@onnxruntime"]
    assert int8.status == "slower than FP32"
    assert int8.reason == "2.00 ms against 1.00 ms of FP32 in onnxruntime"
    assert int8.why.startswith("INT8 takes 2.0 times as long as FP32 in onnxruntime: 1 conversion between types")
    assert rows["fp32@onnxruntime"].status == "chosen"


def test_an_engine_that_computes_something_else_is_wrong_however_fast_it_is() -> None:
    rows = table(
        findings(
            [contestant("fp32", ORT, "openvino"), contestant("fp16", ORT)],
            [timed("fp32", 2.0), timed("fp32", 0.1, "openvino"), timed("fp16", 0.2)],
            [answers("fp32"), answers("fp32", "openvino", within=False), answers("fp16", finite=False)],
        )
    )
    wrong = rows["fp32@openvino"]
    assert wrong.status == "wrong"
    assert "it does not compute what fp32@onnxruntime computes: outputs differ by up to 0.40 of their" in wrong.reason
    assert rows["fp16@onnxruntime"].reason == "its outputs are NaN or infinite"
    assert rows["fp32@onnxruntime"].status == "chosen"
    assert not wrong.fastest


def test_an_engine_that_loses_too_much_says_how_much_and_whether_the_kernels_take_part_in_it() -> None:
    def row(kernels_db: float) -> BenchmarkRow:
        return table(
            findings(
                [contestant("fp32", ORT), contestant("int8-ort", ORT)],
                [timed("fp32", 2.0), timed("int8-ort", 1.0)],
                [answers("fp32", value=0.9), answers("int8-ort", value=0.8)],
                outcomes={"int8-ort": made("int8-ort", {"sqnr_db": 20.0, "sqnr_here_db": kernels_db})},
            )
        )["int8-ort@onnxruntime"]

    assert row(11.0).status == "worse than FP32"
    assert row(11.0).reason.startswith("10.0 points lost (95 % interval")
    assert "saturate): signal to noise 20.0 dB with exact rounding, 11.0 dB" in row(11.0).reason
    assert "Nothing is lost to this CPU's 8-bit kernels" in row(20.0).reason


def test_a_loss_is_also_told_image_by_image_and_whether_it_may_be_chance() -> None:
    def reason(lost: int, gained: int) -> str:
        int8 = answers("int8-ort", value=0.88, lost=lost, gained=gained)
        return table(
            findings(
                [contestant("fp32", ORT), contestant("int8-ort", ORT)],
                [timed("fp32", 2.0), timed("int8-ort", 1.0)],
                [answers("fp32", value=0.9), int8],
            )
        )["int8-ort@onnxruntime"].reason

    assert "Image by image, 30 of 1000 are lost and 10 gained against fp32@onnxruntime: 0.7 to 3.3 points" in reason(
        30, 10
    )
    assert "chance" not in reason(30, 10)
    assert reason(130, 110).endswith("so it may be chance; more images tell (--images)")


def test_what_could_not_be_made_or_crashed_or_is_not_installed_is_a_row_with_what_to_do() -> None:
    rows = table(
        findings(
            [contestant("fp32", ORT, "openvino"), contestant("int8-ort", ORT)],
            [timed("fp32", 2.0)],
            [answers("fp32")],
            outcomes={
                "int8-ort": BuildFailed("only 3 % of the weights are INT8", hint="use another scheme"),
                "answers-fp32-openvino": EdgekdError("openvino crashed in native code (SIGSEGV)"),
            },
            absent=(
                Absent(runtime="ncnn", reason="ncnn is not installed (pip install ncnn)", installable=True),
                Absent(runtime="tensorrt", reason="there is no GPU", installable=False),
            ),
        )
    )
    assert rows["int8-ort@onnxruntime"].status == "failed"
    assert rows["int8-ort@onnxruntime"].reason == (
        "it could not be made: only 3 % of the weights are INT8 (use another scheme)"
    )
    assert rows["fp32@openvino"].reason == "openvino crashed in native code (SIGSEGV)"
    assert (rows["@ncnn"].status, rows["@tensorrt"].status) == ("not installed", "not supported")
    assert rows["@ncnn"].reason == "ncnn is not installed (pip install ncnn)"


def test_an_engine_that_failed_while_it_was_timed_keeps_the_profilers_reason() -> None:
    rows = table(
        findings(
            [contestant("fp32", ORT, "openvino")],
            [timed("fp32", 2.0), timed("fp32", None, "openvino")],
            [answers("fp32"), answers("fp32", "openvino")],
        )
    )
    assert (rows["fp32@openvino"].status, rows["fp32@openvino"].reason) == ("failed", "it broke")


def test_each_thread_count_has_its_own_fastest_and_the_choice_is_made_at_the_first() -> None:
    found = findings(
        [contestant("fp32", ORT), contestant("int8-ort", ORT)],
        [timed("fp32", 2.0), timed("int8-ort", 1.0), timed("fp32", 0.5, threads=2), timed("int8-ort", 0.8, threads=2)],
        [answers("fp32"), answers("int8-ort")],
        threads=(1, 2),
    )
    choice, _ = choice_of(found)
    rows = {(row.engine, row.threads): row.status for row in rows_of(found, choice)}
    assert rows == {
        ("int8-ort", 1): "chosen", ("fp32", 1): "measured", ("fp32", 2): "fastest", ("int8-ort", 2): "slower than FP32",
    }  # fmt: skip


def test_a_more_accurate_engine_that_is_slower_is_on_the_front() -> None:
    rows = table(
        findings(
            [contestant("fp32", ORT), contestant("int8-ort", ORT)],
            [timed("fp32", 2.0), timed("int8-ort", 1.0)],
            [answers("fp32", value=0.9), answers("int8-ort", value=0.895)],
        )
    )
    assert (rows["fp32@onnxruntime"].status, rows["int8-ort@onnxruntime"].status) == ("pareto", "chosen")


def test_without_a_measurement_every_engine_is_a_row_with_the_reason_and_nothing_is_chosen() -> None:
    found = findings([contestant("fp32", ORT)], [], [answers("fp32")])
    choice, why = choice_of(found)
    assert (choice, why) == (None, "nothing could be measured: the meter broke")
    (row,) = rows_of(found, choice)
    assert (row.status, row.reason) == ("failed", "nothing could be measured: the meter broke")


@pytest.mark.parametrize(("decibels", "status"), [(1.0, "wrong"), (12.0, "fastest")])
def test_a_fast_int8_engine_that_answers_noise_with_noise_is_wrong_where_no_accuracy_tells(
    decibels: float, status: str
) -> None:
    told = answers("int8-weights")
    assert told.agreement is not None
    agreement = told.agreement.model_copy(update={"sqnr_db": decibels})
    full = answers("fp32").model_copy(update={"evaluation": None})
    low = told.model_copy(update={"evaluation": None, "agreement": agreement, "origin": "random"})
    contestants = [contestant("fp32", "onnxruntime"), contestant("int8-weights", "onnxruntime")]
    found = findings(contestants, [timed("fp32", 2.0), timed("int8-weights", 1.0)], [full, low])
    by_name = {row.engine: row for row in rows_of(found, None)}
    assert by_name["int8-weights"].status == status
    assert by_name["fp32"].fastest == (status == "wrong")
