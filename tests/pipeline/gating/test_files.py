"""The baseline's file: rounded to its noise, readable, unchanged by noise."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgekd.gate.artifacts import read_baseline
from edgekd.gate.baseline import Baseline, baseline_from_results
from edgekd.pipeline.gating.files import is_same_result, relative_bundle, rounded, write_baseline
from tests.gate.results import accuracy, latency


def baseline(p50: float, noise: float = 0.01) -> Baseline:
    found = accuracy("x", 0.9123456, split="test")
    return baseline_from_results("a desk", latency(p50, noise=noise), found, 1.23456789)


@pytest.mark.parametrize(
    ("p50", "noise", "shown"),
    [(0.843716, 0.01, 0.844), (0.843716, 0.2, 0.8), (0.843716, 1e-6, 0.8437), (1234.567, 0.01, 1230)],
)
def test_latencies_keep_the_digits_that_the_noise_leaves(p50: float, noise: float, shown: float) -> None:
    assert rounded(baseline(p50, noise)).p50_ms == shown


@given(st.floats(1e-3, 1e4), st.floats(1e-5, 0.5))
def test_rounding_never_narrows_the_interval_and_keeps_the_median_in_it(p50: float, noise: float) -> None:
    before, after = baseline(p50, noise), rounded(baseline(p50, noise))
    assert after.median_low_ms <= before.median_low_ms * (1 + 1e-6)
    assert after.median_high_ms >= before.median_high_ms * (1 - 1e-6)
    assert after.median_low_ms <= after.p50_ms <= after.median_high_ms


def test_the_file_has_sorted_keys_one_a_line_and_reads_back(tmp_path: Path) -> None:
    write_baseline(baseline(1.0), tmp_path / "ci" / "main.json")
    text = (tmp_path / "ci" / "main.json").read_text()
    keys = [line.split('"')[1] for line in text.splitlines()[1:-1]]
    assert keys == sorted(keys)
    assert len(keys) == len(json.loads(text))
    assert text.endswith("}\n")
    assert read_baseline(tmp_path / "ci" / "main.json") == rounded(baseline(1.0))


def test_noise_is_the_same_result_and_a_change_is_not() -> None:
    assert is_same_result(baseline(1.0), baseline(1.005))
    assert not is_same_result(baseline(1.0), baseline(1.1))
    assert not is_same_result(baseline(1.0), baseline(1.0).model_copy(update={"device": "another"}))
    assert not is_same_result(baseline(1.0), baseline(1.0).model_copy(update={"content": "1" * 64}))


def test_a_bundle_is_noted_relative_to_the_file(tmp_path: Path) -> None:
    assert relative_bundle(tmp_path / "accepted" / "bundle", tmp_path / "ci" / "main.json") == "../accepted/bundle"
