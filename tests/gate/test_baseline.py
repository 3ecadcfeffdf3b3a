"""Baselines from files: other schemas, other devices, other tolerances."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from edgekd.errors import UserError
from edgekd.gate.artifacts import read_baseline
from edgekd.gate.baseline import baseline_from_results, incomparable, tolerating
from tests.gate.results import accuracy, latency

BASELINE = baseline_from_results("a desk", latency(1.0), accuracy("chosen", 0.9, split="test"), 2.0)


def test_a_baseline_without_the_newer_fields_still_loads(tmp_path: Path) -> None:
    old = {k: v for k, v in BASELINE.plain().items() if k not in ("bundle", "content", "reason")}
    (tmp_path / "main.json").write_text(json.dumps(old))
    assert read_baseline(tmp_path / "main.json") == BASELINE


def test_a_baseline_of_another_schema_says_so_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "main.json").write_text(json.dumps({"schema_version": 7, "whatever": 1}))
    with pytest.raises(UserError, match=r"main\.json: baseline schema 7, this edgekd reads 1") as found:
        read_baseline(tmp_path / "main.json")
    assert "edgekd baseline update" in str(found.value.hint)


def test_something_that_is_no_baseline_is_refused(tmp_path: Path) -> None:
    (tmp_path / "main.json").write_text("[1]")
    with pytest.raises(UserError, match="expected a mapping"):
        read_baseline(tmp_path / "main.json")


@pytest.mark.parametrize(("device", "threads"), [("another desk", 1), ("a desk", 2)])
def test_milliseconds_of_another_device_or_setting_are_not_compared(device: str, threads: int) -> None:
    reason = incomparable(BASELINE, device, threads)
    assert reason is not None
    assert "a desk; 1 thread)" in reason
    assert incomparable(BASELINE, "a desk", 1) is None


def test_tolerances_that_were_asked_for_replace_the_baselines_own() -> None:
    found = tolerating(BASELINE, max_regression=0.02)
    assert (found.latency_tolerance, found.accuracy_tolerance) == (0.02, BASELINE.accuracy_tolerance)
