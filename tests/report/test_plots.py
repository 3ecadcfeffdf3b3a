"""The drawings' geometry, not their looks."""

from __future__ import annotations

import re

import numpy as np
import pytest

from edgekd.report.plots.graph import graph_picture, way_to_choice
from edgekd.report.plots.latency import density, latencies
from edgekd.report.plots.layout import Block, placed, reduced
from edgekd.report.plots.pareto import front, pareto, points_from_report
from edgekd.report.svg import Scale, label, shortened, tag
from tests.report.sample import CHOSEN, sample_report, without_measurement


@pytest.mark.parametrize("log", [False, True])
def test_a_scale_maps_its_ends_and_its_ticks_lie_inside(log: bool) -> None:
    scale = Scale(low=0.27, high=4.1, start=60, end=1000, log=log)
    assert scale(0.27) == pytest.approx(60)
    assert scale(4.1) == pytest.approx(1000)
    ticks = scale.ticks(6)
    assert 3 <= len(ticks) <= 12
    assert ticks == sorted(ticks)
    assert all(0.27 <= tick <= 4.1 for tick in ticks)


@pytest.mark.parametrize(("low", "high"), [(0.9, 1.1), (0.001, 1000.0), (4.0, 4.2)])
def test_a_log_scale_has_ticks_however_short_or_long_it_is(low: float, high: float) -> None:
    assert 3 <= len(Scale(low=low, high=high, start=0, end=1, log=True).ticks(6)) <= 14


def test_text_and_attributes_are_escaped() -> None:
    assert label(0, 0, "<b>&") == '<text x="0" y="0" class="t" text-anchor="start">&lt;b&gt;&amp;</text>'
    assert tag("g", {"class": '"'}) == '<g class="&quot;"/>'
    assert shortened("abcdef", 4) == "abc…"


def test_the_front_holds_exactly_the_points_that_nobody_beats() -> None:
    points = points_from_report(sample_report())
    best = front(points)
    for point in points:
        beaten = any(
            other.latency_ms <= point.latency_ms
            and other.accuracy.value >= point.accuracy.value
            and (other.latency_ms, other.accuracy.value) != (point.latency_ms, point.accuracy.value)
            for other in points
        )
        assert (point in best) != beaten


def test_the_trade_off_marks_the_chosen_engine_once_and_shows_the_limits() -> None:
    drawing = pareto(sample_report())
    assert drawing is not None
    assert drawing.count('class="halo"') == 1
    assert "limit 0.5 ms" in drawing
    assert "lowest allowed: 88.7 %" in drawing
    assert f">{CHOSEN}</text>" in drawing, "the chosen engine is always named"


def test_an_interval_that_is_wider_than_the_drawing_ends_at_its_frame() -> None:
    data = sample_report()
    assert data.profile is not None
    entries = tuple(
        entry.model_copy(update={"latency": entry.latency.model_copy(update={"median_high_ms": 1e4})})
        if entry.latency is not None
        else entry
        for entry in data.profile.entries
    )
    restless = data.model_copy(update={"profile": data.profile.model_copy(update={"entries": entries})})
    drawn = pareto(restless)
    assert drawn is not None
    ends = [float(x) for x in re.findall(r'x2="([\d.]+)"[^>]*class="whisker"', drawn)]
    assert ends
    assert max(ends) <= 1016.0


def test_no_trade_off_is_drawn_without_accuracies_and_no_distribution_without_samples() -> None:
    assert pareto(without_measurement()) is None
    assert latencies(without_measurement()) is None


def test_a_density_is_a_density_and_an_outlier_does_not_smear_it() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(1.0, 0.02, 500).tolist()
    grid = np.linspace(0.8, 1.2, 400)
    plain = density(values, grid)
    assert np.trapezoid(plain, grid) == pytest.approx(1.0, abs=0.01)
    assert density([*values, 40.0], grid).max() == pytest.approx(plain.max(), rel=0.02)


def test_every_engine_has_a_row_with_its_distribution() -> None:
    drawing = latencies(sample_report(threads=(1, 2)))
    assert drawing is not None
    assert len(re.findall(r'class="area ', drawing)) == 48
    assert "2 threads" in drawing


def chain() -> list[Block]:
    return [
        Block(name="@teacher", stage="input", inputs=()),
        Block(name="student", stage="distill", inputs=("@teacher",)),
        Block(name="pruned", stage="prune", inputs=("student",)),
        Block(name="teacher-fp32", stage="export", inputs=("@teacher",)),
        Block(name="student-fp32", stage="export", inputs=("student",)),
        Block(name="pruned-fp32", stage="export", inputs=("pruned",)),
        Block(name="pruned-int8", stage="quantize", inputs=("pruned-fp32", "@teacher")),
        Block(name="profile", stage="profile", inputs=("teacher-fp32", "student-fp32", "pruned-fp32", "pruned-int8")),
        Block(name="chosen", stage="select", inputs=("pruned-int8", "student-fp32", "profile")),
    ]


def test_all_exports_stand_in_one_column_however_long_their_training_was() -> None:
    spots = placed(chain())
    assert len({spots[name].column for name in ("teacher-fp32", "student-fp32", "pruned-fp32")}) == 1
    for block in chain():
        assert all(spots[source].column < spots[block.name].column for source in block.inputs)


def test_no_two_nodes_share_a_place() -> None:
    spots = placed(chain())
    assert len({(spot.column, spot.row) for spot in spots.values()}) == len(spots)
    assert min(spot.row for spot in spots.values()) == 0


def test_edges_that_others_imply_are_not_drawn() -> None:
    edges = reduced(chain())
    assert ("@teacher", "pruned-int8") not in edges
    assert ("pruned-int8", "chosen") not in edges
    assert ("profile", "chosen") in edges


def test_the_way_to_the_choice_holds_its_makers_and_judges_and_no_other_student() -> None:
    way = way_to_choice(sample_report())
    assert {"@teacher", "student", "student-cut", "student-pruned", CHOSEN, "profile", "chosen", "gate"} <= way
    assert not {"pruned", "teacher-int8-ort", "student-fp32", "test-teacher"} & way


def test_the_graph_folds_the_evaluations_and_dashes_what_was_reused() -> None:
    drawing = graph_picture(sample_report())
    assert drawing is not None
    assert "evaluate \N{MULTIPLICATION SIGN} 12" in drawing
    assert drawing.count('class="box reused"') == 5
    assert "accuracy-student-fp32" in drawing, "in the tooltip of the folded box"
