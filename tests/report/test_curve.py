"""The pruning curve: what is drawn, where, and what is said of it."""

from __future__ import annotations

import re

import pytest

from edgekd.core.report import Budget
from edgekd.report.data import CurveEngine, CurvePoint, PruningCurve
from edgekd.report.html import html_from_report
from edgekd.report.plots.curve import LOWER, UPPER, curve_in_words, curve_picture
from edgekd.report.signs import TIMES
from tests.report.sample import evaluation, sample_report

CUTS = {
    # share left: (fp32 ms, fp32 accuracy, int8 ms, int8 accuracy)
    1.0: (2.91, 0.8973, 1.58, 0.8948),
    0.71: (2.30, 0.8969, 1.31, 0.8930),
    0.5: (1.82, 0.8921, 1.12, 0.8902),
    0.25: (1.20, 0.8702, 0.97, 0.8685),
}


def curve(*, evaluated: bool = True, name: str = "Teacher") -> PruningCurve:
    def engine(cut: int, precision: str, ms: float, accuracy: float) -> CurveEngine:
        label = f"cut-{cut}-{precision}"
        return CurveEngine(
            name=label,
            precision=precision,
            runtime="openvino",
            median_ms=ms,
            low_ms=0.99 * ms,
            high_ms=1.01 * ms,
            accuracy=evaluation(label, "openvino", accuracy) if evaluated else None,
            chosen=label == "cut-2-int8",
        )

    points = tuple(
        CurvePoint(kept=kept, cut=cut, engines=(engine(cut, "fp32", *row[:2]), engine(cut, "int8", *row[2:])))
        for cut, (kept, row) in enumerate(CUTS.items())
    )
    return PruningCurve(name=name, points=points)


def corners(drawing: str, style: str) -> list[list[tuple[float, float]]]:
    found = re.findall(rf'd="M([^"]+)" class="{style}"', drawing)
    return [[(float(x), float(y)) for x, y in (step.split() for step in one.split("L"))] for one in found]


def test_each_precision_has_a_line_in_both_panels_and_narrower_networks_stand_further_right() -> None:
    drawing = curve_picture(curve(), Budget())
    for precision in ("fp32", "int8"):
        accuracy, latency = corners(drawing, f"curve {precision}")
        assert len(accuracy) == len(latency) == len(CUTS)
        assert [x for x, _ in latency] == sorted(x for x, _ in latency)
        assert all(UPPER[0] <= y <= UPPER[1] for _, y in accuracy)
        heights = [y for _, y in latency]
        assert heights == sorted(heights), "SVG counts from the top, so falling latencies go down"
    assert drawing.count('class="mark') == 2 * 2 * len(CUTS)
    assert drawing.count('class="halo"') == 2, "the chosen engine, in both panels"


def test_the_dashed_line_falls_with_the_arithmetic_from_the_fastest_engine() -> None:
    drawing = curve_picture(curve(), Budget())
    [ideal] = corners(drawing, "ideal")
    fastest = corners(drawing, "curve int8")[1]
    assert ideal[0] == pytest.approx(fastest[0], abs=0.1)
    base = LOWER[1]
    assert (base - ideal[-1][1]) / (base - ideal[0][1]) == pytest.approx(0.25, abs=0.002)
    assert (base - fastest[-1][1]) / (base - fastest[0][1]) == pytest.approx(0.97 / 1.58, abs=0.002)


def test_limits_are_drawn_where_they_were_asked_for_and_a_students_curve_has_no_floor() -> None:
    asked = Budget(max_latency_ms=1.5, max_drop=0.01)
    drawing = curve_picture(curve(), asked)
    assert "limit 1.5 ms" in drawing
    assert "lowest allowed: 88.7 %" in drawing
    assert "lowest allowed" not in curve_picture(curve(name="Student"), asked)
    assert "limit" not in curve_picture(curve(), Budget(max_latency_ms=500)), "a limit far off would flatten the lines"


def test_the_sentence_compares_what_was_gained_with_what_the_arithmetic_promises() -> None:
    assert curve_in_words(curve()).replace(TIMES, "x") == (
        "With 25.0 % of the multiply-accumulates the fastest engine takes 0.970 ms (INT8) instead of 1.58 ms (INT8): "
        "1.6x faster, where arithmetic alone would give 4.0x. It is 2.6 points less accurate."
    )


def test_two_points_are_drawn_and_a_missing_cut_is_named() -> None:
    whole, *_, last = curve().points
    short = curve().model_copy(update={"points": (whole, last), "missing": (1, 2)})
    drawing = curve_picture(short, Budget())
    assert "over 1 cut" in drawing
    assert "over 1 cuts" not in drawing
    assert len(corners(drawing, "curve int8")[1]) == 2
    assert curve_in_words(short).endswith(
        "It is 2.6 points less accurate. Cut 1 is not drawn: none of its engines has a latency. Cut 2 is not drawn: "
        "none of its engines has a latency."
    )


def test_without_images_the_latencies_are_drawn_alone() -> None:
    drawing = curve_picture(curve(evaluated=False), Budget())
    assert "Accuracy was not evaluated" in drawing
    assert len(corners(drawing, "curve int8")) == 1
    assert curve_in_words(curve(evaluated=False)).endswith(f"would give 4.0{TIMES}.")


def test_the_page_has_the_curve_only_where_something_was_cut() -> None:
    page = html_from_report(sample_report().model_copy(update={"curves": (curve(),)}))
    assert 'id="pruning"' in page
    assert "Teacher.</strong> With 25.0 %" in page
    assert 'id="pruning"' not in html_from_report(sample_report())
