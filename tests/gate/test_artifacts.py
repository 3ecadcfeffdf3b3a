"""A finished run judged again from its files."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgekd.core.report import Budget, Choice, Verdict
from edgekd.errors import UserError
from edgekd.gate.artifacts import METRICS_FILE, RunMetrics, baseline_of_run, judge_run, read_baseline, read_run
from tests.gate.results import accuracy, entry, profile


def run() -> RunMetrics:
    return RunMetrics(
        target="host",
        budget=Budget(max_latency_ms=2.0, max_drop=0.01),
        reference="teacher-fp32",
        chosen="chosen",
        choice=Choice(
            candidate="student-int8", runtime="openvino", precision="int8", reason="fast", within_budget=True
        ),
        profile=profile(
            entry("teacher-fp32", 3.0),
            entry("student-int8", 5.0),
            entry("student-int8", 0.9, runtime="openvino", threads=2),
            entry("student-int8", 1.0, runtime="openvino"),
        ),
        evaluations=(accuracy("teacher-fp32", 0.9, split="test"), accuracy("chosen", 0.895, split="test")),
        verdict=Verdict(status="PASS", reason="x"),
        stages={"student": {"seconds": 3.0}},
    )


def test_metrics_come_back_from_the_folder_or_the_file(tmp_path: Path) -> None:
    (tmp_path / METRICS_FILE).write_text(run().to_json())
    assert read_run(tmp_path) == run()
    assert read_run(tmp_path / METRICS_FILE) == run()


def test_a_run_is_judged_again_under_its_own_limits_and_under_others() -> None:
    assert judge_run(run()).status == "PASS"
    assert judge_run(run(), Budget(max_latency_ms=0.5)).status == "FAIL"
    assert judge_run(run(), Budget(max_drop=0.001)).status == "FAIL"


def test_the_entry_that_is_judged_is_the_chosen_runtime_at_the_first_thread_count() -> None:
    assert judge_run(run(), Budget(max_latency_ms=2)).checks[0].value == 1.0


def test_a_run_passes_against_its_own_baseline(tmp_path: Path) -> None:
    path = tmp_path / "baseline.json"
    path.write_text(baseline_of_run(run()).model_dump_json())
    assert judge_run(run(), Budget(), read_baseline(path)).status == "PASS"


def test_an_unmeasured_run_sets_no_baseline_and_names_the_target() -> None:
    elsewhere = run().model_copy(update={"profile": profile(entry("student-int8", None), measured=False)})
    with pytest.raises(UserError, match="needs a measured latency"):
        baseline_of_run(elsewhere)
    assert "not measured on host" in judge_run(elsewhere).reason


def test_a_folder_that_is_no_run_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"holds no metrics\.json: expected the output folder of a finished run"):
        read_run(tmp_path)
    (tmp_path / METRICS_FILE).write_text('{"schema_version": 99}')
    with pytest.raises(UserError, match="schema_version"):
        read_run(tmp_path)


def test_a_choice_of_another_run_is_noticed() -> None:
    other = run().choice.model_copy(update={"candidate": "unknown"})
    with pytest.raises(UserError, match="no entry for the chosen unknown@openvino"):
        judge_run(run().model_copy(update={"choice": other}))
