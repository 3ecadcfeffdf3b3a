"""The picture and the table of searched students."""

from __future__ import annotations

import re

import pytest

from edgekd.report.data import FoundStudents, StudentPoint
from edgekd.report.html import html_from_report
from edgekd.report.plots.students import students
from edgekd.report.students import student_rows
from tests.report.sample import sample_report


def point(cost: float, score: float, **fields: object) -> StudentPoint:
    plain = {"text": f"depths {cost:g}", "score": score, "spread": 0.0, "cost": cost, "params_m": 0.1, "macs_m": 5.0}
    return StudentPoint.parse(plain | fields, "point")


def found(*, predicted: bool = True) -> FoundStudents:
    return FoundStudents(
        space="residual",
        ranking="params+macs",
        predicted=predicted,
        limit="Students are predicted to take at most 3 ms.",
        students=(
            point(1.0, 0.5, front=True, pick=2, reason="Second."),
            point(2.0, 0.4),
            point(2.5, 0.9, front=True, pick=1, spread=0.05, reason="Best <of> all."),
        ),
        skipped=1,
        rejected=7,
    )


@pytest.mark.parametrize(("predicted", "axis"), [(True, "Predicted latency"), (False, "Multiply-accumulates")])
def test_every_student_is_drawn_and_the_picks_are_named(predicted: bool, axis: str) -> None:
    drawing = students(found(predicted=predicted))
    assert drawing is not None
    assert drawing.count('class="mark') == 3
    assert drawing.count('class="halo"') == 2
    assert ">pick 1</text>" in drawing
    assert axis in drawing


def test_the_front_is_a_staircase_through_the_best_scores() -> None:
    drawing = students(found())
    assert drawing is not None
    steps = re.search(r'd="M([^"]+)" class="front"', drawing)
    assert steps is not None
    heights = [float(corner.split()[1]) for corner in steps[1].split("L")]
    assert heights == sorted(heights, reverse=True), "SVG counts from the top"
    assert len(set(heights)) == 2


def test_one_student_alone_is_not_drawn() -> None:
    assert students(found().model_copy(update={"students": (point(1.0, 1.0, pick=1),)})) is None
    assert students(None) is None


def test_the_table_lists_the_picks_best_first() -> None:
    rows = student_rows(found())
    assert [row.name for row in rows] == ["Pick 1", "Pick 2"]
    assert rows[0].score == "0.900 ± 0.050"
    assert rows[0].latency == "2.50"
    assert student_rows(found(predicted=False))[0].latency == ""
    assert student_rows(None) == []


def test_the_page_shows_the_search_and_escapes_what_it_says() -> None:
    page = html_from_report(sample_report().model_copy(update={"search": found()}))
    assert 'id="students"' in page
    assert "Best &lt;of&gt; all." in page
    assert "and 1 could not be scored" in page
    assert 'id="students"' not in html_from_report(sample_report())
