"""The page of a benchmark: every row with its outcome, safe with any name, and drawings made of what was measured."""

from __future__ import annotations

from xml.etree import ElementTree

from edgekd.core.benchmark import BenchmarkReport, BenchmarkRow
from edgekd.core.layers import LayerTime, layer_report
from edgekd.core.report import CandidateLatency, Choice, ProfileReport
from edgekd.report.benchmark import html_from_benchmark, row_text, value_name
from edgekd.report.plots.shares import shares
from edgekd.report.signs import DASH, TIMES
from tests.report.sample import latency
from tests.report.test_html import parsed

SLOW = BenchmarkRow(
    engine="int8-ort", runtime="onnxruntime", precision="int8", threads=1, size_mib=0.3, p50_ms=2.0, p99_ms=3.0,
    median_low_ms=1.9, median_high_ms=2.1, memory_peak_mib=12.0, against_fp32=1.4, metric="top1", value=0.9,
    value_low=0.88, value_high=0.92, sqnr_db=30.0, status="slower than FP32", reason="2.00 ms against 1.43 ms",
    why="INT8 takes 1.4 times as long as FP32 in onnxruntime: 34 conversions <b>",
)  # fmt: skip
CHOSEN = SLOW.model_copy(
    update={"engine": "fp32", "precision": "fp32", "status": "chosen", "against_fp32": None, "why": "", "reason": "it"}
)
MISSING = BenchmarkRow(runtime="ncnn", status="not installed", reason="pip install ncnn")


def entry(name: str, precision: str, ms: float, **shares_of: float) -> CandidateLatency:
    layers = [
        LayerTime.model_validate({"name": kind, "op": kind, "provider": "CPU", "arithmetic": kind, "median_ms": share})
        for kind, share in shares_of.items()
    ]
    return CandidateLatency(
        candidate=name, runtime="onnxruntime", precision=precision, size_mib=0.3,
        latency=latency("onnxruntime", precision, ms, n=60),
        layers=layer_report(layers, source="test", calls=1, provider="CPU", quantized=False) if layers else None,
    )  # fmt: skip


PROFILE = ProfileReport(
    device="a desk", measured=True, threads=(1,),
    entries=(entry("fp32", "fp32", 1.4, float=3.0), entry("int8-ort", "int8", 2.0, int8=1.0, conversion=3.0)),
)  # fmt: skip


def report(*rows: BenchmarkRow, profile: ProfileReport | None = PROFILE, **fields: object) -> BenchmarkReport:
    choice = Choice(candidate="fp32", runtime="onnxruntime", precision="fp32", reason="it", within_budget=True)
    given: dict[str, object] = {
        "model": "<script>.onnx",
        "target": "host",
        "device": "a desk",
        "data": "noise",
        "reference": "fp32@onnxruntime",
        "threads": (1,),
        "max_drop": 0.01,
        "seed": 0,
        "rows": rows,
        "choice": choice,
        "profile": profile,
    }
    given |= fields
    return BenchmarkReport.model_validate(given)


def page(found: BenchmarkReport) -> str:
    return html_from_benchmark(found, created="2026-03-02T14:05:00+00:00", version="0.1.0")


def test_the_page_holds_every_row_with_its_outcome_and_reasons_and_is_well_formed() -> None:
    text = page(report(CHOSEN, SLOW, MISSING))
    parsed(text)
    for told in (
        "slower than FP32",
        f"1.4{TIMES}",
        "2.00 ms against 1.43 ms",
        "not installed",
        "pip install ncnn",
        "30 dB",
    ):
        assert told in text
    assert "34 conversions &lt;b&gt;" in text
    assert "<script>" not in text
    assert "would be deployed" in text


def test_without_a_choice_or_a_measurement_the_page_says_why() -> None:
    found = report(MISSING, profile=None, choice=None, no_choice="no engine could be made that answers")
    text = page(found)
    parsed(text)
    assert "No engine would be deployed: no engine could be made that answers" in text
    assert "Where the time goes" not in text
    assert value_name(found) == "Answers"


def test_a_row_as_text_has_its_numbers_rounded_and_a_dash_for_what_is_not_known() -> None:
    text = row_text(SLOW)
    assert (text.p50, text.between, text.value, text.interval, text.factor) == (
        "2.00", "1.90 to 2.10", "90.0 %", "88.0 to 92.0 %", f"1.4{TIMES}",
    )  # fmt: skip
    assert (row_text(MISSING).engine, row_text(MISSING).p50, row_text(MISSING).threads) == (DASH, DASH, "")


def test_bars_are_as_long_as_the_recorded_time_and_cut_by_arithmetic() -> None:
    drawn = shares(PROFILE)
    assert drawn is not None
    widths: dict[str, float] = {}
    for element in ElementTree.fromstring(drawn).iter("rect"):
        kind = element.attrib["class"].removeprefix("share ")
        widths[kind] = max(widths.get(kind, 0.0), float(element.attrib["width"]))
    assert widths["conversion"] == 3 * widths["int8"]
    assert widths["float"] == widths["conversion"]
    assert "75% conversions of type and layout" in drawn


def test_without_times_of_layers_there_are_no_bars() -> None:
    silent = PROFILE.model_copy(update={"entries": (entry("fp32", "fp32", 1.0),)})
    assert shares(silent) is None
    assert shares(None) is None


def test_what_is_known_less_precisely_than_asked_is_marked_and_explained() -> None:
    assert row_text(CHOSEN).p50 == "2.00"
    rough = CHOSEN.model_copy(update={"inconclusive": "too wide"})
    assert row_text(rough).p50 == "2.00~"
    said = "known less precisely than asked"
    assert said not in page(report(CHOSEN))
    assert said in page(report(rough))
