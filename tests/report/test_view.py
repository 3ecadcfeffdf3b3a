"""Texts, ratios and bars."""

from __future__ import annotations

from edgekd.report.sources import sources
from edgekd.report.view import engine_rows, flattened, step_rows, tiles
from tests.report.sample import CHOSEN, sample_report, without_measurement


def test_tiles_compare_with_the_teacher_and_the_limit() -> None:
    latency, accuracy, size = tiles(sample_report())
    assert (latency.unit, latency.detail, latency.origin) == ("ms", "limit 0.5 ms", "measured")
    assert latency.against == "8.1\N{MULTIPLICATION SIGN} faster than the teacher's 2.91 ms (OpenVINO)"
    assert accuracy.value == "89.0"
    assert accuracy.name == "Top-1 accuracy, 2,500 test images"
    assert accuracy.against == "0.6 points below the teacher's 89.7 %"
    assert size.against == "16\N{MULTIPLICATION SIGN} smaller than the teacher's 3.27 MiB"


def test_a_bar_reaches_beyond_its_limit_when_the_limit_is_missed() -> None:
    kept, missed = tiles(sample_report())[0].bar, tiles(sample_report(max_latency_ms=0.2))[0].bar
    assert kept is not None
    assert missed is not None
    assert kept.limit is not None
    assert missed.limit is not None
    assert (kept.status, missed.status) == ("PASS", "FAIL")
    assert kept.value < kept.limit < 100
    assert missed.limit < missed.value < 100


def test_steps_compare_with_their_parent_and_with_the_teacher() -> None:
    rows = step_rows(sample_report())
    teacher, alone, student, pruned, quantized, other, _ = rows
    assert (teacher.accuracy_gain, teacher.size_gain, teacher.factor) == ("", "", "1.0\N{MULTIPLICATION SIGN}")
    assert alone.size_gain == "÷ 3.5"
    assert student.latency_gain == "÷ 3.6", "a student starts from the teacher"
    assert pruned.latency_gain == "÷ 1.5"
    assert quantized.accuracy_gain == "\N{MINUS SIGN}0.2 points"
    assert quantized.step.chosen
    assert other.first_of_branch
    assert other.latency_gain == "÷ 2.4", "the pruned teacher is compared with the teacher, not with the row above"
    assert other.took == "reused"
    assert max(row.factor_bar for row in rows) == quantized.factor_bar == 100


def test_the_chosen_engine_heads_the_table_and_failures_end_it() -> None:
    rows = engine_rows(sample_report())
    assert rows[0].chosen
    assert rows[0].name == CHOSEN
    assert rows[0].outcome.startswith("Chosen: ")
    assert rows[-1].outcome.startswith("no latency")
    assert [row.p50 for row in rows[1:-1]] == sorted((row.p50 for row in rows[1:-1]), key=float)


def test_other_thread_counts_are_shown_for_information() -> None:
    rows = engine_rows(sample_report(threads=(1, 2)))
    assert sum(row.chosen for row in rows) == 1
    assert all("for information" in row.outcome for row in rows if row.threads == "2")


def test_a_prediction_has_no_tail() -> None:
    row = engine_rows(without_measurement())[0]
    assert row.predicted
    assert row.p95 == row.p99 == "\N{EN DASH}"


def test_sources_say_what_was_timed_and_on_what_accuracy_stands() -> None:
    found = dict(sources(sample_report()))
    assert "one call of the engine with host arrays" in found["Latency"]
    assert "1,800 timed calls each" in found["Latency"]
    assert "2,500 select images and 2,500 test images" in found["Top-1 accuracy"]
    assert "decides no verdict" in dict(sources(without_measurement()))["Predicted latency"]


def test_nested_facts_are_flattened_with_their_path() -> None:
    assert flattened({"machine": {"cpu_model": "x", "cores": 2}, "clock": None, "list": [1, 2]}) == [
        ("machine / cpu model", "x"),
        ("machine / cores", "2"),
        ("clock", "\N{EN DASH}"),
        ("list", "1, 2"),
    ]
